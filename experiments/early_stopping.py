"""Does a sweep that stops runs early find what the whole sweep finds, and what does it save?

24 arms (rank 1, 4, 16 x fp32, nf4 x query+value, all linear layers x two learning rates), 20 seeds:
20 repeats of one sweep. Every run is trained to its end once, with its validation loss measured
where rungs may be. Then `lora_jax.sweeps.halving.Halving` itself judges the recorded losses, in the
order in which the runner brings runs to their rungs. A few repeats are trained with
`sweep.halving`, to show that what is replayed is what happens.

The model is the first three layers of MiniLM-L6, moved to reviews by 40 steps on IMDB, the texts
are the first 16 tokens of Rotten Tomatoes: a run of 32 steps then takes seconds, and its loss falls
from the first step on. That of the whole MiniLM does not move for 20 to 30 steps, in which nothing
can be judged.

  python experiments/early_stopping.py full             the 480 runs; goes on where it was stopped
  python experiments/early_stopping.py commands 0 1     seeds 0 and 1 as commands with and without
                                                        rungs, and two of their arms one by one
  python experiments/early_stopping.py report           what they say

The folder is runs/early_stopping, or --out. As a config, once `full` has made the model:

  lora-jax sweep --config experiments/early_stopping.py --config.sweep.halving.rungs=8,16
"""

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_collections

from lora_jax import load_config, load_model, load_run, merge, run_sweep, save_model
from lora_jax.config import Config, HalvingConfig
from lora_jax.core.cache import cache_dir
from lora_jax.core.paths import flatten, unflatten
from lora_jax.io import resolve
from lora_jax.sweeps import RunStore, expand, run_id
from lora_jax.sweeps.halving import Halving
from lora_jax.sweeps.runner import describe_runs
from lora_jax.sweeps.side_by_side import packs
from lora_jax.sweeps.store import read_run
from lora_jax.tasks.opening import LastTask

BASE = "early_stopping-v1"
SEEDS = tuple(range(20))
OUT = Path("runs/early_stopping")


def get_config(form: str = "arms") -> ml_collections.ConfigDict:
    """The sweep: 'arms', or 'base', the run on IMDB that makes its model."""
    home = cache_dir() / BASE
    config = ml_collections.ConfigDict(
        dict(
            model=dict(name=str(home / "moved"), scan=False),
            data=dict(name="rotten_tomatoes", max_length=16, buckets=(16,)),
            method="lora",
            lora=dict(rank=4, alpha=16.0, targets="all-linear"),
            quant=dict(block_size=64, double=True),
            optim=dict(weight_decay=0.01, schedule="linear", warmup_fraction=0.1),
            train=dict(
                total_steps=32,
                batch_size=32,
                eval_batch_size=64,
                eval_examples=256,
                log_every=8,
                checkpoint_every=1000,
            ),
            sweep=dict(
                rank=(1, 4, 16),
                format=("none", "nf4"),
                targets=("query+value", "all-linear"),
                axes=("optim.learning_rate = 1e-3, 4e-3",),
                seeds=(0,),
                stack=12,
            ),
            out=str(OUT / "one"),
        )
    )
    if form == "base":
        config.update(
            dict(
                model=dict(name=str(home / "cut")),
                data=dict(name="imdb", max_length=32, buckets=(32,)),
                method="full",
                optim=dict(learning_rate=2e-4),
                train=dict(total_steps=40),
                sweep=dict(rank=(), format=(), targets=(), axes=(), seeds=(), stack=1),
                out=str(home / "runs"),
            )
        )
    elif form != "arms":
        raise ValueError(f"the argument must be arms or base, got {form!r}")
    return config


def make_base() -> None:
    """The model of the sweep, in the cache: made once, from a fixed seed."""
    home = cache_dir() / BASE
    if (home / "moved" / "model.safetensors").is_file():
        return
    source = resolve("minilm-l6")
    settings, params = load_model(source, scan=False)
    kept = {
        path: weight
        for path, weight in flatten(params).items()
        if not path.startswith(("layers_3/", "layers_4/", "layers_5/"))
    }
    save_model(home / "cut", replace(settings, num_layers=3), unflatten(kept))
    _copy_tokenizer(source, home / "cut")

    config = load_config(f"{__file__}:base")
    run_sweep(config, quiet=True)
    tuned = load_run(RunStore(config.out).folder(run_id(expand(config)[0])))
    params, _ = merge(tuned.frozen, tuned.trainable)
    kept = {path: x for path, x in flatten(params).items() if not path.startswith("classifier/")}
    plain = replace(tuned.task.model.config, num_classes=None)
    save_model(home / "moved", plain, unflatten(kept))
    _copy_tokenizer(source, home / "moved")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)


def whole_config(out: Path, seeds: Sequence[int]) -> Config:
    """The sweep whose runs are all trained to their ends, with losses where rungs may be."""
    settings = [f"sweep.seeds={','.join(map(str, seeds))}", f"out={out / 'full'}"]
    settings.append("train.eval_every=8")
    return load_config(f"{__file__}:arms", [f"config.{setting}" for setting in settings])


def train_full(out: Path) -> None:
    """The 480 runs, seed by seed in one process."""
    config = whole_config(out, SEEDS)
    tasks, runs = LastTask(), expand(config)
    for seed in SEEDS:
        wall, processor = time.perf_counter(), time.process_time()
        ours = [run for run in runs if run.train.seed == seed]
        outcome = run_sweep(config, runs=ours, quiet=True, tasks=tasks)
        if outcome.done:
            spent = {"seed": seed, "runs": len(outcome.done), "wall": time.perf_counter() - wall}
            spent["processor"] = time.process_time() - processor
            with (out / "spent_full.jsonl").open("a") as file:
                file.write(json.dumps(spent) + "\n")


# --- Commands, as a user starts them: each a process with an empty cache of compiled programs.

# What is trained with rungs; the replay tries others besides.
RUNGS = HalvingConfig(rungs=(8, 16), factor=3, margin=0.005)


def run_commands(out: Path, seeds: Sequence[int]) -> None:
    """Each seed's sweep with rungs and without, and two arms of the first one by one."""
    settings = {
        "rungs": ",".join(map(str, RUNGS.rungs)),
        "factor": RUNGS.factor,
        "margin": RUNGS.margin,
    }
    halving = [f"--config.sweep.halving.{key}={value}" for key, value in settings.items()]
    for seed in seeds:
        command(out, f"stopped-{seed}", f"--config.sweep.seeds={seed}", *halving)
        command(out, f"whole-{seed}", f"--config.sweep.seeds={seed}")
    for number, form in enumerate(("none", "nf4")):
        one = ["rank=4", f"format={form}", f"targets={('query+value', 'all-linear')[number % 2]}"]
        one += ["axes=optim.learning_rate = 1e-3", f"seeds={seeds[0]}", "stack=1"]
        command(out, f"alone-{number}", *(f"--config.sweep.{setting}" for setting in one))


def command(out: Path, name: str, *options: str) -> None:
    """One `lora-jax sweep` into a folder of this name, unless it is there, and what it took."""
    if (out / name / "spent.json").is_file():
        return
    shutil.rmtree(out / name, ignore_errors=True)
    words = [sys.executable, "-m", "lora_jax", "sweep", "--config", __file__, "--quiet"]
    words += ["--no-report", f"--config.out={out / name}", *options]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    with tempfile.TemporaryDirectory() as cache:
        surroundings = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        subprocess.run(words, check=True, env=surroundings)
    wall, after = time.time() - start, resource.getrusage(resource.RUSAGE_CHILDREN)

    spent = {
        "wall": wall,
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "ranked": time_of_ranking(out / name, RUNGS.rungs[0]) - start,
        "steps": sum(max(row["step"] for row in rows) for rows in rows_of(out / name)),
    }
    (out / name / "spent.json").write_text(json.dumps(spent))


def rows_of(folder: Path) -> list[list[dict[str, Any]]]:
    """The metrics of every run of a store that has any."""
    logs = sorted(folder.glob("*/metrics.jsonl"))
    return [list(RunStore(folder).metrics(path.parent.name)) for path in logs]


def time_of_ranking(folder: Path, rung: int) -> float:
    """When the last run of a store was at a rung, in seconds since 1970."""
    return max(row["time"] for rows in rows_of(folder) for row in rows if row["step"] == rung)


# --- What was recorded, and the replay.


@dataclass(frozen=True)
class Recorded:
    """A run that was trained to its end: its validation loss by step, and its test scores."""

    validation: Mapping[int, float]
    accuracy: float
    loss: float

    @property
    def last(self) -> float:
        """What a sweep chooses by."""
        return self.validation[max(self.validation)]


def recorded(out: Path) -> dict[int, dict[Config, Recorded]]:
    """{seed: {arm: what was recorded}} of the seeds whose 24 runs are done, an arm being its config
    at seed 0, in the order of the grid.
    """
    store, found = RunStore(out / "full"), {}
    arms = expand(whole_config(out, (0,)))
    for seed in SEEDS:
        runs = {arm: replace(arm, train=replace(arm.train, seed=seed)) for arm in arms}
        if all(store.status(run_id(run)) == "done" for run in runs.values()):
            found[seed] = {arm: _recorded(store, run_id(run)) for arm, run in runs.items()}
    return found


def _recorded(store: RunStore, name: str) -> Recorded:
    rows = [row for row in store.metrics(name) if row["split"] == "validation"]
    result = read_run(store.folder(name)).result
    return Recorded(
        {row["step"]: row["loss"] for row in rows},
        result.value("test", "accuracy"),
        result.value("test", "loss"),
    )


@dataclass(frozen=True)
class Replayed:
    """A sweep with rungs: the runs that were finished, the steps of all, those until every run had
    been at the first rung, and where each other run was stopped.
    """

    finished: tuple[Config, ...]
    steps: int
    steps_to_ranking: int
    stopped: Mapping[Config, int]


def replay(runs: Mapping[Config, Recorded], halving: HalvingConfig, stack: int) -> Replayed:
    """The sweep as `runner` and `training.loop` train it: packs one after another, the runs of each
    in `stack` slots that are filled again; those at a rung are judged in the order of their slots.
    """
    first = next(iter(runs))
    sweep = replace(first.sweep, halving=halving, stack=stack)
    finished: list[Config] = []
    steps = to_ranking = 0
    with tempfile.TemporaryDirectory() as folder:
        judge = Halving(Path(folder), halving)
        for pack in packs(list(runs), sweep):
            waiting, there = list(pack.runs), {}
            while waiting or there:
                while waiting and len(there) < pack.slots:
                    there[waiting.pop(0)] = 0
                there = {run: step + 1 for run, step in there.items()}
                steps += len(there)
                for run, step in list(there.items()):
                    if step == first.train.total_steps:
                        finished.append(run)
                        del there[run]
                    elif step in halving.rungs:
                        to_ranking = steps if step == halving.rungs[0] else to_ranking
                        if not judge.keep(run_id(run), step, runs[run].validation[step]):
                            del there[run]
        by_name = {run_id(run): run for run in runs}
        stopped = {by_name[name]: step for name, step in judge.stopped.items()}
    return Replayed(tuple(finished), steps, to_ranking, stopped)


# --- What they say.

_POLICIES = [
    HalvingConfig(rungs=rungs, factor=factor, margin=margin)
    for rungs in ((8,), (16,), (8, 16))
    for factor, margin in ((2, 0.0), (3, 0.0), (4, 0.0), (3, 0.005), (3, 0.01))
]


def chosen(runs: Mapping[Config, Recorded], among: Sequence[Config]) -> Config:
    """The sweep's winner: by validation loss, of the runs that were finished."""
    return min(among, key=lambda arm: runs[arm].last)


@dataclass(frozen=True)
class Interval:
    """The full sweep's interval of best, in accuracy: 1.96 times `spread`, the smaller of the best
    arm's deviation over seeds and the binomial error of one test. A winner of another sweep of the
    same seed lies in it if it scores at most so much less on the same texts.

    And of all seeds: the best arm's mean loss, and 1.96 standard errors of it.
    """

    spread: float
    loss: float
    error: float

    def holds(self, less: float) -> bool:
        """Whether a score that is so much lower than the best lies in it."""
        return less <= 1.96 * self.spread + 1e-12

    def holds_mean(self, loss: float) -> bool:
        """Whether an arm of this mean loss is as good as the best."""
        return loss <= self.loss + 1.96 * self.error


def interval(found: Mapping[int, Mapping[Config, Recorded]], texts: int) -> Interval:
    """The interval of the arm whose loss on validation data is the lowest over all seeds."""
    arms = next(iter(found.values()))
    best = min(arms, key=lambda arm: statistics.fmean(runs[arm].last for runs in found.values()))
    accuracies = [runs[best].accuracy for runs in found.values()]
    losses = [runs[best].loss for runs in found.values()]
    share = statistics.fmean(accuracies)
    binomial = math.sqrt(share * (1 - share) / texts)
    deviation, error = statistics.stdev(accuracies), statistics.stdev(losses) / len(losses) ** 0.5
    words = describe_runs(list(arms))
    print(
        f"Best arm over {len(found)} seeds: {words[run_id(best)].rpartition(', ')[0]}; test "
        f"accuracy {share:.3f}, deviation over seeds {deviation:.4f}, binomial error {binomial:.4f}; test "
        f"loss {statistics.fmean(losses):.4f}, standard error {error:.4f}."
    )
    return Interval(min(deviation, binomial), statistics.fmean(losses), error)


def report(out: Path, texts: int = 875) -> None:
    """Prints what the store holds."""
    found = recorded(out)
    if len(found) < 2:
        raise SystemExit(f"{out / 'full'} holds {len(found)} whole seeds, and 2 are needed.")
    best = interval(found, texts)
    arms = list(next(iter(found.values())))
    means = {arm: statistics.fmean(runs[arm].loss for runs in found.values()) for arm in arms}

    print(
        f"{'':<34}{'same':>6}{'within':>8}{'means':>7}{'points less':>18}{'loss more':>18}", end=""
    )
    print(f"{'steps':>8}{'ranked':>8}{'finished':>9}")
    row("any arm", found, best, means, {seed: list(runs) for seed, runs in found.items()})
    row("all runs finished", found, best, means, {s: [chosen(r, arms)] for s, r in found.items()})
    for policy in _POLICIES:
        replays = {seed: replay(runs, policy, stack=12) for seed, runs in found.items()}
        winners = {s: [chosen(found[s], one.finished)] for s, one in replays.items()}
        title = f"rungs {', '.join(map(str, policy.rungs))}, best 1 / {policy.factor}"
        title += f" + {policy.margin:g}" if policy.margin else ""
        whole = sum(arm.train.total_steps for arm in arms)
        costs = [
            statistics.fmean(one.steps / whole for one in replays.values()),
            statistics.fmean(one.steps_to_ranking / whole for one in replays.values()),
            statistics.fmean(len(one.finished) for one in replays.values()),
        ]
        row(title, found, best, means, winners, costs)
    report_commands(out, found)


def row(
    title: str,
    found: Mapping[int, Mapping[Config, Recorded]],
    best: Interval,
    means: Mapping[Config, float],
    winners: Mapping[int, Sequence[Config]],
    costs: Sequence[float] = (),
) -> None:
    """A line of the table: how the winners of each seed compare with the full sweep's of the same
    seed. Counts of seeds; of several winners a seed, their mean.
    """
    less, more, same, means_hold = [], [], [], []
    for seed, runs in found.items():
        first = chosen(runs, list(runs))
        own = winners[seed]
        less.append([runs[first].accuracy - runs[arm].accuracy for arm in own])
        more.append([runs[arm].loss - runs[first].loss for arm in own])
        same.append(statistics.fmean(arm == first for arm in own))
        means_hold.append(statistics.fmean(best.holds_mean(means[arm]) for arm in own))
    within = [statistics.fmean(best.holds(x) for x in one) for one in less]
    points = [100 * x for one in less for x in one]
    losses = [x for one in more for x in one]
    print(
        f"{title:<34}{sum(same):>6.1f}{sum(within):>8.1f}{sum(means_hold):>7.1f}"
        f"{statistics.fmean(points):>8.2f} ({max(points):5.1f})"
        f"{statistics.fmean(losses):>9.4f} ({max(losses):5.3f})",
        end="",
    )
    print("".join(f"{x:>{width}.2f}" for x, width in zip(costs, (8, 8, 9), strict=False)))


def report_commands(out: Path, found: Mapping[int, Mapping[Config, Recorded]]) -> None:
    """Prints what commands took, and whether those with rungs did what the replay does."""
    spent = {
        path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("*/spent.json"))
    }
    for name, one in spent.items():
        print(
            f"{name}: {one['processor']:.0f} processor s, {one['wall']:.0f} s of wall time, the "
            f"first rung of all after {one['ranked']:.0f} s, {one['steps']} steps"
        )
    alone = [one["processor"] for name, one in spent.items() if name.startswith("alone-")]
    for kind in ("stopped", "whole"):
        sweeps = [one["processor"] for name, one in spent.items() if name.startswith(f"{kind}-")]
        if alone and sweeps:
            by_one = 24 * statistics.fmean(alone)
            print(
                f"24 runs one by one, {statistics.fmean(alone):.0f} s each: {by_one:.0f} processor "
                f"s, {by_one / statistics.fmean(sweeps):.1f} times a {kind} sweep's"
            )
    for seed, runs in found.items():
        file = out / f"stopped-{seed}" / "halving.json"
        if file.is_file():
            compare(json.loads(file.read_text()), runs, seed)


def compare(halving: Mapping[str, Any], runs: Mapping[Config, Recorded], seed: int) -> None:
    """Prints whether a sweep with rungs stopped the runs that its replay stops, and by which
    losses.
    """
    named = {
        run_id(replace(arm, train=replace(arm.train, seed=seed, eval_every=None))): arm
        for arm in runs
    }
    really = {named[name]: step for name, step in halving["stopped"].items()}
    expected = replay(runs, RUNGS, stack=12).stopped
    apart = max(
        abs(loss - runs[named[name]].validation[int(step)])
        for step, rung in halving["scores"].items()
        for name, loss in rung.items()
    )
    print(
        f"seed {seed}: {len(really)} runs stopped; the replay stops "
        f"{'the same' if really == expected else f'{len(expected)} others'}; losses at the rung "
        f"differ by at most {apart:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["full", "commands", "report"])
    parser.add_argument("seeds", nargs="*", type=int, help="of commands (0 1)")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    make_base()
    if arguments.part == "full":
        train_full(arguments.out)
    elif arguments.part == "commands":
        run_commands(arguments.out, arguments.seeds or (0, 1))
    else:
        report(arguments.out)


if __name__ == "__main__":
    main()
