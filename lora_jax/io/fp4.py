"""MXFP4 and NVFP4 weights in the layouts of published checkpoints, read and written.

MXFP4 is `QuantSpec('fp4_e2m1', 32, double=False, scale_dtype='e8m0')` here, NVFP4
`QuantSpec('fp4_e2m1', 16, second_level='tensor')`. Both layouts are (out, in), two codes of
neighbouring inputs to a byte, the first in the low half.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lora_jax.core import bit_packing
from lora_jax.core.quantize import DoubleQuantized, QuantizedArray, QuantSpec

MXFP4 = QuantSpec("fp4_e2m1", 32, double=False, scale_dtype="e8m0")
NVFP4 = QuantSpec("fp4_e2m1", 16, second_level="tensor")


def to_mxfp4(q: QuantizedArray) -> dict[str, np.ndarray]:
    """`blocks` (*stack, out, in / 32, 16) and `scales` (*stack, out, in / 32), bytes both: gpt-oss's
    layout, whose tensors are named `<weight>_blocks` and `<weight>_scales`.

    Raises:
        ValueError: the weight is stored in another format.
    """
    _check_format(q, MXFP4, "MXFP4")
    packed = _packed(q)
    scales = np.asarray(q.scale).swapaxes(-1, -2)
    return {"blocks": packed.reshape(*scales.shape, 16), "scales": np.ascontiguousarray(scales)}


def from_mxfp4(tensors: Mapping[str, np.ndarray], *, dtype: Any = jnp.bfloat16) -> QuantizedArray:
    """The weights (*stack, in, out) of `blocks` and `scales`.

    Raises:
        ValueError: a tensor is missing or has another shape, or a scale is NaN (255) or below the
            smallest normal number (0 beside codes that are not).
    """
    blocks, scales = (_bytes(tensors, name) for name in ("blocks", "scales"))
    if blocks.ndim < 3 or blocks.shape[:-1] != scales.shape or blocks.shape[-1] != 16:
        raise ValueError(
            "MXFP4 needs blocks (..., out, in / 32, 16) and scales (..., out, in / 32), got "
            f"{blocks.shape} and {scales.shape}."
        )
    nonzero = ((blocks & 0x77) != 0).any(-1)
    if (scales == 255).any() or ((scales == 0) & nonzero).any():
        raise ValueError(
            "MXFP4 scales hold 255, which is no number, or 0 (2**-127), which float32 rounds to 0 "
            "here. The checkpoint is damaged, or its weights are too small to be computed with."
        )
    codes = blocks.reshape(*blocks.shape[:-2], -1)
    return _unpacked(codes, jnp.asarray(scales.swapaxes(-1, -2)), MXFP4, dtype)


def to_nvfp4(q: QuantizedArray) -> dict[str, np.ndarray]:
    """`weight_packed` (out, in / 2) bytes, `weight_scale` (out, in / 16) E4M3 and
    `weight_global_scale` (1,), one over our number of the matrix: compressed-tensors' layout
    `nvfp4-pack-quantized`.

    Raises:
        ValueError: the weight is stored in another format, or is a stack of weights.
    """
    _check_format(q, NVFP4, "NVFP4")
    if q.codes.ndim != 2:
        raise ValueError(
            f"NVFP4 is written weight by weight, and this is a stack of shape {q.shape}: write "
            "each of its matrices."
        )
    out = q.codes.shape[-1]
    tensor = np.asarray(q.scale.absmax, np.float32)
    return {
        "weight_packed": _packed(q),
        "weight_scale": np.asarray(q.scale.codes).reshape(out, -1).view(ml_dtypes.float8_e4m3fn),
        "weight_global_scale": np.where(tensor > 0, 1 / np.where(tensor > 0, tensor, 1), 1).astype(
            np.float32
        ),
    }


def from_nvfp4(tensors: Mapping[str, np.ndarray], *, dtype: Any = jnp.bfloat16) -> QuantizedArray:
    """The weight (in, out) of `weight_packed`, `weight_scale` and `weight_global_scale`.

    Raises:
        ValueError: a tensor is missing or has another shape or dtype, or a scale is no positive
            number.
    """
    codes = _bytes(tensors, "weight_packed")
    scale, whole = (
        np.asarray(_given(tensors, name)) for name in ("weight_scale", "weight_global_scale")
    )
    if codes.ndim != 2 or scale.shape != (codes.shape[0], codes.shape[1] // 8) or whole.size != 1:
        raise ValueError(
            "NVFP4 needs weight_packed (out, in / 2), weight_scale (out, in / 16) and one "
            f"weight_global_scale, got {codes.shape}, {scale.shape} and {whole.shape}."
        )
    if scale.dtype != ml_dtypes.float8_e4m3fn:
        raise ValueError(f"NVFP4 needs weight_scale in float8_e4m3fn, got {scale.dtype}.")
    numbers = scale.astype(np.float32)
    factor = np.float32(whole.reshape(())[()])
    if not (numbers >= 0).all() or not 0 < factor < np.inf:
        raise ValueError(
            "NVFP4 scales must be numbers of 0 or more, and weight_global_scale above 0; these are "
            "not. The checkpoint is damaged."
        )
    stored = DoubleQuantized(
        codes=jnp.asarray(scale.view(np.uint8).ravel()),
        absmax=jnp.asarray([np.float32(1) / factor]),
        offset=jnp.zeros((), jnp.float32),
        level="tensor",
    )
    return _unpacked(codes, stored, NVFP4, dtype)


def _check_format(q: QuantizedArray, spec: QuantSpec, name: str) -> None:
    same = (q.spec.format, q.spec.block_size, q.spec.double, q.spec.scale_dtype) == (
        spec.format,
        spec.block_size,
        spec.double,
        spec.scale_dtype,
    ) and (not spec.double or q.spec.second_level == spec.second_level)
    odd = q.in_scale is not None or q.zero is not None or q.spec.rotation != "none"
    if not same or odd or q.rows % spec.block_size:
        raise ValueError(
            f"{name} is {spec!r} of a number of inputs that blocks of {spec.block_size} divide, "
            f"and this weight has {q.rows} inputs in {q.spec!r}. Quantise it so."
        )


def _packed(q: QuantizedArray) -> np.ndarray:
    """Codes (*stack, out, in / 2), the first of two in the low half."""
    codes = np.asarray(bit_packing.unpack(q.codes, 4, q.rows)).swapaxes(-1, -2)
    return np.ascontiguousarray(codes[..., ::2] | (codes[..., 1::2] << 4))


def _unpacked(codes: np.ndarray, scale: Any, spec: QuantSpec, dtype: Any) -> QuantizedArray:
    both = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1).swapaxes(-1, -2)
    return QuantizedArray(
        codes=bit_packing.pack(jnp.asarray(both), 4),
        scale=scale,
        spec=spec,
        kernel_shape=both.shape[-2:],
        in_axes=(0,),
        dtype=jnp.dtype(dtype),
    )


def _given(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"needed a tensor {name!r}, and there are {sorted(tensors)}.")
    return tensors[name]


def _bytes(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    value = np.asarray(_given(tensors, name))
    if value.dtype != np.uint8:
        raise ValueError(f"{name} must hold bytes (uint8), got {value.dtype}.")
    return value
