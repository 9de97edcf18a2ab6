"""DeBERTa-v2 and -v3 in Hugging Face folders: config.json, names and weights, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.core.paths import unflatten
from lora_jax.io.named_weights import read_named, stacked_names
from lora_jax.io.names import Name, Names
from lora_jax.io.tensor_files import ModelFolder
from lora_jax.models.deberta import DebertaConfig

MODEL_TYPE = "deberta-v2"
_PREFIX = "deberta."
# Tensors of the pretraining tasks, and constants.
_UNREAD = ("lm_predictions.", "mask_predictions.", "cls.", "embeddings.position_ids")
_MODULES = (
    ("attn/q", "attention.self.query_proj"),
    ("attn/k", "attention.self.key_proj"),
    ("attn/v", "attention.self.value_proj"),
    ("attn/pos_k", "attention.self.pos_key_proj"),
    ("attn/pos_q", "attention.self.pos_query_proj"),
    ("attn/o", "attention.output.dense"),
    ("mlp/up", "intermediate.dense"),
    ("mlp/down", "output.dense"),
)
_NORMS = (("attn_norm", "attention.output.LayerNorm"), ("mlp_norm", "output.LayerNorm"))
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def deberta_config(raw: Mapping[str, Any], num_classes: int | None) -> DebertaConfig:
    """The encoder that a parsed config.json describes.

    Raises:
        KeyError: a field is missing. ValueError: a setting that this encoder has not.
    """
    for name in _SIZES:
        if not isinstance(raw[name], int):
            raise ValueError(f"{name} must be a whole number, and is {raw[name]!r}")
    hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
    told = {
        "attention_head_size": hidden // max(heads, 1),
        "pooler_hidden_size": hidden,
        "is_decoder": False,
    }
    for name, supported in told.items():
        if raw.get(name, supported) != supported:
            raise ValueError(f"{name} {raw[name]!r} is not supported; needed {supported!r}")
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
        num_classes=num_classes,
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


def deberta_json(config: DebertaConfig) -> dict[str, Any]:
    """The config.json that describes an encoder, as `deberta_config` and transformers read it."""
    head = config.num_classes is not None
    return {
        "architectures": [f"DebertaV2{'ForSequenceClassification' if head else 'Model'}"],
        "model_type": MODEL_TYPE,
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


def deberta_names(
    config: DebertaConfig, *, scan: bool = True, bare: bool | None = None
) -> dict[str, Name]:
    """How transformers names every weight: `DebertaV2ForSequenceClassification`'s names with a
    classifier, else `DebertaV2Model`'s.

    Args:
        bare: whether names of the model inside have no prefix; by default they have none without a
            classifier.
    """
    hidden, span = config.hidden_size, config.span
    size = config.embedding_size or hidden
    prefix = "" if (config.num_classes is None if bare is None else bare) else _PREFIX
    norm = lambda ours, theirs: {
        f"{ours}/{a}": (f"{theirs}.{b}", (hidden,))
        for a, b in (("scale", "weight"), ("bias", "bias"))
    }
    outside: dict[str, tuple[str, tuple[int, ...]]] = {
        "embeddings/word/embedding": (
            "embeddings.word_embeddings.weight",
            (config.vocab_size, size),
        )
    }
    if config.absolute:
        outside["embeddings/position/embedding"] = (
            "embeddings.position_embeddings.weight",
            (config.max_positions, size),
        )
    if config.type_vocab_size:
        outside["embeddings/type/embedding"] = (
            "embeddings.token_type_embeddings.weight",
            (config.type_vocab_size, size),
        )
    if size != hidden:
        outside["embeddings/project/kernel"] = ("embeddings.embed_proj.weight", (size, hidden))
    outside |= norm("embeddings/norm", "embeddings.LayerNorm")
    if config.terms:
        outside["relative/table/embedding"] = ("encoder.rel_embeddings.weight", (2 * span, hidden))
        outside |= norm("relative/norm", "encoder.LayerNorm") if config.norm_relative else {}
    if config.conv_size:
        outside["conv/window/kernel"] = (
            "encoder.conv.conv.weight",
            (config.conv_size, hidden // config.conv_groups, hidden),
        )
        outside["conv/window/bias"] = ("encoder.conv.conv.bias", (hidden,))
        outside |= norm("conv/norm", "encoder.conv.LayerNorm")
    names = {ours: _name(ours, prefix + theirs, shape) for ours, (theirs, shape) in outside.items()}
    names |= stacked_names(
        lambda _, stack: _block(config, prefix, stack), {"": config.num_layers}, scan=scan
    )
    if config.num_classes is not None:
        for ours, theirs, width in (
            ("pooler", "pooler.dense", hidden),
            ("classifier", "classifier", config.num_classes),
        ):
            names[f"{ours}/kernel"] = Name(f"{theirs}.weight", (hidden, width))
            names[f"{ours}/bias"] = Name(f"{theirs}.bias", (width,), "vector")
    return names


def load_deberta(
    folder: Path,
    raw: Mapping[str, Any],
    *,
    num_classes: int | None,
    key: jax.Array | None,
    scan: bool,
) -> tuple[DebertaConfig, dict[str, Any]]:
    """As `lora_jax.load_encoder`; a head that is not in the file, its pooler included, is new."""
    config = deberta_config(raw, num_classes)
    tensors: Any = ModelFolder(folder)
    bare = not any(name.startswith(_PREFIX) for name in tensors)
    names = deberta_names(config, scan=scan, bare=bare)
    has_head = num_classes is not None and "classifier.weight" in tensors
    unread = [name for name in tensors if name.removeprefix(_PREFIX).startswith(_UNREAD)]
    if not config.absolute:  # Files of the first release carry a table that nothing adds.
        unread += [
            name
            for name in tensors
            if name.removeprefix(_PREFIX) == "embeddings.position_embeddings.weight"
        ]
    head = {
        path: name for path, name in names.items() if path.startswith(("pooler/", "classifier/"))
    }
    if not has_head:
        names = {path: name for path, name in names.items() if path not in head}
    flat = read_named(names, tensors, what=f"DeBERTa in {folder}", ignored=unread)
    if num_classes is not None and not has_head:
        if key is None:
            raise ValueError(
                f"{folder} has no classifier, and a new one needs a random key: pass "
                "key=jax.random.key(seed)."
            )
        flat |= _new_head(head, key)
    return config, unflatten(flat)


def _new_head(head: Names, key: jax.Array) -> dict[str, np.ndarray]:
    out = {path: np.zeros(name.shape, np.float32) for path, name in head.items()}
    for n, path in enumerate(("classifier/kernel", "pooler/kernel")):
        out[path] = 0.02 * np.asarray(
            jax.random.normal(jax.random.fold_in(key, n), out[path].shape), np.float32
        )
    return out


def _block(config: DebertaConfig, prefix: str, stack: tuple[int, ...]) -> dict[str, Name]:
    hidden, wide = config.hidden_size, config.intermediate_size
    own = {"attn/pos_k": "c2p" in config.terms, "attn/pos_q": "p2c" in config.terms}
    names = {}
    for ours, theirs in _MODULES:
        if ours in own and (config.shared_keys or not own[ours]):
            continue
        rows, columns = {"mlp/up": (hidden, wide), "mlp/down": (wide, hidden)}.get(
            ours, (hidden, hidden)
        )
        names[f"{ours}/kernel"] = Name(
            f"{prefix}encoder.layer.{{}}.{theirs}.weight", (rows, columns), stack=stack
        )
        names[f"{ours}/bias"] = Name(
            f"{prefix}encoder.layer.{{}}.{theirs}.bias", (columns,), "vector", stack
        )
    for ours, theirs in _NORMS:
        for part, name in (("scale", "weight"), ("bias", "bias")):
            names[f"{ours}/{part}"] = Name(
                f"{prefix}encoder.layer.{{}}.{theirs}.{name}", (hidden,), "vector", stack
            )
    return names


def _name(ours: str, theirs: str, shape: tuple[int, ...]) -> Name:
    if len(shape) == 3:
        return Name(theirs, shape, "conv", in_axes=(0, 1))
    return Name(
        theirs,
        shape,
        "embedding" if ours.endswith("embedding") else "linear" if len(shape) == 2 else "vector",
    )
