"""Pretrained matrices that claims about quantisation are tested on."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lora_jax.core.paths import flatten
from lora_jax.io.hub import resolve
from lora_jax.io.weights import load_encoder


def minilm() -> tuple[Any, dict[str, Any]]:
    """The settings and the params of MiniLM-L6."""
    return load_encoder(resolve("minilm-l6"))


@functools.lru_cache(maxsize=1)
def minilm_matrices() -> dict[str, np.ndarray]:
    """The linear layers of MiniLM-L6 by path, (6, in, out) float32: 36 matrices, 10.6 M weights."""
    return {
        path: np.asarray(w)
        for path, w in flatten(minilm()[1]).items()
        if path.startswith("layers/") and path.endswith("/kernel")
    }
