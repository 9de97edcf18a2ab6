"""Pretrained matrices that claims about quantisation are tested on."""

from __future__ import annotations

import functools

import numpy as np

from lora_jax.core.paths import flatten
from lora_jax.io.hub import resolve
from lora_jax.io.weights import load_encoder


@functools.lru_cache(maxsize=1)
def minilm_matrices() -> dict[str, np.ndarray]:
    """The linear layers of MiniLM-L6 by path, (6, in, out) float32: 36 matrices, 10.6 M weights."""
    _, params = load_encoder(resolve("minilm-l6"))
    return {
        path: np.asarray(w)
        for path, w in flatten(params).items()
        if path.startswith("layers/") and path.endswith("/kernel")
    }
