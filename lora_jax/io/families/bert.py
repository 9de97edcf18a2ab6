"""BERT (Devlin et al. 2018) and RoBERTa (Liu et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lora_jax.io.config_json import Raw, refuse, whole_numbers
from lora_jax.io.family import Family, Table
from lora_jax.models.encoder_parts import EncoderConfig

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}


def sizes(raw: Raw) -> dict[str, Any]:
    """The sizes that all encoders have, as arguments of `EncoderConfig`."""
    theirs = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_positions": "max_position_embeddings",
    }
    whole_numbers(raw, *theirs.values())
    return {ours: raw[name] for ours, name in theirs.items()}


def common_json(config: EncoderConfig, architecture: str) -> dict[str, Any]:
    """What every encoder's config.json says."""
    head = config.num_classes is not None
    return {
        "architectures": [f"{architecture}{'ForSequenceClassification' if head else 'Model'}"],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions + config.first_position,
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": config.activation,
    } | ({"num_labels": config.num_classes} if head else {})


def common_table(config: EncoderConfig, model: str, attention: Mapping[str, str]) -> Table:
    """The modules that all encoders have; with a classifier those of the bare model stand inside
    `model`. `attention` names the layers of the attention itself.
    """
    inside = "" if config.num_classes is None else f"{model}."
    block = f"{inside}encoder.layer.{{}}."
    return {
        "embeddings/word": f"{inside}embeddings.word_embeddings",
        "embeddings/position": f"{inside}embeddings.position_embeddings",
        "embeddings/type": f"{inside}embeddings.token_type_embeddings",
        "embeddings/norm": f"{inside}embeddings.LayerNorm",
        **{
            f"layers/attn/{ours}": f"{block}attention.self.{theirs}"
            for ours, theirs in attention.items()
        },
        "layers/attn/o": f"{block}attention.output.dense",
        "layers/attn_norm": f"{block}attention.output.LayerNorm",
        "layers/mlp/up": f"{block}intermediate.dense",
        "layers/mlp/down": f"{block}output.dense",
        "layers/mlp_norm": f"{block}output.LayerNorm",
        "classifier": "classifier",
    }


def _from_json(raw: Raw) -> EncoderConfig:
    family, activation = raw.get("model_type", "bert"), raw.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"hidden_act {activation!r} is not supported; needed {', '.join(_ACTIVATIONS)}"
        )
    refuse(raw, position_embedding_type=("absolute", None), is_decoder=(False, None))
    whole_numbers(raw, "type_vocab_size")
    if family == "roberta" and raw.get("pad_token_id", 1) != 1:
        raise ValueError(
            f"pad_token_id {raw['pad_token_id']!r} of a 'roberta' is not supported; needed 1, from "
            "which its positions count"
        )

    config = EncoderConfig(
        **sizes(raw),
        type_vocab_size=raw["type_vocab_size"],
        norm_eps=raw["layer_norm_eps"],
        activation=_ACTIVATIONS[activation],
        family=family,
    )
    return replace(config, max_positions=config.max_positions - config.first_position)


def _to_json(config: EncoderConfig) -> dict[str, Any]:
    return common_json(config, config.family.capitalize()) | {
        "position_embedding_type": "absolute",
        "pad_token_id": 1 if config.family == "roberta" else 0,
    }


def _table(config: EncoderConfig) -> Table:
    table = common_table(config, config.family, {"q": "query", "k": "key", "v": "value"})
    inside = "" if config.num_classes is None else f"{config.family}."
    if config.family == "roberta" and config.num_classes is not None:
        # Its classification head is a tanh layer, our pooler, and a projection.
        return {**table, "pooler": "classifier.dense", "classifier": "classifier.out_proj"}
    return {**table, "pooler": f"{inside}pooler.dense"}


def _unread(config: EncoderConfig) -> tuple[str, ...]:
    constants = (r"embeddings\.position_ids", r"embeddings\.token_type_ids")
    new_pooler = config.pooler_in_head and config.num_classes is not None
    return (*constants, r"pooler\..*") if new_pooler else constants


_SHARED: dict[str, Any] = dict(
    kind="encoder",
    from_json=_from_json,
    to_json=_to_json,
    table=_table,
    unread=_unread,
    older=(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
)
FAMILIES = (
    Family("bert", prefix="bert.", pretraining=("cls.",), **_SHARED),
    Family("roberta", prefix="roberta.", pretraining=("lm_head.",), **_SHARED),
)
