"""Which tensor of a Hugging Face file each weight of a decoder is, one table a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lora_jax.models.decoder_config import DecoderConfig


@dataclass(frozen=True)
class Source:
    """Where a weight is kept: tensor `name` ('{layer}' and '{expert}' stand for numbers), and how
    it differs from ours.

    transpose: theirs is (out, in). added: ours is theirs plus this (Gemma's norms are kept as scale
    - 1). part: theirs holds several of ours side by side along the outputs; (index, their sizes).
    heads: those parts alternate head by head. pairs: of so many heads, the two channels of a rotary
    pair are neighbours in theirs, and half a head apart in ours (GGUF's LLaMA).
    vector: theirs lacks the axis of the single output.
    """

    name: str
    transpose: bool = False
    added: float = 0.0
    part: tuple[int, tuple[int, ...]] | None = None
    heads: int | None = None
    pairs: int | None = None
    vector: bool = False

    def take(self, tensor: np.ndarray) -> np.ndarray:
        """Our weight, out of their tensor."""
        if self.vector:
            return tensor[:, None]
        ours = tensor.T if self.transpose else tensor
        if self.part is not None:
            index, sizes = self.part
            if self.heads is None:
                start = sum(sizes[:index])
                ours = ours[..., start : start + sizes[index]]
            else:
                each = ours.reshape(*ours.shape[:-1], self.heads, len(sizes), -1)
                ours = each[..., index, :].reshape(*ours.shape[:-1], sizes[index])
        if self.pairs is not None:
            each = ours.reshape(*ours.shape[:-1], self.pairs, -1, 2)
            ours = each.swapaxes(-1, -2).reshape(ours.shape)
        return ours.astype(np.float32) + np.float32(self.added) if self.added else ours

    def shape_of(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of their tensor, from ours."""
        if self.vector:
            return ours[:1]
        if self.part is not None:
            ours = (*ours[:-1], sum(self.part[1]))
        return ours[::-1] if self.transpose else ours

    def join(self, parts: list[np.ndarray]) -> np.ndarray:
        """Their tensor, out of all of ours that it holds, in order."""
        ours = parts[0]
        if self.vector:
            return ours[:, 0]
        if self.heads is not None:
            ours = np.stack([p.reshape(*p.shape[:-1], self.heads, -1) for p in parts], -2).reshape(
                *ours.shape[:-1], -1
            )
        elif len(parts) > 1:
            ours = np.concatenate(parts, -1)
        if self.pairs is not None:
            ours = (
                ours.reshape(*ours.shape[:-1], self.pairs, 2, -1)
                .swapaxes(-1, -2)
                .reshape(ours.shape)
            )
        ours = ours - np.float32(self.added) if self.added else ours
        return ours.T if self.transpose else ours


def names_of(config: DecoderConfig) -> dict[str, Source]:
    """The source of every weight, by our path with `layers/` for any layer.

    Raises:
        ValueError: the family has no table.
    """
    family = config.family
    if family == "gpt2":
        return _gpt2(config)
    if family == "gpt_neox":
        return _gpt_neox(config)
    if family == "opt":
        return _opt(config)
    if family in (
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "phi3",
        "gemma",
        "gemma2",
        "gemma3_text",
    ):
        return _llama(config)
    raise ValueError(f"There is no table of tensor names for the family {family!r}.")


def _llama(config: DecoderConfig) -> dict[str, Source]:
    """LLaMA's names; the other families of its kind differ in norms, experts and fused weights."""
    added = 1.0 if config.family.startswith("gemma") else 0.0
    block = "model.layers.{layer}."
    norm = lambda name: Source(f"{name}.weight", added=added)
    table = {
        "embed/embedding": Source("model.embed_tokens.weight"),
        "norm/scale": norm("model.norm"),
        "layers/attn_norm/scale": norm(f"{block}input_layernorm"),
    }
    if not config.tied:
        table["head/kernel"] = Source("lm_head.weight", transpose=True)
    if config.post_norms:
        table |= {
            "layers/attn_post_norm/scale": norm(f"{block}post_attention_layernorm"),
            "layers/mlp_norm/scale": norm(f"{block}pre_feedforward_layernorm"),
            "layers/mlp_post_norm/scale": norm(f"{block}post_feedforward_layernorm"),
        }
    else:
        table["layers/mlp_norm/scale"] = norm(f"{block}post_attention_layernorm")
    if config.qk_norm:
        table |= {f"layers/attn/{x}_norm/scale": norm(f"{block}self_attn.{x}_norm") for x in "qk"}
    if config.family == "phi3":
        table |= fused(
            "layers/attn", "qkv", f"{block}self_attn.qkv_proj", qkv_sizes(config), transpose=True
        )
    else:
        for x in "qkv":
            table |= linear(f"layers/attn/{x}", f"{block}self_attn.{x}_proj", bias=config.qkv_bias)
    table |= linear("layers/attn/o", f"{block}self_attn.o_proj", bias=config.out_bias)
    if config.experts is not None:
        return table | _experts(config, block)
    if config.family == "phi3":
        size = config.intermediate_size
        table |= fused(
            "layers/mlp", ("gate", "up"), f"{block}mlp.gate_up_proj", (size, size), transpose=True
        )
        return table | linear("layers/mlp/down", f"{block}mlp.down_proj", bias=False)
    for x in ("gate", "up", "down"):
        table |= linear(f"layers/mlp/{x}", f"{block}mlp.{x}_proj", bias=config.mlp_bias)
    return table


def _experts(config: DecoderConfig, block: str) -> dict[str, Source]:
    if config.family == "mixtral":
        mixture, router = f"{block}block_sparse_moe", "gate"
        theirs = {"gate": "w1", "up": "w3", "down": "w2"}
    else:
        mixture, router = f"{block}mlp", "gate"
        theirs = {x: f"{x}_proj" for x in ("gate", "up", "down")}
    table = linear("layers/mlp/router", f"{mixture}.{router}", bias=False)
    for ours, name in theirs.items():
        table |= linear(
            f"layers/mlp/experts/{ours}", f"{mixture}.experts.{{expert}}.{name}", bias=False
        )
        if config.experts.shared_size is not None:
            table |= linear(
                f"layers/mlp/shared/{ours}", f"{mixture}.shared_expert.{name}", bias=False
            )
    if config.experts.shared_size is not None:
        table |= linear("layers/mlp/shared_gate", f"{mixture}.shared_expert_gate", bias=False)
    return table


def _gpt2(config: DecoderConfig) -> dict[str, Source]:
    """GPT-2's linear layers are kept as (in, out), with queries, keys and values side by side."""
    block = "transformer.h.{layer}."
    table = {
        "embed/embedding": Source("transformer.wte.weight"),
        "positions/embedding": Source("transformer.wpe.weight"),
        **layer_norm("norm", "transformer.ln_f"),
        **layer_norm("layers/attn_norm", f"{block}ln_1"),
        **layer_norm("layers/mlp_norm", f"{block}ln_2"),
        **fused("layers/attn", "qkv", f"{block}attn.c_attn", qkv_sizes(config), bias=True),
    }
    for ours, theirs in (
        ("attn/o", "attn.c_proj"),
        ("mlp/up", "mlp.c_fc"),
        ("mlp/down", "mlp.c_proj"),
    ):
        table |= {
            f"layers/{ours}/kernel": Source(f"{block}{theirs}.weight"),
            f"layers/{ours}/bias": Source(f"{block}{theirs}.bias"),
        }
    return (
        table if config.tied else table | {"head/kernel": Source("lm_head.weight", transpose=True)}
    )


def _gpt_neox(config: DecoderConfig) -> dict[str, Source]:
    block = "gpt_neox.layers.{layer}."
    how = dict(transpose=True, bias=config.qkv_bias, heads=config.num_heads)
    table = {
        "embed/embedding": Source("gpt_neox.embed_in.weight"),
        **layer_norm("norm", "gpt_neox.final_layer_norm"),
        **layer_norm("layers/attn_norm", f"{block}input_layernorm"),
        **layer_norm("layers/mlp_norm", f"{block}post_attention_layernorm"),
        **fused(
            "layers/attn", "qkv", f"{block}attention.query_key_value", qkv_sizes(config), **how
        ),
        **linear("layers/attn/o", f"{block}attention.dense", bias=config.out_bias),
        **linear("layers/mlp/up", f"{block}mlp.dense_h_to_4h", bias=True),
        **linear("layers/mlp/down", f"{block}mlp.dense_4h_to_h", bias=True),
    }
    return (
        table
        if config.tied
        else table | {"head/kernel": Source("embed_out.weight", transpose=True)}
    )


def _opt(config: DecoderConfig) -> dict[str, Source]:
    block = "model.decoder.layers.{layer}."
    table = {
        "embed/embedding": Source("model.decoder.embed_tokens.weight"),
        "positions/embedding": Source("model.decoder.embed_positions.weight"),
        **layer_norm("norm", "model.decoder.final_layer_norm"),
        **layer_norm("layers/attn_norm", f"{block}self_attn_layer_norm"),
        **layer_norm("layers/mlp_norm", f"{block}final_layer_norm"),
        **linear("layers/attn/o", f"{block}self_attn.out_proj", bias=config.out_bias),
        **linear("layers/mlp/up", f"{block}fc1", bias=config.mlp_bias),
        **linear("layers/mlp/down", f"{block}fc2", bias=config.mlp_bias),
    }
    for x in "qkv":
        table |= linear(f"layers/attn/{x}", f"{block}self_attn.{x}_proj", bias=config.qkv_bias)
    return (
        table if config.tied else table | {"head/kernel": Source("lm_head.weight", transpose=True)}
    )


def linear(ours: str, theirs: str, *, bias: bool) -> dict[str, Source]:
    """A linear layer, kept as (out, in)."""
    table = {f"{ours}/kernel": Source(f"{theirs}.weight", transpose=True)}
    return table | {f"{ours}/bias": Source(f"{theirs}.bias")} if bias else table


def layer_norm(ours: str, theirs: str) -> dict[str, Source]:
    """A layer norm with its bias."""
    return {f"{ours}/scale": Source(f"{theirs}.weight"), f"{ours}/bias": Source(f"{theirs}.bias")}


def fused(
    ours: str,
    parts: str | tuple[str, ...],
    theirs: str,
    sizes: tuple[int, ...],
    *,
    transpose: bool = False,
    bias: bool = False,
    heads: int | None = None,
) -> dict[str, Source]:
    """Several linear layers of ours in one of theirs."""
    table = {}
    for index, part in enumerate(parts):
        where = dict(part=(index, sizes), heads=heads)
        table[f"{ours}/{part}/kernel"] = Source(f"{theirs}.weight", transpose, **where)
        if bias:
            table[f"{ours}/{part}/bias"] = Source(f"{theirs}.bias", **where)
    return table


def qkv_sizes(config: DecoderConfig) -> tuple[int, int, int]:
    """Outputs of the layers of queries, keys and values."""
    kv = config.num_kv_heads * config.head_dim
    return config.num_heads * config.head_dim, kv, kv


def sources_by_tensor(table: Mapping[str, Source]) -> dict[str, list[str]]:
    """Our paths by the tensor that holds them, parts in order."""
    held: dict[str, list[str]] = {}
    for path, source in table.items():
        held.setdefault(source.name, []).append(path)
    return {
        name: sorted(paths, key=lambda path: (table[path].part or (0,))[0])
        for name, paths in held.items()
    }
