"""DeBERTa-v2 and -v3 (He et al. 2021)."""

from __future__ import annotations

from typing import Any

from lora_jax.io.config_json import Raw, refuse, whole_numbers
from lora_jax.io.family import Family, Table
from lora_jax.models.deberta import DebertaConfig


def _from_json(raw: Raw) -> DebertaConfig:
    whole_numbers(
        raw,
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    )
    hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
    refuse(
        raw,
        attention_head_size=(hidden // heads, None),
        pooler_hidden_size=(hidden, None),
        is_decoder=(False, None),
    )
    terms = raw.get("pos_att_type") or ()
    terms = terms.lower().split("|") if isinstance(terms, str) else terms
    relative = raw.get("relative_attention", False)
    if not relative and terms:
        raise ValueError(
            f"pos_att_type {raw['pos_att_type']!r} needs relative_attention, which is off"
        )
    longest = raw.get("max_relative_positions", -1)
    return DebertaConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        intermediate_size=raw["intermediate_size"],
        max_positions=raw["max_position_embeddings"],
        type_vocab_size=raw.get("type_vocab_size", 0),
        norm_eps=raw.get("layer_norm_eps", 1e-7),
        activation=raw.get("hidden_act", "gelu"),
        terms=tuple(sorted(term.strip() for term in terms)) if relative else (),
        buckets=max(raw.get("position_buckets", -1), 0),
        max_distance=longest if longest >= 1 else raw["max_position_embeddings"],
        shared_keys=raw.get("share_att_key", False),
        norm_relative="layer_norm" in raw.get("norm_rel_ebd", "none").lower(),
        absolute=raw.get("position_biased_input", True),
        embedding_size=None if raw.get("embedding_size") == hidden else raw.get("embedding_size"),
        conv_size=raw.get("conv_kernel_size", 0),
        conv_groups=raw.get("conv_groups", 1),
        conv_activation=raw.get("conv_act", "tanh"),
        pooler_activation=raw.get("pooler_hidden_act", "gelu"),
    )


def _to_json(config: DebertaConfig) -> dict[str, Any]:
    head = config.num_classes is not None
    return {
        "architectures": [f"DebertaV2{'ForSequenceClassification' if head else 'Model'}"],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": config.activation,
        "relative_attention": bool(config.terms),
        "pos_att_type": list(config.terms),
        "position_buckets": config.buckets or -1,
        "max_relative_positions": config.max_distance,
        "share_att_key": config.shared_keys,
        "norm_rel_ebd": "layer_norm" if config.norm_relative else "none",
        "position_biased_input": config.absolute,
        "embedding_size": config.embedding_size or config.hidden_size,
        "conv_kernel_size": config.conv_size,
        "conv_groups": config.conv_groups,
        "conv_act": config.conv_activation,
        "pooler_hidden_act": config.pooler_activation,
        "pooler_hidden_size": config.hidden_size,
        "pad_token_id": 0,
    } | ({"num_labels": config.num_classes} if head else {})


def _table(config: DebertaConfig) -> Table:
    inside = "" if config.num_classes is None else "deberta."
    block = f"{inside}encoder.layer.{{}}."
    return {
        "embeddings/word": f"{inside}embeddings.word_embeddings",
        "embeddings/position": f"{inside}embeddings.position_embeddings",
        "embeddings/type": f"{inside}embeddings.token_type_embeddings",
        "embeddings/project": f"{inside}embeddings.embed_proj",
        "embeddings/norm": f"{inside}embeddings.LayerNorm",
        "relative/table": f"{inside}encoder.rel_embeddings",
        "relative/norm": f"{inside}encoder.LayerNorm",
        "conv/window": f"{inside}encoder.conv.conv",
        "conv/norm": f"{inside}encoder.conv.LayerNorm",
        "layers/attn/q": f"{block}attention.self.query_proj",
        "layers/attn/k": f"{block}attention.self.key_proj",
        "layers/attn/v": f"{block}attention.self.value_proj",
        "layers/attn/pos_k": f"{block}attention.self.pos_key_proj",
        "layers/attn/pos_q": f"{block}attention.self.pos_query_proj",
        "layers/attn/o": f"{block}attention.output.dense",
        "layers/attn_norm": f"{block}attention.output.LayerNorm",
        "layers/mlp/up": f"{block}intermediate.dense",
        "layers/mlp/down": f"{block}output.dense",
        "layers/mlp_norm": f"{block}output.LayerNorm",
        "pooler": "pooler.dense",
        "classifier": "classifier",
    }


def _unread(config: DebertaConfig) -> tuple[str, ...]:
    constants = (r"embeddings\.position_ids",)
    # Files of the first release carry a table that nothing adds.
    table = r"embeddings\.position_embeddings\.weight"
    return constants if config.absolute else (*constants, table)


FAMILIES = (
    Family(
        "deberta-v2",
        "encoder",
        _from_json,
        _to_json,
        _table,
        prefix="deberta.",
        unread=_unread,
        pretraining=("lm_predictions.", "mask_predictions.", "cls."),
    ),
)
