"""Several adapters as one tree: padded to a common rank and a common set of sites, with a leading
adapter axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.core.changes import Change
from lora_jax.core.lowrank import LowRank
from lora_jax.core.trainable import Trainable, Trainables


def pad(trainable: Trainables, like: Trainables) -> dict[str, Any]:
    """The same adapter with the sites and ranks of `like`: zero factors and zero scale where it has
    none.

    It computes the same function and gets the same gradients, in the shapes that `like` is compiled
    for.

    Raises:
        ValueError: the adapter has a site or a rank that `like` has not.
    """
    extra = sorted(set(trainable) - set(like))
    if extra:
        raise ValueError(
            f"Cannot pad: the adapter has {len(extra)} sites that the wider one has not, such as "
            f"{extra[0]!r}."
        )
    return {path: _padded(path, trainable.get(path), wide) for path, wide in like.items()}


def trim(trainable: Trainables) -> dict[str, Any]:
    """The adapter without the columns and sites that padding added."""
    trimmed = {path: leaf.trim() for path, leaf in trainable.items()}
    return {path: leaf for path, leaf in trimmed.items() if leaf is not None}


def used_columns(trainable: Trainables) -> dict[str, np.ndarray]:
    """The columns of each site's factors that some layer uses: those that `trim` keeps. None are
    used where padding added the site.
    """
    return {path: leaf.used_columns() for path, leaf in trainable.items() if leaf.rank}


def stack(adapters: Sequence[Trainables]) -> dict[str, Any]:
    """One tree whose leaves have a leading adapter axis. Ranks, scales and sites may differ between
    the adapters.

    Raises:
        ValueError: there are no adapters, or they train different weights whole.
    """
    if not adapters:
        raise ValueError("Cannot stack no adapters: needed at least one.")
    wide = widest(adapters)
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[pad(trainable, wide) for trainable in adapters]
    )


def widest(adapters: Sequence[Trainables]) -> dict[str, Any]:
    """By path, the entry of the largest rank among the adapters: what all of them can be padded
    to.
    """
    wide: dict[str, Any] = {}
    for trainable in adapters:
        for path, leaf in trainable.items():
            if path not in wide or leaf.rank > wide[path].rank:
                wide[path] = leaf
    return wide


def check_alike(adapters: Sequence[Trainables]) -> None:
    """Raises ValueError if adapters differ at a site in their kind or in the shape of the weight."""
    forms: dict[str, tuple[Any, ...]] = {}
    for trainable in adapters:
        for path, leaf in trainable.items():
            form = _form(leaf)
            if forms.setdefault(path, form) != form:
                raise ValueError(
                    f"{path!r} differs between the adapters: {path!r} is {forms[path]} in one "
                    f"adapter and {form} in another. Only adapters of one model, and of one kind a "
                    "site, go together."
                )


def _form(leaf: Any) -> tuple[Any, ...]:
    if isinstance(leaf, Change):
        stack = tuple(leaf.value.shape[:-1])
        return (leaf.form, stack, leaf.rows, leaf.columns, leaf.block, leaf.terms)
    if not isinstance(leaf, LowRank):
        return (leaf.kind, *(getattr(leaf, name).shape for name in leaf.trained_fields()))
    kind = ("merge-aware " if leaf.rounded else "") + (
        "HiRA" if leaf.of_base else "LoRA" if leaf.magnitude is None else "DoRA"
    )
    return (kind, tuple(leaf.a.shape[:-2]), leaf.rows, leaf.columns, tuple(leaf.in_axes))


def unstack(trainable: Trainables) -> list[dict[str, Any]]:
    """The adapters of a stacked tree, each trimmed to the columns and sites it uses.

    Raises:
        ValueError: the tree is empty.
    """
    if not trainable:
        raise ValueError("Cannot unstack: the tree holds no adapter.")
    count = jax.tree.leaves(trainable)[0].shape[0]
    return [trim(jax.tree.map(lambda leaf, n=n: leaf[n], dict(trainable))) for n in range(count)]


def _padded(path: str, leaf: Trainable | None, wide: Trainable) -> Any:
    if leaf is not None and type(leaf) is not type(wide):
        raise ValueError(
            f"Cannot pad: {path!r} is a {type(leaf).__name__} in one adapter and a "
            f"{type(wide).__name__} in another."
        )
    if leaf is not None:
        try:
            return leaf.pad(wide)
        except ValueError as error:
            raise ValueError(f"Cannot pad {path!r}: {error}") from None
    if not wide.rank:
        raise ValueError(
            f"Cannot pad: {path!r} is trained whole by one adapter and not at all by another."
        )
    # Zero factors and, in the columns that it would use, a scale of 0: no update.
    return jax.tree.map(jnp.zeros_like, wide)
