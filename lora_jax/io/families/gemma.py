"""Gemma 1, 2 and 3 (texts only)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_jax.io.config_json import Raw, refuse
from lora_jax.io.decoder_json import (
    THEIR_ACTIVATIONS,
    activation,
    layer_types,
    layer_types_json,
    llama_json,
    rotary,
    rotary_parameters,
    sizes,
)
from lora_jax.io.families.llama import BLOCK, SHARED
from lora_jax.io.families.llama import TABLE as LLAMA
from lora_jax.io.family import Family, Gguf, Table
from lora_jax.io.gguf_tables import MODULES
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.rotary import Rotary

_LOCAL_BASE = 10_000.0
# These scale queries by hidden / heads, which GGUF does not say.
_LARGEST = {"gemma2": 46, "gemma3": 62}


def _like(raw: Raw, act: str) -> dict[str, Any]:
    refuse(raw, attention_bias=(False, None))
    return sizes(raw) | dict(
        intermediate_size=raw["intermediate_size"],
        norm_eps=raw["rms_norm_eps"],
        activation=activation(act),
        embedding_scale=raw["hidden_size"] ** 0.5,
        tied=raw.get("tie_word_embeddings", True),
    )


def _gemma(raw: Raw) -> DecoderConfig:
    # The first files say hidden_act 'gelu' and mean the tanh form; transformers reads them so as
    # well, and never hidden_activation, which it once read alone.
    act = raw.get("hidden_act", "gelu")
    act = "gelu_pytorch_tanh" if act == "gelu" else act
    if (other := raw.get("hidden_activation") or act) != act:
        raise ValueError(f"hidden_act {act!r} and hidden_activation {other!r} must be one")
    return DecoderConfig(family="gemma", **_like(raw, act), rotary=rotary(raw))


def _second(raw: Raw) -> dict[str, Any]:
    """What Gemma 2 brought, and Gemma 3 has as well."""
    return _like(raw, raw["hidden_activation"]) | dict(
        post_norms=True,
        query_scale=raw["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=raw.get("attn_logit_softcapping"),
        final_softcap=raw.get("final_logit_softcapping"),
    )


def _gemma2(raw: Raw) -> DecoderConfig:
    return DecoderConfig(
        family="gemma2",
        **_second(raw),
        **layer_types(raw, lambda n: n % 2 == 0),
        rotary=rotary(raw),
    )


def _gemma3(raw: Raw) -> DecoderConfig:
    # transformers takes the soft cap of Gemma 2's attention for no part of Gemma 3.
    refuse(raw, use_bidirectional_attention=(False, None), attn_logit_softcapping=(None,))
    nested = raw.get("rope_parameters")
    if nested is not None:
        kinds = ("full_attention", "sliding_attention")
        whole, local = (rotary({**raw, "rope_parameters": nested[kind]}) for kind in kinds)
    else:
        whole = rotary(raw, base=1_000_000.0)
        local = Rotary(base=float(raw.get("rope_local_base_freq", _LOCAL_BASE)))
    pattern = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6
    return DecoderConfig(
        family="gemma3_text",
        **_second(raw),
        **layer_types(raw, lambda n: bool((n + 1) % pattern)),
        rotary=whole,
        local_rotary=local,
        qk_norm=True,
    )


def _gemma_json(config: DecoderConfig, architecture: str = "GemmaForCausalLM") -> dict[str, Any]:
    return llama_json(config, architecture) | {
        "hidden_activation": THEIR_ACTIVATIONS[config.activation],
        "attention_bias": False,
    }


def _gemma2_json(config: DecoderConfig, architecture: str = "Gemma2ForCausalLM") -> dict[str, Any]:
    scalar = round((config.query_scale or config.head_dim**-0.5) ** -2, 6)
    return _gemma_json(config, architecture) | {
        "sliding_window": config.window,
        "layer_types": layer_types_json(config),
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
    }


def _gemma3_json(config: DecoderConfig) -> dict[str, Any]:
    out = _gemma2_json(config, "Gemma3ForCausalLM")
    local = config.local_rotary or config.rotary
    if local.scaling == "none":
        return out | {"rope_local_base_freq": local.base}
    # The older form has no words for it.
    del out["rope_theta"]
    out.pop("rope_scaling", None)
    return out | {
        "rope_parameters": {
            "full_attention": rotary_parameters(config.rotary),
            "sliding_attention": rotary_parameters(local),
        }
    }


def _plus_one(table: Table) -> Table:
    """The table with norms that are kept as scale - 1."""
    return {
        ours: (str(theirs), {"added": 1.0}) if ours.endswith("norm") else theirs
        for ours, theirs in table.items()
    }


_FIRST_TABLE = _plus_one(LLAMA)
_TABLE = _plus_one(
    {
        **LLAMA,
        "layers/attn_post_norm": f"{BLOCK}post_attention_layernorm",
        "layers/mlp_norm": f"{BLOCK}pre_feedforward_layernorm",
        "layers/mlp_post_norm": f"{BLOCK}post_feedforward_layernorm",
        **{f"layers/attn/{x}_norm": f"{BLOCK}self_attn.{x}_norm" for x in "qk"},
    }
)


def _scaled(keys: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {"activation": "gelu_tanh", "embedding_scale": sizes["hidden_size"] ** 0.5}


def _alternating(keys: Any, sizes: Mapping[str, Any], pattern: Any) -> dict[str, Any]:
    """What GGUF implies of Gemma 2 and 3; `pattern`: every how many layers one is global, or which
    are local.
    """
    layers = sizes["num_layers"]
    if not isinstance(pattern, list):
        pattern = [(n + 1) % pattern for n in range(layers)]
    largest = layers == _LARGEST[keys.architecture]
    divisor = sizes["hidden_size"] / sizes["num_heads"] if largest else sizes["head_dim"]
    return _scaled(keys, sizes) | {
        "post_norms": True,
        "window": keys["attention.sliding_window"],
        "local_layers": tuple(map(bool, pattern)),
        "query_scale": divisor**-0.5,
    }


def _second_said(keys: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    return _alternating(keys, sizes, 2) | {
        "attention_softcap": keys.get("attn_logit_softcapping"),
        "final_softcap": keys.get("final_logit_softcapping"),
    }


def _third_said(keys: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    pattern = keys.get("attention.sliding_window_pattern", 6)
    # llama.cpp has the base of local layers in its code, where the file does not say.
    local = Rotary(base=float(keys.get("rope.freq_base_swa", _LOCAL_BASE)))
    return _alternating(keys, sizes, pattern) | {"qk_norm": True, "local_rotary": local}


def _second_keys(config: DecoderConfig) -> dict[str, Any]:
    return {
        "attention.sliding_window": config.window,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
    }


def _gguf(architecture: str, said: Any, keys: Any = lambda config: {}) -> Gguf:
    return Gguf(architecture, lambda config: MODULES, said, keys)


FAMILIES = (
    Family(
        "gemma",
        "decoder",
        _gemma,
        _gemma_json,
        lambda config: _FIRST_TABLE,
        gguf=_gguf("gemma", _scaled),
        **SHARED,
    ),
    Family(
        "gemma2",
        "decoder",
        _gemma2,
        _gemma2_json,
        lambda config: _TABLE,
        gguf=_gguf("gemma2", _second_said, _second_keys),
        **SHARED,
    ),
    Family(
        "gemma3_text",
        "decoder",
        _gemma3,
        _gemma3_json,
        lambda config: _TABLE,
        gguf=_gguf(
            "gemma3",
            _third_said,
            lambda config: {"attention.sliding_window": config.window},
        ),
        **SHARED,
    ),
)
