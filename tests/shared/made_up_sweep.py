"""A made-up sweep that behaves as a real one, for tests of what is read from a store."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace

from lora_jax import config as settings
from lora_jax.metrics.score import Score
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.runner import Outcome
from lora_jax.sweeps.store import RunStore
from lora_jax.training.result import RunResult

ENVIRONMENT = {
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "device": {"kind": "cpu"},
    "command": "lora-jax sweep --config configs/default.py",
}
BASE_BYTES = {"none": 90_900_000, "int8": 58_100_000, "nf4": 53_000_000}


def grid(seeds: tuple[int, ...] = (0,)) -> settings.Config:
    sweep = settings.SweepConfig(
        rank=(1, 4, 16),
        format=("none", "int8", "nf4"),
        targets=("query+value", "all-linear"),
        seeds=seeds,
        baselines=("full", "head"),
    )
    return replace(settings.Config(), sweep=sweep)


def result_of(run: settings.Config) -> RunResult:
    """A made-up result that behaves as in a real sweep: accuracy rises with rank and targets, falls
    a little with bits.
    """
    noise = random.Random(run_id(run)).gauss(0, 0.004)
    rank = run.lora.rank if run.method in ("lora", "qlora") else None
    wide = run.lora.targets == "all-linear"
    accuracy = {"full": 0.812, "head": 0.655}.get(
        run.method,
        0.77 + 0.01 * math.log2(rank or 1) / 2 + 0.02 * wide - 0.006 * (run.quant.format == "nf4"),
    )
    trainable = {"full": 22_700_000, "head": 770}.get(
        run.method, (40_000 if wide else 9_000) * (rank or 1)
    )
    base_bytes = BASE_BYTES.get(run.quant.format, 60_000_000)
    flat = {
        "test_accuracy": accuracy + noise, "test_loss": 0.45 - noise, "validation_accuracy": accuracy, "validation_loss": 1.2 - accuracy, "steps": 60,
        "examples": {"train": 8500, "validation": 1060, "test": 1066}, "trainable_parameters": trainable,
        "base_bytes": base_bytes, "base_bits_per_weight": base_bytes / 2.84e6,
        "adapter_bytes": 0 if run.method == "full" else 4 * trainable,
        "padded_bytes": 4 * trainable * max(16 // rank - 1, 0) if rank else 0, "peak_bytes": None if rank == 1 else 310_000_000,
        "peak_rss_bytes": 900_000_000, "tokens_per_second": 5200.0, "seconds": 24.0, "compile_seconds": 3.0,
        "padding_fraction": 0.12,
    }  # fmt: skip
    return RunResult.from_json(flat, settings.to_dict(run))


def result_by(run: settings.Config, primary: str) -> RunResult:
    """As `result_of`, of a task that names this metric: what is good is what is good there."""
    good = result_of(run)
    merit = good.value("test")
    language = primary in ("loss", "rouge_l")
    unit, count = ("tokens", 48_000) if language else ("records", 1066)

    def summed(merit: float) -> dict[str, Score]:
        share = primary == "matthews"
        return {
            "accuracy": Score("accuracy", merit, unit=unit, count=count, share=share),
            "loss": Score("loss", 1.5 - merit, higher_is_better=False, unit=unit, count=count),
        }

    test = summed(merit)
    if primary == "pearson":
        test |= {name: Score(name, merit - 0.1, count=1066) for name in ("pearson", "spearman")}
    elif primary != "loss":
        test[primary] = Score(primary, merit - 0.3, count=1066)
    scores = {"validation": summed(good.value("validation")), "test": test}
    return replace(good, scores=scores, primary=primary)


def fill(
    store: RunStore,
    runs: list[settings.Config],
    result_of: Callable[[settings.Config], RunResult] = result_of,
) -> None:
    for run in runs:
        name, noise = run_id(run), random.Random(run_id(run))
        folder = store.start(name, run, ENVIRONMENT)
        result = result_of(run)
        with (folder / "metrics.jsonl").open("w") as metrics:
            for step in range(5, 61, 5):
                gone = 1 - math.exp(-step / 25)
                accuracy = result.row().get("test_accuracy", 0.77)
                loss = 0.69 - gone * (accuracy - 0.6) + noise.gauss(0, 0.02)
                metrics.write(json.dumps({"step": step, "split": "train", "loss": loss}) + "\n")
        store.finish(name, result)


class DivergedError(FloatingPointError):
    """Recorded under the name of the one that training raises."""


DivergedError.__name__ = "Diverged"


def with_loss(run, best):
    """The result of a run whose validation loss is lowest at the rate `best(run)`."""
    away = abs(run.optim.learning_rate / best(run) - 1)
    loss = Score("loss", 0.5 + away + run.train.seed / 1e4, higher_is_better=False)
    result = result_of(run)
    return replace(result, scores=result.scores | {"validation": {"loss": loss}})


def trainer(best, diverges=lambda run: False, asked=None):
    """Fills the store with made-up results, as a sweep would; `asked` gets the runs of each round."""

    def made(run, score_test):
        result = with_loss(run, best)
        splits = ("validation", "test") if score_test else ("validation",)
        return replace(result, scores={split: result.scores[split] for split in splits})

    def train(config, runs=None, score_test=True):
        store, runs = RunStore(config.out), runs or expand(config)
        if asked is not None:
            asked.append([run_id(run) for run in runs])
        left = [run for run in runs if not store.is_done(run_id(run), score_test=score_test)]
        lost = [run for run in left if diverges(run)]
        fill(store, [run for run in left if not diverges(run)], lambda run: made(run, score_test))
        for run in lost:
            store.start(run_id(run), run, {})
            store.fail(run_id(run), DivergedError("the loss is NaN"))
        names = [run_id(run) for run in left if run not in lost]
        return Outcome(tuple(names), (), tuple(map(run_id, lost)), ())

    return train
