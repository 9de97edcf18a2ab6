"""A mesh of devices, and along which of its axes a weight is cut.

Axes: `data` cuts the batch; `fsdp` cuts the batch as well, and what is stored of every weight;
`model` cuts the features of every product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import struct
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_jax.core.boxes import Boxed, Wrapping

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")  # along which the tokens of a batch are cut
MODEL = "model"

Axes = str | tuple[str, ...] | None


def make_mesh(data: int = 1, fsdp: int = 1, model: int = 1) -> Mesh:
    """The first data x fsdp x model devices; those of `model` are the nearest to each other.

    Raises:
        ValueError: there are fewer devices.
    """
    shape, devices = (data, fsdp, model), jax.devices()
    needed = math.prod(shape)
    if needed > len(devices):
        sizes = " x ".join(f"{name} {size}" for name, size in zip(AXES, shape))
        kind = devices[0].platform
        more = (
            f"start it with XLA_FLAGS=--xla_force_host_platform_device_count={needed}"
            if kind == "cpu"
            else "start it where there are more"
        )
        raise ValueError(
            f"A mesh of {sizes} needs {needed} devices, and jax sees {len(devices)} of {kind}. "
            f"Lower config.mesh, or {more}."
        )
    return Mesh(np.asarray(devices[:needed]).reshape(shape), AXES)


def laid(shape: Sequence[int], mesh: Mesh, *axes: Axes) -> NamedSharding:
    """Where an array of this shape lies: its last axes are cut along `axes` of the mesh as far as
    these divide them, all else is whole. Nothing is padded.
    """
    before = len(shape) - len(axes)
    ends = zip(shape[before:], axes) if before >= 0 else ()
    spec = [*[None] * before, *(dividing(size, mesh, axis) for size, axis in ends)]
    while spec and spec[-1] is None:  # One layout has one spelling.
        spec.pop()
    return NamedSharding(mesh, PartitionSpec(*spec))


def bytes_on_device(tree: Any) -> int:
    """Bytes of a tree's arrays (or jax.ShapeDtypeStructs) that lie on one device; of random keys,
    which are a few, none.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            sharding = getattr(leaf, "sharding", None)
            shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
            total += math.prod(shape) * leaf.dtype.itemsize
    return total


def dividing(size: int, mesh: Mesh, axes: Axes) -> Axes:
    """The longest start of `axes` that divides a size; axes of one device are left out."""
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    names = tuple(name for name in names if mesh.shape[name] > 1)
    while names and size % math.prod(mesh.shape[name] for name in names):
        names = names[:-1]
    return names[0] if len(names) == 1 else names or None


@dataclass(frozen=True)
class Cut:
    """Where a weight lies that is seen as a matrix (in, out): `rows` and `columns` are the mesh axes
    along which its inputs and its outputs are cut.

    Stored, a weight is cut along both. In a product it is cut along `model` alone, and its tokens
    along the batch's axes: so the weight travels, and no token does.
    """

    mesh: Mesh
    rows: Axes = None
    columns: Axes = None

    def held(self, x: jax.Array, *axes: Axes) -> jax.Array:
        """`x` inside a program, laid as `laid` says."""
        return jax.lax.with_sharding_constraint(x, laid(x.shape, self.mesh, *axes))

    @property
    def in_product(self) -> tuple[Axes, Axes]:
        """The axes of the weight's inputs and outputs while it is multiplied."""
        return _model_alone(self.rows), _model_alone(self.columns)

    def inputs(self, x: jax.Array) -> jax.Array:
        """The product's inputs (tokens, ..., in)."""
        return self.held(x, BATCH, *[None] * (x.ndim - 2), self.in_product[0])

    def outputs(self, y: jax.Array) -> jax.Array:
        """The product's outputs (tokens, ..., out)."""
        return self.held(y, BATCH, *[None] * (y.ndim - 2), self.in_product[1])

    def factors(self, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Factors (in, r) and (r, out) as the weight is in a product; as they are stored, their cut
        along `fsdp` would spread to the tokens' features.
        """
        rows, columns = self.in_product
        return self.held(a, rows, None), self.held(b, None, columns)


class Placed(Wrapping):
    """A dense weight on a mesh. (A quantised weight has a field for its cut.)"""

    cut: Cut = struct.field(pytree_node=False)

    @property
    def ndim(self) -> int:
        """Number of axes of the weight, stack axes counted."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def unbox(self) -> jax.Array:
        """The weight as a product takes it, cut along `model` alone."""
        return self.cut.held(meta.unbox(self.base), *self.cut.in_product)


def cut_of(leaf: Any) -> Cut | None:
    """How the frozen weight in a box lies on a mesh; None if it lies on none."""
    while isinstance(leaf, Boxed):
        if (cut := getattr(leaf, "cut", None)) is not None:
            return cut
        leaf = getattr(leaf, "base", None)
    return None


def _model_alone(axes: Axes) -> Axes:
    return MODEL if axes == MODEL or MODEL in (axes or ()) else None


def batch_held(batch: Any, mesh: Mesh) -> Any:
    """A batch inside a program, the rows of its arrays cut along the batch's axes."""
    whole = Cut(mesh)
    return jax.tree.map(lambda x: whole.held(x, BATCH, *[None] * (x.ndim - 1)), batch)
