"""What the header of a GGUF file says about a decoder, checked by reading it back before anything
is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.io.differences import differences
from lora_jax.io.families import FAMILIES
from lora_jax.io.family import Gguf, names_by_table
from lora_jax.io.gguf import Header
from lora_jax.io.gguf_decoder import FREQUENCIES, LONG, SHORT, gguf_config
from lora_jax.io.names import Names
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.rotary import Rotary, attention_factor, inverse_frequencies, rotated_channels


def gguf_of(config: DecoderConfig) -> Gguf:
    """How GGUF has the family of a decoder.

    Raises:
        ValueError: it has not.
    """
    gguf = FAMILIES[config.family].gguf
    if gguf is None:
        known = sorted(name for name, family in FAMILIES.items() if family.gguf is not None)
        raise ValueError(
            f"GGUF defines no architecture for the family {config.family!r} (llama.cpp cannot run "
            f"it); it has those of {', '.join(known)}. Use export_merged."
        )
    return gguf


def gguf_names(config: DecoderConfig) -> Names:
    """The GGUF tensor of every weight, by path, layers stacked; matrices of experts one by one, as
    `ExpertsApart` has them.

    Raises:
        ValueError: GGUF has no such family, or no tensor for one of the weights.
    """
    return names_by_table(config, gguf_of(config).table(config))


def header_of(config: DecoderConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metadata of a decoder, and the tensors that go with it (rotary factors).

    Raises:
        ValueError: the file could not say what this decoder is; all that would be read differently
            is listed.
    """
    gguf = gguf_of(config)
    arch, factors = gguf.architecture, _factors(config)
    keys = _keys(config) | gguf.keys(config)
    metadata = {"general.architecture": arch} | {
        f"{arch}.{key}": value for key, value in keys.items() if value is not None
    }
    read = gguf_config(Planned(metadata, factors, gguf_names(config)))
    odd = differences(config, read, ignored=["family"])
    if arch == "gptneox" and (config.tied or not config.qkv_bias):
        odd.append(
            "llama.cpp wants a head and biases of this architecture, and the model has them not"
        )
    if odd:
        raise ValueError(
            f"GGUF's architecture {arch!r} cannot say what this model is: {'; '.join(odd)}. Use "
            "export_merged."
        )
    return metadata, factors


def _keys(config: DecoderConfig) -> dict[str, Any]:
    rms = "rms_" if config.norm == "rms" else ""
    out = {
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        f"attention.layer_norm_{rms}epsilon": float(config.norm_eps),
        "vocab_size": config.vocab_size,
    }
    if config.head_dim * config.num_heads != config.hidden_size or rms:
        out |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}

    if (experts := config.experts) is not None:
        out |= {"expert_count": experts.count, "expert_used_count": experts.per_token}
        if experts.intermediate_size != config.intermediate_size or experts.shared_size:
            out["expert_feed_forward_length"] = experts.intermediate_size
        if experts.shared_size is not None:
            out["expert_shared_feed_forward_length"] = experts.shared_size

    if (rotary := config.rotary) is None:
        return out
    out |= {
        "rope.freq_base": float(rotary.base),
        "rope.dimension_count": rotated_channels(rotary, config.head_dim),
    }

    if rotary.scaling in ("linear", "yarn"):
        out |= {"rope.scaling.type": rotary.scaling, "rope.scaling.factor": float(rotary.factor)}
    if rotary.scaling == "yarn":
        out["rope.scaling.original_context_length"] = rotary.original_positions
        for end, usual in (("fast", 32.0), ("slow", 1.0)):
            if (beta := getattr(rotary, f"beta_{end}")) != usual:
                out[f"rope.scaling.yarn_beta_{end}"] = float(beta)
    if rotary.scaling == "longrope" and config.family == "phi3":
        out["rope.scaling.original_context_length"] = rotary.original_positions
        out["rope.scaling.attn_factor"] = float(attention_factor(rotary))
    return out


def _factors(config: DecoderConfig) -> dict[str, np.ndarray]:
    """What frequencies are divided by, where a file keeps that as tensors."""
    rotary = config.rotary
    if rotary is None:
        return {}
    if config.family == "phi3" and rotary.scaling == "longrope":
        return {
            SHORT: np.asarray(rotary.short_factors, np.float32),
            LONG: np.asarray(rotary.long_factors, np.float32),
        }
    if rotary.scaling in ("llama3", "longrope"):
        width = rotated_channels(rotary, config.head_dim)
        plain = inverse_frequencies(Rotary(base=rotary.base), width).astype(np.float64)
        return {FREQUENCIES: (plain / inverse_frequencies(rotary, width)).astype(np.float32)}
    return {}


class Planned(Header):
    """A file that is not there yet, as `gguf_config` reads one."""

    path = Path("the new file")

    def __init__(
        self, metadata: Mapping[str, Any], factors: Mapping[str, np.ndarray], names: Names
    ) -> None:
        self.metadata = metadata
        self._entries: dict[str, Any] = dict(factors)
        for name in names.values():
            whole, apart, _ = name.parameter.partition("[")
            stored = (name.stack[-1], *name.their_shape()) if apart else name.their_shape()
            layers = name.stack[0] if name.stack else 1
            tensor = jax.ShapeDtypeStruct(stored, np.float32)
            self._entries |= {whole.format(layer): tensor for layer in range(layers)}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._entries[name]
