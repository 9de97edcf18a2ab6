"""T5, T5 1.1 and Flan-T5 (Raffel et al. 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.io.config_json import Raw, refuse, whole_numbers
from lora_jax.io.family import Family, Table
from lora_jax.models.t5 import T5Config

_HEAD = "lm_head.weight"
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}


def _from_json(raw: Raw) -> T5Config:
    whole_numbers(raw, "vocab_size", "d_model", "num_layers", "num_heads", "d_kv", "d_ff")
    refuse(raw, is_encoder_decoder=(True, None))
    form = raw.get("feed_forward_proj", "relu")
    gated, _, activation = form.rpartition("-")
    # As published: the gated form's GELU is the tanh approximation.
    activation = "gelu_new" if form == "gated-gelu" else activation
    if gated not in ("", "gated") or activation not in _ACTIVATIONS:
        raise ValueError(
            f"feed_forward_proj {form!r} is not supported; needed {', '.join(_ACTIVATIONS)}, alone "
            "or after 'gated-'"
        )
    # transformers derives these, and where a file says otherwise it is they that are computed.
    refuse(raw, dense_act_fn=(activation, None), is_gated_act=(gated == "gated", None))
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
        # transformers 5 writes it apart from the tie.
        scaled=raw.get("scale_decoder_outputs", tied),
        start_id=raw.get("decoder_start_token_id") or 0,
    )


def _to_json(config: T5Config) -> dict[str, Any]:
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation)
    if config.gated:
        activation = "gated-gelu" if activation == "gelu_new" else f"gated-{activation}"
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
        "feed_forward_proj": activation,
        "tie_word_embeddings": config.tied,
        "decoder_start_token_id": config.start_id,
        "pad_token_id": 0,
        "eos_token_id": 1,
        # Where it is not said, transformers scales if the embeddings are tied.
        **({} if config.scaled == config.tied else {"scale_decoder_outputs": config.scaled}),
    }


def _table(config: T5Config) -> Table:
    table = {"embed": "shared", "head": "lm_head"}
    # In the order in which a block has them.
    of_decoder = {"attn": "SelfAttention", "cross": "EncDecAttention", "mlp": "DenseReluDense"}
    of_encoder = {name: theirs for name, theirs in of_decoder.items() if name != "cross"}
    for stack, modules in (("encoder", of_encoder), ("decoder", of_decoder)):
        # One table of relative positions, kept in the first block.
        first = f"{stack}.block.0.layer.0.SelfAttention"
        table |= {
            f"{stack}/relative": f"{first}.relative_attention_bias",
            f"{stack}/norm": f"{stack}.final_layer_norm",
        }
        for number, (ours, theirs) in enumerate(modules.items()):
            layer = f"{stack}.block.{{}}.layer.{number}."
            parts = {name: name for name in "qkvo"}
            if ours == "mlp":
                up = {"gate": "wi_0", "up": "wi_1"} if config.gated else {"up": "wi"}
                parts = {**up, "down": "wo"}
            table[f"{stack}/layers/{ours}_norm"] = f"{layer}layer_norm"
            table |= {
                f"{stack}/layers/{ours}/{part}": f"{layer}{theirs}.{name}"
                for part, name in parts.items()
            }
    return table


def _settled(config: T5Config, tensors: Mapping[str, np.ndarray]) -> T5Config:
    if not config.tied or config.scaled or not {_HEAD, "shared.weight"} <= set(tensors):
        return config
    # transformers 5 says that they are tied even where they are not.
    return dataclasses.replace(
        config, tied=np.array_equal(tensors[_HEAD], tensors["shared.weight"])
    )


FAMILIES = (
    Family(
        "t5",
        "encoder-decoder",
        _from_json,
        _to_json,
        _table,
        copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", _HEAD),
        # A table that the first release made and never read.
        unread=lambda config: (
            r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        ),
        settled=_settled,
    ),
)
