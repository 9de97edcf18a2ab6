"""Weights seen as matrices (in, out): dense, multi-axis, einsum and convolution kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Shaped


def to_matrix(
    w: Shaped[Array | np.ndarray, "*axes"], kernel_ndim: int, in_axes: Sequence[int]
) -> Shaped[Array | np.ndarray, "*stack in out"]:
    """The last `kernel_ndim` axes of `w` as (in, out): those in `in_axes`, then the others."""
    lead = w.ndim - kernel_ndim
    kernel_shape = w.shape[lead:]
    order = _order(kernel_ndim, in_axes)
    if order != tuple(range(kernel_ndim)):
        w = w.transpose(*range(lead), *(lead + axis for axis in order))
    return w.reshape(*w.shape[:lead], math.prod(kernel_shape[axis] for axis in in_axes), -1)


def from_matrix(
    matrix: Shaped[Array | np.ndarray, "*stack in out"],
    kernel_shape: Sequence[int],
    in_axes: Sequence[int],
) -> Shaped[Array | np.ndarray, "*axes"]:
    """The inverse of `to_matrix`."""
    lead = matrix.ndim - 2
    order = _order(len(kernel_shape), in_axes)
    w = matrix.reshape(*matrix.shape[:lead], *(kernel_shape[axis] for axis in order))
    if order == tuple(range(len(kernel_shape))):
        return w
    back = (lead + order.index(axis) for axis in range(len(kernel_shape)))
    return w.transpose(*range(lead), *back)


def _order(kernel_ndim: int, in_axes: Sequence[int]) -> tuple[int, ...]:
    return (*in_axes, *(axis for axis in range(kernel_ndim) if axis not in in_axes))
