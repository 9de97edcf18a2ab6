"""A model in its files: read weight by weight, each to where it is to lie."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.core.fingerprint import PassingFingerprint
from lora_jax.core.host import Place
from lora_jax.core.paths import Rules, unflatten
from lora_jax.core.quantize import QuantizedArray, QuantSpec
from lora_jax.io.config_json import in_file
from lora_jax.io.named_weights import dtype_of, formats_of, join_boxes, parts_of, read_leaf
from lora_jax.io.names import Name, Names
from lora_jax.io.quantized_folder import (
    QuantizedFolder,
    check_stored_as,
    own_box,
    stacked_like,
)
from lora_jax.io.reading_bar import note_read
from lora_jax.io.tensors import Tensors


@dataclasses.dataclass(frozen=True, eq=False)
class StoredModel:
    """A model in its files: what it is, and where each of its weights lies, before one is read.

    path: the folder or file, for errors. names: by path of the tree that `read` gives. new: weights
    of the tree that the files have not: a new head. dtype: of the matrices. place: where each weight
    is to lie (`core.host.Place`); without it what is not quantised comes as a host array. passing:
    the fingerprint that is made of what is read anyway, if one is (`fingerprinted`).
    """

    path: Path
    config: Any
    names: Names
    tensors: Tensors
    new: Mapping[str, np.ndarray]
    dtype: Any = np.float32
    place: Place | None = None
    passing: PassingFingerprint | None = None

    def leaf(
        self,
        path: str,
        spec: QuantSpec | None = None,
        *,
        place: Place | None = None,
        seen: Callable[[np.ndarray, QuantizedArray], None] | None = None,
    ) -> np.ndarray | jax.Array | QuantizedArray:
        """One weight, quantised if a format is given, where `place` or the model's own says. `seen`
        is given each of its matrices that is quantised, as it was and as it is. What the files
        hold quantised comes in their codes, and in no other format.

        Raises:
            KeyError: there is no such weight in the files. ValueError: it is no floating number, or
                holds a NaN or an infinity; or it is stored in another format than is asked for.
        """
        name, place = self.names[path], self.place if place is None else place
        laid = None if place is None else functools.partial(place, path)
        with in_file(self.path):
            if path not in self.boxes:
                return read_leaf(
                    name, self._parts(path), spec, dtype=self.dtype, place=laid, seen=seen
                )
            if spec is not None:
                check_stored_as(path, self.boxes[path].spec, spec)
            box = join_boxes(name, self._box_parts(path), laid)
            if self.passing is not None:
                self.passing.whole(path, box)
            return box

    @functools.cached_property
    def boxes(self) -> dict[str, QuantizedArray]:
        """By path, the weights that the files hold quantised, with the shape and dtype of each of
        their arrays.

        Raises:
            ValueError: some layers of a weight are quantised and others are not, or otherwise.
        """
        if not isinstance(self.tensors, QuantizedFolder):
            return {}
        with in_file(self.path):
            found = {path: stacked_like(name, self.tensors) for path, name in self.names.items()}
        return {path: like for path, like in found.items() if like is not None}

    def read(self, quant: Rules[QuantSpec] = ()) -> dict[str, Any]:
        """The params, made one by one: the peak is the result plus one matrix.

        Raises:
            ValueError: a rule matches nothing, or a weight is no floating number, or holds a NaN or
                an infinity.
        """
        formats = formats_of(quant, self.names)
        flat = {path: self.leaf(path, formats.get(path)) for path in sorted(self.names)}
        return unflatten({path: flat[path] for path in self.names} | dict(self.new))

    def fingerprint(self) -> str:
        """`lora_jax.fingerprint` of the params that `read()` gives, a classifier left out: that of
        the base. One matrix is held at a time.
        """
        if self.passing is None:
            return self.fingerprinted().fingerprint()
        boxes = {path: functools.partial(self._box, path) for path in self.boxes}
        new = lambda path: [((), self.new[path])]
        with in_file(self.path):
            return self.passing.done(
                lambda path: new(path) if path in self.new else self._file_parts(path), boxes
            )

    def fingerprinted(self) -> StoredModel:
        """The model whose `fingerprint` is made of what is read in the meantime, as far as that
        comes in the order of the paths: nothing is read for it again then.
        """
        stored = (
            (path, dtype_of(name, self.dtype), (*name.stack, *name.shape))
            for path, name in self.names.items()
        )
        new = ((path, leaf.dtype, leaf.shape) for path, leaf in self.new.items())
        leaves = (leaf for leaf in (*stored, *new) if not leaf[0].startswith("classifier/"))
        return dataclasses.replace(self, passing=PassingFingerprint(leaves))

    def _parts(self, path: str) -> Iterator[tuple[Any, np.ndarray]]:
        """The parts of one weight, counted for the fingerprint on their way."""
        parts = self._file_parts(path)
        return parts if self.passing is None else self.passing.of(path, parts)

    def _file_parts(self, path: str) -> Iterator[tuple[Any, np.ndarray]]:
        name = self.names[path]
        sizes = self._sizes(name)
        for index, part in parts_of(name, self.tensors):
            yield index, part
            note_read(next(sizes), self._file_bytes, self.path.name)

    def _box(self, path: str) -> QuantizedArray:
        return join_boxes(self.names[path], self._box_parts(path))

    def _box_parts(self, path: str) -> Iterator[tuple[Any, QuantizedArray]]:
        name = self.names[path]
        sizes = self._sizes(name)
        for index, parameter in name.layers():
            yield index, own_box(name, self.tensors.box(parameter))
            note_read(next(sizes), self._file_bytes, self.path.name)

    def _sizes(self, name: Name) -> Iterator[int]:
        """The bytes of each of the weight's parts in the files."""
        for _, parameter in name.layers():
            yield self.tensors.size(parameter) * name.columns // name.their_columns

    @functools.cached_property
    def _file_bytes(self) -> int:
        return sum(size for name in self.names.values() for size in self._sizes(name))
