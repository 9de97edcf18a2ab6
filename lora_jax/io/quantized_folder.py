"""A folder whose weights are quantised in another tool's layout, as if it held dense ones: by the
names and shapes of these, and each as the box of the codes that are stored.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from lora_jax.core.json_files import read_json
from lora_jax.core.quantize import QuantizedArray, QuantSpec
from lora_jax.io.config_json import named_errors
from lora_jax.io.layouts import Layout, Stored, layout_of, part_of
from lora_jax.io.names import Name, Names
from lora_jax.io.tensor_files import ModelFolder
from lora_jax.io.tensors import Tensors


@dataclass(frozen=True)
class _Entry:
    shape: tuple[int, ...]
    size: int


class QuantizedFolder(Tensors):
    """The tensors of a folder in this layout: a quantised weight is one tensor, `MODULE.weight` of
    shape (out, in), whose bytes are those of all that it is stored in. `stored` says which are, and
    `box` gives one; reading it as a tensor gives it dequantised.

    Raises:
        ValueError: no weight is quantised, or what is stored of one does not fit together.
    """

    def __init__(self, inner: Tensors, layout: Layout, path: Path) -> None:
        self._inner, self._layout, self._path = inner, layout, path
        modules = [
            name.removesuffix(f".{mark}")
            for name in inner
            for mark in layout.marks
            if name.endswith(f".{mark}")
        ]
        if not modules:
            raise ValueError(
                f"{path}: config.json says that weights are quantised, and no tensor ends with "
                f"{' or '.join(f'.{mark}' for mark in layout.marks)}. It belongs to other weights."
            )
        self._own = {
            f"{module}.weight": {
                part: f"{module}.{part}" for part in layout.parts if f"{module}.{part}" in inner
            }
            for module in modules
        }
        taken = {name for own in self._own.values() for name in own.values()}
        taken |= {f"{module}.{part}" for module in modules for part in layout.unread}
        self.stored: dict[str, Stored] = {}
        self._entries = {
            name: _Entry(inner.shape(name), inner.size(name)) for name in inner if name not in taken
        }
        for name, own in self._own.items():
            with _weight(path, name):
                self.stored[name] = told = layout.told(own, inner)
            self._entries[name] = _Entry(told.shape, sum(map(inner.size, own.values())))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.stored:
            return self._inner[name]
        return np.asarray(self.box(name).unbox()).T

    def box(self, name: str) -> QuantizedArray:
        """The weight (in, out) in the codes that are stored.

        Raises:
            ValueError: its tensors are damaged, or do not fit together.
        """
        with _weight(self._path, name):
            own = {part: self._inner[tensor] for part, tensor in self._own[name].items()}
            box, told = self._layout.read(own, self.stored[name]), self.stored[name]
            if box.shape != told.shape[::-1] or box.spec != told.spec:
                raise ValueError(f"a weight of shape {told.shape} in {told.spec}, got {box!r}")
            return box


@contextlib.contextmanager
def _weight(path: Path, name: str) -> Iterator[None]:
    """Inside, an error gets the name of the file and of the weight that it is about."""
    try:
        yield
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: {name}: {error}") from None


def tensors_of(folder: Path) -> Tensors:
    """The tensors of a model folder, quantised or not, as its config.json says.

    Raises:
        FileNotFoundError, ValueError: as `ModelFolder`, `layout_of` and `QuantizedFolder`.
    """
    tensors, config = ModelFolder(folder), folder / "config.json"
    raw = read_json(config) if config.is_file() else {}
    quantization = raw.get("quantization_config") if isinstance(raw, Mapping) else None
    if quantization is None:
        return tensors
    with named_errors(config, "a quantised model"):
        dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
        if dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"dtype {dtype!r} is no float32, float16 or bfloat16")
        layout = layout_of(quantization, dtype)
    return QuantizedFolder(tensors, layout, folder)


def as_linear(names: Names, tensors: Tensors) -> dict[str, Name]:
    """The names with quantised weights (out, in), as all tools store them: GPT-2's are (in, out)
    otherwise.
    """
    stored = tensors.stored if isinstance(tensors, QuantizedFolder) else {}
    return {
        path: replace(name, kind="linear")
        if name.kind == "conv1d" and any(parameter in stored for _, parameter in name.layers())
        else name
        for path, name in names.items()
    }


def own_box(name: Name, box: QuantizedArray) -> QuantizedArray:
    """What of a quantised matrix (in, out) is one of our weights, in its shape.

    Raises:
        ValueError: of a fused weight, its part cannot be taken out of what is stored.
    """
    part = part_of(box, name.outputs()) if name.partial else box
    return part.replace(kernel_shape=name.shape, in_axes=name.in_axes)


def stacked_like(name: Name, tensors: QuantizedFolder) -> QuantizedArray | None:
    """The shapes and dtypes of a weight's box, its layers stacked; None if it is not quantised.

    Raises:
        ValueError: its layers are not stored alike.
    """
    layers = {parameter: tensors.stored.get(parameter) for _, parameter in name.layers()}
    kinds = set(layers.values())
    if kinds == {None}:
        return None
    if len(kinds) > 1:
        said = [(parameter, _said(stored)) for parameter, stored in layers.items()]
        other = next(pair for pair in said if pair[1] != said[0][1])
        raise ValueError(
            f"{said[0][0]} is stored as {said[0][1]}, and {other[0]} as {other[1]}: one stack holds "
            "one format. Load the layers apart (scan=False; in a config: model.scan=False)."
        )
    if name.kind != "linear" or name.added:
        raise ValueError(f"{next(iter(layers))} is quantised, and only linear layers are read so.")
    like = jax.eval_shape(functools.partial(own_box, name), next(iter(kinds)).like())
    return jax.tree.map(lambda x: x.update(shape=(*name.stack, *x.shape)), like)


def check_stored_as(path: str, stored: QuantSpec, asked: QuantSpec) -> None:
    """Raises ValueError if a weight is stored in another format than it is asked for."""
    if replace(stored, kernel=asked.kernel) == asked:
        return
    fields = ("format", "block_size", "double", "scale_dtype", "second_level", "fit", "rotation")
    odd = [name for name in fields if getattr(stored, name) != getattr(asked, name)]
    raise ValueError(
        f"{path} is stored in other codes than it is asked for: "
        + ", ".join(
            f"{name} {getattr(stored, name)!r}, not {getattr(asked, name)!r}" for name in odd
        )
        + ". They are taken as they are. In a config set "
        + ", ".join(f"quant.{name}={getattr(stored, name)!r}" for name in odd)
        + "; to quantise it anew, write it dense first: lora_jax.dequantize(load_model(...)[1]), "
        "and save_model."
    )


def _said(stored: Stored | None) -> str:
    return "floating numbers" if stored is None else str(stored.spec)
