"""The folder of everything that is fetched or compiled once."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """$LORA_JAX_CACHE, or ~/.cache/lora_jax."""
    return Path(
        os.environ.get("LORA_JAX_CACHE") or Path.home() / ".cache" / "lora_jax"
    ).expanduser()
