"""Score a trained run on a split, with intervals, from its saved adapter and the pretrained base.

  lora-jax evaluate runs/default/qlora-nf4-r4-all_linear-s0-1a2b3c4d --split validation
  lora-jax evaluate RUN --against OTHER_RUN
      is the difference more than chance, on the same examples?
  lora-jax evaluate RUN --against base --generate
      a language model with its adapter and without, by the texts it writes
  lora-jax evaluate RUN --forgetting other.jsonl
      held-out loss on texts of another domain, with the adapter and without
  lora-jax evaluate RUN --contamination
      the score again without records that training records hold too
  lora-jax evaluate RUN RUN RUN
      runs that differ in their seed: mean, deviation and interval over them, and intervals over
      seeds and examples at once
  lora-jax evaluate RUN --json
      everything, for another program to read

The base is loaded as the run's config names it, quantised as it was in training, and its
fingerprint is checked. What the model said about each example is kept in
RUN/predictions/SPLIT.jsonl, as training keeps it of the test split where no two examples share a
row; a report of runs that have it for all test examples counts these, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax evaluate`."""
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument(
        "seeds", metavar="RUN", nargs="*", help="folders of the same run at other seeds"
    )
    parser.add_argument("--split", default="test", help="train, validation or test (default)")
    parser.add_argument(
        "--against",
        metavar="OTHER",
        help="the folder of another run, or base: the same model without the adapter",
    )
    parser.add_argument(
        "--generate",
        action="store_true",
        help="score the texts that a language model writes, by its recipe's metrics",
    )

    parser.add_argument("--examples", type=int, help="only the first ones")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (1000)")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals (0.95)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap's draws (0)")
    parser.add_argument(
        "--forgetting", metavar="DATA", help="a file of prompts and completions of another domain"
    )
    parser.add_argument(
        "--contamination", action="store_true", help="look for held-out records in the training set"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")


def run(arguments: argparse.Namespace) -> int:
    """Prints loss (nats a unit), accuracy, number of examples, intervals and comparisons."""
    from lora_jax.commands.scores import tables_of
    from lora_jax.commands.shared import print_parts
    from lora_jax.metrics.comparison import intervals
    from lora_jax.tasks.opening import LastTask
    from lora_jax.training.saved import load_run

    if arguments.examples is not None and arguments.examples < 1:
        raise ValueError(f"--examples needs to be 1 or more, got {arguments.examples}.")
    tasks = LastTask()  # Runs that differ in a seed share their model and data.
    loaded = load_run(arguments.run, tasks=tasks)
    ours = _predictions(loaded, arguments, adapter=True)
    _keep(arguments.run, arguments.split, ours)
    options: dict[str, Any] = dict(
        resamples=arguments.resamples, level=arguments.level, seed=arguments.seed
    )
    found = intervals(ours, **options)
    out: dict[str, Any] = {
        "loss": found["loss"].value,
        "accuracy": found["accuracy"].value,
        "examples": len(ours.rows),
        **_perplexity(loaded, arguments, ours),
        "level": arguments.level,
        "intervals": _as_json(found),
    }
    if arguments.seeds:
        out |= _over_seeds(ours, arguments, options, tasks)
    if parts := ours.by_task():
        out["tasks"] = {
            name: {"examples": len(part.rows), **_as_json(intervals(part, **options))}
            for name, part in parts.items()
        }
    if arguments.against:
        out["against"] = _against(loaded, arguments, ours, options, tasks)
    if arguments.forgetting:
        from lora_jax.analysis.domains import measure_forgetting

        out["forgetting"] = measure_forgetting(
            loaded, arguments.forgetting, examples=arguments.examples, **options
        )
    if arguments.contamination:
        out["contamination"] = _contamination(loaded, arguments, ours, options)
    if arguments.json:
        print(json.dumps(out, indent=2))
        return 0
    print_parts(tables_of(out, arguments.run, arguments.split))
    return 0


def _as_json(found: dict[str, Any]) -> dict[str, Any]:
    """Intervals by name, as dicts."""
    return {name: interval._asdict() for name, interval in found.items()}


def _against(
    loaded: Any, arguments: argparse.Namespace, ours: Any, options: dict[str, Any], tasks: Any
) -> dict[str, Any]:
    """Scores of the other run, or of the base alone, and whether the difference is chance."""
    from lora_jax.metrics.comparison import compare, intervals, verdict
    from lora_jax.training.saved import load_run

    base = arguments.against == "base"
    other = loaded if base else load_run(arguments.against, tasks=tasks)
    theirs = _predictions(other, arguments, adapter=not base)
    difference = compare(ours, theirs, **options)
    return {
        "run": arguments.against,
        "scores": _as_json(intervals(theirs, **options)),
        "difference": difference,
        "verdict": [
            verdict(name, test["value"], test["p"], level=arguments.level)
            for name, test in difference.items()
            if name != "mcnemar"
        ],
    }


def _over_seeds(
    ours: Any, arguments: argparse.Namespace, options: dict[str, Any], tasks: Any
) -> dict[str, Any]:
    """Mean, deviation and interval of every score over the named runs, and intervals over other
    seeds and other examples at once.
    """
    from lora_jax.metrics.comparison import intervals, intervals_over_seeds
    from lora_jax.statistics.interval import over_seeds
    from lora_jax.training.saved import load_run

    runs = [ours]
    for folder in arguments.seeds:
        runs.append(_predictions(load_run(folder, tasks=tasks), arguments, adapter=True))
        _keep(folder, arguments.split, runs[-1])
    scores = [intervals(one, **options) for one in runs]
    means = {
        name: over_seeds([one[name].value for one in scores], level=arguments.level)
        for name in scores[0]
    }
    both = intervals_over_seeds(runs, **options)
    return {"seeds": _as_json(means), "seeds and examples": _as_json(both)}


def _keep(folder: str, split: str, predictions: Any) -> None:
    from lora_jax.metrics.predictions import save_predictions

    try:
        save_predictions(Path(folder) / "predictions" / f"{split}.jsonl", predictions)
    except OSError as error:  # A store that can only be read is to be scored, too.
        print(f"lora-jax: what was said of each example is not kept: {error}", file=sys.stderr)


def _predictions(loaded: Any, arguments: argparse.Namespace, *, adapter: bool) -> Any:
    from lora_jax.tasks.generated import generate_predictions
    from lora_jax.tasks.predictions import predict

    trainable = loaded.trainable if adapter else loaded.without_adapter()
    size, count = loaded.config.train.eval_batch_size, arguments.examples
    what = (loaded.task, loaded.frozen, trainable, arguments.split)
    scored = predict(*what, batch_size=size, examples=count)
    if not arguments.generate:
        return scored
    return generate_predictions(*what, batch_size=min(size, 16), examples=count, scored=scored)


def _perplexity(loaded: Any, arguments: argparse.Namespace, ours: Any) -> dict[str, float]:
    """Perplexities of a language model whose completions were not cut."""
    from lora_jax.metrics.comparison import perplexities

    size = loaded.task.text_bytes(arguments.split, len(ours.rows))
    return perplexities(ours, size) if size else {}


def _contamination(
    loaded: Any, arguments: argparse.Namespace, ours: Any, options: dict[str, Any]
) -> dict[str, Any]:
    from lora_jax.data.contamination import find_contamination
    from lora_jax.data.preview import texts_of
    from lora_jax.metrics.comparison import intervals

    records = loaded.task.records
    found = find_contamination(
        texts_of(records["train"]), texts_of(records[arguments.split])[: len(ours.rows)]
    )
    out: dict[str, Any] = {
        "finding": str(found),
        "exact": len(found.exact),
        "near": len(found.near),
    }
    if found.clean and len(found.clean) < found.examples:
        out["without them"] = _as_json(intervals(ours.at(found.clean), **options))
    return out
