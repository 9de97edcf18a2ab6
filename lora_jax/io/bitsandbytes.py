"""bitsandbytes' 4-bit and 8-bit weights: its bytes, and its state dicts in safetensors, both ways.

bitsandbytes 0.50 stores a weight (out, in), row by row, in blocks that run on from one row to the
next. Where in is a multiple of the block size, that is our own layout transposed. Elsewhere
`FlatQuantized` keeps its blocks, and `quantize_4bit` makes them.

Its backends do not agree on every byte. `backend='cuda'` is the default here; its CPU backend
differs in this:

| case | CUDA | CPU |
|---|---|---|
| NF4, a block of zeros | code 0 (divides by 0) | code 7 |
| FP4, a negative number between two levels | towards 0 | away from 0 |
| FP4, numbers that round to 0 | +0 and -0 by their sign | code 8 (-0) for positive ones, 0 for the others |
| a short last block | times the reciprocal of its scale | divided by its scale, which is at least 1e-38 |
| FP4, dequantised to float32 | level times scale, rounded once | the last bit differs in 7 % of weights |
| double quantisation, codes of the scales | nearest level, ties to the even code | from a table of 65,536 steps: about one in 400 differs by one |
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lora_jax.core import bit_packing, blockwise, codebooks, scales
from lora_jax.core.codes import decode
from lora_jax.core.host import Filling, Place
from lora_jax.core.json_files import parse_json
from lora_jax.core.quantize import DoubleQuantized, QuantizedArray, QuantSpec, quantize
from lora_jax.io import safetensors
from lora_jax.io.config_json import in_file
from lora_jax.io.reading_bar import note_read
from lora_jax.io.tensor_files import ModelFolder, SafetensorsFile
from lora_jax.io.tensors import Tensors

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_TYPES = ("nf4", "fp4")
_DTYPES = ("float32", "float16", "bfloat16")
_STATE = "quant_state.bitsandbytes__"


class FlatQuantized(QuantizedArray):
    """A weight whose blocks run along its transpose, (out, in), written row after row.

    `codes` is (*stack, ceil(in * out / 2), 1) and `scale` (*stack, blocks, 1) or double quantised.
    """

    def matrix(self, dtype: Any = None) -> Array:
        """The dequantised weight as matrices (in, out), computed in float32 and rounded once."""
        out = math.prod(self.kernel_shape) // self.rows
        flat = decode(self.codes, self.scale, self.zero, self.spec, out * self.rows)
        weight = jnp.swapaxes(flat.reshape(*self.codes.shape[:-2], out, self.rows), -1, -2)
        return weight.astype(self.dtype if dtype is None else dtype)

    def recoded(self, matrix: Array, *, refit: bool) -> QuantizedArray:
        """Other matrices (in, out) in this layout, as `QuantizedArray.recoded` has it."""
        flat = jnp.swapaxes(matrix, -1, -2).reshape(*matrix.shape[:-2], -1, 1)
        return super().recoded(flat, refit=refit)


def quantize_4bit(
    w: Array,
    quant_type: str = "nf4",
    block_size: int = 64,
    double: bool = True,
    *,
    backend: Literal["cuda", "cpu"] = "cuda",
) -> FlatQuantized:
    """A matrix (in, out) with the codes, scales and nested scales that bitsandbytes gives its
    transpose, for any size of it.

    Raises:
        ValueError: bitsandbytes has no such type or block size, or `quantize` refuses the weight.
    """
    _check_type(quant_type, block_size, "quantize_4bit")
    if w.ndim != 2 or backend not in ("cuda", "cpu"):
        raise ValueError(
            f"Needed a matrix (in, out) and backend 'cuda' or 'cpu', got shape {w.shape} and "
            f"{backend!r}."
        )

    spec = QuantSpec(quant_type, block_size, double)
    if backend == "cpu":
        host = np.asarray(w, np.float32)
        if not np.isfinite(host).all():
            raise ValueError(
                f"Cannot quantise a weight of shape {w.shape}: it holds a NaN or an infinity. "
                "Repair the checkpoint."
            )
        codes, scale = _as_on_cpu(host.T.reshape(-1), quant_type, block_size, double)
    else:
        flat = quantize(w.T.reshape(-1, 1), spec)
        codes, scale = flat.codes, flat.scale

    return FlatQuantized(
        codes=codes,
        scale=scale,
        spec=spec,
        kernel_shape=tuple(w.shape),
        in_axes=(0,),
        dtype=jnp.dtype(w.dtype),
    )


def to_tensors(name: str, q: QuantizedArray) -> dict[str, np.ndarray]:
    """The tensors, by their names in a state dict, that bitsandbytes stores for the weight `name`,
    such as 'fc1.weight'.

    Raises:
        ValueError: bitsandbytes has no such format, or its blocks would hold other weights than
            ours.
    """
    spec, rows, out = q.spec, q.rows, math.prod(q.kernel_shape) // q.rows
    odd = q.in_scale is not None or q.zero is not None or spec.rotation != "none"
    if q.codes.ndim != 2 or odd:
        raise ValueError(
            f"{name}: bitsandbytes stores single matrices without input scales, rotations and offsets "
            f"of blocks, and this one is {spec} of shape {q.shape}. Write the layers of a stack one "
            "by one."
        )

    kind = (spec.format, spec.block_size, spec.double, spec.scale_dtype)
    if kind == ("int8", None, False, "float32"):
        integers = (np.asarray(q.codes).astype(np.int16) - 128).astype(np.int8)
        stem = name.removesuffix("weight")
        return {
            name: np.asarray(integers.T, order="C"),
            f"{stem}SCB": np.asarray(q.scale)[0],
            f"{stem}weight_format": np.zeros((), np.uint8),
        }

    _check_type(spec.format, spec.block_size, name)
    if spec.scale_dtype != "float32" or spec.second_level != "mean":
        raise ValueError(
            f"{name}: bitsandbytes has float32 scales or second level 'mean', not {spec}. Quantise "
            "the weight that way."
        )

    # These lie as theirs do; ours are transposed.
    if isinstance(q, FlatQuantized):
        codes, scale = q.codes, q.scale if spec.double else q.scale[:, 0]
    elif rows % spec.block_size:
        raise ValueError(
            f"{name}: {rows} inputs are no multiple of the block size {spec.block_size}, and there "
            "bitsandbytes' blocks run on into the next row. Quantise the dense weight with "
            "lora_jax.io.bitsandbytes.quantize_4bit."
        )
    else:
        codes = bit_packing.pack(bit_packing.unpack(q.codes, 4, rows).T.reshape(-1, 1), 4)
        scale = q.scale if spec.double else q.scale.T.reshape(-1)

    state = {
        "quant_type": spec.format,
        "blocksize": spec.block_size,
        "dtype": jnp.dtype(q.dtype).name,
        "shape": [out, rows],
    }
    tensors = {
        f"{name}.absmax": scale,
        f"{name}.quant_map": codebooks.format_named(spec.format).table() + 0.0,
    }
    if isinstance(scale, DoubleQuantized):
        tensors |= {
            f"{name}.absmax": scale.codes,
            f"{name}.nested_absmax": scale.absmax,
            f"{name}.nested_quant_map": codebooks.dynamic_map(),
        }
        state |= {
            "nested_blocksize": blockwise.BLOCK,
            "nested_dtype": "float32",
            "nested_offset": float(scale.offset),
        }
    tensors[f"{name}.{_STATE}{spec.format}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return {key: np.asarray(value, order="C") for key, value in ({name: codes} | tensors).items()}


def from_tensors(
    name: str, tensors: Mapping[str, Any], *, dtype: Any = jnp.float32
) -> QuantizedArray:
    """The weight `name`, (in, out), of a state dict; `FlatQuantized` where its blocks straddle
    rows.

    Args:
        dtype: of the dequantised weight where the file does not say: for 8 bits.

    Raises:
        ValueError: a tensor of it is missing, left over, of a wrong dtype or length, or not finite.
    """
    stem = name.removesuffix("weight")
    if name not in tensors:
        raise ValueError(
            f"There is no tensor {name!r}. Quantised weights: "
            f"{', '.join(_weights(tensors)[:8]) or 'none'}."
        )
    if f"{stem}SCB" in tensors:
        return _from_8bit(name, stem, tensors, dtype)
    return _from_4bit(name, tensors)


def _from_4bit(name: str, tensors: Mapping[str, Any]) -> QuantizedArray:
    parts = {
        key.removeprefix(f"{name}."): np.asarray(value).reshape(-1)
        for key, value in tensors.items()
        if key.startswith(f"{name}.")
    }
    kind = next((kind for kind in _TYPES if f"{_STATE}{kind}" in parts), None)
    if kind is None:
        raise ValueError(
            f"{name}: needed one of {', '.join(_STATE + kind for kind in _TYPES)} beside it, found "
            f"{sorted(parts) or 'nothing'}."
        )
    state = state_of(name, parts.pop(f"{_STATE}{kind}"), kind)
    double = "nested_offset" in state
    needed = {"absmax", "quant_map"} | ({"nested_absmax", "nested_quant_map"} if double else set())
    if set(parts) != needed:
        raise ValueError(
            f"{name}: missing tensors {sorted(needed - set(parts)) or 'none'}, left over "
            f"{sorted(set(parts) - needed) or 'none'}. Save the state dict again, whole."
        )
    (out, rows), block = state["shape"], state["blocksize"]
    blocks = -(-out * rows // block)
    _check(name, "quant_map", parts["quant_map"], "float32", 16)
    _check(name, "absmax", parts["absmax"], "uint8" if double else "float32", blocks)
    if not np.array_equal(parts["quant_map"], codebooks.format_named(kind).table()):
        raise ValueError(
            f"{name}.quant_map is not the table of {kind!r}. Register it as a format of its own, "
            "and quantise again."
        )
    stored = np.ascontiguousarray(tensors[name])
    # FSDP stores the bytes as numbers of another dtype.
    codes = stored.reshape(-1).view(np.uint8)
    _check(name, "weight", codes, "uint8", -(-out * rows // 2))

    scale: Any = _nested(name, parts, state["nested_offset"]) if double else parts["absmax"]
    common = {
        "spec": QuantSpec(kind, block, double),
        "kernel_shape": (rows, out),
        "in_axes": (0,),
        "dtype": jnp.dtype(state["dtype"]),
    }
    if rows % block:
        scale = scale if double else jnp.asarray(scale[:, None])
        return FlatQuantized(codes=jnp.asarray(codes[:, None]), scale=scale, **common)

    # Blocks end with the rows: theirs, transposed, are ours.
    matrix = bit_packing.unpack(jnp.asarray(codes[:, None]), 4, out * rows).reshape(out, rows).T
    scale = scale if double else jnp.asarray(scale.reshape(out, rows // block).T)
    return QuantizedArray(codes=bit_packing.pack(matrix, 4), scale=scale, **common)


def state_of(name: str, packed: np.ndarray, kind: str) -> dict[str, Any]:
    """What the state beside the weight `name` says of it.

    Raises:
        ValueError: it is damaged, or says what is not read.
    """
    try:
        state = parse_json(bytes(packed.astype(np.uint8)), "it")
        shape = tuple(state["shape"])
        if state["quant_type"] != kind or state["dtype"] not in _DTYPES or len(shape) != 2:
            raise ValueError(
                f"quant_type {state['quant_type']!r}, dtype {state['dtype']!r}, shape {shape}"
            )

        if not all(isinstance(size, int) and 0 < size < 2**31 for size in shape):
            raise ValueError(f"shape {shape}")
        if "nested_offset" in state:
            nested = state["nested_blocksize"], state["nested_dtype"], state["nested_offset"]
            if (
                nested[:2] != (blockwise.BLOCK, "float32")
                or not isinstance(nested[2], float)
                or not math.isfinite(nested[2])
            ):
                raise ValueError(f"nested block size, dtype and offset {nested}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{name}.{_STATE}{kind} needs a JSON object with quant_type, blocksize, dtype and "
            "shape [out, in], and nested_blocksize 256, nested_dtype 'float32' and nested_offset "
            f"with double quantisation; it has {type(error).__name__}: {error}."
        ) from None

    _check_type(kind, state.get("blocksize"), name)
    return state


def _nested(name: str, parts: Mapping[str, np.ndarray], offset: float) -> DoubleQuantized:
    """The scales of a weight whose scales are quantised themselves."""
    groups = -(-parts["absmax"].size // blockwise.BLOCK)
    _check(name, "nested_absmax", parts["nested_absmax"], "float32", groups)
    _check(name, "nested_quant_map", parts["nested_quant_map"], "float32", 256)
    if not np.array_equal(parts["nested_quant_map"], codebooks.dynamic_map()):
        raise ValueError(
            f"{name}.nested_quant_map is not the signed dynamic map. Only that is read."
        )
    return DoubleQuantized(
        codes=jnp.asarray(parts["absmax"]),
        absmax=jnp.asarray(parts["nested_absmax"]),
        offset=jnp.float32(offset),
    )


def read(
    path: Path | str, *, dtype: Any = jnp.float32, place: Place | None = None
) -> dict[str, Any]:
    """All weights of a bitsandbytes safetensors file, or of a folder's, by name, quantised ones as
    boxes (in, out), others as arrays. Each is read once, and goes to where it is to lie.

    Args:
        place: the shardings of each weight's arrays; without it boxes go to the default device, and
            other arrays stay on the host.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `from_tensors`, or tensors are left over.
    """
    path = Path(path)
    tensors: Tensors = ModelFolder(path) if path.is_dir() else SafetensorsFile(path)
    parts, rest = _by_weight(tensors)
    if lost := [
        key
        for key in rest
        if any(mark in key for mark in (".absmax", ".quant_map", ".SCB", ".weight_format", _STATE))
    ]:
        raise ValueError(
            f"{path}: {lost[0]!r} belongs to a quantised weight that is not in the file. Save the "
            "state dict again, whole."
        )
    total, out = sum(map(tensors.size, tensors)), {}
    with in_file(path):
        for name in [*parts, *rest]:
            own = parts.get(name, [name])
            read_now = {key: tensors[key] for key in own}
            weight = from_tensors(name, read_now, dtype=dtype) if name in parts else read_now[name]
            out[name] = _laid(name, weight, place)
            note_read(sum(map(tensors.size, own)), total, path.name)
    return out


def _by_weight(tensors: Tensors) -> tuple[dict[str, list[str]], list[str]]:
    """The tensors of each quantised weight, and those that are of none."""
    parts: dict[str, list[str]] = {name: [] for name in _weights(tensors)}
    of_8_bits = {f"{name.removesuffix('weight')}SCB": name for name in parts}
    of_8_bits |= {f"{name}_format": name for name in parts}
    rest = []
    for key in tensors:
        stems = [key[: match.start()] for match in re.finditer(r"\.|$", key)]
        name = next((stem for stem in stems if stem in parts), of_8_bits.get(key))
        (rest if name is None else parts[name]).append(key)
    return parts, rest


def _laid(name: str, weight: Any, place: Place | None) -> Any:
    """The weight where it is to lie; what is a view of a file is copied."""
    if place is None:
        return weight if isinstance(weight, QuantizedArray) else np.array(weight)
    places = place(name, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weight))
    leaves, structure = jax.tree.flatten(weight)
    arrays = []
    for array, to in zip(leaves, jax.tree.leaves(places) or [None] * len(leaves), strict=True):
        filling = Filling(array.shape, array.dtype, to)
        filling.put((), array)
        arrays.append(filling.done())
    return jax.tree.unflatten(structure, arrays)


def write(path: Path | str, weights: Mapping[str, Any]) -> None:
    """Writes weights by name, boxes as bitsandbytes stores them, in a file that torch modules load.

    Raises:
        ValueError: as `to_tensors`.
        OSError: the file cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        quantized = isinstance(weight, QuantizedArray)
        tensors |= to_tensors(name, weight) if quantized else {name: np.asarray(weight)}
    safetensors.write(path, tensors, {"format": "pt"})


def _weights(tensors: Mapping[str, Any]) -> list[str]:
    four = {key.partition(f".{_STATE}")[0] for key in tensors if f".{_STATE}" in key}
    eight = {
        f"{key.removesuffix('SCB')}weight"
        for key in tensors
        if key == "SCB" or key.endswith(".SCB")
    }
    return sorted(name for name in four | eight if name in tensors)


def _from_8bit(name: str, stem: str, tensors: Mapping[str, Any], dtype: Any) -> QuantizedArray:
    weight, scale = np.asarray(tensors[name]), np.asarray(tensors[f"{stem}SCB"])
    layout = np.asarray(tensors.get(f"{stem}weight_format", 0)).reshape(-1)
    if layout.tolist() != [0] or weight.dtype != np.int8 or weight.ndim != 2:
        raise ValueError(
            f"{name}: needed int8 (out, in) in row format (0), got {weight.dtype} {weight.shape} "
            f"in format {layout.tolist()[:4]}."
        )
    _check(name, "SCB", scale, "float32", weight.shape[0])
    codes = (weight.astype(np.int16) + 128).astype(np.uint8).T
    return QuantizedArray(
        codes=jnp.asarray(codes), scale=jnp.asarray(scale.reshape(1, -1)), spec=QuantSpec("int8", None, double=False),
        kernel_shape=codes.shape, in_axes=(0,), dtype=jnp.dtype(dtype),
    )  # fmt: skip


def _check_type(kind: str, block_size: Any, name: str) -> None:
    if kind not in _TYPES or block_size not in BLOCK_SIZES:
        raise ValueError(
            f"{name}: bitsandbytes has the formats {', '.join(_TYPES)} in blocks of "
            f"{', '.join(map(str, BLOCK_SIZES))}, and int8 with one scale a row (block_size=None, "
            f"double=False); got {kind!r} with block size {block_size!r}."
        )


def _check(name: str, part: str, array: np.ndarray, dtype: str, length: int) -> None:
    if array.dtype.name != dtype or array.size != length:
        raise ValueError(
            f"{name}: {part} must be {length} numbers of {dtype}, got {array.size} of "
            f"{array.dtype}. Save the state dict again."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name}: {part} holds a NaN or an infinity. Save the state dict again.")


# --- What the CPU backend of bitsandbytes 0.50 does, to the byte.


def _as_on_cpu(flat: np.ndarray, kind: str, block: int, double: bool) -> tuple[Array, Any]:
    n = flat.size
    padded = np.pad(flat, (0, -n % block)).reshape(-1, block)
    absmax = np.abs(padded).max(1)
    floor = np.float32(1e-38)
    unit = padded * (np.float32(1) / np.maximum(absmax, floor))[:, None]
    if n % block:
        absmax[-1] = max(absmax[-1], floor)
        unit[-1] = padded[-1] / absmax[-1]
    table = codebooks.format_named(kind).table()
    order = np.lexsort((np.arange(16), table + 0.0))  # +0 before -0
    # The half of the last byte that is left over holds the code of 0.
    filled = np.append(np.clip(unit, -1, 1).reshape(-1)[:n], np.zeros(n % 2, np.float32))
    codes = order[np.searchsorted(codebooks.midpoints(table[order]), filled, side="left")]
    packed = bit_packing.pack(jnp.asarray(codes.astype(np.uint8)[:, None]), 4)
    if not double:
        return packed, jnp.asarray(absmax[:, None])

    offset = np.asarray(scales.mean(jnp.asarray(absmax)))
    centred = absmax - offset
    groups = np.pad(centred, (0, -centred.size % blockwise.BLOCK)).reshape(-1, blockwise.BLOCK)
    largest = np.abs(groups).max(1)
    # A group of zeros has code 0, not the code of 0.
    some = largest > 0
    inverse = np.where(some, np.float32(1) / np.where(some, largest, np.float32(1)), 0)
    place = (groups * inverse[:, None] + np.float32(1)) * np.float32(32767.5) + np.float32(0.5)
    index = np.clip(place.astype(np.int64), 0, 65535)
    second = np.where(some[:, None], _scale_table()[index], 0).astype(np.uint8)
    return packed, DoubleQuantized(
        codes=jnp.asarray(second.reshape(-1)[: centred.size]),
        absmax=jnp.asarray(largest),
        offset=jnp.asarray(offset),
    )


@functools.cache
def _scale_table() -> np.ndarray:
    steps = (np.arange(65536) / 32767.5 - 1).astype(np.float32)
    between = codebooks.midpoints(codebooks.dynamic_map())
    return np.searchsorted(between, steps, side="left").astype(np.uint8)
