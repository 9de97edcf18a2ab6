"""Changes of a model's weights before its losses are measured, each with the name under which they
are kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from lab.small_model import LINEARS
from lora_jax.adapters.merge import merge, merge_quantized
from lora_jax.core.paths import flatten, unflatten
from lora_jax.core.quantize import QuantSpec, quantize

Trees = tuple[Any, Any]  # frozen weights, what is trained


@dataclass(frozen=True)
class Stored:
    """Every linear layer of the frozen base as a format keeps it: to codes and back, so that one
    compiled program measures all formats.
    """

    format: str
    block_size: int | None = 64
    double: bool = True

    @property
    def name(self) -> str:
        """As its losses are kept."""
        return f"{self.format}-{self.block_size}{'-double' if self.double else ''}"

    @property
    def spec(self) -> QuantSpec:
        """The format, with the scales of its blocks."""
        return QuantSpec(self.format, self.block_size, self.double)

    def __call__(self, task: Any, frozen: Mapping[str, Any], trainable: Any) -> Trees:
        """The trees with the base changed."""
        kept = lambda path, w: (
            quantize(jnp.asarray(w), self.spec).matrix(w.dtype)
            if re.fullmatch(LINEARS, path)
            else w
        )
        return unflatten({path: kept(path, w) for path, w in flatten(frozen).items()}), trainable


@dataclass(frozen=True)
class Merged:
    """The adapters added to the weights; `again`: the sum quantised again as the base was."""

    again: bool = False

    @property
    def name(self) -> str:
        """As its losses are kept."""
        return "merged-quantised" if self.again else "merged"

    def __call__(self, task: Any, frozen: Mapping[str, Any], trainable: Any) -> Trees:
        """The merged weights, and nothing beside them."""
        whole, _ = (merge_quantized if self.again else merge)(frozen, trainable)
        return whole, {}


@dataclass(frozen=True)
class Moved:
    """Something added to frozen weights, by path (layers, in, out). The name says all that it is of
    a run, since its losses are kept under it.
    """

    name: str
    by: Mapping[str, np.ndarray]

    def __call__(self, task: Any, frozen: Mapping[str, Any], trainable: Any) -> Trees:
        """The trees with it added."""
        flat = dict(flatten(frozen))
        for path, change in self.by.items():
            flat[path] = np.asarray(flat[path]) + change.astype(np.float32)
        return unflatten(flat), trainable
