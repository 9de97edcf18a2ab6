"""A short name for the exact content of a tree of weights."""

from __future__ import annotations

import hashlib
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lora_jax.core.host import filled
from lora_jax.core.paths import flatten

Shape = tuple[int, ...]
_AT_ONCE = 1 << 26  # numbers of a part that are turned together


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits from paths, dtypes, shapes and bytes of all arrays, boxes' too."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        _count_leaf(digest, path, leaf)
    return digest.hexdigest()[:16]


def _count_leaf(digest: Any, path: str, leaf: Any) -> None:
    """Adds a path and all arrays there."""
    digest.update(f"{path}:{jax.tree.structure(leaf)}".encode())
    for array in jax.tree.leaves(leaf):
        host = np.asarray(array, order="C")
        digest.update(f"{host.dtype}{host.shape}".encode())
        digest.update(host.reshape(-1).view(np.uint8).data)


class PassingFingerprint:
    """The `fingerprint` of a tree that never is in memory as a whole: made of the parts of its
    arrays, and of whole boxes, while these are read for something else.

    Arrays count in the order of their paths. What passes in another order, or not at all, is read
    by `done`.

    Args:
        leaves: (path, dtype, shape) of every array, or box.
    """

    def __init__(self, leaves: Iterable[tuple[str, Any, Shape]]) -> None:
        self._left = deque(sorted(leaves, key=lambda leaf: leaf[0]))
        self._digest, self._structure = hashlib.sha256(), jax.tree.structure(0)

    def of(
        self, path: str, parts: Iterable[tuple[Any, np.ndarray]]
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """The (index, part) of an array's parts along its leading axes, in order, as they are given;
        the array is counted if it is the next one and all of them are taken.
        """
        if not self._left or self._left[0][0] != path:
            yield from parts
            return
        _, dtype, shape = self._left[0]
        digest = self._digest.copy()
        digest.update(f"{path}:{self._structure}{np.dtype(dtype)}{shape}".encode())
        for index, part in parts:
            if part.size <= _AT_ONCE:
                # Given on as it was turned for the digest, so that it is turned once.
                part = filled(part.shape, dtype, [((), part)])
            _count(digest, part, dtype)
            yield index, part
        self._digest = digest
        self._left.popleft()

    def whole(self, path: str, leaf: Any) -> None:
        """Counts a box that is there as a whole, if it is the next one and all of it is here."""
        here = all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(leaf))
        if here and self._left and self._left[0][0] == path:
            _count_leaf(self._digest, path, leaf)
            self._left.popleft()

    def done(
        self,
        parts: Callable[[str], Iterable[tuple[Any, np.ndarray]]],
        boxes: Mapping[str, Callable[[], Any]] = types.MappingProxyType({}),
    ) -> str:
        """Sixteen hexadecimal digits; `parts` gives those of an array that did not pass yet, `boxes`
        read those at their paths.
        """
        while self._left:
            path = self._left[0][0]
            if path in boxes:
                self.whole(path, boxes[path]())
            else:
                deque(self.of(path, parts(path)), maxlen=0)
        return self._digest.hexdigest()[:16]


def _count(digest: Any, part: np.ndarray, dtype: Any) -> None:
    """Adds an array's bytes in this dtype, of a large one some rows at a time."""
    step = max(1, _AT_ONCE * len(part) // max(1, part.size))
    for first in range(0, len(part), step):
        flat = np.asarray(part[first : first + step], dtype, order="C").reshape(-1)
        digest.update(flat.view(np.uint8).data)
