"""Where a language model's output words are, and what it does around their product."""

from __future__ import annotations

from typing import NamedTuple


class OutputHead(NamedTuple):
    """`logits = softcap(hidden * scale @ words)`, without a bias.

    `module` and `leaf` name the weight in the model's parameters; `axis` is the one of it that
    counts the vocabulary.
    """

    module: str
    leaf: str
    axis: int
    scale: float = 1.0
    softcap: float | None = None
