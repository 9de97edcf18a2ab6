"""A process that takes part in the runs that process 0 trains, and writes nothing of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_jax.config import Config, describe
from lora_jax.core import hosts
from lora_jax.tasks.opening import LastTask
from lora_jax.training.handing import taken
from lora_jax.training.interrupted import Interrupted, stop_signals
from lora_jax.training.loop import fit

# What all processes raise together.
ENDS = (Interrupted,)
_PACKAGES = ("jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@contextmanager
def one_of(seat: hosts.Seat | None, alike: Mapping[str, Any]) -> Iterator[None]:
    """`lora_jax.core.hosts.joined`; what process 0 does inside, the others take part in by
    `follow`, and when it is done they are.
    """
    with hosts.joined(seat, alike, ends=ENDS):
        try:
            yield
        except Interrupted:
            if hosts.is_leader():
                hosts.tell("stopped")
            raise
        if hosts.is_leader():
            hosts.tell(None)


def agreement(config: Config) -> dict[str, Any]:
    """What has to be the same in all processes of a run: its settings, versions, and this code."""
    package = Path(__file__).resolve().parents[1]
    code = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        code.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    versions = {f"version of {name}": importlib.metadata.version(name) for name in _PACKAGES}
    settings = {f"config.{key}": value for key, value, _ in describe(config)}
    return settings | versions | {"digest of lora_jax's code": code.hexdigest()[:16]}


def follow() -> None:
    """Takes part in every `fit` of process 0 until that has nothing more to train.

    Raises:
        Interrupted: a process was asked to stop; all runs have checkpoints.
    """
    tasks = LastTask()
    nothing: Callable[..., None] = lambda *_: None
    with stop_signals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Process 0 says them.
        while (order := hosts.hear()) is not None:
            if order == "stopped":
                raise Interrupted(None)
            runs, judge, settings = taken(order)
            try:
                fit(runs, nothing, task_of=tasks.of, judge=judge, quiet=True, **settings)
            except Interrupted:
                # Process 0 was interrupted as well, and says so once its runs are given back.
                continue
            except Exception:
                continue
