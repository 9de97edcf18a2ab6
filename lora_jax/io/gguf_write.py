"""What the header of a GGUF file says about a decoder, checked by reading it back before anything
is written.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.io.decoder_names import Source
from lora_jax.io.gguf_decoder import FAMILY_OF, FREQUENCIES, LONG, SHORT, gguf_config
from lora_jax.io.gguf_tables import gguf_table
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.rotary import Rotary, attention_factor, inverse_frequencies, rotated_channels

_ARCH_OF = {family: arch for arch, family in FAMILY_OF.items()} | {
    "mistral": "llama",
    "mixtral": "llama",
}
_LAYER_NORM = ("gpt2", "gptneox")
# Fields that other fields and tensors imply, or that only our own files name.
_IMPLIED = ("family", "rotary", "local_rotary", "local_layers", "query_scale")


def architecture_of(config: DecoderConfig) -> str:
    """GGUF's name of a family.

    Raises:
        ValueError: GGUF has none.
    """
    if config.family not in _ARCH_OF:
        raise ValueError(
            f"GGUF defines no architecture for the family {config.family!r} (llama.cpp cannot run "
            "it); it has those of "
            f"{', '.join(sorted(_ARCH_OF))}. Use export_merged."
        )
    return _ARCH_OF[config.family]


def header_of(
    config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metadata of a decoder, and the tensors that go with it (rotary factors).

    Args:
        shapes: of all weights, by path, as `lora_jax.io.decoder_weights.shapes_of` gives them.

    Raises:
        ValueError: the file could not say what this decoder is; all that would be read differently
            is listed.
    """
    arch = architecture_of(config)
    keys, factors = _keys(config, arch), _factors(config)
    metadata = {"general.architecture": arch} | {
        f"{arch}.{key}": value for key, value in keys.items() if value is not None
    }
    odd = _differences(
        config, gguf_config(_Planned(config, metadata, factors, gguf_table(config, arch), shapes))
    )
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


def _keys(config: DecoderConfig, arch: str) -> dict[str, Any]:
    out = {
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.layer_norm_epsilon"
        if arch in _LAYER_NORM
        else "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "attention.sliding_window": (config.window or 0) if arch == "phi3" else config.window,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
        "vocab_size": config.vocab_size,
    }
    if arch == "gptneox":
        out["use_parallel_residual"] = config.parallel
    if config.head_dim * config.num_heads != config.hidden_size or arch not in _LAYER_NORM:
        out |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if (experts := config.experts) is not None:
        out |= {"expert_count": experts.count, "expert_used_count": experts.per_token}
        out |= (
            {}
            if config.family == "mixtral"
            else {"expert_feed_forward_length": experts.intermediate_size}
        )
        out |= (
            {}
            if experts.shared_size is None
            else {"expert_shared_feed_forward_length": experts.shared_size}
        )
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
    if rotary.scaling == "longrope" and arch == "phi3":
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


class _Planned(Mapping[str, np.ndarray]):
    """A file that is not there yet, as `gguf_config` reads one."""

    path = Path("the new file")

    def __init__(
        self,
        config: DecoderConfig,
        metadata: Mapping[str, Any],
        factors: Mapping[str, np.ndarray],
        table: Mapping[str, Source],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.metadata = metadata
        self._factors = factors
        self._shapes: dict[str, tuple[int, ...]] = {
            name: factor.shape for name, factor in factors.items()
        }
        for path, shape in shapes.items():
            if path not in table:
                raise ValueError(
                    f"GGUF has no tensor for {path} in this architecture. Use export_merged."
                )
            name, apart, _ = table[path].name.partition("[")
            stored = table[path].shape_of(shape)
            stored = (config.experts.count, *stored) if apart else stored
            self._shapes |= {name.format(layer=n): stored for n in range(config.num_layers)}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._factors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]


def _differences(ours: DecoderConfig, read: DecoderConfig) -> list[str]:
    """What a reader would take for something else."""
    odd = []
    for field in dataclasses.fields(DecoderConfig):
        mine, theirs = getattr(ours, field.name), getattr(read, field.name)
        if field.name in _IMPLIED or mine == theirs:
            continue
        if (
            isinstance(mine, float)
            and isinstance(theirs, float)
            and math.isclose(mine, theirs, rel_tol=1e-5)
        ):
            continue
        odd.append(f"{field.name} {mine!r} would be read as {theirs!r}")
    if ours.locality != read.locality:
        odd.append(f"local layers {ours.locality} would be read as {read.locality}")
    if not math.isclose(_scale(ours), _scale(read), rel_tol=1e-5):
        odd.append(f"query_scale {_scale(ours):.6g} would be read as {_scale(read):.6g}")
    if not _same(ours.rotary, read.rotary, ours.head_dim):
        odd.append(f"{ours.rotary} would be read as {read.rotary}")
    if any(ours.locality) and not _same(
        ours.local_rotary or ours.rotary, read.local_rotary or read.rotary, ours.head_dim
    ):
        odd.append(f"in local layers {ours.local_rotary} would be read as {read.local_rotary}")
    return odd


def _scale(config: DecoderConfig) -> float:
    return config.head_dim**-0.5 if config.query_scale is None else config.query_scale


def _same(one: Rotary | None, other: Rotary | None, head_dim: int) -> bool:
    """Whether two rotary embeddings turn alike, however they are told; to float32's accuracy."""
    if one is None or other is None:
        return one is other
    width = rotated_channels(one, head_dim)
    if rotated_channels(other, head_dim) != width or not math.isclose(
        attention_factor(one), attention_factor(other), rel_tol=1e-5
    ):
        return False
    near = np.allclose(
        inverse_frequencies(one, width), inverse_frequencies(other, width), rtol=1e-6, atol=0
    )
    long = [
        np.divide(r.long_factors, r.short_factors) if r.long_factors else np.ones(width // 2)
        for r in (one, other)
    ]
    if not near or not np.allclose(*long, rtol=1e-6):
        return False
    return bool(np.all(long[0] == 1)) or one.original_positions == other.original_positions
