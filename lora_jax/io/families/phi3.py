"""Phi-3."""

from __future__ import annotations

from typing import Any

from lora_jax.io.config_json import Raw
from lora_jax.io.decoder_json import llama_json, llama_like
from lora_jax.io.families.llama import BLOCK, SHARED
from lora_jax.io.families.llama import TABLE as LLAMA
from lora_jax.io.family import Family, Gguf, Table, fused
from lora_jax.io.gguf_tables import MODULES
from lora_jax.models.decoder_config import DecoderConfig

_QKV = tuple(f"layers/attn/{x}" for x in "qkv")
_UP = ("layers/mlp/gate", "layers/mlp/up")


def _from_json(raw: Raw) -> DecoderConfig:
    return DecoderConfig(
        family="phi3", **llama_like(raw, partial=True), window=raw.get("sliding_window")
    )


def _to_json(config: DecoderConfig) -> dict[str, Any]:
    original = config.rotary.original_positions or config.max_positions
    return llama_json(config, "Phi3ForCausalLM") | {
        "sliding_window": config.window,
        "original_max_position_embeddings": original,
    }


def _table(config: DecoderConfig) -> Table:
    size = config.intermediate_size
    return {
        **LLAMA,
        **fused(_QKV, f"{BLOCK}self_attn.qkv_proj", config.qkv_sizes),
        **fused(_UP, f"{BLOCK}mlp.gate_up_proj", (size, size)),
    }


def _gguf_table(config: DecoderConfig) -> Table:
    size = config.intermediate_size
    return {
        **MODULES,
        **fused(_QKV, "blk.{}.attn_qkv", config.qkv_sizes),
        **fused(_UP, "blk.{}.ffn_up", (size, size)),
    }


_GGUF = Gguf(
    "phi3",
    _gguf_table,
    said=lambda keys, sizes: {"window": keys.get("attention.sliding_window") or None},
    keys=lambda config: {"attention.sliding_window": config.window or 0},
)
FAMILIES = (Family("phi3", "decoder", _from_json, _to_json, _table, gguf=_GGUF, **SHARED),)
