"""How other tools store a quantised weight in several tensors of a folder: one row a method that
config.json's `quantization_config` can name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.core.blockwise import BLOCK
from lora_jax.core.paths import nearest
from lora_jax.core.quantize import DoubleQuantized, QuantizedArray, QuantSpec, quantize
from lora_jax.io import bitsandbytes, fp4, gptq
from lora_jax.io.config_json import Raw, refuse
from lora_jax.io.tensors import Tensors


@dataclass(frozen=True)
class Stored:
    """What is known of a quantised weight before it is read. shape: (out, in), as its dense tensor
    would have. dtype: of the weight that its own tool dequantises it to. flat: blocks run on from
    one row to the next (`FlatQuantized`).
    """

    shape: tuple[int, int]
    spec: QuantSpec
    dtype: str
    flat: bool = False

    def like(self) -> QuantizedArray:
        """The box (in, out), with the shape and dtype of each array in its place."""
        weight = jax.ShapeDtypeStruct(self.shape[::-1], jnp.float32)
        if self.flat:
            spec = self.spec
            of = lambda w: bitsandbytes.quantize_4bit(w, spec.format, spec.block_size, spec.double)
        else:
            of = lambda w: quantize(w, self.spec)
        return jax.eval_shape(of, weight).replace(dtype=jnp.dtype(self.dtype))


@dataclass(frozen=True)
class Layout:
    """How a method stores the weight of a module.

    marks: endings of tensors that only a quantised module has; the first is there once a module.
    parts: endings of all tensors of such a weight, the marks among them, and `unread` ones, which
        change nothing.
    told: what is known of the weight, by the endings of its tensors, their names and the file's
        tensors.
    read: the weight, from its tensors by their endings.
    """

    marks: tuple[str, ...]
    parts: tuple[str, ...]
    told: Callable[[Mapping[str, str], Tensors], Stored]
    read: Callable[[Mapping[str, np.ndarray], Stored], QuantizedArray]
    unread: tuple[str, ...] = ()


def layout_of(raw: Raw, dtype: str) -> Layout:
    """The layout that a `quantization_config` describes. `dtype` is config.json's own.

    Raises:
        ValueError: the method is unknown, or one of its settings stores weights in a way that is
            not read.
    """
    method = raw.get("quant_method")
    if method not in METHODS:
        why = _NOT_READ.get(str(method), f"Nearest: {nearest(str(method), METHODS, 1)[0]!r}.")
        raise ValueError(
            f"quantization_config.quant_method {method!r} is not read; needed one of "
            f"{', '.join(METHODS)}. {why} Or give the model in floating numbers."
        )
    return METHODS[method](raw, dtype)


# --- bitsandbytes: its tensors say all.

_FOUR_BITS = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))


def _bitsandbytes(raw: Raw, dtype: str) -> Layout:
    nested = (
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
    )

    def told(own: Mapping[str, str], tensors: Tensors) -> Stored:
        if "SCB" in own:
            out, rows = tensors.shape(own["weight"])
            return Stored((out, rows), QuantSpec("int8", None, double=False), dtype)
        mark = next(mark for mark in _FOUR_BITS if mark in own)
        state = bitsandbytes.state_of("weight", tensors[own[mark]], mark.rpartition("__")[2])
        spec = QuantSpec(state["quant_type"], state["blocksize"], "nested_offset" in state)
        out, rows = state["shape"]
        return Stored((out, rows), spec, state["dtype"], flat=bool(rows % spec.block_size))

    def read(own: Mapping[str, np.ndarray], stored: Stored) -> QuantizedArray:
        return bitsandbytes.from_tensors("weight", own, dtype=jnp.dtype(stored.dtype))

    marks = ("SCB", *_FOUR_BITS)
    return Layout(marks, (*marks, "weight", "weight_format", *nested), told, read)


# --- GPTQ and AWQ: the bits and the groups are config.json's.


def _gptq(raw: Raw, dtype: str) -> Layout:
    # GPTQModel writes the second name, AutoGPTQ the first.
    versions = ("gptq", "gptq_v2", None)
    refuse(raw, dynamic=(None, {}), checkpoint_format=versions, format=versions)
    said = {raw.get("checkpoint_format"), raw.get("format")} - {None}
    if len(said) > 1:
        raise ValueError(
            "quantization_config says checkpoint_format and format, and they differ: "
            f"{' and '.join(sorted(said))}. Zeros are off by one in one of the two."
        )
    bits, version = raw["bits"], next(iter(said), None)
    gptq.check_bits(bits, gptq.GPTQ_BITS, "GPTQ")
    told = functools.partial(_told_packed, _spec(raw), dtype, lambda shape: shape[0] * 32 // bits)
    read = functools.partial(gptq.from_gptq, bits=bits, zeros_as_stored=version == "gptq_v2")
    if raw.get("desc_act"):
        read = functools.partial(_in_order, read)
    parts = ("qweight", "qzeros", "scales", "g_idx")
    return Layout(parts[:1], parts, told, functools.partial(_read_packed, read))


def _awq(raw: Raw, dtype: str) -> Layout:
    refuse(raw, version=("gemm", "GEMM", None), zero_point=(True, None))
    gptq.check_bits(raw["bits"], gptq.AWQ_BITS, "AWQ")
    told = functools.partial(_told_packed, _spec(raw), dtype, lambda shape: shape[0])
    read = functools.partial(gptq.from_awq, bits=raw["bits"])
    parts = ("qweight", "qzeros", "scales")
    return Layout(parts[:1], parts, told, functools.partial(_read_packed, read))


def _spec(raw: Raw) -> QuantSpec:
    size = raw["group_size"]
    return QuantSpec(f"int{raw['bits']}_asym", None if size == -1 else size, double=False)


def _told_packed(
    spec: QuantSpec,
    dtype: str,
    rows_of: Callable[..., int],
    own: Mapping[str, str],
    tensors: Tensors,
) -> Stored:
    shape = tensors.shape(own["qweight"])
    _, out = tensors.shape(own["scales"]) if "scales" in own else (0, 0)
    return Stored((out, rows_of(shape)), spec, dtype)


def _read_packed(
    read: Callable[..., QuantizedArray], own: Mapping[str, np.ndarray], stored: Stored
) -> QuantizedArray:
    box = read(own, dtype=jnp.dtype(stored.dtype))
    rows, size = stored.shape[1], stored.spec.block_size
    if (size or rows) != box.spec.block_size:
        raise ValueError(
            f"{rows // box.spec.block_size} groups of {rows} inputs, and config.json says group_size "
            f"{size or -1}. It belongs to other weights."
        )
    return box.replace(spec=stored.spec)


def _in_order(
    read: Callable[..., QuantizedArray], own: Mapping[str, np.ndarray], **options: Any
) -> QuantizedArray:
    if "g_idx" not in own:
        raise ValueError(
            "config.json says desc_act=true, and there is no g_idx that says which inputs share a "
            "scale. Quantise the model with desc_act=false."
        )
    return read(own, **options)


# --- compressed-tensors: NVFP4.


def _compressed_tensors(raw: Raw, dtype: str) -> Layout:
    refuse(
        raw,
        format=("nvfp4-pack-quantized",),
        quantization_status=("compressed", None),
        transform_config=(None, {}),
    )
    parts = ("weight_packed", "weight_scale", "weight_global_scale")

    def told(own: Mapping[str, str], tensors: Tensors) -> Stored:
        out, half = tensors.shape(own["weight_packed"])
        return Stored((out, 2 * half), fp4.NVFP4, dtype)

    def read(own: Mapping[str, np.ndarray], stored: Stored) -> QuantizedArray:
        return fp4.from_nvfp4(own, dtype=jnp.dtype(stored.dtype))

    return Layout(parts[:1], parts, told, read, unread=("input_global_scale",))


METHODS: dict[str, Callable[[Raw, str], Layout]] = {
    "bitsandbytes": _bitsandbytes,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
}
_NOT_READ = {
    "mxfp4": "MXFP4 folders are gpt-oss's, whose architecture is none of lora_jax.models; its "
    "tensors are read one by one by lora_jax.io.fp4.from_mxfp4.",
    "modelopt": "NVFP4 is read from compressed-tensors' folders.",
}


def part_of(box: QuantizedArray, outputs: np.ndarray | slice) -> QuantizedArray:
    """The box of some outputs of a weight (in, out), with the codes and scales that they have there.

    Raises:
        ValueError: they share scales of scales, or blocks, with others.
    """
    rows, out = box.kernel_shape
    if isinstance(box, bitsandbytes.FlatQuantized):
        raise ValueError(
            f"{rows} inputs are no multiple of the block size {box.spec.block_size}: blocks belong "
            "to two parts of this fused weight. Load the model in floating numbers."
        )
    taken = np.arange(out)[outputs]
    column = lambda x: None if x is None else x[..., taken]
    return box.replace(
        codes=column(box.codes),
        scale=_part_of_double(box.scale, out, taken) if box.spec.double else column(box.scale),
        zero=column(box.zero),
        kernel_shape=(rows, len(taken)),
    )


def _part_of_double(scale: DoubleQuantized, out: int, taken: np.ndarray) -> DoubleQuantized:
    """Scales in 8 bits of neighbouring outputs, whose groups must be theirs alone."""
    count = scale.codes.size // out  # blocks of an output
    if scale.level == "tensor":
        return scale.replace(codes=scale.codes.reshape(out, count)[taken].reshape(-1))
    first, last = int(taken[0]) * count, (int(taken[-1]) + 1) * count
    ends_early = last % BLOCK and last != scale.codes.size
    if (np.diff(taken) != 1).any() or first % BLOCK or ends_early:
        raise ValueError(
            f"{BLOCK} scales share one of their own, also with another part of this fused weight. "
            "Load the model in floating numbers, or quantise it without double quantisation."
        )
    groups = slice(first // BLOCK, -(-last // BLOCK))
    return scale.replace(codes=scale.codes[first:last], absmax=scale.absmax[groups])
