"""GGUF's metadata to `DecoderConfig`: GPT-2, GPT-NeoX, LLaMA, Mistral, Mixtral, Qwen 2 and 3 and
their mixtures, Phi-3, Gemma 1 to 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lora_jax.core.paths import nearest
from lora_jax.io.decoder_names import Source
from lora_jax.io.gguf import GgufFile
from lora_jax.io.gguf_tables import gguf_table
from lora_jax.models.decoder_config import DecoderConfig, Experts
from lora_jax.models.rotary import Rotary

# GGUF's name of an architecture, and our family. llama.cpp has none for OPT; Mistral and Mixtral
# are 'llama' there.
FAMILY_OF = {
    "llama": "llama",
    "gpt2": "gpt2",
    "gptneox": "gpt_neox",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "phi3": "phi3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
FREQUENCIES, SHORT, LONG = (
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
)
IGNORED = (FREQUENCIES, SHORT, LONG)  # tensors that `gguf_config` reads, not the table
_NORMALISED = {
    "llama": True,
    "qwen2moe": False,
    "qwen3moe": True,
}  # weights of a token's experts, in llama.cpp's code
_GEMMA3_LOCAL_BASE = 10_000.0  # not in the file: llama.cpp has it in its code
_GEMMA_27B_LAYERS = {
    "gemma2": 46,
    "gemma3": 62,
}  # these scale queries by hidden / heads, which the file does not say


class Header(Protocol):
    """What `gguf_config` reads: of a file, or of one that is about to be written."""

    path: Path
    metadata: Mapping[str, Any]

    def __getitem__(self, name: str) -> np.ndarray: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, name: object) -> bool: ...
    def __len__(self) -> int: ...
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        ...


def gguf_config(file: Header) -> DecoderConfig:
    """The decoder that a GGUF file describes.

    Raises:
        ValueError: the architecture is not supported, or a key is missing.
    """
    arch = file.metadata.get("general.architecture")
    if arch not in FAMILY_OF:
        raise ValueError(
            f"{file.path} holds the architecture {arch!r}, which is not supported. Nearest: "
            f"{nearest(str(arch), FAMILY_OF, 1)[0]!r}; "
            f"known: {', '.join(FAMILY_OF)}."
        )
    try:
        return _config(file, _Keys(file, arch), arch)
    except (TypeError, ZeroDivisionError, OverflowError, AttributeError) as error:
        raise ValueError(
            f"{file.path} has metadata that describes no decoder: {error}. If it is changed, fetch "
            "it again."
        ) from error


def _config(file: Header, keys: _Keys, arch: str) -> DecoderConfig:
    hidden, heads, layers = (
        keys["embedding_length"],
        keys["attention.head_count"],
        keys["block_count"],
    )
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
        or not 0 < rotated <= head_dim
    ):
        raise ValueError(
            f"{file.path} claims {heads} heads of {head_dim} channels, {rotated} of them rotated, "
            f"and its {attended!r} has the shape "
            f"{file.shape(attended) if attended in file else 'of none'}. If it is changed, fetch "
            "it again."
        )
    fused = arch in ("gpt2", "gptneox")
    sizes = dict(
        family=FAMILY_OF[arch],
        vocab_size=file.shape("token_embd.weight")[0],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=keys.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=keys["feed_forward_length"],
        max_positions=keys["context_length"],
        norm_eps=_rounded(
            keys["attention.layer_norm_epsilon" if fused else "attention.layer_norm_rms_epsilon"]
        ),
        tied="output.weight" not in file,
        qkv_bias=f"blk.0.attn_{'qkv' if fused else 'q'}.bias" in file,
        out_bias="blk.0.attn_output.bias" in file,
        mlp_bias="blk.0.ffn_up.bias" in file,
        rotary=None if arch == "gpt2" else _rotary(file, keys, head_dim),
        experts=_experts(file, keys, arch),
    )
    return DecoderConfig(**sizes | _extra(arch, keys, sizes))


def gguf_names(config: DecoderConfig, file: GgufFile) -> dict[str, Source]:
    """The GGUF tensor of every weight, by our path with `layers/` for any layer; of a file that is
    read.
    """
    return gguf_table(config, file.metadata["general.architecture"])


class _Keys:
    """The keys of the file's architecture."""

    def __init__(self, file: Header, arch: str) -> None:
        self._file, self._arch = file, arch

    def __getitem__(self, name: str) -> Any:
        key = f"{self._arch}.{name}"
        if key not in self._file.metadata:
            near = nearest(key, self._file.metadata, 3)
            raise ValueError(
                f"{self._file.path} lacks the key {key!r}. Nearest: {', '.join(near) or 'none'}. "
                "Convert the model again."
            )
        return self._file.metadata[key]

    def get(self, name: str, default: Any = None) -> Any:
        return self._file.metadata.get(f"{self._arch}.{name}", default)


def _experts(file: Header, keys: _Keys, arch: str) -> Experts | None:
    count = keys.get("expert_count", 0)
    if not count:
        return None
    name, shared = "blk.0.ffn_gate_exps.weight", "blk.0.ffn_gate_shexp.weight"
    if arch not in _NORMALISED:
        raise ValueError(
            f"{file.path} holds a mixture of {count} experts, which the architecture {arch!r} has "
            "not. Convert the model again."
        )
    shape = file.shape(name) if name in file else ()
    if len(shape) != 3 or shape[0] != count:
        raise ValueError(
            f"{file.path} claims {count!r} experts and needs {name!r} of shape ({count!r}, inner "
            "size, hidden size), which is "
            f"{shape or 'missing'}. Files of the first months of 2024 kept each expert apart: "
            "convert the model again."
        )
    return Experts(
        count,
        keys["expert_used_count"],
        shape[1],
        normalise=_NORMALISED[arch],
        shared_size=file.shape(shared)[0] if shared in file else None,
    )


def _extra(arch: str, keys: _Keys, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What an architecture is that its file does not say."""
    if arch == "llama":
        return {"family": "mixtral"} if sizes["experts"] is not None else {}
    if arch in ("qwen2", "qwen3", "qwen2moe", "qwen3moe"):
        return {"qk_norm": arch.startswith("qwen3")}
    if arch == "gpt2":
        return {"norm": "layer", "gated": False, "activation": "gelu_tanh"}
    if arch == "gptneox":
        # The file does not say which GELU: Pythia was trained with the exact one (llama.cpp
        # computes the tanh form for all).
        return {
            "norm": "layer",
            "gated": False,
            "activation": "gelu",
            "parallel": bool(keys.get("use_parallel_residual", True)),
        }
    if arch == "phi3":
        return {"window": keys.get("attention.sliding_window") or None}
    gemma = {"activation": "gelu_tanh", "embedding_scale": sizes["hidden_size"] ** 0.5}
    if arch == "gemma":
        return gemma
    layers, pattern = sizes["num_layers"], 2 if arch == "gemma2" else 6
    divisor = (
        sizes["hidden_size"] / sizes["num_heads"]
        if layers == _GEMMA_27B_LAYERS[arch]
        else sizes["head_dim"]
    )
    gemma |= {
        "post_norms": True,
        "window": keys["attention.sliding_window"],
        "local_layers": tuple(bool((n + 1) % pattern) for n in range(layers)),
        "query_scale": divisor**-0.5,
    }
    if arch == "gemma2":
        caps = {
            "attention_softcap": keys.get("attn_logit_softcapping"),
            "final_softcap": keys.get("final_logit_softcapping"),
        }
        return gemma | caps
    return gemma | {"qk_norm": True, "local_rotary": Rotary(base=_GEMMA3_LOCAL_BASE)}


def _rotary(file: Header, keys: _Keys, head_dim: int) -> Rotary:
    common = {
        "base": float(keys.get("rope.freq_base", 10_000.0)),
        "fraction": keys.get("rope.dimension_count", head_dim) / head_dim,
    }
    kind, factor = keys.get("rope.scaling.type", "none"), keys.get("rope.scaling.factor")
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
        scaled = {
            "factor": keys["context_length"] / original,
            "attention_factor": keys.get("rope.scaling.attn_factor"),
        }
        return Rotary(
            **common,
            scaling="longrope",
            original_positions=original,
            short_factors=short,
            long_factors=long,
            **scaled,
        )
    if kind == "linear" and factor:
        return Rotary(**common, scaling="linear", factor=float(factor))
    if kind == "yarn" and factor:
        return Rotary(**common, scaling="yarn", factor=float(factor), original_positions=original)
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(
            f"{file.path} has the rotary scaling {kind!r}, which is not supported; needed none, "
            "linear or yarn."
        )
    return Rotary(**common)


def _rounded(value: float) -> float:
    """The decimal that a float32 of the file stands for: 9.99999997e-07 is 1e-06."""
    return float(f"{value:.6g}")
