"""Logits of every decoder family equal transformers' on tiny random models, and files are used exactly once."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapt.surgery import merge
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray, QuantSpec
from lora_jax.io import safetensors
from lora_jax.io.decoder_weights import load_decoder, save_decoder
from lora_jax.models.decoder import Decoder, empty_cache

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
ARRAYS = np.load(GOLDEN / "logits.npz")


def logits_of(name, *, scan=True, params=None, config=None, **kwargs):
    if params is None:
        config, params = load_decoder(GOLDEN / name, scan=scan)
    tokens, mask = ARRAYS[f"{name}/tokens"], ARRAYS[f"{name}/mask"]
    return np.asarray(Decoder(config, scan=scan, **kwargs).apply({"params": params}, tokens, mask))


def assert_equal_logits(name, ours, tolerance=1e-4):
    """Where tokens are real; fp32 with sums in another order: worst measured 1.2e-5 over all families."""
    mask, theirs = ARRAYS[f"{name}/mask"], ARRAYS[f"{name}/logits"]
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers(name):
    assert_equal_logits(name, logits_of(name))
