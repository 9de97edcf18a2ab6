"""The same grid trained one run after another and side by side: wall clock and processor time, compilation included, and the losses.

Each way is a process of its own with an empty cache of compiled programs, as a user starts it the first time; they take turns
`--rounds` times, and the fastest of each counts. Losses of both are compared row by row.

python experiments/benchmark_sweep.py                                      8 adapters on MiniLM, 12 steps
python experiments/benchmark_sweep.py --stack 4 --config.train.total_steps=40 --config.sweep.rank=1,4,16 --config.sweep.format=nf4
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


def measure(overrides: list[str], stack: int, out: Path) -> dict[str, float]:
    """Seconds of one sweep in a new process."""
    command = [sys.executable, "-m", "lora_jax", "sweep", "--config", "configs/default.py", "--quiet", "--no-report", *overrides]
    command += [f"--config.sweep.stack={stack}", f"--config.out={out / 'runs'}"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(out / "xla")})
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    results = [json.loads(path.read_text()) for path in (out / "runs").glob("*/result.json")]
    return {
        "runs": len(results),
        "wall": wall,
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "compile": sum(result["compile_seconds"] for result in results),
        "peak_rss_mb": max(result["peak_rss_bytes"] for result in results) / 1e6,
    }


def worst_difference(one: Path, two: Path) -> float:
    """The largest relative difference of a loss between the runs of two stores."""
    worst = 0.0
    for path in sorted(one.glob("*/metrics.jsonl")):
        rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in (path, two / path.parent.name / path.name)]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]], path
        worst = max([worst, *(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(*rows, strict=True))])
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", type=int, default=8, help="adapters in one program")
    parser.add_argument("--rounds", type=int, default=1)
    arguments, overrides = parser.parse_known_args()
    given = {override.partition("=")[0] for override in overrides}
    overrides += [f"--config.{key}={value}" for key, value in GRID.items() if f"--config.{key}" not in given]
    best: dict[int, dict[str, float]] = {}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            stores = {}
            for stack in (1, arguments.stack):
                stores[stack] = Path(folder) / str(stack)
                found = measure(overrides, stack, stores[stack])
                best[stack] = min(best.get(stack, found), found, key=lambda figures: figures["processor"])
            difference = worst_difference(*(store / "runs" for store in stores.values()))
    print(f"{'':<16}{'runs':>6}{'wall s':>9}{'processor s':>13}{'compile s':>11}{'peak RSS MB':>13}")
    for stack, name in ((1, "one by one"), (arguments.stack, f"{arguments.stack} side by side")):
        row = best[stack]
        print(f"{name:<16}{row['runs']:>6}{row['wall']:>9.1f}{row['processor']:>13.1f}{row['compile']:>11.1f}{row['peak_rss_mb']:>13.0f}")
    ratio = {key: best[arguments.stack][key] / best[1][key] for key in ("wall", "processor")}
    print(
        f"side by side / one by one: wall {ratio['wall']:.3f}, processor {ratio['processor']:.3f}; worst loss difference {difference:.1e}"
    )


if __name__ == "__main__":
    main()
