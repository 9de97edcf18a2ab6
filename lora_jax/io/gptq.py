"""GPTQ's and AWQ's weights, tensor by tensor, as weights that are quantised already.

Both are (in, out) with a scale and a zero for each group of inputs: weight = (code - zero) * scale.
Eight codes of 4 bits (four of 8) share an int32, the first in its lowest bits: of GPTQ eight
neighbouring inputs, of AWQ eight neighbouring outputs in the order 0, 2, 4, 6, 1, 3, 5, 7.
Facts are those of AutoGPTQ 0.7 (format 'gptq', whose stored zeros are one too small) and AutoAWQ
0.2 (version 'gemm').
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.core import bit_packing
from lora_jax.core.quantize import QuantizedArray, QuantSpec

GPTQ_BITS, AWQ_BITS = (2, 4, 8), (4,)
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def from_gptq(
    tensors: Mapping[str, np.ndarray],
    *,
    bits: int,
    dtype: Any = jnp.float16,
    zeros_as_stored: bool = False,
) -> QuantizedArray:
    """The weight (in, out) of `qweight`, `qzeros`, `scales` and, if it is there, `g_idx`.

    Args:
        bits: 2, 4 or 8, as quantize_config.json says.
        zeros_as_stored: whether the file is of format 'gptq_v2', whose zeros are not one too small.

    Raises:
        ValueError: the bits are others; a tensor is missing, or of another shape or dtype; or the
            inputs are not in the order of their groups (desc_act).
    """
    check_bits(bits, GPTQ_BITS, "GPTQ")
    qweight, qzeros = (_integers(tensors, name) for name in ("qweight", "qzeros"))
    scales = _scales(tensors)
    codes = _parts(qweight.T, bits).T
    zeros = _parts(qzeros, bits)
    block = _block(codes, zeros, scales, "GPTQ")

    index = tensors.get("g_idx")
    if index is not None and not np.array_equal(index, np.arange(len(codes)) // block):
        raise ValueError(
            "GPTQ's g_idx says that neighbouring inputs are of different groups (desc_act=true), "
            f"and blocks of {block} neighbours share a scale here. Quantise the model with "
            "desc_act=false, or load it dequantised."
        )
    # As its kernels do: in the bits of a code, so that the largest comes back as 0.
    zeros = zeros if zeros_as_stored else (zeros + 1) & (2**bits - 1)
    return _weight(codes, zeros, scales, block, bits, dtype)


def from_awq(
    tensors: Mapping[str, np.ndarray], *, bits: int = 4, dtype: Any = jnp.float16
) -> QuantizedArray:
    """The weight (in, out) of `qweight`, `qzeros` and `scales`.

    Raises:
        ValueError: the bits are not 4, or a tensor is missing, or of another shape or dtype.
    """
    check_bits(bits, AWQ_BITS, "AWQ")
    qweight, qzeros = (_integers(tensors, name) for name in ("qweight", "qzeros"))
    scales = _scales(tensors)
    place = np.argsort(_AWQ_ORDER)  # where the code of each output stands

    def in_order(packed: np.ndarray) -> np.ndarray:
        parts = _parts(packed, bits).reshape(len(packed), -1, len(place))
        return parts[..., place].reshape(len(packed), -1)

    codes, zeros = in_order(qweight), in_order(qzeros)
    block = _block(codes, zeros, scales, "AWQ")
    return _weight(codes, zeros, scales, block, bits, dtype)


def check_bits(bits: int, known: tuple[int, ...], name: str) -> None:
    """Raises ValueError if weights of so many bits are not read."""
    if bits not in known:
        raise ValueError(
            f"{name} weights of {bits!r} bits are not read: needed {', '.join(map(str, known))}. "
            "Others lie across the borders of bytes; load the model dequantised."
        )


def _parts(packed: np.ndarray, bits: int) -> np.ndarray:
    """The codes of int32 numbers, along the last axis, the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    parts = np.ascontiguousarray(packed).view(np.uint32)[..., None] >> shifts
    return (parts & np.uint32(2**bits - 1)).astype(np.uint8).reshape(*packed.shape[:-1], -1)


def _weight(
    codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, block: int, bits: int, dtype: Any
) -> QuantizedArray:
    scale = scales.astype(np.float32)
    return QuantizedArray(
        codes=bit_packing.pack(jnp.asarray(codes), bits),
        scale=jnp.asarray(scale),
        # The product is exact: 11 bits of a half times 8.
        zero=jnp.asarray(-zeros.astype(np.float32) * scale),
        spec=QuantSpec(f"int{bits}_asym", block, double=False),
        kernel_shape=codes.shape,
        in_axes=(0,),
        dtype=jnp.dtype(dtype),
    )


def _block(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, name: str) -> int:
    """Inputs that share a scale."""
    rows, out = codes.shape
    groups = len(scales)
    if scales.shape != (groups, out) or zeros.shape != scales.shape or rows % max(groups, 1):
        raise ValueError(
            f"{name}'s tensors do not fit together: codes of a {rows} x {out} weight, scales of "
            f"shape {scales.shape} and zeros of shape {zeros.shape}; needed (groups, {out}) of "
            f"both, and groups that divide {rows}. The checkpoint is incomplete."
        )
    return rows // groups


def _integers(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    value = _given(tensors, name)
    if value.dtype != np.int32 or value.ndim != 2:
        raise ValueError(
            f"{name} must be a matrix of int32, got shape {value.shape} of {value.dtype}."
        )
    return value


def _scales(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    value = _given(tensors, "scales")
    numbers = value.astype(np.float32)
    if value.ndim != 2 or not np.isfinite(numbers).all():
        raise ValueError(
            f"scales must be a matrix of finite numbers, got shape {value.shape} of {value.dtype}. "
            "The checkpoint is damaged."
        )
    return value


def _given(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"needed a tensor {name!r}, and there are {sorted(tensors)}.")
    return np.asarray(tensors[name])
