"""The variants of the low-rank update and the rules of its scale, a table each: what is trained,
its start, what it goes with.

A variant is data: its arrays stand in `LowRank`, and everything that multiplies, merges, saves or
counts reads those arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_jax.core import own_starts
from lora_jax.core.tables import register


@dataclass(frozen=True)
class Variant:
    """What tells a variant from plain LoRA.

    fixed: factors that are not trained, and have neither gradient nor optimiser state. gain,
    out_gain: their first values, None where the variant has none. scaled: whether alpha / rank
    applies. grouped: inputs are pooled in groups. shared: the factors are random and the same at
    every site. small: `a` and `b` start as normal numbers with this deviation. start: gives the
    first values of its arrays, if it has its own (see `lora_jax.core.own_starts`); reads_weight:
    from the weight, not from its shape. blocked: has blocks, as many as the specification says.
    of_base: the update is times the base, entry by entry. dora: whether it goes with DoRA.
    change: where it has no factors, the form of its `lora_jax.core.changes.Change`, whose arrays
    `start` gives.
    """

    name: str
    fixed: tuple[str, ...] = ()
    gain: float | None = None
    out_gain: float | None = None
    scaled: bool = True
    grouped: bool = False
    shared: bool = False
    small: float | None = None
    start: Callable[..., dict[str, Any]] | None = None
    reads_weight: bool = False
    blocked: bool = False
    of_base: bool = False
    dora: bool = True
    change: str = ""

    def check(self, spec: Any) -> None:
        """Nothing, if the specification's other fields go with the variant.

        Raises:
            ValueError: they do not.
        """
        own = self.shared or self.small is not None or self.start is not None
        drawn = spec.init in ("kaiming", "gaussian")
        if own and spec.init != "kaiming":
            raise ValueError(
                f"LoRA variant {self.name!r} has first values of its own, and init={spec.init!r} "
                "asks for others. Leave init at 'kaiming'."
            )
        if spec.dora and not self.dora:
            raise ValueError(
                f"LoRA variant {self.name!r} has no factors of an update of the whole weight, and "
                "DoRA rescales the sum of base and update: they do not go together. Set dora to "
                "False."
            )
        if self.change and (spec.dropout or spec.merge_aware or spec.parts is not None):
            given = "dropout" if spec.dropout else "merge_aware" if spec.merge_aware else "parts"
            raise ValueError(
                f"LoRA variant {self.name!r} has no factors, and {given}={getattr(spec, given)!r} "
                "is about factors. Leave dropout at 0, merge_aware off and parts at None."
            )
        if self.of_base and (spec.dropout or spec.merge_aware or not drawn):
            given = "dropout" if spec.dropout else "merge_aware" if spec.merge_aware else "init"
            raise ValueError(
                f"LoRA variant {self.name!r} multiplies the base by 1 + a b, entry by entry: there "
                f"is no update apart from the base, and {given}={getattr(spec, given)!r} is about "
                "one. Leave dropout at 0, merge_aware off and init at 'kaiming' or 'gaussian'."
            )
        if self.grouped and not drawn:
            raise ValueError(
                f"LoRA variant {self.name!r} pools its inputs: init must be 'kaiming' or "
                f"'gaussian', got {spec.init!r}."
            )
        if spec.merge_aware and (self.grouped or spec.dropout):
            raise ValueError(
                "LoRA merge_aware trains the rounded sum of base and update, and "
                + (
                    f"variant {self.name!r} merges into zero-points, where nothing is rounded. "
                    "Leave merge_aware off."
                    if self.grouped
                    else f"dropout={spec.dropout} is of the update's input alone. Set it to 0."
                )
            )
        if spec.parts is not None and (own or self.grouped or self.of_base or not drawn):
            raise ValueError(
                f"LoRA parts={spec.parts} (a fused kernel) needs variant 'lora' or 'lora_fa' and "
                f"init 'kaiming' or 'gaussian', got variant {self.name!r} and init {spec.init!r}."
            )


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("lora"),
        # Zhang et al. 2023 (arXiv 2308.03303): `a` stays as it was drawn.
        Variant("lora_fa", fixed=("a",)),
        # Kopiczko et al. 2023 (arXiv 2310.11454): only d, from 0.1, and b, from 0, are trained.
        Variant("vera", fixed=("a", "b"), gain=0.1, out_gain=0.0, scaled=False, shared=True),
        # Zhang et al. 2023 (arXiv 2303.10512): P diag(gain) Q; 0.02 as in the authors' code.
        Variant("adalora", gain=0.0, small=0.02),
        # Xu et al. 2023 (arXiv 2309.14717): `a` acts on sums of a group of inputs.
        Variant("qa_lora", grouped=True),
        # Bałazy et al. 2024 (arXiv 2405.17604): r x r numbers between singular vectors that stay.
        Variant("lora_xs", fixed=("a", "b"), start=own_starts.lora_xs, reads_weight=True),
        # Kang and Yin 2024 (arXiv 2409.15371): one r x out matrix, the same for every r inputs.
        Variant("miss", fixed=("a",), start=own_starts.miss, scaled=False),
        # Hyeon-Woo et al. 2021 (arXiv 2108.06098), Yeh et al. 2023 (arXiv 2309.14859).
        Variant("loha", start=own_starts.loha),
        Variant("lokr", start=own_starts.lokr, dora=False),
        # Jung et al. 2025 (arXiv 2505.20355): blocks x blocks of rank / blocks columns each.
        Variant("gralora", start=own_starts.gralora, blocked=True),
        # Huang et al. 2025, HiRA (ICLR): of high rank, as the base is.
        Variant("hira", of_base=True, scaled=False, dora=False),
        # Qiu et al. 2023 (arXiv 2306.07280), 2025 (2506.19847): rank inputs are rotated together.
        Variant("oft", change="oft", start=own_starts.oft, scaled=False, dora=False),
        # Gao et al. 2024 (arXiv 2405.03003), and Bhardwaj et al. 2024 (arXiv 2406.13175): as many
        # numbers as LoRA of that rank has.
        Variant("fourierft", change="fourierft", start=own_starts.fourierft, dora=False),
        Variant("shira", change="shira", start=own_starts.shira, scaled=False, dora=False),
    )
}


def register_variant(variant: Variant) -> Variant:
    """Adds a variant to the table, for every function and setting that takes a variant's name.

    A process that reads its runs registers it first, too: a config's file is a place for it.

    Raises:
        ValueError: the name is taken by another variant.
    """
    return register(VARIANTS, variant.name, variant, "LoRA variant")


# What multiplies `a @ b`, of alpha and rank.
SCALINGS: dict[str, Callable[[float, int], float]] = {
    # Hu et al. 2021, section 4.1.
    "standard": lambda alpha, rank: alpha / rank,
    # Kalajdzievski 2023 (arXiv 2312.03732): activations and gradients keep their size over ranks.
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),
    # The same at every rank, as if alpha grew with it: ranks differ in nothing else.
    "fixed": lambda alpha, rank: alpha,
}
