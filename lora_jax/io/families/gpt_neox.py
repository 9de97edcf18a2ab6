"""GPT-NeoX and Pythia."""

from __future__ import annotations

from typing import Any

from lora_jax.io.config_json import Raw
from lora_jax.io.decoder_json import (
    BUFFERS,
    THEIR_ACTIVATIONS,
    activation,
    common_json,
    rotary,
    rotary_json,
    sizes,
)
from lora_jax.io.family import Family, Gguf, Table, fused
from lora_jax.io.gguf_tables import MODULES
from lora_jax.models.decoder_config import DecoderConfig

_BLOCK = "gpt_neox.layers.{}."
_QKV = tuple(f"layers/attn/{x}" for x in "qkv")


def _from_json(raw: Raw) -> DecoderConfig:
    bias = raw.get("attention_bias", True)
    given = dict(fraction=raw.get("rotary_pct", 0.25), base=raw.get("rotary_emb_base", 10_000))
    same = {"num_key_value_heads": None, "head_dim": None}
    return DecoderConfig(
        family="gpt_neox",
        **sizes({**raw, **same}),
        intermediate_size=raw["intermediate_size"],
        norm="layer",
        norm_eps=raw["layer_norm_eps"],
        activation=activation(raw["hidden_act"]),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        parallel=raw.get("use_parallel_residual", True),
        rotary=rotary(raw, partial=True, **given),
        tied=raw.get("tie_word_embeddings", False),
    )


def _to_json(config: DecoderConfig) -> dict[str, Any]:
    turns, tanh = rotary_json(config.rotary), config.activation == "gelu_tanh"
    turns.pop("partial_rotary_factor", None)
    return (
        common_json(config, "GPTNeoXForCausalLM")
        | turns
        | {
            "intermediate_size": config.intermediate_size,
            "rotary_emb_base": config.rotary.base,
            "rotary_pct": config.rotary.fraction,
            "hidden_act": "gelu_new" if tanh else THEIR_ACTIVATIONS[config.activation],
            "layer_norm_eps": config.norm_eps,
            "use_parallel_residual": config.parallel,
            "attention_bias": config.qkv_bias,
        }
    )


def _table(config: DecoderConfig) -> Table:
    qkv = f"{_BLOCK}attention.query_key_value"
    return {
        "embed": "gpt_neox.embed_in",
        "norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
        "layers/attn_norm": f"{_BLOCK}input_layernorm",
        "layers/mlp_norm": f"{_BLOCK}post_attention_layernorm",
        **fused(_QKV, qkv, config.qkv_sizes, heads=config.num_heads),
        "layers/attn/o": f"{_BLOCK}attention.dense",
        "layers/mlp/up": f"{_BLOCK}mlp.dense_h_to_4h",
        "layers/mlp/down": f"{_BLOCK}mlp.dense_4h_to_h",
    }


_GGUF = Gguf(
    "gptneox",
    # Side by side there, other than in the family's own files.
    lambda config: {**MODULES, **fused(_QKV, "blk.{}.attn_qkv", config.qkv_sizes)},
    # The file does not say which GELU: Pythia was trained with the exact one (llama.cpp computes
    # the tanh form for all).
    said=lambda keys, sizes: {
        "norm": "layer",
        "gated": False,
        "activation": "gelu",
        "parallel": bool(keys.get("use_parallel_residual", True)),
    },
    keys=lambda config: {"use_parallel_residual": config.parallel},
)
FAMILIES = (
    Family(
        "gpt_neox",
        "decoder",
        _from_json,
        _to_json,
        _table,
        prefix="gpt_neox.",
        copies=("embed_out.weight",),
        unread=lambda config: BUFFERS,
        gguf=_GGUF,
    ),
)
