"""The low-rank factors of one site, and what a specification of them says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float


@dataclass(frozen=True)
class LoraSpec:
    """The adapter of one site.

    rank: columns of `a`. alpha: numerator of the scale. scaling: 'standard' is alpha / rank (LoRA, Hu et al. 2021, section
    4.1), 'rslora' is alpha / sqrt(rank) (Kalajdzievski 2023). dropout: probability that an entry of the adapter's input is
    dropped in training. init: a name in `lora_jax.core.init.INITIALIZERS`. layers: indices along the first stack axis that
    are adapted, None for all. dora: the adapted weight's columns are rescaled to a trained magnitude (DoRA, Liu et al. 2024).
    """

    rank: int = 8
    alpha: float = 16.0
    scaling: Literal["standard", "rslora"] = "standard"
    dropout: float = 0.0
    init: str = "kaiming"
    layers: tuple[int, ...] | None = None
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA rank must be at least 1, got {self.rank}. To leave a site alone, give its rule the value None.")
        if self.scaling not in ("standard", "rslora"):
            raise ValueError(f"LoRA scaling must be 'standard' or 'rslora', got {self.scaling!r}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoRA dropout must be in [0, 1), got {self.dropout}.")
        if not math.isfinite(self.alpha) or self.alpha == 0:
            raise ValueError(f"LoRA alpha must be finite and not 0, got {self.alpha}: at 0 the adapter would change nothing.")

    @property
    def effective_scale(self) -> float:
        """The number that multiplies `a @ b`."""
        return self.alpha / (self.rank if self.scaling == "standard" else math.sqrt(self.rank))


class LowRank(struct.PyTreeNode):
    """The update `(a * scale) @ b` of one weight, seen as a matrix (in, out).

    `scale` is a vector over ranks: `effective_scale` where a column is in use, 0 where it is padding or where a layer of the
    stack is not adapted. A zero in it zeroes the output and the gradient of that column, so rank, alpha and targets of
    several adapters may differ under one compiled program. `dropout` is None where no dropout was asked for. `in_axes` are the
    input axes of the weight, stack axes not counted. `magnitude` is DoRA's: the norm that each output column of the adapted weight
    is rescaled to; a layer whose scale is 0 throughout keeps its base, whatever its magnitude.
    """

    a: Float[Array, "*stack in r"]
    b: Float[Array, "*stack r out"]
    scale: Float[Array, "*stack r"]
    dropout: Float[Array, "*stack"] | None = None
    magnitude: Float[Array, "*stack out"] | None = None
    in_axes: tuple[int, ...] = struct.field(pytree_node=False, default=(0,))

    @property
    def rank(self) -> int:
        """Columns of `a`, padding included."""
        return self.a.shape[-1]

    def delta(self, dtype: Any = jnp.float32) -> Float[Array, "*stack in out"]:
        """The dense update, formed in float32."""
        a, b = self.a.astype(jnp.float32), self.b.astype(jnp.float32)
        return ((a * self.scale[..., None, :]) @ b).astype(dtype)

    def pad(self, rank: int) -> LowRank:
        """The same update with zero columns up to `rank`.

        Raises:
            ValueError: the adapter's rank is larger.
        """
        if rank < self.rank:
            raise ValueError(f"Cannot pad an adapter of rank {self.rank} to rank {rank}: the target must not be smaller.")
        extra = rank - self.rank
        lead = [(0, 0)] * (self.a.ndim - 2)
        return self.replace(
            a=jnp.pad(self.a, [*lead, (0, 0), (0, extra)]),
            b=jnp.pad(self.b, [*lead, (0, extra), (0, 0)]),
            scale=jnp.pad(self.scale, [*lead, (0, extra)]),
        )

    def trim(self) -> LowRank | None:
        """The same update without columns that no layer uses; None if no column is used."""
        used = np.flatnonzero(np.any(np.asarray(self.scale).reshape(-1, self.rank) != 0, axis=0))
        if not used.size:
            return None
        return self.replace(a=self.a[..., used], b=self.b[..., used, :], scale=self.scale[..., used])

    def active_parameters(self) -> int:
        """Number of trained entries of `a` and `b`: those of columns whose scale is not 0."""
        return int(np.count_nonzero(np.asarray(self.scale))) * (self.a.shape[-2] + self.b.shape[-1])
