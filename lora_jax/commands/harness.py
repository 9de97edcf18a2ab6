"""Score a language model, or a run's, on tasks of EleutherAI's lm-evaluation-harness.

  lora-jax harness runs/sql/RUN --tasks arc_easy,hellaswag
  lora-jax harness gemma3-270m --tasks mmlu --shots 5 --limit 100
  lora-jax harness gemma3-270m --adapter runs/sql/RUN/adapter --format nf4 --tasks arc_easy --json

A run is scored with its adapter, on its base as it was stored in training. Tasks, prompts, data and
scores are the harness's own (extra 'harness'), which fetches what it needs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from lora_jax.commands.shared import print_table
from lora_jax.core.escapes import in_terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax harness`."""
    parser.add_argument("model", metavar="RUN|MODEL", help="a finished run, or a base model")
    parser.add_argument("--tasks", required=True, metavar="NAME,...", help="names of the harness")
    parser.add_argument("--adapter", metavar="FOLDER", help="of a base model: a trained adapter")
    parser.add_argument("--format", default="none", help="of a base model: nf4, int8, ... (none)")
    parser.add_argument(
        "--shots", type=int, metavar="N", help="examples in the prompt (the task's)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N of every task")
    parser.add_argument("--batch", type=int, default=16, help="rows at a time (16)")
    parser.add_argument("--out", metavar="FILE.json", help="keep all that the harness reports")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")


def run(arguments: argparse.Namespace) -> int:
    """Scores and prints the table."""
    from lora_jax.core.json_files import save_json
    from lora_jax.metrics.table import library

    harness = library("lm_eval", extra="harness")
    found = harness.simple_evaluate(
        model=_model(arguments),
        tasks=arguments.tasks.split(","),
        num_fewshot=arguments.shots,
        limit=arguments.limit,
    )
    results = found["results"]
    if arguments.out:
        kept = {name: found[name] for name in ("results", "versions", "n-shot") if name in found}
        save_json(Path(arguments.out), kept)
    if arguments.json:
        print(json.dumps(results, indent=2, default=str))
    else:
        print_table(table_of(results, found.get("n-shot", {})))
    return 0


def table_of(results: Mapping[str, Mapping[str, Any]], shots: Mapping[str, Any]) -> Table:
    """A row a task and metric; keys of the harness read `metric,filter` and `metric_stderr,filter`."""
    table = Table("task", "shots", "metric", "filter", "value", "± standard error")
    for column in (1, 4, 5):
        table.columns[column].justify = "right"
    for task, scores in results.items():
        for key, value in scores.items():
            metric, comma, rule = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = scores.get(f"{metric}_stderr,{rule}")
            spread = f"{error:.4f}" if isinstance(error, (int, float)) else ""
            table.add_row(
                in_terminal(task), str(shots.get(task, "")), in_terminal(metric), in_terminal(rule),
                f"{value:.4f}", spread,
            )  # fmt: skip
        table.add_section()
    return table


def _model(arguments: argparse.Namespace) -> Any:
    from lora_jax.io.hub import resolve
    from lora_jax.sweeps.records import is_run
    from lora_jax.tasks.harness import HarnessModel

    path = Path(arguments.model)
    if not is_run(path):
        place = path if path.is_file() else resolve(arguments.model)
        return HarnessModel.load(
            place, adapter=arguments.adapter, format=arguments.format, batch_size=arguments.batch
        )
    if arguments.adapter or arguments.format != "none":
        raise ValueError(
            f"{path} is a run, which has its adapter and its format: leave out --adapter and "
            "--format, or give its base model."
        )
    from lora_jax.training.saved import load_run

    saved = load_run(path)
    if saved.task.generator is None:
        raise ValueError(f"The harness scores language models, and {path} is none. See evaluate.")
    return HarnessModel.of_run(saved, batch_size=arguments.batch)
