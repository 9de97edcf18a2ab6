"""DeBERTa-v2 and -v3 (He et al. 2021)."""

from __future__ import annotations

from typing import Any

from lora_jax.io.config_json import Raw, refuse
from lora_jax.io.families.bert import common_json, common_table, sizes
from lora_jax.io.family import Family, Table
from lora_jax.models.deberta import DebertaConfig


def _from_json(raw: Raw) -> DebertaConfig:
    common = sizes(raw)
    hidden = common["hidden_size"]
    refuse(
        raw,
        attention_head_size=(hidden // common["num_heads"], None),
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

    # -1 stands for the longest text.
    longest = raw.get("max_relative_positions", -1)
    return DebertaConfig(
        **common,
        type_vocab_size=raw.get("type_vocab_size", 0),
        norm_eps=raw.get("layer_norm_eps", 1e-7),
        activation=raw.get("hidden_act", "gelu"),
        terms=tuple(sorted(term.strip() for term in terms)) if relative else (),
        buckets=max(raw.get("position_buckets", -1), 0),
        max_distance=longest if longest >= 1 else common["max_positions"],
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
    return common_json(config, "DebertaV2") | {
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
    }


def _table(config: DebertaConfig) -> Table:
    inside = "" if config.num_classes is None else "deberta."
    attention = {"q": "query_proj", "k": "key_proj", "v": "value_proj"}
    positions = {"pos_k": "pos_key_proj", "pos_q": "pos_query_proj"}
    return {
        **common_table(config, "deberta", attention | positions),
        "embeddings/project": f"{inside}embeddings.embed_proj",
        "relative/table": f"{inside}encoder.rel_embeddings",
        "relative/norm": f"{inside}encoder.LayerNorm",
        "conv/window": f"{inside}encoder.conv.conv",
        "conv/norm": f"{inside}encoder.conv.LayerNorm",
        "pooler": "pooler.dense",
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
