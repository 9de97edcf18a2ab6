"""Quantised checkpoints: one safetensors file with the codes, the scales, how they go together, and
a checksum of all of it.

Reading one makes the boxes and nothing else: the dense weights never exist.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lora_jax.core import bit_packing, blockwise, codebooks
from lora_jax.core.codes import block_sizes
from lora_jax.core.host import Filling, Place
from lora_jax.core.paths import flatten, unflatten
from lora_jax.core.quantize import DoubleQuantized, QuantizedArray, QuantSpec
from lora_jax.io import safetensors
from lora_jax.io.bitsandbytes import FlatQuantized
from lora_jax.io.config_json import in_file
from lora_jax.io.reading_bar import note_read
from lora_jax.io.tensor_files import SafetensorsFile

FILE = "quantized.safetensors"
_FORMAT = "lora_jax-quantized-1"
_OF_TEXT = "text_checksum"
_KINDS = {"blocks along in": QuantizedArray, "blocks along the transpose": FlatQuantized}
_BF16 = ml_dtypes.bfloat16


def save_quantized(
    folder: Path | str, tree: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
) -> Path:
    """Writes a tree of arrays and quantised weights, and what JSON can hold of `metadata`; the path
    of the file.

    A weight at `a/kernel` is stored as `a/kernel#codes`, `#scale` and so on. Formats that were
    registered are stored with it.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    boxes: dict[str, Any] = {}
    for path, leaf in flatten(tree).items():
        if not isinstance(leaf, QuantizedArray):
            tensors[path] = np.asarray(leaf)
            continue
        for keys, array in jax.tree.leaves_with_path(leaf):
            tensors[_name_of(path, keys)] = np.asarray(array)
        fields = dataclasses.asdict(leaf.spec)
        del fields["kernel"]  # It is the program's business.
        kind = next(kind for kind, box in _KINDS.items() if type(leaf) is box)
        boxes[path] = {
            "kind": kind, "spec": fields, "kernel_shape": leaf.kernel_shape, "in_axes": leaf.in_axes,
            "dtype": jnp.dtype(leaf.dtype).name,
            "levels": [getattr(part, "level", None) for part in (leaf.scale, leaf.zero)],
        }  # fmt: skip
    used = {box["spec"]["format"] for box in boxes.values()}
    text = {
        "format": _FORMAT,
        "boxes": json.dumps(boxes),
        "codebooks": json.dumps(
            {name: dataclasses.asdict(codebooks.format_named(name)) for name in sorted(used)}
        ),
        "metadata": json.dumps(dict(metadata or {})),
    }
    # numpy has no bfloat16 that every safetensors version writes: its bits are stored, and a note.
    half = sorted(name for name, array in tensors.items() if array.dtype == _BF16)
    stored = {
        name: array.view(np.uint16) if name in half else array for name, array in tensors.items()
    }
    text["bfloat16"] = json.dumps(half)
    text[_OF_TEXT] = safetensors.checksum({}, text)
    safetensors.write(
        folder / FILE, stored, text | {"checksum": safetensors.checksum(stored, text)}
    )
    return folder / FILE


def load_quantized(
    folder: Path | str, *, place: Place | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tree that `save_quantized` was given, and its metadata. Each array goes straight to where
    it is to lie; the file is read once.

    Args:
        place: the shardings of each weight's arrays; without it all go to the default device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no quantised checkpoint, its checksum differs, or what it holds does not
            fit together.
    """
    path = Path(folder) / FILE
    file = SafetensorsFile(path)
    with in_file(path):
        return _loaded(path, file, place)


def _loaded(
    path: Path, file: SafetensorsFile, place: Place | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    text = dict(file.metadata)
    if text.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is not a quantised checkpoint of this library (format {text.get('format')!r}, "
            f"needed {_FORMAT!r})."
        )
    damaged = ValueError(
        f"{path} is damaged: its checksum is not that of what it holds. Copy it again, or "
        "quantise the model again."
    )
    checksum, half = _checked(file, text, damaged), set(json.loads(text["bfloat16"]))
    _register(path, json.loads(text["codebooks"]))

    def own(name: str, tensor: np.ndarray) -> np.ndarray:
        return tensor.view(_BF16) if name in half else tensor

    views = {name: own(name, tensor) for name, tensor in file.items()}
    shapes = _boxed(path, json.loads(text["boxes"]), views)
    fillings: dict[str, Filling] = {}
    for site, like in shapes.items():
        places = jax.tree.leaves(None if place is None else place(site, like))
        for index, (keys, x) in enumerate(jax.tree.leaves_with_path(like)):
            to = places[index] if places else None
            fillings[_name_of(site, keys)] = Filling(x.shape, x.dtype, to)

    total = sum(view.nbytes for view in views.values())

    def fill(name: str, tensor: np.ndarray) -> None:
        fillings[name].put((), own(name, tensor))
        note_read(tensor.nbytes, total, path.parent.name)

    if checksum != safetensors.checksum(file, text, fill):
        raise damaged
    flat = {}
    for site, like in shapes.items():
        named = [_name_of(site, keys) for keys, _ in jax.tree.leaves_with_path(like)]
        arrays = [fillings[name].done() for name in named]
        flat[site] = jax.tree.unflatten(jax.tree.structure(like), arrays)
    return unflatten(flat), json.loads(text["metadata"])


def _checked(file: SafetensorsFile, text: dict[str, str], damaged: ValueError) -> str | None:
    """The checksum of all, taken out of the text, which is what was written when this returns."""
    checksum = text.pop("checksum", None)
    said = {name: value for name, value in text.items() if name != _OF_TEXT}
    # Files of older versions have none of the text alone: they are read once more.
    sound = (
        safetensors.checksum({}, said) == text[_OF_TEXT]
        if _OF_TEXT in text
        else safetensors.checksum(file, text) == checksum
    )
    if not sound:
        raise damaged
    return checksum


def _name_of(site: str, keys: Sequence[Any]) -> str:
    """The tensor of a box's array, or of one that is in no box."""
    return f"{site}#{'.'.join(key.name for key in keys)}" if keys else site


def _boxed(path: Path, boxes: Mapping[str, Any], views: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The file's weights by path, with the shape of each array in its place."""
    flat: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, view in views.items():
        like = jax.ShapeDtypeStruct(view.shape, view.dtype)
        site, mark, part = name.rpartition("#")
        if mark:
            parts.setdefault(site, {})[part] = like
        else:
            flat[name] = like

    if set(parts) != set(boxes):
        raise ValueError(
            f"{path}: the parts of {sorted(set(parts) ^ set(boxes))[0]!r} are missing or left "
            "over. Quantise the model again."
        )

    for site, box in boxes.items():
        try:
            flat[site] = _box(box, parts[site])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: {site!r} does not fit together ({error}). Quantise the model again."
            ) from None
    return flat


def _box(box: Mapping[str, Any], parts: dict[str, Any]) -> QuantizedArray:
    spec = QuantSpec(**box["spec"])
    kernel_shape, in_axes = tuple(box["kernel_shape"]), tuple(box["in_axes"])
    values = [_joined(name, parts, level) for name, level in zip(("scale", "zero"), box["levels"])]
    q = _KINDS[box["kind"]](
        codes=parts.pop("codes"), scale=values[0], zero=values[1], in_scale=parts.pop("in_scale", None), spec=spec,
        kernel_shape=kernel_shape, in_axes=in_axes, dtype=jnp.dtype(box["dtype"]),
    )  # fmt: skip
    if parts:
        raise ValueError(f"left over: {sorted(parts)}")

    rows, out = q.rows, math.prod(kernel_shape) // q.rows
    if isinstance(q, FlatQuantized):  # its blocks run on from row to row
        rows, out = rows * out, 1
    blocks = block_sizes(rows, spec.block_size)[1]
    _expect("codes", q.codes, (bit_packing.packed_rows(rows, spec.bits), out), np.uint8)

    for name, value in (("scale", q.scale), ("zero", q.zero)):
        if (value is None) != (name == "zero" and not spec.has_zero):
            raise ValueError(f"{name} is missing or left over")
        if isinstance(value, DoubleQuantized):
            groups = 1 if value.level == "tensor" else -(-blocks * out // blockwise.BLOCK)
            _expect(f"{name}.codes", value.codes, (blocks * out,), np.uint8)
            _expect(f"{name}.absmax", value.absmax, (groups,), np.float32)
            offsets = (groups,) if value.level == "log" else ()
            _expect(f"{name}.offset", value.offset, offsets, np.float32)
        elif value is not None:
            powers = spec.scale_dtype == "e8m0" and name == "scale"
            _expect(name, value, (blocks, out), np.uint8 if powers else spec.scale_dtype)
    return q


def _joined(name: str, parts: dict[str, Any], level: str | None) -> Any:
    if level is None:
        return parts.pop(name, None)
    return DoubleQuantized(
        **{field: parts.pop(f"{name}.{field}") for field in ("codes", "absmax", "offset")},
        level=level,
    )


def _expect(name: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if (
        array.ndim < len(shape)
        or tuple(array.shape[array.ndim - len(shape) :]) != shape
        or array.dtype != jnp.dtype(dtype)
    ):
        raise ValueError(
            f"{name} must be (*stack, {', '.join(map(str, shape))}) of {jnp.dtype(dtype)}, got "
            f"{array.shape} of {array.dtype}"
        )


def _register(path: Path, stored: Mapping[str, Any]) -> None:
    for name, fields in stored.items():
        levels = fields["levels"]
        format = codebooks.Format(
            **(fields | {"levels": None if levels is None else tuple(levels)})
        )
        # Compared by their tables: levels with NaN are never equal.
        known = codebooks.FORMATS.get(name)
        if known is None:
            codebooks.register_format(format)
        elif known.bits != format.bits or not np.array_equal(
            known.table(), format.table(), equal_nan=True
        ):
            raise ValueError(
                f"{path} was written with another codebook named {name!r} than the one that is "
                "registered. Rename yours."
            )
