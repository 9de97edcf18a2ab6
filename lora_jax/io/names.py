"""How other tools name, shape and orient the weights that we have a path for: what models and
adapters are exchanged by.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lora_jax.core.matrix import from_matrix, to_matrix

Index = tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """Where the weight of one of our paths lives in a torch model.

    parameter: its name there, with one '{}' for each stack axis, such as
        'encoder.layer.{}.attention.self.query.weight'.
    shape: of ours, without stack axes.
    kind: 'linear' is stored (out, in), 'conv1d' (GPT-2's) and 'embedding' (in, out) as ours, 'conv'
        (out, in, *window); 'vector' is a bias or the scale of a norm.
    stack: lengths of our stack axes.
    in_axes: the input axes of ours.
    part: (i, sizes) where ours is the i-th of several parts of a fused weight, of so many outputs
        each.
    heads: those parts alternate head by head (GPT-NeoX), of so many heads.
    pairs: of so many heads, the two channels of a rotary pair are neighbours there, and half a head
        apart in ours (GGUF's LLaMA).
    added: ours is theirs plus this (Gemma's norms).
    tied: whether ours is read in a second place there, under another name.
    """

    parameter: str
    shape: tuple[int, ...]
    kind: Literal["linear", "conv1d", "embedding", "conv", "vector"] = "linear"
    stack: tuple[int, ...] = ()
    in_axes: tuple[int, ...] = (0,)
    part: tuple[int, tuple[int, ...]] | None = None
    heads: int | None = None
    pairs: int | None = None
    added: float = 0.0
    tied: bool = False

    @property
    def rows(self) -> int:
        """Inputs of the weight seen as a matrix; a vector has one."""
        return 1 if self.kind == "vector" else math.prod(self.shape[axis] for axis in self.in_axes)

    @property
    def columns(self) -> int:
        """Outputs of the weight seen as a matrix."""
        return math.prod(self.shape) // self.rows

    @property
    def their_columns(self) -> int:
        """Outputs of the other tool's weight: of a fused one, of all its parts."""
        return self.columns if self.part is None else sum(self.part[1])

    def outputs(self) -> np.ndarray | slice:
        """Which outputs of the other tool's weight are ours, in our order; a slice where they are
        neighbours, which gives views.
        """
        if self.pairs is not None:
            return np.arange(self.columns).reshape(self.pairs, -1, 2).swapaxes(1, 2).ravel()
        if self.part is None:
            return slice(None)
        index, sizes = self.part
        if self.heads is None:
            return slice(sum(sizes[:index]), sum(sizes[: index + 1]))
        return np.arange(sum(sizes)).reshape(self.heads, len(sizes), -1)[:, index].ravel()

    def layers(self) -> Iterator[tuple[Index, str]]:
        """(index along the stack axes, name of the parameter there) of every layer."""
        for index in itertools.product(*map(range, self.stack)):
            yield index, self.parameter.format(*index)

    def modules(self) -> Iterator[tuple[Index, str]]:
        """(index along the stack axes, name of the module that holds the parameter) of every
        layer.
        """
        for index, parameter in self.layers():
            yield index, parameter.rpartition(".")[0]

    def to_theirs(self, weight: np.ndarray) -> np.ndarray:
        """One layer's weight in the other tool's shape and orientation; of a fused weight, the rows
        or columns that are ours, in our order (`put` puts them in place).
        """
        if self.added:
            weight = weight - np.asarray(self.added, weight.dtype)
        if self.kind == "linear":
            return to_matrix(weight, len(self.shape), self.in_axes).T
        if self.kind == "conv":
            return np.moveaxis(weight, (-1, -2), (0, 1))
        return weight.reshape((-1,) if self.kind == "vector" else (self.rows, -1))

    def put(self, whole: np.ndarray, weight: np.ndarray) -> None:
        """Writes our part, as `to_theirs` gives it, into the other tool's weight."""
        outputs_first = np.moveaxis(whole, self.output_axis, 0)
        outputs_first[self.outputs()] = np.moveaxis(weight, self.output_axis, 0)

    def from_theirs(self, weight: np.ndarray) -> np.ndarray:
        """One layer's weight in our shape, a view where it can be; of a fused weight, our part.

        Raises:
            ValueError: it has another shape than it should.
        """
        return self.turned(self.own(weight))

    def own(self, weight: np.ndarray) -> np.ndarray:
        """What of one layer's weight is ours, in our order, as the other tool turns it; a view where
        it can be.

        Raises:
            ValueError: it has another shape than it should.
        """
        expected = self.their_shape()
        if weight.shape != expected:
            raise ValueError(f"shape {weight.shape}, needed {expected}")
        if not self.partial:
            return weight
        mine = self.outputs()
        return weight[mine] if self.output_axis == 0 else weight[..., mine]

    def turned(self, weight: np.ndarray) -> np.ndarray:
        """What `own` gives, in our shape; a view where it can be."""
        if self.added:
            weight = weight.astype(np.float32) + np.float32(self.added)
        if self.kind == "linear":
            return from_matrix(weight.T, self.shape, self.in_axes)
        if self.kind == "conv":
            return np.moveaxis(weight, (0, 1), (-1, -2))
        return weight.reshape(self.shape)

    @property
    def partial(self) -> bool:
        """Whether ours is only a part of theirs, or in another order."""
        return self.part is not None or self.pairs is not None

    def their_shape(self) -> tuple[int, ...]:
        """The shape of one layer's weight in the other tool; of a fused weight, of the whole of
        it.
        """
        if self.kind == "linear":
            return (self.their_columns, self.rows)
        if self.kind == "conv":
            return (self.shape[-1], self.shape[-2], *self.shape[:-2])
        return (self.their_columns,) if self.kind == "vector" else (self.rows, self.their_columns)

    @property
    def output_axis(self) -> int:
        """The axis of the outputs in the other tool's weight."""
        return 0 if self.kind in ("linear", "conv") else -1

    def a_to_theirs(self, a: np.ndarray) -> np.ndarray:
        """(in, r) as (r, in), or (r, in, *window) for a convolution."""
        if self.kind == "conv":
            a = np.moveaxis(a.reshape(*self.shape[:-1], -1), -2, 0)
        return np.ascontiguousarray(np.moveaxis(a, -1, 0))

    def a_from_theirs(self, a: np.ndarray) -> np.ndarray:
        """The inverse of `a_to_theirs`.

        Raises:
            ValueError: it has another shape than it should.
        """
        expected = (self.shape[-2], *self.shape[:-2]) if self.kind == "conv" else (self.rows,)
        if a.shape[1:] != expected:
            raise ValueError(f"shape {a.shape}, needed (rank, {', '.join(map(str, expected))})")
        a = np.moveaxis(a, 0, -1)
        if self.kind == "conv":
            a = np.moveaxis(a, 0, -2).reshape(self.rows, -1)
        return np.ascontiguousarray(a)

    @property
    def _window_of_b(self) -> tuple[int, ...]:
        return (1,) * (len(self.shape) - 2) if self.kind == "conv" else ()

    def b_to_theirs(self, b: np.ndarray) -> np.ndarray:
        """(r, out) as (out, r), or (out, r, 1, ...) for a convolution."""
        return np.ascontiguousarray(b.T).reshape(b.shape[1], b.shape[0], *self._window_of_b)

    def b_from_theirs(self, b: np.ndarray) -> np.ndarray:
        """The inverse of `b_to_theirs`; of a fused weight, our part of the outputs.

        Raises:
            ValueError: it has another shape than it should.
        """
        fits = b.ndim > 1 and (b.shape[0], b.shape[2:]) == (self.their_columns, self._window_of_b)
        if not fits:
            needed = ", ".join(map(str, (self.their_columns, "rank", *self._window_of_b)))
            raise ValueError(f"shape {b.shape}, needed ({needed})")
        return np.ascontiguousarray(b.reshape(b.shape[0], b.shape[1])[self.outputs()].T)


Names = Mapping[str, Name]


def unrolled(names: Names) -> dict[str, Name]:
    """The names of a model whose layers are apart (`layers_0/...`), from those of the stacked
    one (`layers/...`).
    """
    out = {}
    for path, name in names.items():
        pieces = path.split("/")
        if "layers" not in pieces:
            out[path] = name
            continue
        at = pieces.index("layers")
        for n in range(name.stack[0]):
            ours = "/".join([*pieces[:at], f"layers_{n}", *pieces[at + 1 :]])
            parameter = name.parameter.replace("{}", str(n), 1)
            out[ours] = replace(name, parameter=parameter, stack=name.stack[1:])
    return out


def in_layout(names: Names, paths: Iterable[str]) -> Names:
    """The names of the stacked model, or unrolled if these paths are those of a model whose layers
    are apart.
    """
    return unrolled(names) if any("layers_0" in path.split("/") for path in paths) else names


def is_suffix(name: str, ending: str) -> bool:
    """Whether `name` is `ending` or ends with it after a dot, as PEFT matches the entries of its
    lists.
    """
    return name == ending or name.endswith("." + ending)
