"""Tensors by name whose shapes are known before they are read: what weights are read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a file, or of several. A kind of them says how one is read (`__getitem__`) and
    fills `_entries`: by name, what has its `shape`, and its `size` in bytes of the file.
    """

    _entries: Mapping[str, Any]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor.
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._entries[name].shape

    def size(self, name: str) -> int:
        """The bytes of a tensor in its file."""
        return self._entries[name].size


def check_finite(tensors: Mapping[str, np.ndarray], then: str, where: str = "") -> None:
    """Raises ValueError if a tensor holds a NaN or an infinity: where, and what to do then."""
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"{where}{name} holds a NaN or an infinity{then}")
