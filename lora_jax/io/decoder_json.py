"""`DecoderConfig` to the config.json that transformers and other readers of Hugging Face folders
understand.
"""

from __future__ import annotations

from typing import Any

from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.rotary import Rotary

_CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "opt": "OPTForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}


def json_of(config: DecoderConfig) -> dict[str, Any]:
    """The contents of config.json; rotary settings in the form of transformers 4, which
    transformers 5 reads as well.
    """
    common = {
        "architectures": [_CLASSES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
    }
    if config.family == "gpt2":
        return common | {
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.intermediate_size,
            "n_positions": config.max_positions,
            "layer_norm_epsilon": config.norm_eps,
            "activation_function": "gelu_new"
            if config.activation == "gelu_tanh"
            else config.activation,
        }
    sizes = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
    }
    if config.family == "opt":
        return (
            common
            | sizes
            | {
                "word_embed_proj_dim": config.hidden_size,
                "ffn_dim": config.intermediate_size,
                "activation_function": config.activation,
                "enable_bias": config.qkv_bias,
                "do_layer_norm_before": True,
            }
        )
    sizes["intermediate_size"] = config.intermediate_size
    activation = _ACTIVATIONS[config.activation]
    if config.family == "gpt_neox":
        return (
            common
            | sizes
            | _rotary(config.rotary, fraction="rotary_pct")
            | {
                "hidden_act": "gelu_new" if config.activation == "gelu_tanh" else activation,
                "layer_norm_eps": config.norm_eps,
                "use_parallel_residual": config.parallel,
                "attention_bias": config.qkv_bias,
            }
        )
    out = (
        common
        | sizes
        | {
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "rms_norm_eps": config.norm_eps,
        }
    )
    out |= {"hidden_act": activation} | _rotary(config.rotary)
    return out | _EXTRA.get(config.family, lambda config: {})(config)


def _llama(config: DecoderConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


def _window(config: DecoderConfig) -> dict[str, Any]:
    return {"sliding_window": config.window}


def _phi3(config: DecoderConfig) -> dict[str, Any]:
    original = config.rotary.original_positions or config.max_positions
    return _window(config) | {"original_max_position_embeddings": original}


def _mixtral(config: DecoderConfig) -> dict[str, Any]:
    experts = config.experts
    return _window(config) | {
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
    }


def _qwen(config: DecoderConfig) -> dict[str, Any]:
    out: dict[str, Any] = {"use_sliding_window": config.window is not None}
    if config.window is not None:
        out |= {
            "sliding_window": config.window,
            "layer_types": _layer_types(config),
            "max_window_layers": config.locality.index(True),
        }
    if config.family != "qwen2" and config.family != "qwen2_moe":
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
        if config.experts.shared_size is not None:
            out |= {
                "shared_expert_intermediate_size": config.experts.shared_size,
                "qkv_bias": config.qkv_bias,
            }
    return out


def _gemma(config: DecoderConfig) -> dict[str, Any]:
    return {"hidden_activation": _ACTIVATIONS[config.activation], "attention_bias": False}


def _gemma2(config: DecoderConfig) -> dict[str, Any]:
    scalar = round(config.query_scale**-2, 6)
    return _gemma(config) | {
        "sliding_window": config.window,
        "layer_types": _layer_types(config),
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
    }


def _gemma3(config: DecoderConfig) -> dict[str, Any]:
    return _gemma2(config) | {"rope_local_base_freq": config.local_rotary.base}


_EXTRA = {
    "llama": _llama,
    "mistral": _window,
    "mixtral": _mixtral,
    "phi3": _phi3,
    "qwen2": _qwen,
    "qwen2_moe": _qwen,
    "qwen3": _qwen,
    "qwen3_moe": _qwen,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}


def _layer_types(config: DecoderConfig) -> list[str]:
    return ["sliding_attention" if local else "full_attention" for local in config.locality]


def _rotary(rotary: Rotary, *, fraction: str = "partial_rotary_factor") -> dict[str, Any]:
    out: dict[str, Any] = (
        {"rope_theta": rotary.base, "rotary_emb_base": rotary.base}
        if fraction == "rotary_pct"
        else {"rope_theta": rotary.base}
    )
    if fraction == "rotary_pct" or rotary.fraction != 1.0:
        out[fraction] = rotary.fraction
    if rotary.scaling == "none":
        return out
    scaling: dict[str, Any] = {"rope_type": rotary.scaling, "factor": rotary.factor}
    if rotary.scaling != "linear":
        scaling["original_max_position_embeddings"] = rotary.original_positions
    if rotary.scaling == "llama3":
        scaling |= {"low_freq_factor": rotary.low_freq, "high_freq_factor": rotary.high_freq}
    if rotary.scaling == "yarn":
        scaling |= {
            "beta_fast": rotary.beta_fast,
            "beta_slow": rotary.beta_slow,
            "truncate": rotary.truncate,
        }
        scaling |= {
            name: value
            for name in ("mscale", "mscale_all_dim")
            if (value := getattr(rotary, name)) is not None
        }
    if rotary.scaling == "longrope":
        scaling |= {
            "short_factor": list(rotary.short_factors),
            "long_factor": list(rotary.long_factors),
        }
    if rotary.attention_factor is not None:
        scaling["attention_factor"] = rotary.attention_factor
    return out | {"rope_scaling": scaling}
