"""How long it takes to start: the import, the help, and a training step with and without compiled
programs on disk.

    python experiments/benchmark_start.py [--rounds 3] [--cases minilm-fp32,gemma-nf4]

Every figure is the least of a few fresh processes. Steps are those of benchmark_train.py: from the
first call of the step to its result, which is tracing, compiling (or reading what was compiled) and
one step.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark_train import CASES, child, prepare

# Without JAX no device can have been touched.
IMPORT = "import sys, lora_jax; sys.exit('jax' in sys.modules)"


def seconds(command: list[str], rounds: int) -> float:
    """The least time of a program that has to succeed."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def first_steps(name: str, folder: str, rounds: int) -> tuple[float, float]:
    """Seconds of the first step in a process with an empty cache of programs, and in one that finds
    them there.
    """
    kind, precision, batch, length, fraction = CASES[name]
    command = [sys.executable, str(Path(__file__).parent / "benchmark_train.py"), "--ours"]
    command += [kind, precision, folder, "1", str(batch), str(length), str(fraction)]
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
            os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = (
                "0.3"  # as the command line has it
            )
            for times in found:
                times.append(child(command)["first"])
    return min(found[0]), min(found[1])


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="minilm-fp32")
    arguments = parser.parse_args()
    help_seconds = seconds([sys.executable, "-m", "lora_jax", "--help"], arguments.rounds)
    rows = [
        (
            "`import lora_jax` in a new interpreter, no device touched",
            seconds([sys.executable, "-c", IMPORT], arguments.rounds),
            "< 1.5 s",
        ),
        ("`lora-jax --help`", help_seconds, "< 1 s"),
        (
            "`lora-jax train --help`",
            seconds([sys.executable, "-m", "lora_jax", "train", "--help"], arguments.rounds),
            "",
        ),
    ]
    folders = prepare()
    for name in arguments.cases.split(","):
        first, second = first_steps(name, folders[CASES[name][0]], arguments.rounds)
        rows += [
            (f"first step, {name}", first, ""),
            (f"its second start ({100 * second / first:.0f} % of the first)", second, "< 50 %"),
        ]
    print("| start | seconds | target |\n|---|---:|---|")
    for what, value, target in rows:
        print(f"| {what} | {value:.2f} | {target} |")


if __name__ == "__main__":
    main()
