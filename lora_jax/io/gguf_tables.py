"""Which GGUF tensor each weight of a decoder is, one table an architecture (names of llama.cpp's
gguf-py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from lora_jax.io.decoder_names import Source, fused, layer_norm, linear, qkv_sizes
from lora_jax.io.gguf import GgufFile
from lora_jax.models.decoder_config import DecoderConfig

_EXPERTS = "_exps.weight"  # such a tensor holds the matrices of all experts


def gguf_table(config: DecoderConfig, arch: str) -> dict[str, Source]:
    """The GGUF tensor of every weight of an architecture, by our path with `layers/` for any layer.

    Gemma's norms are kept as the scale itself. Matrices of experts are named as `ExpertsApart` has
    them.
    """
    block = "blk.{layer}."
    if arch in ("gpt2", "gptneox"):
        return _layer_norm_decoder(config, block)
    table = {
        "embed/embedding": Source("token_embd.weight"),
        "norm/scale": Source("output_norm.weight"),
        "layers/attn_norm/scale": Source(f"{block}attn_norm.weight"),
        "layers/mlp_norm/scale": Source(f"{block}ffn_norm.weight"),
        **linear("layers/attn/o", f"{block}attn_output", bias=config.out_bias),
    }
    if not config.tied:
        table["head/kernel"] = Source("output.weight", transpose=True)
    if config.post_norms:
        table["layers/attn_post_norm/scale"] = Source(f"{block}post_attention_norm.weight")
        table["layers/mlp_post_norm/scale"] = Source(f"{block}post_ffw_norm.weight")
    if config.qk_norm:
        table |= {
            f"layers/attn/{x}_norm/scale": Source(f"{block}attn_{x}_norm.weight") for x in "qk"
        }
    if arch == "phi3":
        size = config.intermediate_size
        table |= fused("layers/attn", "qkv", f"{block}attn_qkv", qkv_sizes(config), transpose=True)
        table |= fused("layers/mlp", ("gate", "up"), f"{block}ffn_up", (size, size), transpose=True)
        return table | linear("layers/mlp/down", f"{block}ffn_down", bias=False)
    for x, heads in (("q", config.num_heads), ("k", config.num_kv_heads), ("v", None)):
        pairs = heads if arch == "llama" else None
        table[f"layers/attn/{x}/kernel"] = Source(
            f"{block}attn_{x}.weight", transpose=True, pairs=pairs
        )
        if config.qkv_bias:
            table[f"layers/attn/{x}/bias"] = Source(f"{block}attn_{x}.bias", pairs=pairs)
    if config.experts is not None:
        return table | _experts(config, block)
    for x in ("gate", "up", "down"):
        table |= linear(f"layers/mlp/{x}", f"{block}ffn_{x}", bias=config.mlp_bias)
    return table


def _layer_norm_decoder(config: DecoderConfig, block: str) -> dict[str, Source]:
    """GPT-2 and GPT-NeoX: queries, keys and values are side by side in both, other than in
    GPT-NeoX's own files.
    """
    table = {
        "embed/embedding": Source("token_embd.weight"),
        **layer_norm("norm", "output_norm"),
        **layer_norm("layers/attn_norm", f"{block}attn_norm"),
        **layer_norm("layers/mlp_norm", f"{block}ffn_norm"),
        **fused(
            "layers/attn",
            "qkv",
            f"{block}attn_qkv",
            qkv_sizes(config),
            transpose=True,
            bias=config.qkv_bias,
        ),
        **linear("layers/attn/o", f"{block}attn_output", bias=config.out_bias),
        **linear("layers/mlp/up", f"{block}ffn_up", bias=config.mlp_bias),
        **linear("layers/mlp/down", f"{block}ffn_down", bias=config.mlp_bias),
    }
    if config.rotary is None:
        table["positions/embedding"] = Source("position_embd.weight")
    return (
        table if config.tied else table | {"head/kernel": Source("output.weight", transpose=True)}
    )


def _experts(config: DecoderConfig, block: str) -> dict[str, Source]:
    table = linear("layers/mlp/router", f"{block}ffn_gate_inp", bias=False)
    for x in ("gate", "up", "down"):
        table[f"layers/mlp/experts/{x}/kernel"] = Source(
            f"{block}ffn_{x}{_EXPERTS}[{{expert}}]", transpose=True
        )
        if config.experts.shared_size is not None:
            table |= linear(f"layers/mlp/shared/{x}", f"{block}ffn_{x}_shexp", bias=False)
    if config.experts.shared_size is not None:
        table["layers/mlp/shared_gate/kernel"] = Source(
            f"{block}ffn_gate_inp_shexp.weight", vector=True
        )
    return table


class ExpertsApart:
    """The tensors of a GGUF file, those of experts one by one: `blk.0.ffn_up_exps.weight[3]` is the
    matrix of expert 3.
    """

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._where: dict[str, tuple[str, int | None]] = {}
        for name in file:
            if name.endswith(_EXPERTS) and len(file.shape(name)) == 3:
                self._where |= {f"{name}[{n}]": (name, n) for n in range(file.shape(name)[0])}
            else:
                self._where[name] = (name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __getitem__(self, name: str) -> np.ndarray:
        whole, index = self._where[name]
        return self._file[whole] if index is None else self._file.entry(whole, index)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        whole, index = self._where[name]
        return self._file.shape(whole) if index is None else self._file.shape(whole)[1:]


def experts_together(tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """What `ExpertsApart` took apart, put together again; the experts of a tensor follow one
    another.
    """
    name, parts = "", []
    for part, tensor in tensors:
        whole, apart, _ = part.partition("[")
        if parts and whole != name:
            yield name, np.stack(parts)
            parts = []
        if apart:
            name, parts = whole, [*parts, tensor]
        else:
            yield part, tensor
    if parts:
        yield name, np.stack(parts)
