"""GGUF's metadata to `DecoderConfig`, and which GGUF tensor each weight is: LLaMA, Mistral, Qwen 2 and 3, Phi-3, Gemma 1 to 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.core.paths import nearest
from lora_jax.io.decoder_names import Source
from lora_jax.io.gguf import GgufFile
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.rotary import Rotary

ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3")
_FREQUENCIES, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
IGNORED = (_FREQUENCIES, _SHORT, _LONG)  # tensors that `gguf_config` reads, not the table
_GEMMA3_LOCAL_BASE = 10_000.0  # not in the file: llama.cpp has it in its code
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}  # these scale queries by hidden / heads, which the file does not say


def gguf_config(file: GgufFile) -> DecoderConfig:
    """The decoder that a GGUF file describes.

    Raises:
        ValueError: the architecture is not supported, or a key is missing.
    """
    arch = file.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ValueError(
            f"{file.path} holds the architecture {arch!r}, which is not supported. Nearest: {nearest(str(arch), ARCHITECTURES, 1)[0]!r}; "
            f"known: {', '.join(ARCHITECTURES)}."
        )
    keys = _Keys(file, arch)
    if keys.get("expert_count", 0):
        raise ValueError(f"{file.path} holds a mixture of {keys.get('expert_count')} experts; from GGUF only dense models are read.")
    hidden, heads, layers = keys["embedding_length"], keys["attention.head_count"], keys["block_count"]
    if "token_embd.weight" not in file:
        raise ValueError(f"{file.path} has no tensor 'token_embd.weight'. Give the file of a language model.")
    if any(type(n) is not int or n < 1 for n in (hidden, heads, layers)) or layers > len(file):
        raise ValueError(f"{file.path} claims {layers!r} layers of {heads!r} heads and {hidden!r} channels, in {len(file)} tensors.")
    head_dim = keys.get("attention.key_length", hidden // heads)
    sizes = dict(
        vocab_size=file.shape("token_embd.weight")[0],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=keys.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=keys["feed_forward_length"],
        max_positions=keys["context_length"],
        norm_eps=_rounded(keys["attention.layer_norm_rms_epsilon"]),
        tied="output.weight" not in file,
        rotary=_rotary(file, keys, head_dim),
        qkv_bias="blk.0.attn_q.bias" in file,
        out_bias="blk.0.attn_output.bias" in file,
    )
    return DecoderConfig(**sizes | _extra(arch, keys, sizes))


def gguf_names(config: DecoderConfig, file: GgufFile) -> dict[str, Source]:
    """The GGUF tensor of every weight, by our path with `layers/` for any layer; of a file that is read."""
    return gguf_table(config, file.metadata["general.architecture"])


def gguf_table(config: DecoderConfig, arch: str) -> dict[str, Source]:
    """The GGUF tensor of every weight of an architecture. Gemma's norms are kept as the scale itself."""
    block = "blk.{layer}."
    table = {
        "embed/embedding": Source("token_embd.weight"),
        "norm/scale": Source("output_norm.weight"),
        "layers/attn_norm/scale": Source(f"{block}attn_norm.weight"),
        "layers/mlp_norm/scale": Source(f"{block}ffn_norm.weight"),
        "layers/attn/o/kernel": Source(f"{block}attn_output.weight", transpose=True),
        "layers/mlp/down/kernel": Source(f"{block}ffn_down.weight", transpose=True),
    }
    if config.out_bias:
        table["layers/attn/o/bias"] = Source(f"{block}attn_output.bias")
    if not config.tied:
        table["head/kernel"] = Source("output.weight", transpose=True)
    if config.post_norms:
        table["layers/attn_post_norm/scale"] = Source(f"{block}post_attention_norm.weight")
        table["layers/mlp_post_norm/scale"] = Source(f"{block}post_ffw_norm.weight")
    if config.qk_norm:
        table |= {f"layers/attn/{x}_norm/scale": Source(f"{block}attn_{x}_norm.weight") for x in "qk"}
    kv, size = config.num_kv_heads * config.head_dim, config.intermediate_size
    if arch == "phi3":
        for index, x in enumerate("qkv"):
            part = (index, (config.num_heads * config.head_dim, kv, kv))
            table[f"layers/attn/{x}/kernel"] = Source(f"{block}attn_qkv.weight", transpose=True, part=part)
        for index, x in enumerate(("gate", "up")):
            table[f"layers/mlp/{x}/kernel"] = Source(f"{block}ffn_up.weight", transpose=True, part=(index, (size, size)))
        return table
    for x, heads in (("q", config.num_heads), ("k", config.num_kv_heads), ("v", None)):
        pairs = heads if arch == "llama" else None
        table[f"layers/attn/{x}/kernel"] = Source(f"{block}attn_{x}.weight", transpose=True, pairs=pairs)
        if config.qkv_bias:
            table[f"layers/attn/{x}/bias"] = Source(f"{block}attn_{x}.bias", pairs=pairs)
    return table | {f"layers/mlp/{x}/kernel": Source(f"{block}ffn_{x}.weight", transpose=True) for x in ("gate", "up")}


class _Keys:
    """The keys of the file's architecture."""

    def __init__(self, file: GgufFile, arch: str) -> None:
        self._file, self._arch = file, arch

    def __getitem__(self, name: str) -> Any:
        key = f"{self._arch}.{name}"
        if key not in self._file.metadata:
            near = nearest(key, self._file.metadata, 3)
            raise ValueError(f"{self._file.path} lacks the key {key!r}. Nearest: {', '.join(near) or 'none'}. Convert the model again.")
        return self._file.metadata[key]

    def get(self, name: str, default: Any = None) -> Any:
        return self._file.metadata.get(f"{self._arch}.{name}", default)


def _extra(arch: str, keys: _Keys, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What an architecture is that its file does not say."""
    if arch == "llama":
        return {"family": "llama"}
    if arch in ("qwen2", "qwen3"):
        return {"family": arch, "qk_norm": arch == "qwen3"}
    if arch == "phi3":
        window = keys.get("attention.sliding_window")
        return {"family": "phi3", "window": window or None}
    gemma = {"activation": "gelu_tanh", "embedding_scale": sizes["hidden_size"] ** 0.5}
    if arch == "gemma":
        return gemma | {"family": "gemma"}
    layers, pattern = sizes["num_layers"], 2 if arch == "gemma2" else 6
    divisor = sizes["hidden_size"] / sizes["num_heads"] if layers == _GEMMA_27B_LAYERS[arch] else sizes["head_dim"]
    gemma |= {
        "post_norms": True,
        "window": keys["attention.sliding_window"],
        "local_layers": tuple(bool((n + 1) % pattern) for n in range(layers)),
        "query_scale": divisor**-0.5,
    }
    if arch == "gemma2":
        caps = {"attention_softcap": keys.get("attn_logit_softcapping"), "final_softcap": keys.get("final_logit_softcapping")}
        return gemma | {"family": "gemma2"} | caps
    return gemma | {"family": "gemma3_text", "qk_norm": True, "local_rotary": Rotary(base=_GEMMA3_LOCAL_BASE)}


def _rotary(file: GgufFile, keys: _Keys, head_dim: int) -> Rotary:
    common = {
        "base": float(keys.get("rope.freq_base", 10_000.0)),
        "fraction": keys.get("rope.dimension_count", head_dim) / head_dim,
    }
    kind, factor = keys.get("rope.scaling.type", "none"), keys.get("rope.scaling.factor")
    original = keys.get("rope.scaling.original_context_length", keys["context_length"])
    if _FREQUENCIES in file:  # Llama 3.1 keeps what its scaling divides each frequency by.
        divisors = tuple(np.asarray(file[_FREQUENCIES], np.float64).tolist())
        return Rotary(
            **common, scaling="longrope", original_positions=1, short_factors=divisors, long_factors=divisors, attention_factor=1.0
        )
    if _SHORT in file and _LONG in file:
        short, long = (tuple(np.asarray(file[name], np.float64).tolist()) for name in (_SHORT, _LONG))
        scaled = {"factor": keys["context_length"] / original, "attention_factor": keys.get("rope.scaling.attn_factor")}
        return Rotary(**common, scaling="longrope", original_positions=original, short_factors=short, long_factors=long, **scaled)
    if kind == "linear" and factor:
        return Rotary(**common, scaling="linear", factor=float(factor))
    if kind == "yarn" and factor:
        return Rotary(**common, scaling="yarn", factor=float(factor), original_positions=original)
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"{file.path} has the rotary scaling {kind!r}, which is not supported; needed none, linear or yarn.")
    return Rotary(**common)


def _rounded(value: float) -> float:
    """The decimal that a float32 of the file stands for: 9.99999997e-07 is 1e-06."""
    return float(f"{value:.6g}")
