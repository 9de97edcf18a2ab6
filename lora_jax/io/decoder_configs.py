"""config.json of Hugging Face decoders to `DecoderConfig` and back, one function a family."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_jax.core.paths import nearest
from lora_jax.models.decoder_config import DecoderConfig, Experts
from lora_jax.models.rotary import Rotary

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
Raw = Mapping[str, Any]


def read_config(folder: Path) -> DecoderConfig:
    """The decoder that config.json of a model folder describes.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is not JSON, lacks a field, or asks for something that this decoder has not;
            the text names it.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} needs a config.json next to its weights, and there is none. Give a Hugging "
            "Face model folder."
        )
    try:
        raw = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Fetch the model again.") from None
    if not isinstance(raw, dict):
        raise ValueError(
            f"{path} needs a JSON object, but holds {type(raw).__name__}. Fetch the model again."
        )
    try:
        return config_of(raw)
    except KeyError as error:
        raise ValueError(
            f"{path} lacks the field {error}. Give the config.json that belongs to the weights."
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not describe a decoder that can be loaded: {error}"
        ) from None


def is_decoder(path: Path) -> bool:
    """Whether a folder or file holds a decoder: a GGUF file, or a config.json of one of the known
    families.
    """
    if path.is_file() or not (path / "config.json").is_file():
        return path.suffix == ".gguf" or any(path.glob("*.gguf"))
    raw = json.loads((path / "config.json").read_text())
    return isinstance(raw, dict) and raw.get("model_type") in FAMILIES


def config_of(raw: Raw) -> DecoderConfig:
    """The decoder of a parsed config.json.

    Raises:
        KeyError: a field is missing. ValueError: an unknown model_type or an unsupported setting.
    """
    kind = raw.get("model_type")
    if kind == "gemma3" and "text_config" in raw:
        raise ValueError(
            "model_type 'gemma3' with a text_config is the model with pictures; needed its text "
            "part (model_type 'gemma3_text'): save it alone."
        )
    if kind == "t5":
        raise ValueError(
            "model_type 't5' is an encoder-decoder, and needed here is a decoder. Load it with "
            "lora_jax.load_t5."
        )
    if kind not in FAMILIES:
        raise ValueError(
            f"model_type {kind!r} is not supported. Nearest: {nearest(str(kind), FAMILIES, 2)}; "
            f"known: {', '.join(FAMILIES)}."
        )
    return FAMILIES[kind](raw)


def _gpt2(raw: Raw) -> DecoderConfig:
    _refuse(
        raw,
        scale_attn_by_inverse_layer_idx=(False, None),
        reorder_and_upcast_attn=(False, None),
        scale_attn_weights=(True, None),
    )
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
        activation=_activation(raw["activation_function"]),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        rotary=None,
        tied=raw.get("tie_word_embeddings", True),
    )


def _gpt_neox(raw: Raw) -> DecoderConfig:
    hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
    rotary = _rotary(
        raw, fraction=raw.get("rotary_pct", 0.25), base=raw.get("rotary_emb_base", 10_000)
    )
    bias = raw.get("attention_bias", True)
    return DecoderConfig(
        family="gpt_neox",
        **_sizes(raw) | {"num_kv_heads": heads, "head_dim": hidden // heads},
        norm="layer",
        norm_eps=raw["layer_norm_eps"],
        activation=_activation(raw["hidden_act"]),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        parallel=raw.get("use_parallel_residual", True),
        rotary=rotary,
        tied=raw.get("tie_word_embeddings", False),
    )


def _opt(raw: Raw) -> DecoderConfig:
    _refuse(
        raw,
        do_layer_norm_before=(True, None),
        _remove_final_layer_norm=(False, None),
        layer_norm_elementwise_affine=(True, None),
    )
    hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
    _refuse(raw, word_embed_proj_dim=(hidden, None))
    bias = raw.get("enable_bias", True)
    return DecoderConfig(
        family="opt",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=raw["ffn_dim"],
        max_positions=raw["max_position_embeddings"],
        position_offset=2,  # fixed by the family: rows 0 and 1 of the table are for padding
        norm="layer",
        norm_eps=1e-5,
        activation=_activation(raw["activation_function"]),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        rotary=None,
        tied=raw.get("tie_word_embeddings", True),
    )


def _llama(raw: Raw) -> DecoderConfig:
    bias = raw.get("attention_bias", False)
    return DecoderConfig(
        family="llama",
        **_llama_like(raw),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=raw.get("mlp_bias", False),
    )


def _mistral(raw: Raw) -> DecoderConfig:
    return DecoderConfig(family="mistral", **_llama_like(raw), window=raw.get("sliding_window"))


def _mixtral(raw: Raw) -> DecoderConfig:
    experts = Experts(
        raw["num_local_experts"], raw["num_experts_per_tok"], raw["intermediate_size"]
    )
    return DecoderConfig(
        family="mixtral", **_llama_like(raw), window=raw.get("sliding_window"), experts=experts
    )


def _qwen2(raw: Raw) -> DecoderConfig:
    return DecoderConfig(family="qwen2", **_llama_like(raw), **_qwen_windows(raw), qkv_bias=True)


def _qwen3(raw: Raw) -> DecoderConfig:
    bias = raw.get("attention_bias", False)
    return DecoderConfig(
        family="qwen3",
        **_llama_like(raw),
        **_qwen_windows(raw),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
    )


def _qwen2_moe(raw: Raw) -> DecoderConfig:
    shared = raw["shared_expert_intermediate_size"]
    return DecoderConfig(
        family="qwen2_moe",
        **_llama_like(raw),
        **_qwen_windows(raw),
        qkv_bias=raw.get("qkv_bias", True),
        experts=_qwen_experts(raw, shared),
    )


def _qwen3_moe(raw: Raw) -> DecoderConfig:
    bias = raw.get("attention_bias", False)
    return DecoderConfig(
        family="qwen3_moe",
        **_llama_like(raw),
        **_qwen_windows(raw),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        experts=_qwen_experts(raw, None),
    )


def _phi3(raw: Raw) -> DecoderConfig:
    return DecoderConfig(family="phi3", **_llama_like(raw), window=raw.get("sliding_window"))


def _gemma(raw: Raw) -> DecoderConfig:
    # The first files say hidden_act 'gelu' and mean the tanh form; transformers reads them so as
    # well.
    activation = raw.get("hidden_activation") or "gelu_pytorch_tanh"
    return DecoderConfig(family="gemma", **_gemma_like(raw, activation))


def _gemma2(raw: Raw) -> DecoderConfig:
    return DecoderConfig(
        family="gemma2",
        **_gemma_like(raw, raw["hidden_activation"]),
        **_layer_types(raw, pattern=2),
        post_norms=True,
        query_scale=raw["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=raw.get("attn_logit_softcapping"),
        final_softcap=raw.get("final_logit_softcapping"),
    )


def _gemma3(raw: Raw) -> DecoderConfig:
    _refuse(raw, use_bidirectional_attention=(False, None))
    nested = raw.get("rope_parameters")
    if nested is not None:
        rotary, local = (
            _rotary({**raw, "rope_parameters": nested[kind]})
            for kind in ("full_attention", "sliding_attention")
        )
    else:
        rotary, local = (
            _rotary(raw, base=1_000_000.0),
            Rotary(base=float(raw.get("rope_local_base_freq", 10_000.0))),
        )
    like = _gemma_like(raw, raw["hidden_activation"]) | {"rotary": rotary}
    return DecoderConfig(
        family="gemma3_text",
        **like,
        **_layer_types(
            raw,
            pattern=raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6,
        ),
        local_rotary=local,
        post_norms=True,
        qk_norm=True,
        query_scale=raw["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=raw.get("attn_logit_softcapping"),
        final_softcap=raw.get("final_logit_softcapping"),
    )


FAMILIES: dict[str, Callable[[Raw], DecoderConfig]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}


# --- What families share.


def _sizes(raw: Raw) -> dict[str, Any]:
    heads = raw["num_attention_heads"]
    return dict(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        intermediate_size=raw["intermediate_size"],
        max_positions=raw["max_position_embeddings"],
    )


def _llama_like(raw: Raw) -> dict[str, Any]:
    return _sizes(raw) | dict(
        norm_eps=raw["rms_norm_eps"],
        activation=_activation(raw["hidden_act"]),
        rotary=_rotary(raw),
        tied=raw.get("tie_word_embeddings", False),
    )


def _gemma_like(raw: Raw, activation: str) -> dict[str, Any]:
    _refuse(raw, attention_bias=(False, None))
    nested = "full_attention" in (raw.get("rope_parameters") or {})
    return _sizes(raw) | dict(
        norm_eps=raw["rms_norm_eps"],
        activation=_activation(activation),
        rotary=None if nested else _rotary(raw),
        embedding_scale=raw["hidden_size"] ** 0.5,
        tied=raw.get("tie_word_embeddings", True),
    )


def _qwen_windows(raw: Raw) -> dict[str, Any]:
    if not raw.get("use_sliding_window") or not raw.get("sliding_window"):
        return {}
    types = raw.get("layer_types")
    first = raw.get("max_window_layers", raw["num_hidden_layers"])
    local = (
        [kind == "sliding_attention" for kind in types]
        if types
        else [n >= first for n in range(raw["num_hidden_layers"])]
    )
    return {"window": raw["sliding_window"], "local_layers": tuple(local)} if any(local) else {}


def _qwen_experts(raw: Raw, shared: int | None) -> Experts:
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


def _layer_types(raw: Raw, *, pattern: int) -> dict[str, Any]:
    types = raw.get("layer_types")
    layers = raw["num_hidden_layers"]
    local = (
        [kind == "sliding_attention" for kind in types]
        if types
        else [bool((n + 1) % pattern) for n in range(layers)]
    )
    return {"window": raw["sliding_window"], "local_layers": tuple(local)}


def _activation(name: str) -> Any:
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"the activation {name!r} is not supported; needed one of {', '.join(_ACTIVATIONS)}."
        )
    return _ACTIVATIONS[name]


def _refuse(raw: Raw, **allowed: tuple[Any, ...]) -> None:
    for key, values in allowed.items():
        if raw.get(key) not in values:
            raise ValueError(f"{key}={raw.get(key)!r} is not supported; needed {values[0]!r}.")


def _rotary(raw: Raw, *, fraction: float = 1.0, base: float = 10_000.0) -> Rotary:
    """From rope_parameters (transformers 5) or rope_theta and rope_scaling (before)."""
    told = raw.get("rope_parameters") or {**(raw.get("rope_scaling") or {})}
    kind = told.get("rope_type", told.get("type", "default"))
    common = dict(
        base=float(told.get("rope_theta", raw.get("rope_theta", base))),
        fraction=float(
            told.get("partial_rotary_factor", raw.get("partial_rotary_factor", fraction))
        ),
    )
    if kind in ("default", None):
        return Rotary(**common)
    original = told.get("original_max_position_embeddings") or raw.get(
        "original_max_position_embeddings"
    )
    whole = raw["max_position_embeddings"]
    if kind == "linear":
        return Rotary(**common, scaling="linear", factor=float(told["factor"]))
    if kind == "llama3":
        return Rotary(
            **common,
            scaling="llama3",
            factor=float(told["factor"]),
            original_positions=int(original),
            low_freq=float(told["low_freq_factor"]),
            high_freq=float(told["high_freq_factor"]),
        )
    if kind == "yarn":
        return Rotary(
            **common,
            scaling="yarn",
            factor=float(told.get("factor") or whole / original),
            original_positions=int(original or whole),
            beta_fast=float(told.get("beta_fast") or 32),
            beta_slow=float(told.get("beta_slow") or 1),
            truncate=told.get("truncate", True),
            mscale=told.get("mscale"),
            mscale_all_dim=told.get("mscale_all_dim"),
            attention_factor=told.get("attention_factor"),
        )
    if kind in ("longrope", "su"):
        return Rotary(
            **common,
            scaling="longrope",
            factor=float(told.get("factor") or whole / original),
            original_positions=int(original or whole),
            short_factors=tuple(map(float, told["short_factor"])),
            long_factors=tuple(map(float, told["long_factor"])),
            attention_factor=told.get("attention_factor"),
        )
    raise ValueError(
        f"the rotary scaling {kind!r} is not supported; needed one of default, linear, llama3, "
        "yarn, longrope."
    )
