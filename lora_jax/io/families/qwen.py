"""Qwen 2 and 3, and their mixtures of experts."""

from __future__ import annotations

from typing import Any

from lora_jax.io.config_json import Raw
from lora_jax.io.decoder_json import layer_types, layer_types_json, llama_json, llama_like
from lora_jax.io.families.llama import BLOCK, SHARED
from lora_jax.io.families.llama import TABLE as LLAMA
from lora_jax.io.family import Family, Gguf, Table
from lora_jax.io.gguf_tables import MODULES
from lora_jax.models.decoder_config import DecoderConfig, Experts

_PARTS = ("gate", "up", "down")
_CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_TABLE: Table = {
    **LLAMA,
    **{f"layers/attn/{x}_norm": f"{BLOCK}self_attn.{x}_norm" for x in "qk"},
    "layers/mlp/router": f"{BLOCK}mlp.gate",
    **{f"layers/mlp/experts/{x}": f"{BLOCK}mlp.experts.{{}}.{x}_proj" for x in _PARTS},
    **{f"layers/mlp/shared/{x}": f"{BLOCK}mlp.shared_expert.{x}_proj" for x in _PARTS},
    "layers/mlp/shared_gate": f"{BLOCK}mlp.shared_expert_gate",
}


def _from_json(raw: Raw) -> DecoderConfig:
    family = raw["model_type"]
    third = family.startswith("qwen3")
    bias = raw.get("attention_bias", False) if third else raw.get("qkv_bias", True)
    experts = None
    if family.endswith("moe"):
        shared = None if third else raw["shared_expert_intermediate_size"]
        experts = _experts(raw, shared)
    return DecoderConfig(
        family=family,
        **llama_like(raw),
        **_windows(raw),
        qkv_bias=bias,
        out_bias=third and bias,
        qk_norm=third,
        experts=experts,
    )


def _windows(raw: Raw) -> dict[str, Any]:
    if not raw.get("use_sliding_window") or not raw.get("sliding_window"):
        return {}
    first = raw.get("max_window_layers", raw["num_hidden_layers"])
    return layer_types(raw, lambda n: n >= first)


def _experts(raw: Raw, shared: int | None) -> Experts:
    if raw.get("decoder_sparse_step", 1) != 1 or raw.get("mlp_only_layers"):
        raise ValueError(
            "decoder_sparse_step must be 1 and mlp_only_layers empty: layers of experts and plain "
            "MLPs cannot be mixed here."
        )
    count = raw.get("num_experts") or raw["num_local_experts"]
    return Experts(
        count,
        raw["num_experts_per_tok"],
        raw["moe_intermediate_size"],
        normalise=raw.get("norm_topk_prob", False),
        shared_size=shared,
    )


def _to_json(config: DecoderConfig) -> dict[str, Any]:
    out = llama_json(config, _CLASSES[config.family])
    out["use_sliding_window"] = config.window is not None
    if config.window is not None:
        out |= {
            "sliding_window": config.window,
            "layer_types": layer_types_json(config),
            "max_window_layers": config.locality.index(True),
        }

    if config.family.startswith("qwen3"):
        out["attention_bias"] = config.qkv_bias

    if config.experts is not None:
        out |= {
            "num_experts": config.experts.count,
            "num_experts_per_tok": config.experts.per_token,
            "moe_intermediate_size": config.experts.intermediate_size,
            "norm_topk_prob": config.experts.normalise,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if config.family == "qwen2_moe":
        out |= {
            "shared_expert_intermediate_size": config.experts.shared_size,
            "qkv_bias": config.qkv_bias,
        }
    return out


def _family(name: str, architecture: str, experts: bool | None = None) -> Family:
    norms = {"qk_norm": name.startswith("qwen3")}
    gguf = Gguf(
        architecture, lambda config: MODULES, said=lambda keys, sizes: norms, experts=experts
    )
    return Family(name, "decoder", _from_json, _to_json, lambda config: _TABLE, gguf=gguf, **SHARED)


FAMILIES = (
    _family("qwen2", "qwen2"),
    _family("qwen2_moe", "qwen2moe", experts=False),
    _family("qwen3", "qwen3"),
    _family("qwen3_moe", "qwen3moe", experts=True),
)
