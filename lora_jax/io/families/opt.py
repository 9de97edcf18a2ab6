"""OPT; GGUF has no architecture for it."""

from __future__ import annotations

from typing import Any

from lora_jax.io.config_json import Raw, refuse
from lora_jax.io.decoder_json import BUFFERS, THEIR_ACTIVATIONS, activation, common_json, sizes
from lora_jax.io.family import Family, Table
from lora_jax.models.decoder_config import DecoderConfig

_BLOCK = "model.decoder.layers.{}."


def _from_json(raw: Raw) -> DecoderConfig:
    refuse(
        raw,
        do_layer_norm_before=(True, None),
        _remove_final_layer_norm=(False, None),
        layer_norm_elementwise_affine=(True, None),
        word_embed_proj_dim=(raw["hidden_size"], None),
    )
    bias = raw.get("enable_bias", True)
    same = {"num_key_value_heads": None, "head_dim": None}
    return DecoderConfig(
        family="opt",
        **sizes({**raw, **same}),
        intermediate_size=raw["ffn_dim"],
        position_offset=2,  # fixed by the family: rows 0 and 1 of the table are for padding
        norm="layer",
        norm_eps=1e-5,
        activation=activation(raw["activation_function"]),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        rotary=None,
        tied=raw.get("tie_word_embeddings", True),
    )


def _to_json(config: DecoderConfig) -> dict[str, Any]:
    return common_json(config, "OPTForCausalLM") | {
        "word_embed_proj_dim": config.hidden_size,
        "ffn_dim": config.intermediate_size,
        "activation_function": THEIR_ACTIVATIONS[config.activation],
        "enable_bias": config.qkv_bias,
        "do_layer_norm_before": True,
    }


_TABLE: Table = {
    "embed": "model.decoder.embed_tokens",
    "positions": "model.decoder.embed_positions",
    "norm": "model.decoder.final_layer_norm",
    "head": "lm_head",
    "layers/attn_norm": f"{_BLOCK}self_attn_layer_norm",
    "layers/mlp_norm": f"{_BLOCK}final_layer_norm",
    **{f"layers/attn/{x}": f"{_BLOCK}self_attn.{x}_proj" for x in "qkv"},
    "layers/attn/o": f"{_BLOCK}self_attn.out_proj",
    "layers/mlp/up": f"{_BLOCK}fc1",
    "layers/mlp/down": f"{_BLOCK}fc2",
}
FAMILIES = (
    Family(
        "opt",
        "decoder",
        _from_json,
        _to_json,
        lambda config: _TABLE,
        prefix="model.",
        copies=("lm_head.weight",),
        unread=lambda config: BUFFERS,
    ),
)
