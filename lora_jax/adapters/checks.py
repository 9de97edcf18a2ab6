"""Cheap checks of an adapter: it starts as the base, all of it learns and covers its sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from lora_jax.core.blockwise import restored
from lora_jax.core.changes import Change
from lora_jax.core.lowrank import LowRank
from lora_jax.core.paths import layer_of
from lora_jax.core.trainable import Trainables

# An update is 0 if its norm is below this part of the product of its factors' norms: float32
# factors that cancel leave about 1e-7.
_ZERO = 1e-6
Flags = dict[str, dict[str, np.ndarray]]


def without_effect(trainable: Trainables) -> list[str]:
    """Sites whose factors change nothing: updates of 0 in every layer, and no moved magnitude."""
    return [path for path, leaf in trainable.items() if leaf.rank and not _moves(leaf).any()]


def check_effect(trainable: Trainables) -> None:
    """Raises ValueError if the adapter changes nothing: no update, and nothing trained whole."""
    silent = without_effect(trainable)
    if len(silent) == len(trainable):
        raise ValueError(
            f"The adapter changes nothing: its update is 0 at all {len(trainable)} sites, such as "
            f"{next(iter(silent), 'none')!r}. Either it was saved before it was trained, or its "
            "weights were not loaded."
        )


def check_start(trainable: Trainables) -> None:
    """Raises ValueError if a new adapter does not start as the base: its update or magnitude moved.

    Looks at the factors alone.
    """
    for path, leaf in trainable.items():
        if leaf.rank and _moves(leaf).any():
            layers = np.argwhere(np.atleast_1d(_moves(leaf))).ravel().tolist()
            changed = isinstance(leaf, Change)
            size = np.linalg.norm(leaf.value * leaf.scale) if changed else np.max(_norm(leaf)[0])
            raise ValueError(
                f"{path!r} does not start as the base: its update has norm "
                f"{size:.2e} in layers {layers}. An initialiser must leave the "
                "update at 0, or subtract its own start (a0, b0)."
            )


def gradient_flags(
    trainable: Trainables, gradients: Mapping[str, Any], seen: Flags | None = None
) -> Flags:
    """Which trained arrays have had a gradient other than 0, layer by layer, in `gradients` or
    already in `seen`.

    `gradients` has the layout of the trained tree: for each path a leaf whose trained arrays are
    gradients (or sums of squared ones, such as Adam's second moments).
    """
    flags: Flags = {}
    for path, leaf in trainable.items():
        stack = leaf.scale.ndim - 1 if leaf.rank else 0
        for field in leaf.trained_fields():
            gradient = getattr(gradients[path], field)
            reached = jnp.any(gradient != 0, axis=tuple(range(stack, gradient.ndim)))
            before = False if seen is None else seen[path][field]
            flags.setdefault(path, {})[field] = np.asarray(np.asarray(reached, bool) | before)
    return flags


def flags_of_optimizer(trainable: Trainables, opt_state: Any) -> Flags | None:
    """`gradient_flags` of all steps so far, by Adam's second moments; None without Adam."""
    moments = optax.tree_utils.tree_get(opt_state, "nu")
    if moments is None:
        return None
    # Pairs of factors that are moved by their product have no Adam, but a smoothed gradient.
    moments, pairs = restored(moments), optax.tree_utils.tree_get(opt_state, "momentum", {})
    own = {path: moments[path].replace(a=leaf.a, b=leaf.b) for path, leaf in pairs.items()}
    return gradient_flags(trainable, {**moments, **own})


def unreached(trainable: Trainables, seen: Flags) -> list[str]:
    """The trained arrays that never had a gradient, as 'path: field', with layers where only some
    of them did not.

    Layers that are not adapted (scale 0) do not count. After the first step `a` is among them,
    since `b` was 0: ask later.
    """
    found = []
    for path, fields in seen.items():
        leaf = trainable[path]
        used = np.any(np.asarray(leaf.scale) != 0, axis=-1) if leaf.rank else np.ones((), bool)
        for field, reached in fields.items():
            silent = used & ~reached
            if silent.any():
                some = not np.array_equal(silent, used)
                layers = f" in layers {np.argwhere(silent).tolist()}" if some else ""
                found.append(f"{path}: {field}{layers}")
    return found


@dataclass(frozen=True)
class Coverage:
    """A table of what is adapted: one row a label, one column a layer. A cell is a number, or None
    where nothing is adapted.

    The column of layer None holds what belongs to no layer.
    """

    layers: tuple[int | None, ...]
    rows: Mapping[str, Mapping[int | None, int]]

    def __str__(self) -> str:
        title = "site \\ layer"
        width = max(map(len, [title, *self.rows]))
        head = [
            title.ljust(width),
            *(f"{'-' if layer is None else layer:>5}" for layer in self.layers),
        ]
        body = [
            [label.ljust(width), *(f"{cells.get(layer) or '.':>5}" for layer in self.layers)]
            for label, cells in self.rows.items()
        ]
        return "\n".join(" ".join(line) for line in [head, *body])


def coverage(trainable: Trainables) -> Coverage:
    """The rank of every adapted weight by layer: what a saved adapter covers. Other leaves have
    their kind in the label.
    """
    rows: dict[str, dict[int | None, int]] = {}
    for path, leaf in sorted(trainable.items()):
        label, layer = layer_of(path)
        if not leaf.rank:
            rows.setdefault(f"{label} ({leaf.kind})", {})[layer] = 1
            continue
        ranks = np.count_nonzero(np.asarray(leaf.scale), axis=-1)
        cells = {layer: ranks} if not ranks.ndim else dict(enumerate(ranks))
        cells = {i: int(np.max(rank)) for i, rank in cells.items()}
        rows.setdefault(label, {}).update({i: rank for i, rank in cells.items() if rank})

    seen = {layer for cells in rows.values() for layer in cells}
    last = max([layer for layer in seen if layer is not None], default=-1)
    return Coverage((*range(last + 1), *([None] if None in seen else [])), rows)


def _norm(leaf: LowRank) -> tuple[np.ndarray, np.ndarray]:
    """The norm of each layer's update, and the product of its factors' norms."""
    # Of HiRA, what the base is multiplied with.
    plain = leaf.replace(of_base=False).plain()
    a, b, scale = (np.asarray(x, np.float64) for x in (plain.a, plain.b, plain.scale))
    a = a * scale[..., None, :]
    square = (
        np.einsum("...ir,...is,...rt,...st->...", a, a, b, b, optimize=True)
        if a.size
        else np.zeros(a.shape[:-2])
    )
    size = np.linalg.norm(a, axis=(-2, -1)) * np.linalg.norm(b, axis=(-2, -1))
    return np.asarray(np.sqrt(np.maximum(square, 0))), np.asarray(size)


def _moves(leaf: LowRank | Change) -> np.ndarray:
    """Whether each layer's update, or its magnitude, is other than the base's; a magnitude without
    the base's norm counts as moved.
    """
    if isinstance(leaf, Change):
        return np.asarray(np.any(np.asarray(leaf.value * leaf.scale) != 0, axis=-1))
    norm, size = _norm(leaf)
    moved = norm > _ZERO * size
    if leaf.magnitude is not None:
        used = np.any(np.asarray(leaf.scale) != 0, axis=-1)
        start = (
            np.full(leaf.magnitude.shape, np.inf)
            if leaf.base_square is None
            else np.sqrt(np.asarray(leaf.base_square, np.float64))
        )
        moved = moved | (
            used
            & np.any(np.abs(np.asarray(leaf.magnitude) - start) > 1e-4 * np.abs(start), axis=-1)
        )
    return np.asarray(moved)
