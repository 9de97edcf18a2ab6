"""GPT-2."""

from __future__ import annotations

from typing import Any

from lora_jax.io.config_json import Raw, refuse, whole_numbers
from lora_jax.io.decoder_json import BUFFERS, activation
from lora_jax.io.family import Family, Gguf, Table, fused
from lora_jax.io.gguf_tables import MODULES
from lora_jax.models.decoder_config import DecoderConfig

_BLOCK = "transformer.h.{}."
_QKV = tuple(f"layers/attn/{x}" for x in "qkv")


def _from_json(raw: Raw) -> DecoderConfig:
    refuse(
        raw,
        scale_attn_by_inverse_layer_idx=(False, None),
        reorder_and_upcast_attn=(False, None),
        scale_attn_weights=(True, None),
    )
    whole_numbers(raw, "vocab_size", "n_embd", "n_layer", "n_head", "n_positions")

    hidden, heads = raw["n_embd"], raw["n_head"]
    return DecoderConfig(
        family="gpt2",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=raw["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=raw.get("n_inner") or 4 * hidden,
        max_positions=raw["n_positions"],
        norm="layer",
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        activation=activation(raw["activation_function"]),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        rotary=None,
        tied=raw.get("tie_word_embeddings", True),
    )


def _to_json(config: DecoderConfig) -> dict[str, Any]:
    tanh = config.activation == "gelu_tanh"
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new" if tanh else config.activation,
    }


def _table(config: DecoderConfig) -> Table:
    conv1d = {"kind": "conv1d"}  # kept as (in, out)
    return {
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "head": "lm_head",
        "layers/attn_norm": f"{_BLOCK}ln_1",
        "layers/mlp_norm": f"{_BLOCK}ln_2",
        **fused(_QKV, f"{_BLOCK}attn.c_attn", config.qkv_sizes, **conv1d),
        "layers/attn/o": (f"{_BLOCK}attn.c_proj", conv1d),
        "layers/mlp/up": (f"{_BLOCK}mlp.c_fc", conv1d),
        "layers/mlp/down": (f"{_BLOCK}mlp.c_proj", conv1d),
    }


_GGUF = Gguf(
    "gpt2",
    lambda config: {**MODULES, **fused(_QKV, "blk.{}.attn_qkv", config.qkv_sizes)},
    said=lambda keys, sizes: dict(norm="layer", gated=False, activation="gelu_tanh", rotary=None),
)
FAMILIES = (
    Family(
        "gpt2",
        "decoder",
        _from_json,
        _to_json,
        _table,
        prefix="transformer.",
        copies=("lm_head.weight",),
        unread=lambda config: BUFFERS,
        gguf=_GGUF,
    ),
)
