"""GGUF's metadata to `DecoderConfig`, for the architectures that `lora_jax.io.families` knows."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from lora_jax.core.paths import nearest
from lora_jax.io.config_json import in_file, typed
from lora_jax.io.families import FAMILIES
from lora_jax.io.family import Family
from lora_jax.io.gguf import Header
from lora_jax.models.decoder_config import DecoderConfig, Experts
from lora_jax.models.rotary import Rotary

# Tensors that `gguf_config` reads, not the table.
FREQUENCIES, SHORT, LONG = IGNORED = (
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
)
# Keys that say how a model computes, of all that a file may say about its architecture.
_TELLING = re.compile(r"(rope|attention)\..*|.*(softcapping|scale|expert).*")
# Those of them that change nothing: sizes that the tensors show, notes, and values that stand for
# what is computed anyway.
_HARMLESS: dict[str, tuple[Any, ...] | None] = {
    "expert_feed_forward_length": None,
    "expert_shared_feed_forward_length": None,
    "rope.scaling.finetuned": None,
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
}


def gguf_family(file: Header) -> Family:
    """The family of a file's architecture; of several that share it, the first.

    Raises:
        ValueError: the architecture is not supported.
    """
    arch = file.metadata.get("general.architecture")
    known = {
        family.gguf.architecture: family
        for family in reversed(FAMILIES.values())
        if family.gguf is not None
    }
    if not isinstance(arch, str) or arch not in known:
        raise ValueError(
            f"{file.path} holds the architecture {arch!r}, which is not supported. Nearest: "
            f"{nearest(str(arch), known, 1)[0]!r}; known: {', '.join(sorted(known))}."
        )
    return known[arch]


def gguf_config(file: Header) -> DecoderConfig:
    """The decoder that a GGUF file describes.

    Raises:
        ValueError: the architecture is not supported, a key is missing, or one says what is not
            known here.
    """
    family = gguf_family(file)
    keys = _Keys(file, family.gguf.architecture)
    try:
        with in_file(file.path):
            config = typed(_config(file, keys, family))
    except (TypeError, ZeroDivisionError, OverflowError, AttributeError) as error:
        raise ValueError(
            f"{file.path} has metadata that describes no decoder: {error}. If it is changed, fetch "
            "it again."
        ) from error
    keys.refuse_others()
    return config


def _config(file: Header, keys: _Keys, family: Family) -> DecoderConfig:
    needed = ("embedding_length", "attention.head_count", "block_count")
    hidden, heads, layers = (keys[name] for name in needed)
    if "token_embd.weight" not in file:
        raise ValueError(
            f"{file.path} has no tensor 'token_embd.weight'. Give the file of a language model."
        )
    if any(type(n) is not int or n < 1 for n in (hidden, heads, layers)) or layers > len(file):
        raise ValueError(
            f"{file.path} claims {layers!r} layers of {heads!r} heads and {hidden!r} channels, in "
            f"{len(file)} tensors."
        )
    head_dim = keys.get("attention.key_length", hidden // heads)
    # Sizes that arrays are made of before tensors are compared with the configuration.
    attended, rotated = "blk.0.attn_output.weight", keys.get("rope.dimension_count", head_dim)
    if (
        attended not in file
        or file.shape(attended)[-1] != heads * head_dim
        or keys.get("attention.value_length", head_dim) != head_dim
        or not 0 < rotated <= head_dim
    ):
        raise ValueError(
            f"{file.path} claims {heads} heads of {head_dim} channels, {rotated} of them rotated, "
            f"and its {attended!r} has the shape "
            f"{file.shape(attended) if attended in file else 'of none'}. If it is changed, fetch "
            "it again."
        )

    rms = keys.get("attention.layer_norm_rms_epsilon")
    sizes = dict(
        family=family.name,
        vocab_size=file.shape("token_embd.weight")[0],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=keys.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=keys["feed_forward_length"],
        max_positions=keys["context_length"],
        norm_eps=_rounded(keys["attention.layer_norm_epsilon"] if rms is None else rms),
        tied="output.weight" not in file,
        qkv_bias="blk.0.attn_qkv.bias" in file or "blk.0.attn_q.bias" in file,
        out_bias="blk.0.attn_output.bias" in file,
        mlp_bias="blk.0.ffn_up.bias" in file,
        rotary=_rotary(file, keys, head_dim),
        experts=_experts(file, keys, family),
    )
    return DecoderConfig(**sizes | family.gguf.said(keys, sizes))


class _Keys:
    """The keys of the file's architecture, and which of them were read."""

    def __init__(self, file: Header, architecture: str) -> None:
        self._file, self.architecture = file, architecture
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        key = f"{self.architecture}.{name}"
        if key not in self._file.metadata:
            near = nearest(key, self._file.metadata, 3)
            raise ValueError(
                f"{self._file.path} lacks the key {key!r}. Nearest: {', '.join(near) or 'none'}. "
                "Convert the model again."
            )
        return self.get(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return self._file.metadata.get(f"{self.architecture}.{name}", default)

    def refuse_others(self) -> None:
        """Raises ValueError if a key that nobody has read says how the model computes."""
        for key, value in self._file.metadata.items():
            name = key.removeprefix(f"{self.architecture}.")
            if name == key or name in self._read or not _TELLING.fullmatch(name):
                continue
            allowed = _HARMLESS.get(name, ())
            if allowed is not None and value not in allowed:
                raise ValueError(
                    f"{self._file.path} says {key} = {value!r}, which is not supported and may "
                    "change what the model computes. Give a file of the model without it, or the "
                    "original Hugging Face folder."
                )


def _experts(file: Header, keys: _Keys, family: Family) -> Experts | None:
    count = keys.get("expert_count", 0)
    used = keys.get("expert_used_count")
    if not count:
        return None

    name, shared = "blk.0.ffn_gate_exps.weight", "blk.0.ffn_gate_shexp.weight"
    if family.gguf.experts is None:
        raise ValueError(
            f"{file.path} holds a mixture of {count} experts, which the architecture "
            f"{keys.architecture!r} has not. Convert the model again."
        )
    shape = file.shape(name) if name in file else ()
    if len(shape) != 3 or shape[0] != count:
        raise ValueError(
            f"{file.path} claims {count!r} experts and needs {name!r} of shape ({count!r}, inner "
            f"size, hidden size), which is {shape or 'missing'}. Files of the first months of 2024 "
            "kept each expert apart: convert the model again."
        )

    return Experts(
        count,
        used,
        shape[1],
        normalise=family.gguf.experts,
        shared_size=file.shape(shared)[0] if shared in file else None,
    )


def _rotary(file: Header, keys: _Keys, head_dim: int) -> Rotary:
    common = {
        "base": float(keys.get("rope.freq_base", 10_000.0)),
        "fraction": keys.get("rope.dimension_count", head_dim) / head_dim,
    }
    # Until the end of 2023 the factor had another name, and was linear without saying so.
    factor = keys.get("rope.scaling.factor") or keys.get("rope.scale_linear")
    kind = keys.get("rope.scaling.type", "linear" if factor else "none")
    original = keys.get("rope.scaling.original_context_length", keys["context_length"])
    if FREQUENCIES in file:  # Llama 3.1 keeps what its scaling divides each frequency by.
        divisors = tuple(np.asarray(file[FREQUENCIES], np.float64).tolist())
        return Rotary(
            **common,
            scaling="longrope",
            original_positions=1,
            short_factors=divisors,
            long_factors=divisors,
            attention_factor=1.0,
        )
    if SHORT in file and LONG in file:
        short, long = (tuple(np.asarray(file[name], np.float64).tolist()) for name in (SHORT, LONG))
        return Rotary(
            **common,
            scaling="longrope",
            factor=keys["context_length"] / original,
            original_positions=original,
            short_factors=short,
            long_factors=long,
            attention_factor=keys.get("rope.scaling.attn_factor"),
        )

    if kind == "linear" and factor:
        return Rotary(**common, scaling="linear", factor=float(factor))
    if kind == "yarn" and factor:
        betas = {
            f"beta_{end}": float(keys.get(f"rope.scaling.yarn_beta_{end}", default))
            for end, default in (("fast", 32.0), ("slow", 1.0))
        }
        return Rotary(
            **common,
            scaling="yarn",
            factor=float(factor),
            original_positions=original,
            **betas,
        )
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(
            f"{file.path} has the rotary scaling {kind!r}, which is not supported; needed none, "
            "linear or yarn."
        )
    return Rotary(**common)


def _rounded(value: float) -> float:
    """The decimal that a float32 of the file stands for: 9.99999997e-07 is 1e-06."""
    return float(f"{value:.6g}")
