"""How much of an adapter's gain does merging into the quantised base keep? A plain merge, one with
GPTQ-style feedback of rounding errors, and merge-aware training, on Rotten Tomatoes with MiniLM-L6.

  python experiments/merge_recovery.py --out runs/merge_recovery
  python experiments/merge_recovery.py --formats nf4 --seeds 0        one cell, to see its time

A cell is a format and a seed: QLoRA of rank 8 on all linear layers for --steps steps, merged plainly
and with the inputs of 8 training batches; the same run with its weights rounded from step 0; and the
plain run gone on merge-aware for --last steps. Recovery is the share of the adapter's gain in
validation loss that the merged weights keep (`lora_jax.training.recovery`); that of merge-aware runs
is 1 by construction and measured as the others', and beside it stands what share of the plain run's
gain they reach. Trained runs and cells stay in --out; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lora_jax.config import Config, load_config
from lora_jax.core.json_files import save_json
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.runner import run_sweep
from lora_jax.training.recovery import merge_run
from lora_jax.training.saved import SavedRun, load_run

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "rotten_tomatoes.py"
FORMATS = ("nf4", "nf3", "nf2")


def trained(config: Config) -> SavedRun:
    """The run of a config, trained unless its folder has it."""
    (run,) = expand(config)
    outcome = run_sweep(config, quiet=True)
    if outcome.failed or outcome.elsewhere:
        state = "failed" if outcome.failed else "is being trained by another process"
        raise RuntimeError(f"{run_id(run)} {state}; see its folder in {config.out}.")
    return load_run(Path(config.out) / run_id(run))


def cell(plain: Config, last: int, feedback: int) -> dict[str, Any]:
    """Losses and recovery of each way, and the processor time of all."""
    clock = time.process_time()
    run = trained(plain)
    found = {}
    for name, batches in (("plain", 0), ("feedback", feedback)):
        _, _, found[name] = merge_run(run, feedback=batches)
    gain = found["plain"].base - found["plain"].adapter

    aware = replace(plain, lora=replace(plain.lora, merge_aware=True))
    start = str(Path(plain.out) / run_id(expand(plain)[0]) / "adapter")
    ends = replace(
        aware,
        lora=replace(aware.lora, init_from=start),
        train=replace(aware.train, total_steps=last),
    )
    for name, config in (("aware", aware), ("aware at the end", ends)):
        _, _, found[name] = merge_run(trained(config))

    # The head is trained with the factors: a base is that of its own run.
    rows = {
        name: dict(
            base=one.base,
            adapter=one.adapter,
            merged=one.merged,
            recovery=one.share,
            of_plain_gain=(found["plain"].base - one.merged) / gain,
        )
        for name, one in found.items()
    }
    return {"ways": rows, "processor_s": time.process_time() - clock}


def main() -> None:
    """Every cell that is not there yet, and a table of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/merge_recovery")
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--last", type=int, default=50)
    parser.add_argument("--feedback", type=int, default=8, help="training batches")
    parser.add_argument("--more", nargs="*", default=[], help="settings: data.max_length=16 ...")
    asked = parser.parse_args()

    table: dict[str, list[dict[str, Any]]] = {}
    for format in asked.formats:
        for seed in asked.seeds:
            settings = {
                "model.name": asked.model,
                "quant.format": format,
                "train.seed": seed,
                "train.total_steps": asked.steps,
                "sweep.seeds": "",
                "out": f"{asked.out}/runs",
            }
            lines = [f"config.{key}={value}" for key, value in settings.items()]
            lines += [f"config.{one}" for one in asked.more]
            config = load_config(f"{CONFIG}:qlora", lines)
            name = f"{run_id(expand(config)[0])}-{asked.last}-{asked.feedback}"
            file = Path(asked.out) / f"{name}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                save_json(file, cell(config, asked.last, asked.feedback))
            made = json.loads(file.read_text())
            print(f"{format}, seed {seed}: {made['processor_s']:.0f} s of processor time")
            table.setdefault(format, []).append(made["ways"])

    print("| format | way | recovery by seed | share of the plain run's gain, mean |")
    print("|---|---|---|---|")
    for format, cells in table.items():
        for way in cells[0]:
            shares = ", ".join(f"{one[way]['recovery']:.3f}" for one in cells)
            reached = fmean(one[way]["of_plain_gain"] for one in cells)
            print(f"| {format} | {way} | {shares} | {reached:.3f} |")


if __name__ == "__main__":
    main()
