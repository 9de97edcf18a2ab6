"""Boxes: leaves of `params` that compute the weight when Linen reads it.

`self.param` unboxes whatever it reads before it checks the shape, so a box in `params` works with
any Linen module, unedited.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import struct
from flax.core import meta


class Boxed(struct.PyTreeNode, meta.AxisMetadata):
    """A weight that is computed when it is read.

    Every array in a box counts its own axes from the right; whatever stands before them are stack
    axes (layers of a scan, a vmap). Lifted transformations slice or add leading axes of the arrays
    themselves, so the box needs no bookkeeping.
    """

    def unbox(self) -> jax.Array:
        """The weight that a module sees, stack axes first."""
        raise NotImplementedError

    def replace_boxed(self, val: Any) -> Any:
        """Refused: a box is read-only."""
        raise TypeError(
            f"{type(self).__name__} is read-only: a module tried to write a weight that is frozen "
            "or adapted."
        )

    def add_axis(self, index: int, params: dict[Any, Any]) -> Boxed:
        """Itself: axes are counted from the right."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Boxed:
        """Itself: axes are counted from the right."""
        return self


class Wrapping(Boxed):
    """A box around a weight or a box of it, with that weight's shape and dtype."""

    base: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, stack axes first."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the weight."""
        return self.base.dtype


def is_boxed(leaf: Any) -> bool:
    """Whether a leaf of `params` is one of our boxes."""
    return isinstance(leaf, Boxed)
