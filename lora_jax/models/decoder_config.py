"""What a decoder is made of: one description that covers GPT-2 to Gemma 3."""

from __future__ import annotations

import functools
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from flax import linen as nn

from lora_jax.models.rotary import Rotary

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
ACTIVATIONS: dict[str, Any] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of each MLP (Mixtral, Qwen-MoE).

    count: number of experts. per_token: how many a token goes to. intermediate_size: of each
    expert. normalise: whether the weights of a token's experts are divided by their sum.
    shared_size: intermediate size of an expert that every token goes to, its output gated by a
    sigmoid (Qwen2-MoE); None for none.
    """

    count: int
    per_token: int
    intermediate_size: int
    normalise: bool = True
    shared_size: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.per_token <= self.count:
            raise ValueError(
                f"A token goes to between 1 and {self.count} experts, got "
                f"per_token={self.per_token}."
            )


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and kinds of a decoder. `family` names the layout of its files; the model does not read
    it.

    Heads: num_kv_heads divides num_heads (grouped-query attention, Ainslie et al. 2023);
    query_scale multiplies the scores, None is head_dim ** -0.5. Positions: `rotary`, or None for a
    learned table whose first `position_offset` rows are unused.
    Windows: a local layer sees the last `window` tokens, itself included; `local_layers` says which
    layers are local, empty means all if there is a window. `local_rotary` is the rotary embedding
    of local layers, None is the same as elsewhere.
    Norms: 'rms' or 'layer', before attention and MLP; with post_norms also after them (Gemma 2).
    qk_norm: RMS norms of queries and keys, head by head. parallel: attention and MLP read the same
    input (GPT-NeoX). Soft-caps: x becomes cap * tanh(x / cap). tied: the head is the embedding,
    transposed.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    family: str = "llama"
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    post_norms: bool = False
    parallel: bool = False
    activation: Activation = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rotary: Rotary | None = Rotary()
    local_rotary: Rotary | None = None
    position_offset: int = 0
    window: int | None = None
    local_layers: tuple[bool, ...] = ()
    query_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embedding_scale: float | None = None
    tied: bool = False
    experts: Experts | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.default is MISSING):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a number from 1, got {value!r}.")

        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads "
                f"{self.num_kv_heads}."
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"Unknown activation {self.activation!r}: known are {', '.join(ACTIVATIONS)}."
            )

        if self.local_layers and (len(self.local_layers) != self.num_layers or self.window is None):
            raise ValueError(
                f"local_layers needs an entry for each of {self.num_layers} layers and a window, "
                f"got {len(self.local_layers)} entries "
                f"and window {self.window}."
            )
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"window must be at least 1 token (a token sees itself), got {self.window}."
            )

    @property
    def locality(self) -> tuple[bool, ...]:
        """Which layers are local, one entry a layer."""
        return self.local_layers or (self.window is not None,) * self.num_layers

    @property
    def switch_length(self) -> int | None:
        """A text of more tokens has other angles from its first token on (longrope); None: none
        has.
        """
        rotary = self.rotary
        return rotary.original_positions if rotary and rotary.scaling == "longrope" else None

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Outputs of the layers of queries, keys and values."""
        kv = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, kv, kv
