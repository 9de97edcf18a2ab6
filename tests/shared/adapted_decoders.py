"""The tiny decoders of tests/golden/decoders with an adapter that has moved from its start."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import lora_jax
from lora_jax.io.weights import load_decoder

GOLDEN = Path(__file__).parents[1] / "golden" / "decoders"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
# All linear weights but experts and routers, in either layout.
LINEAR = r"layers(_\d+)?/(attn/[qkvo]|mlp/(up|gate|down)|mlp/shared/.*)/kernel"


def adapted_decoder(
    family: str, *, scan: bool = True, size: float = 0.1, **selection: Any
) -> tuple[Any, dict, dict]:
    """(configuration, frozen weights, adapter) of a golden family; every trained number is moved by
    about `size`.
    """
    config, params = load_decoder(GOLDEN / family, scan=scan)
    rules = [
        (r".*/(q|down)/kernel", lora_jax.LoraSpec(rank=2, alpha=5.0)),
        (LINEAR, lora_jax.LoraSpec(rank=3, alpha=4.0)),
    ]
    model, tokens = lora_jax.models.Decoder(config, scan=scan), jnp.ones((1, 4), jnp.int32)
    rules = rules if config.experts is None else rules[1:]
    frozen, trainable = lora_jax.adapt(
        model, params, (tokens,), lora=rules, key=jax.random.key(0), **selection
    )
    for index, (path, leaf) in enumerate(sorted(trainable.items())):
        keys = jax.random.split(jax.random.key(index), 4)
        trainable[path] = leaf.replace(
            **{
                n: getattr(leaf, n) + size * jax.random.normal(k, getattr(leaf, n).shape)
                for n, k in zip(leaf.trained_fields(), keys)
            }
        )
    return config, frozen, trainable
