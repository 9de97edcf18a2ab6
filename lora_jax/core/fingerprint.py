"""A short name for the exact content of a tree of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lora_jax.core.paths import flatten


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits from the paths, dtypes, shapes and bytes of all stored arrays,
    boxes included.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        digest.update(f"{path}:{jax.tree.structure(leaf)}".encode())
        for array in jax.tree.leaves(leaf):
            host = np.asarray(array, order="C")
            digest.update(f"{host.dtype}{host.shape}".encode())
            digest.update(host.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
