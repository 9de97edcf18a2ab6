"""How long a store of many runs takes to list and to report: the runs are made up, the files are
real.

    python experiments/benchmark_store.py --runs 10000
    python experiments/benchmark_store.py --runs 1200 --answers
    python experiments/benchmark_store.py --search --runs 100

The second is with what each run gave on 1,066 test examples, as training keeps it. The third is a search: a run a trial, each with its own values of six continuous settings.

Prints seconds, and seconds of processor time (other processes make the first longer), for: listing
by the index, listing without it (every folder read), making the index again, the export to CSV, and
the whole report (tables, statistics, pictures, the HTML page); and the largest memory of the process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lora_jax import write_report
from lora_jax.config import Config
from lora_jax.metrics.predictions import Prediction, Predictions, save_predictions
from lora_jax.sweeps import RunStore, export_runs
from lora_jax.sweeps.files import write_json
from lora_jax.sweeps.grid import run_id

ENVIRONMENT = {
    "versions": {"lora_jax": "0.1.0", "jax": "0"},
    "device": {"platform": "cpu", "kind": "cpu", "count": 1},
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "command": "lora-jax sweep --config configs/default.py",
}
STEPS = 40


def made_up_runs(count: int) -> Sequence[Config]:
    """A grid of rank, format, targets and learning rate, with as many seeds as make `count`
    runs.
    """
    base = Config()
    cells = list(
        itertools.product(
            (1, 2, 4, 8, 16),
            ("none", "int8", "nf4", "fp4"),
            ("query+value", "all-linear"),
            (5e-4, 1e-3, 2e-3),
        )
    )
    found = []
    for seed in range(math.ceil(count / len(cells))):
        for rank, format, targets, rate in cells:
            run = replace(
                base,
                method="lora" if format == "none" else "qlora",
                lora=replace(base.lora, rank=rank, targets=targets),
                quant=replace(base.quant, format=format),
                optim=replace(base.optim, learning_rate=rate),
                train=replace(base.train, seed=seed),
            )
            found.append(run)
    return found[:count]


def made_up_trials(count: int) -> Sequence[Config]:
    """A run a trial, as a search draws them."""
    base, draw, found = Config(), random.Random(0), []
    for _ in range(count):
        optim = replace(
            base.optim,
            learning_rate=10 ** draw.uniform(-4, -2),
            weight_decay=draw.uniform(0, 0.1),
            beta2=draw.uniform(0.9, 0.999),
            warmup_fraction=draw.uniform(0, 0.3),
        )
        lora = replace(base.lora, alpha=draw.uniform(4, 64), dropout=draw.uniform(0, 0.3))
        found.append(replace(base, optim=optim, lora=lora))
    return found


def fill(root: Path, runs: Sequence[Config]) -> None:
    """Writes the runs as finished ones."""
    from lora_jax.config import to_dict

    root.mkdir(parents=True, exist_ok=True)
    write_json(root / "store.json", {"format": 2, "lora_jax": "0.1.0"})
    names = []
    for run in runs:
        name = run_id(run)
        names.append(name)
        luck = random.Random(name)
        folder = root / name
        folder.mkdir()
        wide, small = run.lora.targets == "all-linear", run.quant.format == "nf4"
        accuracy = (
            0.75
            + 0.008 * math.log2(run.lora.rank)
            + 0.02 * wide
            - 0.006 * small
            + luck.gauss(0, 0.006)
        )
        bits = {"none": 32.0, "int8": 8.1, "nf4": 4.1, "fp4": 4.1}[run.quant.format]
        result = {
            "run_id": name, "method": run.method, "format": run.quant.format, "rank": run.lora.rank, "targets": run.lora.targets,
            "seed": run.train.seed, "examples": {"train": 8500, "validation": 256, "test": 1066}, "test_accuracy": accuracy,
            "test_loss": 1.2 - accuracy, "validation_accuracy": accuracy, "validation_loss": 1.2 - accuracy, "steps": STEPS,
            "trainable_parameters": 9000 * run.lora.rank, "base_bytes": int(12.3e6 + 10.6e6 * bits / 8), "base_bits_per_weight": bits,
            "adapter_bytes": 36000 * run.lora.rank, "peak_bytes": 310_000_000, "peak_rss_bytes": 900_000_000,
            "tokens_per_second": 5200.0, "seconds": 20 + luck.random(), "compile_seconds": 0.0, "padding_fraction": 0.12,
        }  # fmt: skip
        rows = [
            {
                "step": step,
                "split": "train",
                "loss": 0.69 - 0.2 * step / STEPS + luck.gauss(0, 0.02),
            }
            for step in range(1, STEPS + 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for file, content in (
            ("config", to_dict(run)),
            ("environment", ENVIRONMENT),
            ("result", result),
        ):
            (folder / f"{file}.json").write_text(json.dumps(content, indent=2))
        (folder / "status.json").write_text(
            json.dumps({"status": "done", "error": None, "updated": 1.7e9, "attempts": 0})
        )
    write_json(root / "plan.json", names)


def timed(title: str, action: Callable[[], object]) -> float:
    """Seconds of the action, printed."""
    start, busy = time.perf_counter(), time.process_time()
    action()
    seconds = time.perf_counter() - start
    print(
        f"{title:<44} {seconds:6.2f} s ({time.process_time() - busy:.2f} s of processor time)",
        flush=True,
    )
    return seconds


def answer(root: Path, runs: Sequence[Config]) -> None:
    """What each run gave on the test examples: right as often as its score says."""
    for run in runs:
        folder, draw = root / run_id(run), random.Random(run_id(run))
        accuracy = json.loads((folder / "result.json").read_text())["test_accuracy"]
        right = [float(number < accuracy * 1066) for number in range(1066)]
        draw.shuffle(right)
        rows = (
            Prediction(f"{n:016x}", draw.random(), 1.0, one, 1, 1) for n, one in enumerate(right)
        )
        predictions = Predictions("test", ("accuracy",), tuple(rows), 2)
        save_predictions(folder / "predictions" / "test.jsonl", predictions)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--search", action="store_true", help="trials of a search, not a grid")
    parser.add_argument("--answers", action="store_true", help="of every run on every test example")
    parser.add_argument("--keep", type=Path, help="make the store here and leave it")
    arguments = parser.parse_args()
    root = arguments.keep or Path(tempfile.mkdtemp()) / "store"
    try:
        if not (root / "plan.json").exists():
            runs = (made_up_trials if arguments.search else made_up_runs)(arguments.runs)
            timed(f"make {arguments.runs} runs", lambda: fill(root, runs))
            if arguments.answers:
                timed("make their answers", lambda: answer(root, runs))
        (root / "index.jsonl").unlink(missing_ok=True)
        timed("list, no index yet (every folder is read)", lambda: RunStore(root).runs())
        listed = timed("list", lambda: RunStore(root).runs())
        timed("make the index again", lambda: RunStore(root).rebuild_index())
        timed("export to CSV", lambda: export_runs(root, root / "runs.csv"))
        written = timed("report, everything", lambda: write_report(root))
        print(
            f"list and report: {listed + written:.2f} s; index "
            f"{(root / 'index.jsonl').stat().st_size / 1e6:.1f} MB; largest memory "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
        )
    finally:
        if not arguments.keep:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
