"""The arms on S that several claims share, so that each is trained once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lab import small_model
from lab.protocol import Arm, Lab, with_
from lab.small_model import SmallModel
from lora_jax.config import TARGETS

LORA_RATES = (3.16e-3, 1e-2, 3.16e-2)
FULL_RATES = (3.16e-4, 1e-3, 3.16e-3)
# all linear layers and the tied embedding, which full fine-tuning trains
WITH_EMBEDDING = r"layers(_\d+)?/.*/kernel|embed/embedding"


def projections(letters: str) -> str:
    """The targets of attention's matrices of these letters, 'qv' or 'q'."""
    return (
        TARGETS["query+value"]
        if letters == "qv"
        else rf"layers(_\d+)?/attn/({'|'.join(letters)})/kernel"
    )


def lora_arm(
    lab: Lab,
    rank: int,
    targets: str = "all-linear",
    *,
    name: str | None = None,
    rates: Sequence[float] = LORA_RATES,
    seeds: Sequence[int] | None = None,
    width: int = SmallModel.width,
    **changes: Any,
) -> Arm:
    """LoRA of this rank on S (of this width), domain B, at its best rate. alpha is 16 at every rank
    unless changed.
    """
    config = small_model.tuning(small_model.pretrained(SmallModel(width=width)))
    config = with_(config, **{"lora.rank": rank, "lora.targets": targets, **changes})
    return lab.arm(name or f"r={rank}", config, rates, seeds=seeds)


def full_arm(lab: Lab, **changes: Any) -> Arm:
    """Full fine-tuning of S on domain B at its best rate."""
    return lab.arm(
        "full",
        with_(small_model.tuning(small_model.pretrained()), **{"method": "full", **changes}),
        FULL_RATES,
    )
