"""What the config.json of decoders of several families have in common, both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_jax.io.config_json import Raw, whole_numbers
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.rotary import Rotary

# Constants that older files carry.
BUFFERS = (r".*\.rotary_emb\.inv_freq", r".*\.(attn|attention)\.(masked_)?bias")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
THEIR_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "silu": "silu",
}


def activation(name: str) -> Any:
    """Our name of an activation.

    Raises:
        ValueError: it is unknown.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"the activation {name!r} is not supported; needed one of {', '.join(_ACTIVATIONS)}."
        )
    return _ACTIVATIONS[name]


def sizes(raw: Raw) -> dict[str, Any]:
    """The sizes, as arguments of `DecoderConfig`."""
    whole_numbers(
        raw,
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    )
    heads = raw["num_attention_heads"]
    return dict(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        max_positions=raw["max_position_embeddings"],
    )


def llama_like(raw: Raw, *, partial: bool = False) -> dict[str, Any]:
    """The fields of LLaMA and its kind, as arguments of `DecoderConfig`.

    Args:
        partial: whether a part of a head's channels may be rotated.
    """
    return sizes(raw) | dict(
        intermediate_size=raw["intermediate_size"],
        norm_eps=raw["rms_norm_eps"],
        activation=activation(raw["hidden_act"]),
        rotary=rotary(raw, partial=partial),
        tied=raw.get("tie_word_embeddings", False),
    )


def common_json(config: DecoderConfig, architecture: str) -> dict[str, Any]:
    """What every config.json says, under the names of most families."""
    return {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
    }


def llama_json(config: DecoderConfig, architecture: str) -> dict[str, Any]:
    """The config.json of LLaMA and its kind; rotary settings in the form of transformers 4, which
    transformers 5 reads as well.
    """
    return (
        common_json(config, architecture)
        | {
            "intermediate_size": config.intermediate_size,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "rms_norm_eps": config.norm_eps,
            "hidden_act": THEIR_ACTIVATIONS[config.activation],
        }
        | rotary_json(config.rotary)
    )


def layer_types(raw: Raw, usual: Callable[[int], bool]) -> dict[str, Any]:
    """Windows of alternating layers, as arguments of `DecoderConfig`; `usual` says which are local
    where the file does not.
    """
    types = raw.get("layer_types")
    if raw["num_hidden_layers"] >= 1 << 16:  # More than can be counted one by one.
        raise ValueError(f"num_hidden_layers {raw['num_hidden_layers']} is more than any model has")
    local = (
        [kind == "sliding_attention" for kind in types]
        if types
        else [usual(n) for n in range(raw["num_hidden_layers"])]
    )
    return {"window": raw["sliding_window"], "local_layers": tuple(local)} if any(local) else {}


def layer_types_json(config: DecoderConfig) -> list[str]:
    """The kind of every layer."""
    return ["sliding_attention" if local else "full_attention" for local in config.locality]


def rotary(
    raw: Raw, *, fraction: float = 1.0, base: float = 10_000.0, partial: bool = False
) -> Rotary:
    """From rope_parameters (transformers 5) or rope_theta and rope_scaling (before).

    Args:
        fraction, base: where the file does not say.
        partial: whether the family reads partial_rotary_factor; the others rotate whole heads,
            whatever it is.

    Raises:
        KeyError: a field is missing. ValueError: the scaling is unknown, or a field is no number.
    """
    told = raw.get("rope_parameters") or {**(raw.get("rope_scaling") or {})}
    kind = told.get("rope_type", told.get("type", "default"))
    share = told.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if not partial and share not in (None, 1, 1.0):
        raise ValueError(
            f"partial_rotary_factor {share!r} is not supported in a {raw.get('model_type')!r}, "
            "which transformers rotates whole; needed 1.0"
        )
    return Rotary(
        base=_number("rope_theta", told.get("rope_theta", raw.get("rope_theta", base))),
        fraction=_number("partial_rotary_factor", fraction if share is None else share),
        **({} if kind in ("default", None) else _scaled(kind, told, raw)),
    )


def _scaled(kind: Any, told: Raw, raw: Raw) -> dict[str, Any]:
    """How positions are scaled beyond those of the pretraining, as arguments of `Rotary`."""
    if kind == "linear":
        return dict(scaling="linear", factor=_number("factor", told["factor"]))

    longest = raw["max_position_embeddings"]
    name = "original_max_position_embeddings"
    both = {place[name] for place in (told, raw) if place.get(name)}
    if len(both) > 1:
        raise ValueError(f"{name} must be one number, and the file gives {sorted(both)}")
    original = next(iter(both), longest)
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        factor, low, high = (_number(one, told[one]) for one in names)
        if not low < high:
            raise ValueError(
                f"high_freq_factor must be above low_freq_factor, and they are {high} and {low}"
            )
        return dict(
            scaling="llama3",
            factor=factor,
            original_positions=int(original),
            low_freq=low,
            high_freq=high,
        )
    stretched = {
        "factor": _number("factor", told.get("factor") or longest / original),
        "original_positions": int(original),
        "attention_factor": told.get("attention_factor"),
    }
    if kind == "yarn":
        return stretched | dict(
            scaling="yarn",
            beta_fast=_number("beta_fast", told.get("beta_fast") or 32),
            beta_slow=_number("beta_slow", told.get("beta_slow") or 1),
            truncate=told.get("truncate", True),
            mscale=told.get("mscale"),
            mscale_all_dim=told.get("mscale_all_dim"),
        )
    if kind in ("longrope", "su"):
        return stretched | dict(
            scaling="longrope",
            short_factors=tuple(map(float, told["short_factor"])),
            long_factors=tuple(map(float, told["long_factor"])),
        )
    raise ValueError(
        f"the rotary scaling {kind!r} is not supported; needed one of default, linear, llama3, "
        "yarn, longrope."
    )


def rotary_json(rotary: Rotary) -> dict[str, Any]:
    """Rotary settings in the form of transformers 4."""
    out: dict[str, Any] = {"rope_theta": rotary.base}
    if rotary.fraction != 1.0:
        out["partial_rotary_factor"] = rotary.fraction
    return out if rotary.scaling == "none" else out | {"rope_scaling": _scaling(rotary)}


def rotary_parameters(rotary: Rotary) -> dict[str, Any]:
    """Rotary settings in the form of transformers 5."""
    scaling = {"rope_type": "default"} if rotary.scaling == "none" else _scaling(rotary)
    return {"rope_theta": rotary.base, **scaling}


def _scaling(rotary: Rotary) -> dict[str, Any]:
    out: dict[str, Any] = {"rope_type": rotary.scaling, "factor": rotary.factor}
    if rotary.scaling != "linear":
        out["original_max_position_embeddings"] = rotary.original_positions
    if rotary.scaling == "llama3":
        out |= {"low_freq_factor": rotary.low_freq, "high_freq_factor": rotary.high_freq}

    if rotary.scaling == "yarn":
        out |= {name: getattr(rotary, name) for name in ("beta_fast", "beta_slow", "truncate")}
        out |= {
            name: value
            for name in ("mscale", "mscale_all_dim")
            if (value := getattr(rotary, name)) is not None
        }
    if rotary.scaling == "longrope":
        out |= {
            "short_factor": list(rotary.short_factors),
            "long_factor": list(rotary.long_factors),
        }

    if rotary.attention_factor is not None:
        out["attention_factor"] = rotary.attention_factor
    return out


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, and is {value!r}")
    return float(value)
