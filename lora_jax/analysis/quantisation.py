"""What quantisation loses: error by layer, format and block size, and how normal the weights are
that it assumes to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.core.matrix import to_matrix
from lora_jax.core.quantize import QuantizedArray, QuantSpec, bytes_of, quantize, scale_damage


@dataclass(frozen=True)
class Loss:
    """What one matrix lost: norm of the error over the norm of the weights, bits a weight, and
    bytes before and after.

    `norm` is that of the weights; NaN in rows of old files, which do not have it. `damage` is the
    share of scales that double quantisation moved by more than 5 %: above 0.01 the spec does not
    suit the layer.
    """

    path: str
    layer: int | None
    format: str
    block_size: int | None
    relative_error: float
    bits: float
    bytes_before: int
    bytes_after: int
    damage: float
    norm: float = math.nan


@dataclass(frozen=True)
class Shape:
    """How weights are distributed: excess kurtosis (0 for a normal distribution, 3 for a Laplace
    one), and the share of output channels for which a Shapiro-Wilk test at 5 % rejects the normal
    distribution (0.05 if all are normal; QLoRA, Appendix F).
    """

    path: str
    layer: int | None
    kurtosis: float
    not_normal: float
    channels: int
    largest: float  # largest magnitude over standard deviation


def losses(path: str, w: Any, q: QuantizedArray) -> list[Loss]:
    """The loss of each matrix of a stack that `w` was quantised from to `q`; one with layer None if
    there is no stack.
    """
    errors, damage, norms = (
        np.asarray(part, np.float64).reshape(-1) for part in _errors(jnp.asarray(w), q)
    )

    count, bytes_after = len(errors), bytes_of(q)
    bytes_before = int(np.prod(q.shape)) * jnp.dtype(w.dtype).itemsize
    stacked = q.ndim > len(q.kernel_shape)
    return [
        Loss(
            path=path,
            layer=index if stacked else None,
            format=q.spec.format,
            block_size=q.spec.block_size,
            relative_error=float(error),
            bits=8 * bytes_after / q.size,
            bytes_before=bytes_before // count,
            bytes_after=bytes_after // count,
            damage=float(damage[index]),
            norm=float(norms[index]),
        )
        for index, error in enumerate(errors)
    ]


def sweep(
    weights: Mapping[str, Any],
    formats: Iterable[str],
    block_sizes: Iterable[int | None] = (64,),
    *,
    double: bool = False,
) -> list[Loss]:
    """The losses of matrices (*stack, in, out) by path, for every format and block size."""
    block_sizes = list(block_sizes)
    return [
        loss
        for format in formats
        for block_size in block_sizes
        for path, w in weights.items()
        for loss in losses(path, w, quantize(jnp.asarray(w), QuantSpec(format, block_size, double)))
    ]


def total(rows: Sequence[Loss]) -> tuple[float, float]:
    """(relative error, bits a weight) of all matrices together, as if they were one; weights of one
    dtype. The error is NaN where a row has no norm.
    """
    sizes = [row.bytes_before for row in rows]
    norm = math.hypot(*(row.norm for row in rows))
    lost = math.hypot(*(row.norm * row.relative_error for row in rows))
    error = lost / norm if norm else 0.0
    return error, sum(size * row.bits for size, row in zip(sizes, rows)) / sum(sizes)


def shapes(path: str, w: Any, *, channels: int = 128) -> list[Shape]:
    """The distribution of each matrix of a stack (*stack, in, out); at most `channels` output
    channels are tested, evenly chosen.
    """
    from scipy import stats

    matrices = np.asarray(w, np.float64).reshape(-1, *w.shape[-2:])
    rows = []
    for index, matrix in enumerate(matrices):
        flat = matrix.reshape(-1)
        centred = flat - flat.mean()
        variance = (centred**2).mean()
        if variance == 0:
            raise ValueError(
                f"{path}: all weights of matrix {index} are equal; they have no distribution to "
                "describe."
            )
        chosen = np.unique(np.linspace(0, matrix.shape[1] - 1, channels).astype(int))
        # The test's tables end at 5000 numbers.
        tested = [stats.shapiro(matrix[:5000, channel]).pvalue < 0.05 for channel in chosen]
        shape = Shape(
            path=path,
            layer=index if w.ndim > 2 else None,
            kurtosis=float((centred**4).mean() / variance**2 - 3),
            not_normal=float(np.mean(tested)),
            channels=len(chosen),
            largest=float(np.abs(flat).max() / math.sqrt(variance)),
        )
        rows.append(shape)
    return rows


def rms_error(samples: Any, spec: QuantSpec) -> float:
    """The root mean square error of numbers quantised in one row of blocks."""
    q = quantize(jnp.asarray(samples).reshape(-1, 1), spec)
    return float(_rms(jnp.asarray(samples).reshape(-1, 1), q))


@jax.jit
def _errors(w: jax.Array, q: QuantizedArray) -> tuple[jax.Array, jax.Array, jax.Array]:
    exact = to_matrix(w, len(q.kernel_shape), q.in_axes).astype(jnp.float32)
    off = jnp.linalg.norm(q.matrix(jnp.float32) - exact, axis=(-2, -1))
    size = jnp.linalg.norm(exact, axis=(-2, -1))
    damage = scale_damage(w, q) if q.spec.double else jnp.zeros(size.shape)
    return jnp.where(size > 0, off / jnp.where(size > 0, size, 1.0), off), damage, size


@jax.jit
def _rms(exact: jax.Array, q: QuantizedArray) -> jax.Array:
    return jnp.sqrt(((q.matrix(jnp.float32) - exact) ** 2).mean())
