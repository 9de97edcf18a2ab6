"""Several adapters as one tree: padded to a common rank and a common set of sites, with a leading
adapter axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.core.lowrank import LowRank
from lora_jax.core.trainable import Trainables
from lora_jax.core.trained_weight import TrainedWeight


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
    trimmed = {
        path: leaf if isinstance(leaf, TrainedWeight) else leaf.trim()
        for path, leaf in trainable.items()
    }
    return {path: leaf for path, leaf in trimmed.items() if leaf is not None}


def used_columns(trainable: Trainables) -> dict[str, np.ndarray]:
    """The columns of each site's factors that some layer uses: those that `trim` keeps. None are
    used where padding added the site.
    """
    leaves = {path: leaf for path, leaf in trainable.items() if isinstance(leaf, LowRank)}
    return {
        path: np.flatnonzero(np.any(np.asarray(leaf.scale).reshape(-1, leaf.rank) != 0, axis=0))
        for path, leaf in leaves.items()
    }


def stack(adapters: Sequence[Trainables]) -> dict[str, Any]:
    """One tree whose leaves have a leading adapter axis. Ranks, scales and sites may differ between
    the adapters.

    Raises:
        ValueError: there are no adapters, or they train different weights whole.
    """
    if not adapters:
        raise ValueError("Cannot stack no adapters: needed at least one.")
    wide: dict[str, Any] = {}
    for trainable in adapters:
        for path, leaf in trainable.items():
            known = wide.get(path)
            if known is None or (
                isinstance(leaf, LowRank) and isinstance(known, LowRank) and leaf.rank > known.rank
            ):
                wide[path] = leaf
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[pad(trainable, wide) for trainable in adapters]
    )


def unstack(trainable: Trainables) -> list[dict[str, Any]]:
    """The adapters of a stacked tree, each trimmed to the columns and sites it uses.

    Raises:
        ValueError: the tree is empty.
    """
    if not trainable:
        raise ValueError("Cannot unstack: the tree holds no adapter.")
    count = jax.tree.leaves(trainable)[0].shape[0]
    return [trim(jax.tree.map(lambda leaf, n=n: leaf[n], dict(trainable))) for n in range(count)]


def _padded(path: str, leaf: Any, wide: Any) -> Any:
    if not isinstance(wide, LowRank):
        if leaf is None:
            raise ValueError(
                f"Cannot pad: {path!r} is trained whole by one adapter and not at all by another."
            )
        return leaf
    if leaf is None:
        return jax.tree.map(jnp.zeros_like, wide)
    if (leaf.dropout is None) != (wide.dropout is None):
        raise ValueError(
            f"Cannot pad: {path!r} has dropout in one adapter and none in another. Give both a "
            "rate (0.0 is one)."
        )
    return leaf.pad(wide.rank)
