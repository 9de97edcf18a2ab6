"""How the scale of a block is chosen, and its offset where there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lora_jax.core import bit_packing, codebooks
from lora_jax.core.codes import block_sizes, blocked, decode, encode
from lora_jax.core.order import unfused
from lora_jax.core.quant_spec import QuantSpec

# HQQ's p, the weight of its penalty and that weight's growth: the defaults of its authors' code.
_P, _PENALTY, _GROWTH, _ROUNDS = 0.7, 10.0, 1.01, 20
_REACH, _TRIED = 0.1, 41  # offsets that are tried: so many standard deviations from the median


def block_scales(
    matrix: Float[Array, "*stack in out"], spec: QuantSpec, real: Array | None = None
) -> tuple[Array, Array | None]:
    """Float32 (scales, zeros), (*stack, blocks, out) each, chosen as `spec.fit` says. `real`, (in, 1)
    of a matrix that is one block, is false at copies of a row, which do not count.

    Scales are what the largest level stands for and zeros None; for formats with an offset, steps
    and what code 0 stands for; with fit 'entropy' zeros are what level 0 stands for.
    """
    matrix = matrix.astype(jnp.float32)
    if spec.fit == "range":
        return _range(matrix, spec)  # of which copies change nothing
    return {"hqq": _half_quadratic, "entropy": _entropy}[spec.fit](matrix, spec, real)


def _range(matrix: Array, spec: QuantSpec) -> tuple[Array, Array | None]:
    """The largest magnitude of each block; with an offset, all between its smallest and largest."""
    format = codebooks.format_named(spec.format)
    block, blocks, _ = block_sizes(matrix.shape[-2], spec.block_size)
    parts = blocked(matrix, block, blocks)
    if not format.offset:
        return jnp.abs(parts).max(-2), None
    low = parts.min(-2)
    return unfused((parts.max(-2) - low) / format.limit), low


def _half_quadratic(
    matrix: Array, spec: QuantSpec, only: Array | None
) -> tuple[Array, Array | None]:
    """Block by block the best of the iterates of a half-quadratic splitting of sum |W - Q|^p with p
    = 0.7 (HQQ, Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning
    Models").

    W - Q is split into E, which a shrinking step makes of it, and the rest; then the offset is the
    mean of W - E - scale * codes. That is HQQ for formats with an offset: its zero-point is
    -offset / scale. What is ours: errors are in steps of the block, so that a weight of another
    size is quantised alike; the best iterate of each block is taken, the first one being `_range`,
    where HQQ stops all of a matrix at its first rise; and formats without an offset move their
    scale instead, by least squares against W - E.
    """
    plain = replace(spec, double=False, scale_dtype="float32", fit="range")
    format, rows = codebooks.format_named(spec.format), matrix.shape[-2]
    scale, zero = _range(matrix, plain)
    target, real = _parts(matrix, spec, only)
    step = scale if format.offset else scale * np.float32(2 / (2**format.bits - 1))
    step = jnp.where(step > 0, step, 1.0)[..., None, :]
    ones = jnp.ones_like(scale)

    def one_round(now: Any, penalty: Array) -> tuple[Any, None]:
        (scale, zero), best, least = now
        codes = encode(matrix, scale, zero, plain)
        levels, _ = _parts(decode(codes, ones, None, plain, rows), spec)
        scaled = levels * scale[..., None, :]
        off = (target - scaled - (0.0 if zero is None else zero[..., None, :])) / step
        error = (real * jnp.abs(off) ** _P).sum(-2)
        better = error < least
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), (scale, zero), best)

        shrunk = jnp.maximum(jnp.abs(off) - jnp.abs(off) ** (_P - 1) / penalty, 0.0)
        kept = target - jnp.sign(off) * shrunk * step
        if zero is None:
            square = (real * levels * levels).sum(-2)
            fitted = (real * levels * kept).sum(-2) / jnp.where(square > 0, square, 1.0)
            scale = jnp.where(fitted > 0, fitted, scale)
        else:
            zero = (real * (kept - scaled)).sum(-2) / real.sum(-2)
        return ((scale, zero), best, jnp.minimum(least, error)), None

    penalties = _PENALTY * _GROWTH ** jnp.arange(_ROUNDS + 1, dtype=jnp.float32)
    first = ((scale, zero), (scale, zero), jnp.full_like(scale, jnp.inf))
    (_, best, _), _ = jax.lax.scan(one_round, first, penalties)
    return best


def _entropy(matrix: Array, spec: QuantSpec, only: Array | None) -> tuple[Array, Array]:
    """Block by block the offset that is taken off the weights for their codes to have the largest
    entropy, and the largest magnitude of what is left (information calibration of IR-QLoRA, Qin et
    al. 2024, arXiv 2402.05445, section 3.2).

    Tried are 41 offsets within 0.1 standard deviations of the block's median, and 0: no block's
    codes have less entropy than those without an offset. Nothing is said of the error, which can
    be larger.
    """
    plain = replace(spec, double=False, scale_dtype="float32", fit="range")
    target, real = _parts(matrix, spec, only)
    count = real.sum(-2)
    middle = jnp.nanmedian(jnp.where(real > 0, target, jnp.nan), -2)
    mean = (real * target).sum(-2) / count
    deviation = jnp.sqrt((real * (target - mean[..., None, :]) ** 2).sum(-2) / count)

    def entropy(zero: Array) -> tuple[Array, Array]:
        scale = jnp.abs(target - zero[..., None, :]).max(-2)
        packed = encode(matrix, scale, zero, plain)
        codes = bit_packing.unpack(packed, plain.bits, matrix.shape[-2])
        codes, _ = _parts(codes.astype(jnp.float32), spec)
        total = jnp.zeros_like(scale)
        for code in range(2**plain.bits):
            share = (real * (codes == code)).sum(-2) / count
            total -= share * jnp.log2(jnp.where(share > 0, share, 1.0))
        return scale, total

    def better(best: Any, far: Array) -> tuple[Any, None]:
        zero = middle + far * deviation
        scale, now = entropy(zero)
        # By more than rounding: what is as good stays nearer to the block's own codes.
        wins, tried = now > best[2] + 1e-5, (scale, zero, now)
        return jax.tree.map(lambda new, old: jnp.where(wins, new, old), tried, best), None

    none = jnp.zeros_like(middle)
    scale, most = entropy(none)
    away = np.linspace(-_REACH, _REACH, _TRIED, dtype=np.float32)
    away = away[np.argsort(np.abs(away), kind="stable")]
    (scale, zero, _), _ = jax.lax.scan(better, (scale, none, most), jnp.asarray(away))
    return scale, zero


def _parts(matrix: Array, spec: QuantSpec, only: Array | None = None) -> tuple[Array, Array]:
    """A matrix in blocks (*stack, blocks, block, out), and 1 where an entry is of the matrix (`only`
    says which of a single block are), 0 where it fills a short last block.
    """
    rows = matrix.shape[-2]
    block, blocks, padded = block_sizes(rows, spec.block_size)
    real = (np.arange(padded) < rows).astype(np.float32).reshape(blocks, block, 1)
    return blocked(matrix, block, blocks), jnp.asarray(real if only is None else only, jnp.float32)
