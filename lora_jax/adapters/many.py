"""One batch, many adapters: every example names the adapter that acts on it, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from lora_jax.adapters.apply import apply
from lora_jax.adapters.stacking import check_alike, pad, widest
from lora_jax.core.paths import flatten
from lora_jax.core.trainable import Trainables
from lora_jax.core.trained_weight import TrainedWeight

NONE = -1  # the id of no adapter


class Bank(struct.PyTreeNode):
    """Adapters of different ranks, scales and sites in one tree, with a leading axis; its last
    entry, at `count`, is no adapter at all.

    A bank is an argument of a compiled program: exchanging an adapter in it (`replace_adapter`)
    recompiles nothing.
    """

    trainable: dict[str, Any]

    @property
    def count(self) -> int:
        """Number of adapters, without the last entry."""
        return jax.tree.leaves(self.trainable)[0].shape[0] - 1


def make_bank(
    adapters: Sequence[Trainables] = (),
    *,
    base: Mapping[str, Any] | None = None,
    rank: int | None = None,
    like: Trainables | None = None,
    places: int | None = None,
) -> Bank:
    """The adapters as one bank, padded to a common rank and to the sites of all together. Dropout
    is left out.

    Args:
        base: the pretrained weights. Needed where adapters have weights trained whole (heads): they
            are what an example without an adapter gets, and what an adapter has that did not train
            that weight.
        rank: at least this rank at every site, to leave room for adapters that come later.
        like: an adapter with all sites that later ones may have; its values are not used.
        places: how many adapters there is room for, by default as many as there are. Those that are
            empty hold no adapter (`replace_adapter` with `{}` empties one).

    Raises:
        ValueError: there are neither adapters nor `like`, or more adapters than places; a weight
            trained whole has no base; some adapters have DoRA at a site and others not; shapes
            differ; an adapter is merge-aware.
    """
    plain = [_at_rest(trainable) for trainable in adapters]
    known = plain if like is None else [*plain, _at_rest(like)]
    places = len(plain) if places is None else places
    if not known or len(plain) > places:
        raise ValueError(
            f"A bank needs an adapter, or one that it is `like`, and places for all: came "
            f"{len(plain)} adapters for {places} places."
        )
    check_alike(known)
    wide = widest(known)
    if rank is not None:
        wide = {
            path: leaf.with_rank(max(rank, leaf.rank)) if leaf.rank else leaf
            for path, leaf in wide.items()
        }
    own = _of_base([path for path, leaf in wide.items() if leaf.replaces], base)

    empty = [{}] * (places - len(plain) + 1)
    full = [pad({**own, **trainable}, wide) for trainable in [*plain, *empty]]
    return Bank(trainable=jax.tree.map(lambda *leaves: jnp.stack(leaves), *full))


def replace_adapter(bank: Bank, index: int, trainable: Trainables) -> Bank:
    """The bank with another adapter at `index`, in the same shapes; `{}` is no adapter.

    Raises:
        IndexError: there is no such place.
        ValueError: the adapter has a site or a rank that the bank has no room for.
    """
    if not 0 <= index < bank.count:
        raise IndexError(
            f"The bank has adapters 0 to {bank.count - 1}, and {index} is to be replaced."
        )
    none = jax.tree.map(lambda leaf: leaf[-1], bank.trainable)
    own = {path: leaf for path, leaf in none.items() if leaf.replaces}
    one = pad({**own, **_at_rest(trainable)}, none)
    if jax.tree.structure(one) != jax.tree.structure(none):
        raise ValueError(
            "The adapter has other arrays than those in the bank (DoRA, a variant): make a new "
            "bank for it."
        )
    return bank.replace(
        trainable=jax.tree.map(lambda all, new: all.at[index].set(new), bank.trainable, one)
    )


def apply_many(
    model: Any,
    frozen: Mapping[str, Any],
    bank: Bank,
    ids: Int[Array, " batch"],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """What `apply` gives each example of a batch with its own adapter alone, stacked along the
    first axis.

    Products with frozen weights are done once for the whole batch, and frozen weights are
    dequantised once; the thin products are done example by example with the factors of its adapter.
    Those are gathered, so batch times one adapter's bytes must fit.

    Examples are independent of each other here: a model that mixes them (batch statistics) sees
    each alone.

    Args:
        ids: for each example the index of its adapter in the bank, or -1 for none.
        args: arrays (or trees of them) with the batch as their first axis, positional inputs of the
        model.
        kwargs: passed to the model as they are, without a batch axis.

    Raises:
        ValueError: an id is out of range. Under jit, where ids are not known, the outputs of that
            example are NaN.
    """
    if not isinstance(ids, jax.core.Tracer):
        wrong = [int(i) for i in ids if not NONE <= i < bank.count]
        if wrong:
            raise ValueError(
                f"Adapter ids must be 0 to {bank.count - 1}, or -1 for none; got {wrong[:5]}."
            )

    # Out of range becomes NaN, never a neighbour: indices past the end are filled.
    place = jnp.where(
        ids == NONE, bank.count, jnp.where((ids < NONE) | (ids >= bank.count), bank.count + 1, ids)
    )

    def chosen(leaf: Array) -> Array:
        # Places of entries are whole numbers; their entries are NaN.
        filled = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0
        return jnp.take(leaf, place, axis=0, mode="fill", fill_value=filled)

    own = jax.tree.map(chosen, bank.trainable)

    def one(trainable: Trainables, *inputs: Any) -> Any:
        alone = jax.tree.map(lambda x: x[None], inputs)
        return jax.tree.map(lambda y: y[0], apply(model, frozen, trainable, *alone, **kwargs))

    return jax.vmap(one)(own, *args)


def _at_rest(trainable: Trainables) -> dict[str, Any]:
    for leaf in trainable.values():
        if not leaf.rank and not leaf.replaces:
            raise ValueError(
                "A bank holds factors and weights trained whole, and "
                f"{type(leaf).__name__} is neither."
            )
        if leaf.rank and leaf.rounded:
            raise ValueError(
                "Adapters of a bank share the products of one base, and a merge-aware adapter "
                "rounds its own sum with it. Merge it (merge_quantized) and use it alone."
            )
    return {path: leaf.at_rest() for path, leaf in trainable.items()}


def _of_base(paths: Sequence[str], base: Mapping[str, Any] | None) -> dict[str, TrainedWeight]:
    weights = {} if base is None else flatten(base)
    if missing := sorted(set(paths) - set(weights)):
        raise ValueError(
            f"{missing[0]!r} is trained whole by an adapter, and an example without an adapter "
            "needs the base's. Pass base=..., the pretrained weights."
        )
    return {path: TrainedWeight(value=jnp.asarray(weights[path])) for path in paths}
