"""Chosen rows of a weight that are trained whole: words of an embedding, layers of a stack."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.core import meta
from jaxtyping import Array, Float, Int

from lora_jax.core.boxes import Boxed, Wrapping
from lora_jax.core.trainable import Trainable
from lora_jax.core.trained_weight import TrainedWeight


class Rows(Trainable, struct.PyTreeNode, repr=False):
    """New values (k, ...) of the rows `index` (k,) of a weight's first axis; others stay frozen.

    `layers` says that the first axis is a stack of layers that a scan slices, not an axis of the
    weight itself.
    """

    value: Float[Array, " k *rest"]
    index: Int[Array, " k"]
    layers: bool = struct.field(pytree_node=False, default=False)
    kind = "rows"

    def onto(self, base: Any, path: str, key: jax.Array | None = None) -> Boxed:
        """The box of the whole weight.

        Raises:
            ValueError: the rows do not fit the weight.
        """
        count, *rest = self.value.shape
        if [*base.shape[1:]] != rest or self.index.shape != (count,):
            raise ValueError(
                f"Trained rows of shape {self.value.shape} do not fit {path!r} of shape "
                f"{tuple(base.shape)}."
            )
        if self.layers:
            # A scan slices this axis, so the layers are put in place before it.
            return TrainedWeight(value=jnp.asarray(meta.unbox(base)).at[self.index].set(self.value))
        return WithRows(base=base, rows=self)


class WithRows(Wrapping):
    """A weight some of whose rows are trained."""

    rows: Rows

    def unbox(self) -> Array:
        """The whole weight, its trained rows in place."""
        base = jnp.asarray(meta.unbox(self.base))
        return base.at[self.rows.index].set(self.rows.value.astype(self.dtype))

    def look_up(self, ids: Array, frozen: Array) -> Array:
        """`frozen`, the base's rows `ids`, with trained ones in place: no embedding is copied."""
        same = ids[..., None] == self.rows.index
        values = jnp.take(self.rows.value, same.argmax(-1), axis=0).astype(frozen.dtype)
        return jnp.where(same.any(-1, keepdims=True), values, frozen)

    def logits(self, query: Array, frozen: Array) -> Array:
        """`frozen`, the query's products with the base's rows, with trained rows' in place."""
        new = query.astype(frozen.dtype) @ self.rows.value.T.astype(frozen.dtype)
        return frozen.at[..., self.rows.index].set(new)


def rows_of(base: Any, index: Any, *, layers: bool = False) -> Rows:
    """Trained rows that start as the base's own.

    Raises:
        ValueError: no row is named, one twice, or one that is not there.
    """
    index = [int(i) for i in index]
    if not index or len(set(index)) != len(index) or not all(0 <= i < base.shape[0] for i in index):
        raise ValueError(
            f"Rows must be some of 0 to {base.shape[0] - 1}, each once; got {index[:8]}."
        )
    chosen = jnp.asarray(sorted(index), jnp.int32)
    value = jax.lax.stop_gradient(jnp.take(meta.unbox(base), chosen, axis=0))
    return Rows(value=value, index=chosen, layers=layers)
