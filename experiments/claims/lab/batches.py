"""One pass over the same sentences in batches of several sizes: LoRA beside full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lab.contrast import Arm, Contrast, contrast
from lab.protocol import Bench
from lab.setting import FULL, S, Setting

EXAMPLES = 2048
BATCHES = (8, 32, 128)
METHODS = {"full": FULL, "r=8": {}, "r=64": {"lora.rank": 64}}


def one_pass(batch: int, **changes: object) -> Setting:
    """Every one of `EXAMPLES` sentences once."""
    return S.with_(
        **{
            "data.train_examples": EXAMPLES,
            "train.batch_size": batch,
            "train.total_steps": EXAMPLES // batch,
        },
        **changes,
    )


def by_batch(lab: Bench, names: Sequence[str] = tuple(METHODS)) -> dict[tuple[str, int], Arm]:
    """The methods of these names at every batch, each at its own best rate."""
    return {
        (name, batch): lab.arm(f"{name}, batch {batch}", one_pass(batch, **METHODS[name]))
        for batch in BATCHES
        for name in names
    }


def gap(arms: Mapping[tuple[str, int], Arm], name: str, batch: int) -> list[tuple[float, Arm]]:
    """Terms of the method's loss above that of full fine-tuning."""
    return [(1.0, arms[name, batch]), (-1.0, arms["full", batch])]


def growth(arms: Mapping[tuple[str, int], Arm], name: str) -> list[tuple[float, Arm]]:
    """Terms of how much that gap grows from the smallest batch to the largest."""
    low, high = BATCHES[0], BATCHES[-1]
    return gap(arms, name, high) + [(-w, arm) for w, arm in gap(arms, name, low)]


def gaps(
    arms: Mapping[tuple[str, int], Arm], names: Sequence[str]
) -> dict[str, dict[int, Contrast]]:
    """The gap of each method at each batch."""
    return {name: {b: contrast(gap(arms, name, b)) for b in BATCHES} for name in names}
