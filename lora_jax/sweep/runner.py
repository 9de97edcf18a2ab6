"""Runs a sweep in this process: finished runs are kept, failed ones recorded, compiled programs shared."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_jax.config import ADAPTERS, Config, resolve_targets
from lora_jax.sweep.claims import Claims
from lora_jax.sweep.grid import expand, run_id, shown_format, shown_targets
from lora_jax.sweep.provenance import environment
from lora_jax.sweep.store import RunStore


@dataclass(frozen=True)
class Outcome:
    """What became of the runs of a sweep, by id. `elsewhere` are being run by another process."""

    done: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[str, ...]
    elsewhere: tuple[str, ...]


def groups(runs: Sequence[Config]) -> list[tuple[Config | None, list[Config]]]:
    """Runs that share compiled programs, each group with its widest run (None for runs without adapters).

    Adapters of one format differ in rank and targets only through `scale`: each is padded to the group's largest rank and to
    the union of its targets. What else differs (format, model, data, batch, optimiser) makes another group.
    """
    found: dict[Config, list[Config]] = {}
    for run in runs:
        found.setdefault(_structure(run), []).append(run)
    return [(_widest(members), members) for members in found.values()]


def run_sweep(
    config: Config,
    *,
    runs: Sequence[Config] | None = None,
    since: float | None = None,
    command: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    quiet: bool = False,
) -> Outcome:
    """Trains every run of the configuration's sweep that the store at `config.out` does not hold as done.

    A run that fails is recorded with its error and the rest goes on. SIGTERM and SIGINT stop the sweep between two steps,
    with a checkpoint; the same call goes on from there.

    Args:
        config: the sweep, which is also the plan that the store notes. runs: only these of its runs, in this order.
        since: runs that failed after this time (seconds since 1970) are not tried again; see `Claims`.

    Raises:
        Interrupted: a signal came.
        StoreError: the store cannot be written.
    """
    from lora_jax.train.allocator import release_freed_memory
    from lora_jax.train.interrupted import Interrupted
    from lora_jax.train.loop import train

    planned = groups(expand(config))
    # Of the whole sweep, whichever runs are chosen: a run that another launcher goes on with must find its checkpoint's shapes.
    wides = {run_id(run): wide if len(members) > 1 else None for wide, members in planned for run in members}
    runs = [run for _, members in planned for run in members] if runs is None else runs
    store = RunStore(config.out)
    store.write_plan(list(wides))
    surroundings = environment() | ({"command": " ".join(command)} if command else {})
    claims = Claims(store, surroundings, say or (lambda text: print(text, file=sys.stderr, flush=True)), since)
    for number, run in enumerate(runs, start=1):
        name, title = run_id(run), f"[{number}/{len(runs)}] {describe_run(run)}"
        folder = claims.claim(name, run, title)
        if folder is None:
            continue
        start = time.perf_counter()
        try:
            result = train(run, folder, wide=wides[name], quiet=quiet, title=title)
            accuracy, seconds = result["test_accuracy"], time.perf_counter() - start
            claims.finish(name, _labelled(name, run, result), f"{title}: test accuracy {accuracy:.4f} in {seconds:.0f} s")
        except Interrupted:
            claims.release(name)
            raise
        except (Exception, KeyboardInterrupt) as error:
            claims.fail(name, error, title)
            if isinstance(error, KeyboardInterrupt):
                raise
            continue
        release_freed_memory()
    return Outcome(tuple(claims.done), tuple(claims.kept), tuple(claims.failed), tuple(claims.elsewhere))


def describe_run(run: Config) -> str:
    """A run in a few words: 'nf4, rank 4, all-linear, seed 0'."""
    words = [run.method]
    if run.method in ADAPTERS:
        words = [shown_format(run.quant.format), f"rank {run.lora.rank}", shown_targets(run.lora.targets)]
    return ", ".join([*words, f"seed {run.train.seed}"])


def _structure(run: Config) -> Config:
    """The run without what is data to its compiled program."""
    lora = replace(run.lora, rank=1, targets="all-linear", alpha=1.0, scaling="standard", layers=None)
    lora = replace(lora, dropout=0.5 if run.lora.dropout else 0.0)
    optim = replace(run.optim, learning_rate=1.0, head_learning_rate=None, lora_plus_ratio=1.0)
    return replace(run, lora=lora, optim=optim, train=replace(run.train, seed=0))


def _widest(members: Sequence[Config]) -> Config | None:
    if members[0].method not in ADAPTERS:
        return None
    patterns = dict.fromkeys(resolve_targets(run.lora.targets) for run in members)
    lora = replace(
        members[0].lora,
        rank=max(run.lora.rank for run in members),
        targets="|".join(f"(?:{pattern})" for pattern in patterns),
        layers=None,
    )
    return replace(members[0], lora=lora)


def _labelled(name: str, run: Config, result: dict[str, Any]) -> dict[str, Any]:
    """The result with the cell that it belongs to."""
    adapter = run.method in ADAPTERS
    return {
        "run_id": name,
        "method": run.method,
        "format": run.quant.format if adapter else None,
        "rank": run.lora.rank if adapter else None,
        "targets": shown_targets(run.lora.targets) if adapter else None,
        "seed": run.train.seed,
        **result,
    }
