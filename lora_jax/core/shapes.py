"""What a tree of weights is, in a few lines: shapes, formats and bytes in place of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.core.paths import flatten, layer_of


class ShapesRepr:
    """A dataclass of arrays that prints as `LowRank(a=float32[64,8], b=float32[8,32], ...)`.

    No numbers, and no field that is None or at its default. (Its class needs `repr=False`, or the
    dataclass writes its own.)
    """

    def __repr__(self) -> str:
        given = [
            f"{field.name}={shape_of(value)}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
            and (hasattr(value, "dtype") or value != field.default)
        ]
        return f"{type(self).__name__}({', '.join(given)})"


def shape_of(x: Any) -> str:
    """`float32[64,8]` for an array, and what else it is as it prints."""
    if not hasattr(x, "dtype") or not hasattr(x, "shape") or isinstance(x, ShapesRepr):
        return repr(x)
    return f"{jnp.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]"


@dataclasses.dataclass(frozen=True)
class Row:
    """Equal weights of `count` layers, whose numbers are `*` in the path; bytes of all."""

    path: str
    count: int
    kind: str
    shape: tuple[int, ...]
    format: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """A tree as a table, one row for equal weights of numbered layers."""

    rows: tuple[Row, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the whole tree, as it is stored."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        lines = [("path", "kind", "shape", "format", "bytes")]
        for row in self.rows:
            times = f" (x{row.count})" if row.count > 1 else ""
            shape = " x ".join(map(str, row.shape)) or "scalar"
            lines.append((row.path + times, row.kind, shape, row.format, f"{row.bytes:,}"))
        lines.append(("total", "", "", "", f"{self.bytes:,}"))
        widths = [max(map(len, column)) for column in zip(*lines)]

        def text(line: tuple[str, ...]) -> str:
            left = [cell.ljust(width) for cell, width in zip(line[:-1], widths)]
            return "  ".join([*left, line[-1].rjust(widths[-1])])

        return "\n".join(map(text, lines))

    __repr__ = __str__


def summary(tree: Mapping[str, Any]) -> Summary:
    """The table of a frozen or a trainable tree, or of params; it prints as text.

    Of factors, the shape is that of the update, (*stack, in, out), and the format their rank.

    >>> summary({"out": {"bias": jnp.zeros(3)}})
    path      kind   shape  format   bytes
    out/bias  array  3      float32     12
    total                               12
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for path, leaf in flatten(tree).items():
        kind = getattr(leaf, "kind", "array")
        shape, format = _described(leaf)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(leaf))
        name, _ = layer_of(path)
        key = (name, kind, shape, format)
        if known := rows.get(key):
            rows[key] = Row(name, known.count + 1, kind, shape, format, known.bytes + size)
        else:
            rows[key] = Row(path, 1, kind, shape, format, size)
    return Summary(tuple(rows.values()))


def _described(leaf: Any) -> tuple[tuple[int, ...], str]:
    if describe := getattr(leaf, "described", None):
        return describe()
    first = jax.tree.leaves(leaf)[0]
    return tuple(first.shape), jnp.dtype(first.dtype).name
