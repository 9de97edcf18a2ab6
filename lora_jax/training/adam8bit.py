"""Adam with moments in 8 bits, a quarter of the memory, by bitsandbytes' formulas and rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from lora_jax.core.blockwise import Blockwise, quantize_blocks, zero_blocks
from lora_jax.core.lowrank import LowRank
from lora_jax.core.order import zero_after
from lora_jax.core.rows import Rows

# bitsandbytes' `min_8bit_size`: below it there is nothing to save, and the error is largest
MIN_SIZE = 4096

Axes = Callable[[Any], Any]


def block_axes(params: Any) -> Any:
    """The axis along which the moments of each array are cut into blocks of 256; 0 for arrays whose
    moments stay in float32.

    For any tree of arrays: the longer of the last two axes, and 0 for arrays of less than 4096
    numbers. In the trained tree of LoRA, `a` is cut along the inputs and `b` along the outputs of
    each rank and layer: what pads or stacks adapters changes no block. (bitsandbytes cuts the flat
    arrays of torch: for `a` that is the same where the inputs are a multiple of 256.) Each layer of
    a stack is counted by itself, as a model without `scan` has it. Embeddings stay in float32, as
    bitsandbytes advises (`StableEmbedding`): words are so unequally frequent that one block holds
    moments of very different sizes.
    """
    if not isinstance(params, dict):
        return jax.tree.map(_axis_of, params)
    return {path: _axes_of_leaf(path, leaf) for path, leaf in params.items()}


def _axes_of_leaf(path: str, leaf: Any) -> Any:
    if isinstance(leaf, LowRank):
        longer = (("a", -2), ("b", -1))  # Gains and magnitudes are vectors.
        large = {name: axis for name, axis in longer if _is_large(getattr(leaf, name))}
        return jax.tree.map(lambda x: 0, leaf).replace(**large)
    if isinstance(leaf, Rows) or path.rpartition("/")[2] == "embedding":
        return jax.tree.map(lambda x: 0, leaf)
    return jax.tree.map(_axis_of, leaf)


def _is_large(matrix: Array | None) -> bool:
    return matrix is not None and math.prod(matrix.shape[-2:]) >= MIN_SIZE


def _axis_of(x: Array) -> int:
    if x.size < MIN_SIZE:
        return 0
    return -2 if x.ndim > 1 and x.shape[-2] > x.shape[-1] else -1


def scale_by_adam8bit(
    b1: float, b2: float, eps: float, *, axes: Axes = block_axes
) -> optax.GradientTransformation:
    """Adam's rescaling with both moments in 8 bits between steps: the first in the signed dynamic
    map, the second in the one from 0 up.

    Each step restores them to float32, updates them, takes the step from the exact new values and
    rounds those that are kept: one array after the other. The state is optax's `ScaleByAdamState`,
    with a `Blockwise` in place of each large array.

    Reference: Dettmers et al. 2022 (arXiv 2110.02861), section 2; bitsandbytes' `AdamW8bit`.

    Args:
        axes: from the trained tree, the axis of blocks for each array, or 0 to keep its moments in
            float32.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        def zeros(p: Array, axis: int, signed: bool) -> Any:
            if not axis:
                return jnp.zeros(p.shape, jnp.float32)
            return zero_blocks(p.shape, axis=axis, signed=signed)

        first, second = (
            jax.tree.map(
                lambda p, axis, signed=signed: zeros(p, axis, signed), params, axes(params)
            )
            for signed in (True, False)
        )
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), first, second)

    def update(
        grads: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        correction, root = 1 - b1**count, jnp.sqrt(1 - b2**count)

        def one(g: Array, first: Any, second: Any) -> tuple[Array, Any, Any]:
            wide = g.astype(jnp.float32)
            m = b1 * _loaded(first) + (1 - b1) * wide
            v = b2 * _loaded(second) + (1 - b2) * jnp.square(wide)
            step = m / correction / (jnp.sqrt(v) / root + eps)
            return step.astype(g.dtype), _as_before(m, first), _as_before(v, second)

        leaves, tree = jax.tree.flatten(grads)
        moments = (tree.flatten_up_to(moment) for moment in (state.mu, state.nu))
        done = _in_order(one, zip(leaves, *moments, strict=True))
        updates, first, second = map(tree.unflatten, zip(*done, strict=True))
        return updates, optax.ScaleByAdamState(count, first, second)

    return optax.GradientTransformation(init, update)


# Numbers whose moments are in float32 at the same time, or one matrix's if it has more.
_AT_ONCE = 2**20

Leaf = tuple[Array, Any, Any]  # A gradient and its two moments.


def _in_order(one: Callable[..., Leaf], leaves: Iterable[Leaf]) -> Iterator[Leaf]:
    """`one` of every leaf. Those in 8 bits are restored one after the other, a large stack matrix
    by matrix: all at once, a compiler would have the moments of all in float32 together, more than
    8 bits save.
    """
    done = jnp.uint8(0)
    for g, *moments in leaves:
        if not isinstance(moments[0], Blockwise):
            yield one(g, *moments)
            continue
        moments = [moment.replace(codes=moment.codes + done) for moment in moments]
        apply = _matrix_by_matrix(one) if g.size > _AT_ONCE and g.ndim > 2 else one
        update, *moments = apply(g, *moments)
        written = (update, *(moment.codes for moment in moments))
        done = sum(map(zero_after, written), jnp.uint8(0))
        yield update, *moments


def _matrix_by_matrix(one: Callable[..., Leaf]) -> Callable[..., Leaf]:
    def loop(*leaf: Any) -> Leaf:
        matrices = jax.tree.map(lambda x: x.reshape(-1, *x.shape[-2:]), leaf)
        done = jax.lax.map(lambda matrix: one(*matrix), matrices)
        return jax.tree.map(lambda x, like: x.reshape(like.shape), done, leaf)

    return loop


def _loaded(moment: Any) -> Array:
    return moment.restore() if isinstance(moment, Blockwise) else moment


def _as_before(moment: Array, before: Any) -> Any:
    if not isinstance(before, Blockwise):
        return moment
    return quantize_blocks(moment, axis=before.axis, signed=before.signed)
