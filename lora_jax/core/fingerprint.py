"""A short name for the exact content of a tree of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from lora_jax.core.paths import flatten

Shape = tuple[int, ...]


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits from paths, dtypes, shapes and bytes of all arrays, boxes' too."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        digest.update(f"{path}:{jax.tree.structure(leaf)}".encode())
        for array in jax.tree.leaves(leaf):
            host = np.asarray(array, order="C")
            digest.update(f"{host.dtype}{host.shape}".encode())
            digest.update(host.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def fingerprint_of_parts(leaves: Iterable[tuple[str, Any, Shape, Iterable[np.ndarray]]]) -> str:
    """The `fingerprint` of a tree of plain arrays that never is in memory as a whole.

    Args:
        leaves: (path, dtype, shape, its parts along the leading axes, in order) of every array.
    """
    digest, structure = hashlib.sha256(), jax.tree.structure(0)
    for path, dtype, shape, parts in sorted(leaves, key=lambda leaf: leaf[0]):
        digest.update(f"{path}:{structure}{np.dtype(dtype)}{shape}".encode())
        for part in parts:
            digest.update(np.asarray(part, dtype, order="C").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
