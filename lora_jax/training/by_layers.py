"""An optimiser that goes through stacked layers one by one, so that the updates of all are never in
memory beside their gradients.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Bytes of gradients from which on it matters what is in memory beside them.
LARGE = 2**27


def by_layers(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx`, which has to look at every array by itself, layer after layer where layers are stacked
    (a path with a part `layers`, as a model's `scan` has them). State and numbers are those of
    `tx`. Besides them it is told the `norm` of all gradients, which no layer knows by itself.

    An update takes the place of its gradient, and moments that of those before. Left to itself a
    compiler forms the updates of all layers in float32 beside their gradients: more than moments in
    8 bits save.
    """
    tx = optax.with_extra_args_support(tx)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        extra.setdefault("norm", optax.tree.norm(grads))
        count, stacked = _stacked(grads)
        if params is None or not stacked:
            return tx.update(grads, state, params, **extra)
        apart = [path for path in grads if path not in stacked]
        of_layers = [_cut(tree, grads, stacked) for tree in (grads, state, params)]

        def update_layer(layer: Any, g: Any, moments: list[Any]) -> tuple[Any, Any]:
            now = _filled(of_layers[1], stacked, moments)
            return tx.update(g, now, _at(of_layers[2], layer), **extra)

        def made_of(layer: Any, g: Any, moments: list[Any]) -> tuple[Any, list[Any]]:
            made, new = update_layer(layer, g, moments)
            return made, _by_path(new, stacked)

        def one(layer: Any, carried: Any) -> Any:
            written = made_of(layer, *_at(carried, layer))
            return jax.tree.map(lambda every, x: every.at[layer].set(x), carried, written)

        first = of_layers[0], _by_path(of_layers[1], stacked)
        made, moments = jax.lax.fori_loop(0, count, one, first)
        if not apart:  # What no path owns, counts and rates, is the same for every layer.
            return made, _filled(update_layer(0, *_at(first, 0))[1], stacked, moments)

        rest = [_cut(tree, grads, apart) for tree in (grads, state, params)]
        updates, others = tx.update(*rest, **extra)
        pairs = zip(_by_path(others, apart), moments, strict=True)
        both = [_merged(grads, *pair) for pair in pairs]
        return _merged(grads, updates, made), _filled(others, apart, both)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _stacked(grads: Any) -> tuple[int, list[str]]:
    """How many layers are stacked, and the paths of their arrays; none where they are small."""
    found: dict[int, list[str]] = {}
    for path, leaf in grads.items() if isinstance(grads, Mapping) else ():
        arrays = jax.tree.leaves(leaf)
        # Of 16 bits, an update may be wider than the gradient whose place it takes.
        fit = all(x.ndim > 1 and x.dtype == jnp.float32 for x in arrays)
        fit = fit and any(x.ndim > 2 for x in arrays)  # Blocks of stacked biases may cross layers.
        sizes = {x.shape[0] for x in arrays} if fit else set()
        if "layers" in path.split("/") and len(sizes) == 1:
            found.setdefault(sizes.pop(), []).append(path)
    count, paths = max(found.items(), key=lambda one: len(one[1]), default=(0, []))
    size = sum(x.nbytes for path in paths for x in jax.tree.leaves(grads[path]))
    return count, paths if size >= LARGE else []


def _is_by(paths: Collection[str], node: Any) -> bool:
    return isinstance(node, dict) and node.keys() == set(paths)


def _cut(tree: Any, every: Collection[str], paths: Collection[str]) -> Any:
    """The tree with these paths alone, wherever it has an entry for every path."""
    some = lambda node: {path: node[path] for path in paths} if _is_by(every, node) else node
    return jax.tree.map(some, tree, is_leaf=lambda node: _is_by(every, node))


def _by_path(tree: Any, paths: Collection[str]) -> list[Any]:
    """The parts of a tree that have an entry for each of these paths: moments."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: _is_by(paths, node))
    return [node for node in leaves if _is_by(paths, node)]


def _filled(tree: Any, paths: Collection[str], parts: list[Any]) -> Any:
    """The tree with other parts in the place of those that `_by_path` gives."""
    left = iter(parts)
    put = lambda node: next(left) if _is_by(paths, node) else node
    return jax.tree.map(put, tree, is_leaf=lambda node: _is_by(paths, node))


def _at(tree: Any, layer: Any) -> Any:
    return jax.tree.map(lambda x: x[layer], tree)


def _merged(every: Collection[str], *parts: Mapping[str, Any]) -> dict[str, Any]:
    known = {path: leaf for part in parts for path, leaf in part.items()}
    return {path: known[path] for path in every}
