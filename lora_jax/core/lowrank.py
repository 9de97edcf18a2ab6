"""The low-rank factors of one site, and what a specification of them says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from lora_jax.core import structured
from lora_jax.core.adapted import Adapted
from lora_jax.core.paths import entry, key_for
from lora_jax.core.plain_types import check_types
from lora_jax.core.quantize import QuantizedArray
from lora_jax.core.rounded import SCALES, RoundedSum
from lora_jax.core.trainable import Trainable
from lora_jax.core.variants import SCALINGS, VARIANTS

# Axis of each array that counts ranks; both of `mix` do. What is not here has none.
RANK_AXIS = {"a": -1, "b": -2, "scale": -1, "gain": -1, "parts": -2, "a0": -1, "b0": -2}
RANK_AXIS |= {"a2": -1, "b2": -2}
_TRAINED = ("a", "b", "magnitude", "gain", "out_gain", "mix", "a2", "b2", "outer")
# A norm is the difference of large sums where an update removes part of the base.
_EXACT = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class LoraSpec:
    """The adapter of one site.

    rank: columns of `a`; of variant 'oft' the inputs that are rotated together, of 'fourierft' and
        'shira' rank x (inputs + outputs) numbers are trained, as many as LoRA has.
    alpha: numerator of the scale.
    scaling: a name in `lora_jax.core.variants.SCALINGS`: 'standard' is alpha / rank, 'rslora'
        alpha / sqrt(rank), 'fixed' alpha itself.
    dropout: probability that an entry of the adapter's input is dropped in training.
    init: a name that `lora_jax.core.init.initializer_named` knows.
    layers: indices along the first stack axis that are adapted, None for all.
    dora: a trained magnitude for each output column (Liu et al. 2024).
    variant: a name in `lora_jax.core.variants.VARIANTS`.
    group_size: inputs that share a row of `a`, for variant 'qa_lora' alone.
    blocks: parts of the inputs and of the outputs, for variant 'gralora' alone.
    parts: for a kernel that holds several projections side by side, such as (True, False, True)
        for the query and value of a fused (in, 3 * d) kernel: each part that is True gets factors
        of its own, of this rank (loralib's `enable_lora`).
    merge_aware: the adapted weight of a quantised base is rounded into the base's format, so that
        merging into it afterwards changes nothing; a base that is not quantised merges exactly.
    merge_scales: the scales of that format, see `lora_jax.core.rounded.RoundedSum`.
    """

    rank: int = 8
    alpha: float = 16.0
    scaling: str = "standard"
    dropout: float = 0.0
    init: str = "kaiming"
    layers: tuple[int, ...] | None = None
    dora: bool = False
    variant: str = "lora"
    group_size: int = 32
    blocks: int = 2
    parts: tuple[bool, ...] | None = None
    merge_aware: bool = False
    merge_scales: str = "kept"

    def __post_init__(self) -> None:
        counts = dict(rank=Integral, group_size=Integral, blocks=Integral)
        check_types("LoRA ", self, **counts, alpha=Real, dropout=Real, dora=bool, merge_aware=bool)
        if self.rank < 1:
            raise ValueError(
                f"LoRA rank must be at least 1, got {self.rank}. To leave a site alone, give its "
                "rule the value None."
            )
        entry(SCALINGS, self.scaling, "LoRA scaling")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoRA dropout must be in [0, 1), got {self.dropout}.")
        if not math.isfinite(self.alpha) or self.alpha == 0:
            raise ValueError(
                f"LoRA alpha must be finite and not 0, got {self.alpha}: at 0 the adapter would "
                "change nothing."
            )
        if self.group_size < 1:
            raise ValueError(f"LoRA group_size must be at least 1 input, got {self.group_size}.")
        if self.blocks < 1:
            raise ValueError(f"LoRA blocks must be at least 1, got {self.blocks}.")
        if self.parts is not None and not any(self.parts):
            raise ValueError(
                f"LoRA parts={self.parts} adapts none of them. Set at least one to True, or leave "
                "the site alone."
            )
        if self.merge_scales not in SCALES:
            raise ValueError(
                f"LoRA merge_scales must be {' or '.join(SCALES)}, got {self.merge_scales!r}."
            )

        entry(VARIANTS, self.variant, "LoRA variant").check(self)

    @property
    def effective_scale(self) -> float:
        """What multiplies `a @ b`, by the rule of `scaling`; of VeRA 1."""
        if not VARIANTS[self.variant].scaled:
            return 1.0
        return SCALINGS[self.scaling](self.alpha, self.rank)

    @property
    def columns(self) -> int:
        """Columns of `a`: the rank, times the number of adapted parts of a fused kernel."""
        return self.rank * (1 if self.parts is None else sum(self.parts))


class LowRank(Trainable, struct.PyTreeNode, repr=False):
    """The update `(a * scale) @ b` of one weight, seen as a matrix (in, out), and what its variants
    add to it.

    `scale` is a vector over ranks: `effective_scale` where a column is in use, 0 where it is
    padding or where a layer of the stack is not adapted. A zero in it zeroes the output and the
    gradient of that column, so rank, alpha and targets of several adapters may differ under one
    compiled program. `dropout` is None where no dropout was asked for. `in_axes` are the input axes
    of the weight, stack axes not counted.

    All else is None where it is not used. In full, the update is

        (repeat(a, group) * scale * gain) @ mix @ (b * parts) * out_gain  -  (a0 * scale) @ b0

    and its first term is structured where one of these is given, see `lora_jax.core.structured`:
    times (a2 @ b2) entry by entry; the Kronecker product of `outer` with it; in blocks.

    magnitude: DoRA's length of each output column; the adapted weight is then
        `magnitude * (W + update) / ||W + update||`.
    gain: trained, one a column of `a` (VeRA's d, AdaLoRA's singular values).
    out_gain: trained, one an output (VeRA's b).
    parts: 1 where a column may write to that part of the outputs, else 0 (fused kernels).
    mix: trained, between the two factors (LoRA-XS).
    a2, b2: trained, a second pair of factors (LoHa).
    outer: trained (LoKr); `a` and `b` are then factors of a block.
    blocks: parts of the inputs, and of the outputs (GraLoRA).
    a0, b0: first values of `a` and `b` that are subtracted, for initialisers that take their start
        out of the base: the base itself is never changed.
    base_square: squared norms of the base's columns, kept so that DoRA need not sum them at each
        step; None recomputes them.
    group: rows of the weight that share a row of `a` (QA-LoRA).
    fixed: names of factors that are not trained.
    rounded: not '' where the adapted weight is rounded into the base's format (merge-aware): what
        `RoundedSum.scales` says. Gradients are those without the rounding.
    of_base: what the factors give is multiplied with the base, entry by entry (HiRA): the adapted
        weight is `W * (1 + a b)`, and there is no update without a base.
    """

    a: Float[Array, "*stack grouped r"]
    b: Float[Array, "*stack r out"]
    scale: Float[Array, "*stack r"]
    dropout: Float[Array, "*stack"] | None = None
    magnitude: Float[Array, "*stack out"] | None = None
    gain: Float[Array, "*stack r"] | None = None
    out_gain: Float[Array, "*stack out"] | None = None
    parts: Float[Array, "*stack r parts"] | None = None
    a0: Float[Array, "*stack in r"] | None = None
    b0: Float[Array, "*stack r out"] | None = None
    base_square: Float[Array, "*stack out"] | None = None
    mix: Float[Array, "*stack r r"] | None = None
    a2: Float[Array, "*stack grouped r"] | None = None
    b2: Float[Array, "*stack r out"] | None = None
    outer: Float[Array, "*stack m n"] | None = None
    in_axes: tuple[int, ...] = struct.field(pytree_node=False, default=(0,))
    blocks: int = struct.field(pytree_node=False, default=1)
    group: int = struct.field(pytree_node=False, default=1)
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=())
    rounded: str = struct.field(pytree_node=False, default="")
    of_base: bool = struct.field(pytree_node=False, default=False)
    kind = "lora"

    @property
    def rank(self) -> int:
        """Columns of `a`, padding included."""
        return self.a.shape[-1]

    @property
    def rows(self) -> int:
        """Inputs of the weight."""
        return self.a.shape[-2] * self.group * (1 if self.outer is None else self.outer.shape[-2])

    @property
    def columns(self) -> int:
        """Outputs of the weight."""
        return self.b.shape[-1] * (1 if self.outer is None else self.outer.shape[-1])

    def trained_fields(self) -> tuple[str, ...]:
        """Names of the arrays that are trained; the others are fixed."""
        return tuple(
            name for name in _TRAINED if name not in self.fixed and getattr(self, name) is not None
        )

    def moving(self) -> LowRank:
        """The trained term of the update as `a`, `b` and `scale` alone, without the start."""
        a, b = self.a, self.b
        if self.parts is not None:
            parts = jnp.repeat(self.parts, b.shape[-1] // self.parts.shape[-1], axis=-1)
            b = b * parts.astype(b.dtype)
        if self.gain is not None:
            b = self.gain[..., None].astype(b.dtype) * b
        if self.out_gain is not None:
            b = b * self.out_gain[..., None, :].astype(b.dtype)
        if self.group > 1:
            a = jnp.repeat(a, self.group, axis=-2)
        if self.mix is not None:
            b = self.mix.astype(b.dtype) @ b
        a, b, scale = self._ordinary(a, b)
        return LowRank(a=a, b=b, scale=scale, dropout=self.dropout, in_axes=self.in_axes)

    def _ordinary(self, a: Array, b: Array) -> structured.Triple:
        """Ordinary factors and scales of what is structured."""
        if self.a2 is not None:
            return structured.hadamard(a, b, self.scale, self.a2, self.b2)
        if self.outer is not None:
            return structured.kronecker(a, b, self.scale, self.outer)
        if self.blocks > 1:
            return structured.blockwise(a, b, self.scale, self.blocks)
        return a, b, self.scale

    def start(self) -> LowRank | None:
        """The term that is subtracted, which is not trained; None if there is none."""
        if self.a0 is None or self.b0 is None:
            return None
        a0, b0 = jax.lax.stop_gradient((self.a0, self.b0))
        return LowRank(a=a0, b=b0, scale=self.scale, dropout=self.dropout, in_axes=self.in_axes)

    def plain(self) -> LowRank:
        """Ordinary factors of the same update, and the magnitude, as other tools know them.

        The rank doubles where a start is subtracted: [a, a0] and [b; -b0].

        Raises:
            ValueError: the update is times the base, and there is none without one.
        """
        if self.of_base:
            raise ValueError(
                "HiRA multiplies the base by its factors, entry by entry: no factors compute the "
                "same on their own. Merge it into the base (merge), and go on from there."
            )
        low, start = self.moving(), self.start()
        if start is not None:
            low = low.replace(
                a=jnp.concatenate([low.a, start.a], -1),
                b=jnp.concatenate([low.b, -start.b], -2),
                scale=jnp.concatenate([low.scale, start.scale], -1),
            )
        return low.replace(magnitude=self.magnitude, base_square=self.base_square)

    def onto_rounded(self, base: QuantizedArray) -> RoundedSum:
        """The sum with the base, rounded into its format; constant in gradients."""
        low, start = self.moving(), self.start()
        a, b = low.a * low.scale[..., None, :], low.b
        terms: tuple[Any, ...] = ((a, b),)
        if start is not None:
            # a b - a0 b0 of small factors, where the products themselves may be the weight's size.
            a0 = start.a * start.scale[..., None, :]
            terms = (((low.a - start.a) * low.scale[..., None, :], b), (a0, b - start.b))
        used = (self.scale != 0).any(-1)
        made = RoundedSum(base, terms, used, magnitude=self.magnitude, scales=self.rounded)
        return jax.lax.stop_gradient(made)

    def delta(self, dtype: Any = jnp.float32) -> Float[Array, "*stack in out"]:
        """The dense update, formed in float32, without the magnitude, which acts on the sum; what
        the base is multiplied with, where the update is times the base.
        """
        low, start = self.moving(), self.start()
        update = _product(low)
        # Two products, not one of twice the rank: equal factors cancel exactly at step 0.
        return (update if start is None else update - _product(start)).astype(dtype)

    def changed(self, base: Float[Array, "*stack in out"]) -> Float[Array, "*stack in out"]:
        """The sum of a float32 base and the update, without the magnitude."""
        update = self.delta()
        return base + (base * update if self.of_base else update)

    def column_squares(self, base: Float[Array, "*stack in out"]) -> Float[Array, "*stack out"]:
        """Squared norms of the output columns of `base + update`, in float32, for DoRA.

        ||W||^2 + 2 <W, A B> + ||A B||^2 column by column, with A = a * scale: the work is that of
        one product of W with a thin matrix, and nothing of W's size is made. `base_square`, where
        it is given, replaces ||W||^2.
        """
        plain = self.plain()
        a = plain.a.astype(jnp.float32) * plain.scale[..., None, :]
        b = plain.b.astype(jnp.float32)

        base = base.astype(jnp.float32)
        square = self.base_square if self.base_square is not None else (base * base).sum(-2)
        cross = jnp.einsum("...ir,...io->...ro", a, base, precision=_EXACT)
        gram = jnp.einsum("...ir,...is->...rs", a, a, precision=_EXACT)
        own = jnp.einsum("...rs,...so->...ro", gram, b, precision=_EXACT)
        return jnp.maximum(square + ((2 * cross + own) * b).sum(-2), 0.0)

    def column_factors(self, base: Float[Array, "*stack in out"]) -> Float[Array, "*stack out"]:
        """`magnitude / ||W + update||` for each output column, the norm constant in gradients.

        DoRA, Liu et al. 2024 (arXiv 2402.09353), section 4.3. 1 where a layer has no active column
        (it is not adapted), and where the norm is 0 (there is no direction to scale).
        """
        held, base = jax.lax.stop_gradient((self, base))
        norm = jnp.sqrt(jax.lax.stop_gradient(held.column_squares(base)))
        used = (self.scale != 0).any(-1)[..., None] & (norm > 0)
        return jnp.where(used, self.magnitude / jnp.where(used, norm, 1.0), 1.0)

    def described(self) -> tuple[tuple[int, ...], str]:
        """Shape of the update, and the rank with the variant's other arrays, for a table."""
        others = [name for name in _TRAINED[2:] if getattr(self, name) is not None]
        shape = (*self.a.shape[:-2], self.rows, self.columns)
        return shape, " ".join([f"rank {self.rank}", *others])

    def label(self, field: str) -> str:
        """'a' and 'b' for factors, 'vector' for magnitudes, gains and small matrices."""
        return field[0] if field in ("a", "b", "a2", "b2") else "vector"

    def at_rest(self) -> LowRank:
        """`plain`, without dropout, and with the base's norms to be summed anew."""
        if self.of_base:
            return self.replace(dropout=None)
        return self.plain().replace(dropout=None, base_square=None)

    def onto(self, base: Any, path: str, key: jax.Array | None = None) -> Adapted:
        """The weight's box with this update; `key` is that of the whole model's dropout.

        Raises:
            ValueError: the factors do not fit the weight.
        """
        stack = self.a.shape[:-2]
        kernel_shape = tuple(base.shape[len(stack) :]) if self.a.ndim > 1 else ()
        inputs = [kernel_shape[axis] for axis in self.in_axes if axis < len(kernel_shape)]
        rows = math.prod(inputs) if len(inputs) == len(self.in_axes) else 0
        size = math.prod(kernel_shape)
        fits = self.a.ndim > 1 and (rows, size) == (self.rows, rows * self.columns)
        if tuple(base.shape[: len(stack)]) != tuple(stack) or not fits:
            raise ValueError(
                f"The adapter of {path!r} does not fit: factors {tuple(self.a.shape)} and "
                f"{tuple(self.b.shape)} for a weight of shape {tuple(base.shape)}. It was made "
                "for another model or another layout of this one."
            )
        if self.rounded and not isinstance(base, QuantizedArray):
            raise ValueError(
                f"The adapter of {path!r} was made merge-aware: it computes with the sum rounded "
                "into the format of its quantised base, and here the base is dense. Use the base "
                "as it was quantised, or merge the adapter into that first."
            )

        if key is None or self.dropout is None:
            return Adapted(base=base, lora=self)
        key = key_for(key, path)
        return Adapted(base=base, lora=self, key=jax.random.split(key, stack) if stack else key)

    def pad(self, like: LowRank) -> LowRank:
        """The same update with zero columns up to the rank of `like`.

        Raises:
            ValueError: `like` has fewer columns, or one of the two has dropout.
        """
        if (self.dropout is None) != (like.dropout is None):
            raise ValueError(
                "it has dropout in one adapter and none in another. Give both a rate (0.0 is one)."
            )
        return self.with_rank(like.rank)

    def with_rank(self, rank: int) -> LowRank:
        """The same update with zero columns up to `rank`.

        Raises:
            ValueError: it has more columns.
        """
        if rank < self.rank:
            raise ValueError(
                f"an adapter of rank {self.rank} cannot be padded to rank {rank}: the target must "
                "not be smaller."
            )
        extra = rank - self.rank

        def widen(x: Array, axis: int) -> Array:
            return jnp.pad(x, [(0, extra if i == x.ndim + axis else 0) for i in range(x.ndim)])

        return self._along_rank(widen)

    def used_columns(self) -> np.ndarray:
        """The columns that some layer uses."""
        return np.flatnonzero(np.any(np.asarray(self.scale).reshape(-1, self.rank) != 0, axis=0))

    def trim(self) -> LowRank | None:
        """The same update without columns that no layer uses; None if no column is used."""
        used = self.used_columns()
        if not used.size:
            return None
        return self._along_rank(lambda x, axis: jnp.take(x, used, axis=axis))

    def _along_rank(self, change: Any) -> LowRank:
        fields = {name: (getattr(self, name), axis) for name, axis in RANK_AXIS.items()}
        changed = {name: change(x, axis) for name, (x, axis) in fields.items() if x is not None}
        if self.mix is not None:
            changed["mix"] = change(change(self.mix, -1), -2)
        return self.replace(**changed)

    def active_parameters(self) -> int:
        """Number of trained entries, of columns in use and of layers that have such a column; of
        shapes (jax.eval_shape), whose scale is not known, all are.

        Raises:
            ValueError: of shapes, where which parts of a fused weight are trained is not known.
        """
        used = in_use(self.scale)
        columns, layers = int(used.sum()), int(used.any(-1).sum())

        out = self.b.shape[-1]
        written = columns * out
        if self.parts is not None:
            if isinstance(self.parts, jax.ShapeDtypeStruct):
                raise ValueError(
                    "How much of a fused weight is trained is not known of shapes alone: count the "
                    "arrays that adapt gives, outside of jax.eval_shape."
                )
            parts = np.asarray(self.parts)
            written = int((parts * used[..., None]).sum()) * (out // parts.shape[-1])

        counts = {
            "a": columns * self.a.shape[-2],
            "b": written,
            "gain": columns,
            "mix": int((used.sum(-1) ** 2).sum()),
            "a2": columns * self.a.shape[-2],
            "b2": written,
            "outer": 0 if self.outer is None else layers * math.prod(self.outer.shape[-2:]),
            "magnitude": layers * out,
            "out_gain": layers * out,
        }
        return sum(counts[name] for name in self.trained_fields())


def in_use(scale: Any) -> np.ndarray:
    """Where a scale is not 0; of a jax.ShapeDtypeStruct everywhere."""
    if isinstance(scale, jax.ShapeDtypeStruct):
        return np.ones(scale.shape, bool)
    return np.asarray(scale) != 0


def _product(low: LowRank) -> Float[Array, "*stack in out"]:
    a, b = low.a.astype(jnp.float32), low.b.astype(jnp.float32)
    return (a * low.scale[..., None, :]) @ b
