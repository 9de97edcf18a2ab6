"""What of an adapter's gain survives merging it into a quantised base, on held-out records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_jax.adapters.calibration import input_moments
from lora_jax.adapters.merge import MergeReport, merge_quantized
from lora_jax.core.quantize import QuantSpec
from lora_jax.tasks.losses import Summed
from lora_jax.training.saved import SavedRun


@dataclass(frozen=True)
class Recovery:
    """Mean losses of a split: of the base (weights that were trained whole are the run's, without
    its factors), of the base with the adapter, and of the merged weights.
    """

    split: str
    base: float
    adapter: float
    merged: float

    @property
    def share(self) -> float:
        """The share of the adapter's gain that the merged weights keep: 1 is all of it, below 0 is
        worse than no adapter. NaN where the adapter has no gain.
        """
        gain = self.base - self.adapter
        return (self.base - self.merged) / gain if gain > 0 else math.nan

    def __str__(self) -> str:
        return (
            f"{self.split} loss: base {self.base:.4f}, adapter {self.adapter:.4f}, merged "
            f"{self.merged:.4f}: recovery {self.share:.3f}"
        )


def merge_run(
    run: SavedRun,
    *,
    spec: QuantSpec | None = None,
    feedback: int = 0,
    split: str = "validation",
) -> tuple[dict[str, Any], MergeReport, Recovery]:
    """A run's weights with its adapter merged and quantised again, what that cost by site, and what
    of the gain it kept.

    Args:
        spec: as `merge_quantized`.
        feedback: training batches on which the inputs of the adapted weights are measured, so that
            errors of rounding are fed back (its `moments`); 0 rounds to nearest.

    Raises:
        ValueError: the run has no factors, or there is no such split; or as `merge_quantized` and
            `input_moments`.
    """
    factors = [path for path, leaf in run.trainable.items() if leaf.rank]
    if not factors:
        raise ValueError("The run trained no factors, and so there is nothing to merge.")
    whole = {path: leaf for path, leaf in run.trainable.items() if not leaf.rank}
    base, _ = merge_quantized(run.frozen, whole)

    moments = _moments(run, base, factors, feedback) if feedback else None
    merged, report = merge_quantized(run.frozen, run.trainable, spec=spec, moments=moments)

    def loss(frozen: Mapping[str, Any], trainable: Mapping[str, Any]) -> float:
        return dataclasses.replace(run, frozen=frozen, trainable=trainable).evaluate(split)["loss"]

    losses = loss(base, {}), loss(run.frozen, run.trainable), loss(merged, {})
    return merged, report, Recovery(split, *losses)


def _moments(
    run: SavedRun, base: Mapping[str, Any], factors: list[str], count: int
) -> dict[str, Any]:
    task, train = run.task, run.config.train
    batches = task.batches("train", train.batch_size, seed=train.seed)
    first = [batches[index] for index in range(min(count, len(batches)))]
    return input_moments(
        Summed(task.per_example), base, first, [task.sites[path] for path in factors]
    )
