"""LLaMA, Mistral and Mixtral."""

from __future__ import annotations

from typing import Any

from lora_jax.io.config_json import Raw
from lora_jax.io.decoder_json import BUFFERS, llama_json, llama_like
from lora_jax.io.family import Family, Gguf, Table
from lora_jax.io.gguf_tables import MODULES
from lora_jax.models.decoder_config import DecoderConfig, Experts

BLOCK = "model.layers.{}."
TABLE: Table = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "layers/attn_norm": f"{BLOCK}input_layernorm",
    "layers/mlp_norm": f"{BLOCK}post_attention_layernorm",
    **{f"layers/attn/{x}": f"{BLOCK}self_attn.{x}_proj" for x in "qkvo"},
    **{f"layers/mlp/{x}": f"{BLOCK}mlp.{x}_proj" for x in ("gate", "up", "down")},
}
# What LLaMA and its kind share as rows of `Family`.
SHARED: dict[str, Any] = dict(
    prefix="model.", copies=("lm_head.weight",), unread=lambda config: BUFFERS
)


def _llama(raw: Raw) -> DecoderConfig:
    bias = raw.get("attention_bias", False)
    return DecoderConfig(
        family="llama",
        **llama_like(raw),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=raw.get("mlp_bias", False),
    )


def _llama_json(config: DecoderConfig) -> dict[str, Any]:
    return llama_json(config, "LlamaForCausalLM") | {
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }


def _mistral(raw: Raw) -> DecoderConfig:
    return DecoderConfig(family="mistral", **llama_like(raw), window=raw.get("sliding_window"))


def _mistral_json(config: DecoderConfig) -> dict[str, Any]:
    return llama_json(config, "MistralForCausalLM") | {"sliding_window": config.window}


def _mixtral(raw: Raw) -> DecoderConfig:
    experts = Experts(
        raw["num_local_experts"], raw["num_experts_per_tok"], raw["intermediate_size"]
    )
    return DecoderConfig(
        family="mixtral", **llama_like(raw), window=raw.get("sliding_window"), experts=experts
    )


def _mixtral_json(config: DecoderConfig) -> dict[str, Any]:
    return llama_json(config, "MixtralForCausalLM") | {
        "sliding_window": config.window,
        "num_local_experts": config.experts.count,
        "num_experts_per_tok": config.experts.per_token,
    }


def _mixtral_table(config: DecoderConfig) -> Table:
    mixture = f"{BLOCK}block_sparse_moe."
    theirs = {"gate": "w1", "up": "w3", "down": "w2"}
    experts = {f"layers/mlp/experts/{x}": f"{mixture}experts.{{}}.{w}" for x, w in theirs.items()}
    return {**TABLE, "layers/mlp/router": f"{mixture}gate", **experts}


def _gguf_table(config: DecoderConfig) -> Table:
    return MODULES | {
        "layers/attn/q": ("blk.{}.attn_q", {"pairs": config.num_heads}),
        "layers/attn/k": ("blk.{}.attn_k", {"pairs": config.num_kv_heads}),
    }


_GGUF = Gguf(
    "llama",
    _gguf_table,
    # Mistral and Mixtral are 'llama' there; the second is told by its experts.
    said=lambda keys, sizes: {} if sizes["experts"] is None else {"family": "mixtral"},
    experts=True,
)
FAMILIES = (
    Family("llama", "decoder", _llama, _llama_json, lambda config: TABLE, gguf=_GGUF, **SHARED),
    Family(
        "mistral", "decoder", _mistral, _mistral_json, lambda config: TABLE, gguf=_GGUF, **SHARED
    ),
    Family("mixtral", "decoder", _mixtral, _mixtral_json, _mixtral_table, gguf=_GGUF, **SHARED),
)
