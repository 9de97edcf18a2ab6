"""Better codes than round-to-nearest, at the same bytes: scale search, GPTQ, AWQ.

Pure functions of weights (*stack, in, out) and of what the layer's inputs look like; the results
are ordinary boxes. Kernels with more axes are viewed as matrices first
(`lora_jax.core.matrix.to_matrix`).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lora_jax.core import bit_packing, codebooks, scales
from lora_jax.core.codes import block_sizes, decode, encode
from lora_jax.core.fits import block_scales
from lora_jax.core.hadamard import rotated_moment
from lora_jax.core.quant_spec import QuantSpec
from lora_jax.core.quantize import QuantizedArray, in_its_basis, store_scales


def second_moment(x: Float[Array, "*batch in"]) -> Float[Array, "in in"]:
    """The mean of x xᵀ over all rows of a layer's inputs, for `gptq`, `awq` and `scale_search`.

    Means over batches of equal size may be averaged.
    """
    flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    return flat.T @ flat / flat.shape[0]


def scale_search(
    w: Float[Array, "*stack in out"],
    spec: QuantSpec,
    *,
    importance: Float[Array, "*stack in"] | None = None,
    low: float = 0.6,
    steps: int = 41,
) -> QuantizedArray:
    """Codes whose block scales are the best of `steps` multiples of the block's largest magnitude.

    The multiples go from `low` to 1. The best one has the smallest sum of squared weight errors,
    each times the `importance` of its input: the diagonal of `second_moment`, if given. The largest
    weights of a block are cut off where that makes the others finer. Without `importance` the
    weights are always nearer, but the layer's output need not be: in MiniLM's `mlp/down` its error
    grew by a third.
    """
    _check(w, spec)
    _check_rotation(spec)
    weights = jnp.ones(w.shape[:-1], jnp.float32) if importance is None else importance
    q = _search(w, spec, weights, low, steps)
    return q.replace(dtype=jnp.dtype(w.dtype))


def gptq(
    w: Float[Array, "*stack in out"],
    moment: Float[Array, "*stack in in"],
    spec: QuantSpec,
    *,
    damping: float = 0.01,
) -> QuantizedArray:
    """Codes rounded input by input, where what each loses is made up for by those still to come.

    A block's scale is taken when its first row is reached, from the weights as they stand then.
    `damping` times the mean of the moment's diagonal is added to it. Reference: GPTQ, Frantar et
    al. 2022 (arXiv 2210.17323), section 3.3, without reordering.
    """
    _check(w, spec)
    dtype = jnp.dtype(w.dtype)
    if spec.rotation != "none":
        w, moment = in_its_basis(w, spec), rotated_moment(moment)
    matrices, moments = (x.reshape(-1, *x.shape[-2:]) for x in (w, moment))
    parts = [_gptq(matrix, one, spec, damping) for matrix, one in zip(matrices, moments)]
    codes, scale, zero = (
        None if part[0] is None else jnp.stack(part).reshape(*w.shape[:-2], *part[0].shape)
        for part in zip(*parts)
    )
    packed = bit_packing.pack(codes, spec.bits, fill=codebooks.format_named(spec.format).zero)
    return _boxed(w, packed, *store_scales(scale, zero, spec), spec).replace(dtype=dtype)


def awq(
    w: Float[Array, "*stack in out"],
    moment: Float[Array, "*stack in in"],
    spec: QuantSpec,
    *,
    steps: int = 21,
) -> QuantizedArray:
    """Codes of a weight whose rows are scaled up where inputs are large, and down again when read.

    Inputs' scales are their root mean square to a power. The power is the best of `steps` between 0
    (round to nearest) and 1, by the error of the layer's output. The scales stay with the weight as
    `in_scale`, 32 bits an input. Reference: AWQ, Lin et al. 2023 (arXiv 2306.00978), section 3.2,
    equation 5; there the mean of the magnitudes is used, and the scales move into the layer before.
    """
    _check(w, spec)
    _check_rotation(spec)
    return _awq(w, moment, spec, steps)


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def _search(w: Array, spec: QuantSpec, importance: Array, low: float, steps: int) -> QuantizedArray:
    w = w.astype(jnp.float32)
    scale, zero = block_scales(w, spec)
    block, blocks, padded = block_sizes(w.shape[-2], spec.block_size)
    # Each multiple is tried on exact scales; how they are stored comes after the choice.
    plain = replace(spec, double=False)

    def error(factor: Array) -> Array:
        tried, moved = _shrunk(scale, zero, spec, factor)
        off = decode(encode(w, tried, moved, plain), tried, moved, plain, w.shape[-2]) - w
        short = [(0, 0)] * (w.ndim - 2) + [(0, padded - w.shape[-2]), (0, 0)]
        weighted = jnp.pad(off**2 * importance[..., None], short)
        return weighted.reshape(*w.shape[:-2], blocks, block, -1).sum(-2)

    def better(best: tuple[Array, Array], factor: Array) -> tuple[tuple[Array, Array], None]:
        least, chosen = best
        now = error(factor)
        return (jnp.minimum(least, now), jnp.where(now < least, factor, chosen)), None

    # From 1 down, so that a tie keeps the plain scale.
    start = error(jnp.float32(1.0)), jnp.ones_like(scale)
    factors = jnp.linspace(1.0, low, steps, dtype=jnp.float32)[1:]
    (_, chosen), _ = jax.lax.scan(better, start, factors)
    scale, zero = _shrunk(scale, zero, spec, chosen)
    return _finish(w, scale, zero, spec)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _gptq(
    w: Array, moment: Array, spec: QuantSpec, damping: float
) -> tuple[Array, Array, Array | None]:
    rows = w.shape[0]
    block, blocks, padded = block_sizes(rows, spec.block_size)

    # Row i of the Cholesky factor of the inverse moment says how later rows make up for what row i
    # loses (GPTQ, algorithm 1): all that is asked of the inverse, computed once.
    diagonal = jnp.diag(moment)
    # An input that is always 0 can be rounded at no cost.
    fixed = moment + jnp.diag(jnp.where(diagonal > 0, damping * diagonal.mean(), 1.0))
    inverse = jnp.linalg.inv(fixed)
    upper = jnp.linalg.cholesky((inverse + inverse.T) / 2).T

    single = replace(spec, block_size=None, double=False)

    def one_block(left: Array, start: Array) -> tuple[Array, tuple[Array, Array, Array | None]]:
        part = jax.lax.dynamic_slice_in_dim(left, start, block)
        real = (start + jnp.arange(block) < rows)[:, None]
        scale, zero = block_scales(jnp.where(real, part, part[:1]), single, real)
        stored, stored_zero = store_scales(scale, zero, single)
        used = scales.load(stored, *scale.shape)
        used_zero = None if zero is None else scales.load(stored_zero, *scale.shape)

        def one_row(left: Array, index: Array) -> tuple[Array, Array]:
            row = left[index][None]
            packed = encode(row, used, used_zero, single)
            lost = (row - decode(packed, stored, stored_zero, single, 1)) / factors[index, index]

            later = jnp.arange(left.shape[0]) > index
            left = left - jnp.where(later, factors[index], 0.0)[:, None] * lost
            return left, bit_packing.unpack(packed, spec.bits, 1)[0]

        left, codes = jax.lax.scan(one_row, left, start + jnp.arange(block))
        return left, (codes, scale[0], None if zero is None else zero[0])

    # Rows that complete the last block: the identity, so that they take and give nothing.
    factors = jnp.pad(upper, ((0, padded - rows), (0, padded - rows)))
    factors = factors + jnp.diag((jnp.arange(padded) >= rows).astype(jnp.float32))
    left = jnp.pad(w.astype(jnp.float32), ((0, padded - rows), (0, 0)))
    _, (codes, scale, zero) = jax.lax.scan(one_block, left, jnp.arange(blocks) * block)
    return codes.reshape(padded, -1)[:rows], scale, zero


@functools.partial(jax.jit, static_argnums=(2, 3))
def _awq(w: Array, moment: Array, spec: QuantSpec, steps: int) -> QuantizedArray:
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(moment, axis1=-2, axis2=-1), 1e-12))

    def scaled(power: Array) -> Array:
        factor = size**power
        # Only ratios matter; the middle of the range keeps weights near their size.
        return factor / jnp.sqrt(factor.max(-1, keepdims=True) * factor.min(-1, keepdims=True))

    def trial(power: Array) -> tuple[Array, QuantizedArray]:
        factor = jnp.broadcast_to(scaled(power), w.shape[:-1])
        wide = w.astype(jnp.float32) * factor[..., None]
        q = _finish(wide, *block_scales(wide, spec), spec)
        q = q.replace(in_scale=1 / factor, dtype=jnp.dtype(w.dtype))
        return _energy(w.astype(jnp.float32) - q.matrix(jnp.float32), moment), q

    powers = jnp.linspace(0.0, 1.0, steps)
    # One after the other: a weight of the largest layer is alive once, not `steps` times.
    errors = jax.lax.map(lambda power: trial(power)[0], powers)
    best = powers[jnp.argmin(errors, axis=0)]
    return trial(best[..., None])[1]


def _finish(w: Array, scale: Array, zero: Array | None, spec: QuantSpec) -> QuantizedArray:
    """Scales stored, and codes that are nearest under the scales that will be read."""
    stored, stored_zero = store_scales(scale, zero, spec)
    scale = scales.load(stored, *scale.shape[-2:])
    zero = None if zero is None else scales.load(stored_zero, *scale.shape[-2:])
    return _boxed(w, encode(w, scale, zero, spec), stored, stored_zero, spec)


def _boxed(w: Array, codes: Array, scale: Any, zero: Any, spec: QuantSpec) -> QuantizedArray:
    return QuantizedArray(
        codes=codes,
        scale=scale,
        zero=zero,
        spec=spec,
        kernel_shape=tuple(w.shape[-2:]),
        in_axes=(0,),
        dtype=jnp.dtype(w.dtype),
    )


def _shrunk(
    scale: Array, zero: Array | None, spec: QuantSpec, factor: Array
) -> tuple[Array, Array | None]:
    """Scales made smaller; with an offset, the range shrinks about its middle."""
    format = codebooks.format_named(spec.format)
    if not format.offset:
        return scale * factor, zero
    return scale * factor, zero + scale * (1 - factor) * format.limit / 2


def _energy(off: Array, moment: Array) -> Array:
    return jnp.einsum("...io,...ij,...jo->...", off, moment, off, optimize=True)


def _check_rotation(spec: QuantSpec) -> None:
    if spec.rotation != "none":
        raise ValueError(
            f"Inputs are weighed one by one here, and rotation {spec.rotation!r} mixes them. Use gptq, "
            "or rotation 'none'."
        )


def _check(w: Array, spec: QuantSpec) -> None:
    floating = w.ndim >= 2 and jnp.issubdtype(w.dtype, jnp.floating)
    if not floating or not np.isfinite(np.asarray(w, np.float32)).all():
        raise ValueError(
            f"Needed finite floating matrices (*stack, in, out), got {w.dtype} {w.shape} or a NaN "
            "or infinity in it."
        )
    if spec.scale_dtype == "e8m0":
        raise ValueError(
            "Calibration chooses scales freely, and 'e8m0' allows powers of two only. Use "
            "scale_dtype 'float32' or 'bfloat16'."
        )
