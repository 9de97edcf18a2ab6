"""GGUF's names of a decoder's modules (llama.cpp's gguf-py), and the matrices of experts, which one
tensor holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from lora_jax.io.family import Table
from lora_jax.io.gguf import GgufFile
from lora_jax.io.tensors import Tensors

_EXPERTS = "_exps.weight"  # such a tensor holds the matrices of all experts
_PARTS = ("gate", "up", "down")
# Of all architectures; Gemma's norms are kept as the scale itself. Matrices of experts are named as
# `ExpertsApart` has them.
MODULES: Table = {
    "embed": "token_embd",
    "positions": "position_embd",
    "norm": "output_norm",
    "head": "output",
    "layers/attn_norm": "blk.{}.attn_norm",
    "layers/attn_post_norm": "blk.{}.post_attention_norm",
    "layers/mlp_norm": "blk.{}.ffn_norm",
    "layers/mlp_post_norm": "blk.{}.post_ffw_norm",
    **{f"layers/attn/{x}_norm": f"blk.{{}}.attn_{x}_norm" for x in "qk"},
    **{f"layers/attn/{x}": f"blk.{{}}.attn_{x}" for x in "qkv"},
    "layers/attn/o": "blk.{}.attn_output",
    **{f"layers/mlp/{x}": f"blk.{{}}.ffn_{x}" for x in _PARTS},
    "layers/mlp/router": "blk.{}.ffn_gate_inp",
    **{f"layers/mlp/experts/{x}": f"blk.{{}}.ffn_{x}_exps.*[{{}}]" for x in _PARTS},
    **{f"layers/mlp/shared/{x}": f"blk.{{}}.ffn_{x}_shexp" for x in _PARTS},
    # It lacks the axis of the single output there.
    "layers/mlp/shared_gate": ("blk.{}.ffn_gate_inp_shexp", {"kind": "vector"}),
}


class ExpertsApart(Tensors):
    """The tensors of a GGUF file, those of experts one by one: `blk.0.ffn_up_exps.weight[3]` is the
    matrix of expert 3.
    """

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._entries: dict[str, tuple[str, int | None]] = {}
        for name in file:
            if name.endswith(_EXPERTS) and len(file.shape(name)) == 3:
                self._entries |= {f"{name}[{n}]": (name, n) for n in range(file.shape(name)[0])}
            else:
                self._entries[name] = (name, None)

    def __getitem__(self, name: str) -> np.ndarray:
        whole, index = self._entries[name]
        return self._file[whole] if index is None else self._file.entry(whole, index)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        whole, index = self._entries[name]
        return self._file.shape(whole) if index is None else self._file.shape(whole)[1:]

    def size(self, name: str) -> int:
        """The bytes of a tensor in its file."""
        whole, index = self._entries[name]
        return self._file.size(whole) // (1 if index is None else self._file.shape(whole)[0])


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
