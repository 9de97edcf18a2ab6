"""T5, T5 1.1 and Flan-T5 in Hugging Face folders: config.json, names and weights, both ways."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.core.paths import flatten, unflatten
from lora_jax.io import safetensors
from lora_jax.io.named_weights import named_tensors, read_named, stacked_names
from lora_jax.io.names import Name
from lora_jax.io.tensor_files import ModelFolder
from lora_jax.models.t5 import T5Config

_MODEL_TYPES = ("t5",)
_HEAD = "lm_head.weight"
# Copies of the embedding, and a table that the first release made and never read.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_UNREAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}


def is_t5(path: Path) -> bool:
    """Whether a folder's config.json is that of an encoder-decoder of this family."""
    path = Path(path) / "config.json"
    if not path.is_file():
        return False
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(raw, dict) and raw.get("model_type") in _MODEL_TYPES


def t5_config(raw: Mapping[str, Any]) -> T5Config:
    """The encoder-decoder of a parsed config.json.

    Raises:
        KeyError: a field is missing. ValueError: a setting that this model has not.
    """
    for name in ("vocab_size", "d_model", "num_layers", "num_heads", "d_kv", "d_ff"):
        if not isinstance(raw[name], int):
            raise ValueError(f"{name} must be a whole number, and is {raw[name]!r}")
    if raw.get("model_type") not in _MODEL_TYPES or raw.get("is_encoder_decoder", True) is not True:
        raise ValueError(
            f"model_type {raw.get('model_type')!r} is not supported as an encoder-decoder; needed "
            "'t5'"
        )
    form = raw.get("feed_forward_proj", "relu")
    gated, _, activation = form.rpartition("-")
    # As published: the gated form's GELU is the tanh approximation.
    activation = "gelu_new" if form == "gated-gelu" else activation
    if gated not in ("", "gated") or activation not in _ACTIVATIONS:
        raise ValueError(
            f"feed_forward_proj {form!r} is not supported; needed {', '.join(_ACTIVATIONS)}, alone "
            "or after 'gated-'"
        )
    tied = raw.get("tie_word_embeddings", True) is not False
    return T5Config(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["d_model"],
        num_layers=raw["num_layers"],
        num_decoder_layers=raw.get("num_decoder_layers") or raw["num_layers"],
        num_heads=raw["num_heads"],
        head_dim=raw["d_kv"],
        intermediate_size=raw["d_ff"],
        buckets=raw.get("relative_attention_num_buckets", 32),
        max_distance=raw.get("relative_attention_max_distance", 128),
        norm_eps=raw.get("layer_norm_epsilon", 1e-6),
        activation=_ACTIVATIONS[activation],
        gated=gated == "gated",
        tied=tied,
        scaled=raw.get(
            "scale_decoder_outputs", tied
        ),  # transformers 5 writes it apart from the tie
        start_id=raw.get("decoder_start_token_id") or 0,
    )


def load_t5(folder: Path | str, *, scan: bool = True) -> tuple[T5Config, dict[str, Any]]:
    """The configuration and the weights of an encoder-decoder in a Hugging Face folder, as host
    arrays in float32, closed to writing.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the file is damaged, the architecture is not supported, or tensors are missing,
            left over or of a wrong shape; all of them are listed.
    """
    folder = Path(folder)
    config, tensors = _read_config(folder / "config.json"), ModelFolder(folder)
    if config.tied and not config.scaled and {_HEAD, "shared.weight"} <= set(tensors):
        # transformers 5 says that they are tied even where they are not.
        config = dataclasses.replace(config, tied=_equal(tensors, _HEAD))
    copies = [*_COPIES, *([_HEAD] if config.tied else [])]
    ignored = [
        name
        for name in copies
        if name in tensors and "shared.weight" in tensors and _equal(tensors, name)
    ]
    names = t5_names(config, scan=scan)
    flat = read_named(names, tensors, what=f"T5 in {folder}", ignored=[*ignored, _UNREAD])
    return config, unflatten(flat)


def save_t5(
    folder: Path | str, config: T5Config, params: Mapping[str, Any], *, scan: bool = True
) -> None:
    """Writes the folder that `load_t5`, and transformers, read: config.json and model.safetensors
    in float32.

    Raises:
        ValueError: the params are not this model's, hold a box, or a NaN.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(
        folder / "model.safetensors",
        named_tensors(t5_names(config, scan=scan), flatten(params)),
        {"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(t5_json(config), indent=2) + "\n")


def t5_json(config: T5Config) -> dict[str, Any]:
    """The config.json that describes a model, as `t5_config` and transformers read it."""
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation)
    form = (
        "gated-gelu"
        if config.gated and activation == "gelu_new"
        else f"{'gated-' if config.gated else ''}{activation}"
    )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_ff": config.intermediate_size,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": form,
        "tie_word_embeddings": config.scaled,  # what transformers takes from it is the scale
        "decoder_start_token_id": config.start_id,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def t5_names(config: T5Config, *, scan: bool = True) -> dict[str, Name]:
    """How transformers' `T5ForConditionalGeneration` names every weight, as `lora_jax.save_peft`
    and `load_peft` take it.
    """
    hidden = config.hidden_size
    names = {
        "embed/embedding": Name(
            "shared.weight", (config.vocab_size, hidden), "embedding", tied=config.tied
        )
    }
    for stack in ("encoder", "decoder"):
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names[f"{stack}/relative/embedding"] = Name(
            table, (config.buckets, config.num_heads), "embedding"
        )
        names[f"{stack}/norm/scale"] = Name(f"{stack}.final_layer_norm.weight", (hidden,), "vector")
    layers = {"encoder/": config.num_layers, "decoder/": config.num_decoder_layers}
    names |= stacked_names(lambda prefix, stack: _block(config, prefix, stack), layers, scan=scan)
    if not config.tied:
        names["head/kernel"] = Name(_HEAD, (hidden, config.vocab_size))
    return names


def _block(config: T5Config, prefix: str, stack: tuple[int, ...]) -> dict[str, Name]:
    hidden, inner, wide = (
        config.hidden_size,
        config.num_heads * config.head_dim,
        config.intermediate_size,
    )
    decoder = prefix == "decoder/"
    parts = [("attn", "SelfAttention"), *([("cross", "EncDecAttention")] if decoder else [])]
    their = lambda layer, rest: f"{prefix[:-1]}.block.{{}}.layer.{layer}.{rest}.weight"
    names = {}
    for layer, (ours, theirs) in enumerate(parts):
        for name in "qkvo":
            shape = (inner, hidden) if name == "o" else (hidden, inner)
            names[f"{ours}/{name}/kernel"] = Name(
                their(layer, f"{theirs}.{name}"), shape, stack=stack
            )
        names[f"{ours}_norm/scale"] = Name(their(layer, "layer_norm"), (hidden,), "vector", stack)
    up = (("gate", "wi_0"), ("up", "wi_1")) if config.gated else (("up", "wi"),)
    for ours, theirs in up:
        names[f"mlp/{ours}/kernel"] = Name(
            their(len(parts), f"DenseReluDense.{theirs}"), (hidden, wide), stack=stack
        )
    names["mlp/down/kernel"] = Name(
        their(len(parts), "DenseReluDense.wo"), (wide, hidden), stack=stack
    )
    names["mlp_norm/scale"] = Name(their(len(parts), "layer_norm"), (hidden,), "vector", stack)
    return names


def _read_config(path: Path) -> T5Config:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} needs a config.json next to its weights, and there is none. Give a "
            "Hugging Face model folder."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it is not a JSON object")
        return t5_config(raw)
    except KeyError as error:
        raise ValueError(
            f"{path} lacks the field {error}. Give the config.json that belongs to the weights."
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not describe an encoder-decoder that can be loaded: {error}."
        ) from None


def _equal(tensors: Mapping[str, np.ndarray], name: str) -> bool:
    return np.array_equal(tensors[name], tensors["shared.weight"])
