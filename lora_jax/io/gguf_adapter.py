"""An adapter as llama.cpp's GGUF adapter, for a base of the same architecture in whatever format it is
stored: written from PEFT's form of it under GGUF's names of modules, and read back through that.

Layout (llama.cpp's convert_lora_to_gguf and llama-adapter): general.type 'adapter', adapter.type
'lora', one adapter.lora.alpha; of each matrix NAME the tensors NAME.lora_a (rank, in) and NAME.lora_b
(out, rank). What a matrix adds is alpha / its rank times their product.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.core.extras import needs
from lora_jax.core.replacing import replacing
from lora_jax.core.trainable import Trainable, Trainables
from lora_jax.io.config_json import in_file
from lora_jax.io.gguf import GgufFile
from lora_jax.io.gguf_write import gguf_names, gguf_of
from lora_jax.io.names import in_layout, unrolled
from lora_jax.io.peft_export import PREFIX, PeftAdapter, to_peft
from lora_jax.io.peft_import import from_peft
from lora_jax.io.peft_settings import alpha_of, common
from lora_jax.models.decoder_config import DecoderConfig

_A, _B = ".weight.lora_a", ".weight.lora_b"


def export_gguf_adapter(
    path: Path | str, config: DecoderConfig, trainable: Trainables
) -> tuple[str, ...]:
    """Writes an adapter as a GGUF file that llama.cpp adds to its base (`--lora`), in float32 and in
    one step; what was written in another form than it is held here.

    Variants are written as the plain LoRA that computes the same, as `to_peft` does. The file has one
    alpha; matrices with another scale have it multiplied into b.

    Args:
        config: the base's.

    Raises:
        ImportError: the package gguf is missing (extra 'gguf').
        KeyError: the adapter is for another model.
        ValueError: GGUF has no such architecture, or llama.cpp's adapters cannot say what this one
            computes: DoRA, weights trained whole, embeddings, experts, updates without factors.
        OSError: the file cannot be written; what was there is kept.
    """
    with needs("gguf"):
        import gguf
    arch = gguf_of(config).architecture
    names = in_layout(gguf_names(config), trainable)
    for site, leaf in trainable.items():
        name = names.get(site)
        wrong = (
            "is trained whole"
            if leaf.kind in ("whole", "rows")
            else "has a magnitude (DoRA)"
            if getattr(leaf, "magnitude", None) is not None
            else "is an embedding"
            if name is not None and name.kind == "embedding"
            else "is a matrix of experts"
            if name is not None and name.parameter.endswith("]")
            else ""
        )
        if wrong:
            raise ValueError(
                f"{site!r} {wrong}, which llama.cpp's adapters have no place for: they hold the "
                "factors of single matrices. Merge the adapter, and write the model with "
                "export_gguf."
            )
    made = to_peft(trainable, names, plain=True)
    modules = sorted(made.recorded["scale"])
    factors = {module: _factors(made, module) for module in modules}
    alphas = {m: alpha_of(made.recorded["scale"][m], a.shape[0]) for m, (a, _) in factors.items()}
    alpha, others = common(alphas)
    notes = made.notes
    if others:
        notes += (f"{len(others)} of {len(modules)} matrices have their scales multiplied into b",)

    with replacing(Path(path)) as new:
        writer = gguf.GGUFWriter(str(new), arch)  # This writes general.architecture as well.
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(alpha))
        for module, (a, b) in factors.items():
            factor = np.float32(others.get(module, alpha) / alpha)
            writer.add_tensor(module + _A, a)
            writer.add_tensor(module + _B, b * factor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return notes


def load_gguf_adapter(
    path: Path | str, config: DecoderConfig, *, scan: bool = True
) -> dict[str, Trainable]:
    """The adapter in a GGUF file, ours or one that llama.cpp's converter wrote, in our paths and
    layout.

    Args:
        config: the base's.
        scan: whether the base's layers are stacked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no adapter, is for another model, is damaged, or holds what has no place
            here (norms, embeddings).
    """
    file = GgufFile(path)
    arch = gguf_of(config).architecture
    expected = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": arch,
    }
    for key, value in expected.items():
        if (came := file.metadata.get(key)) != value:
            raise ValueError(
                f"{file.path} has {key} {came!r}, and an adapter of this base has {value!r}. "
                "Give the adapter's own file, and the configuration of its base."
            )
    alpha = file.metadata.get("adapter.lora.alpha")
    if not isinstance(alpha, float):
        raise ValueError(f"{file.path} needs a number as adapter.lora.alpha, but has {alpha!r}.")
    if odd := [name for name in file if not name.endswith((_A, _B))]:
        raise ValueError(
            f"{file.path} holds {odd[0]!r}, which is no factor of a matrix: nothing here reads it. "
            "Take it out, or merge it with llama.cpp's export-lora."
        )
    tensors, ranks = {}, {}
    for name in file:
        module, last = name.removesuffix(_A).removesuffix(_B), "A" if name.endswith(_A) else "B"
        tensors[f"{PREFIX}{module}.lora_{last}.weight"] = np.asarray(file[name], np.float32)
        if last == "A":
            ranks[module] = file.shape(name)[0]
    if not ranks:
        raise ValueError(f"{file.path} holds no factors. Write it again.")
    rank, pattern = common(ranks)
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha or rank,
        "rank_pattern": pattern,
        # llama.cpp takes an alpha of 0 for a scale of 1.
        "alpha_pattern": {} if alpha else pattern,
        "target_modules": sorted(ranks),
    }
    names = gguf_names(config)
    with in_file(file.path):
        found = PeftAdapter(settings, tensors, {}, ())
        return from_peft(found, names if scan else unrolled(names))


def _factors(made: PeftAdapter, module: str) -> tuple[np.ndarray, np.ndarray]:
    """(rank, in) and (out, rank) of a matrix."""
    key = f"{PREFIX}{module}.lora_{{}}.weight"
    a, b = (made.tensors[key.format(letter)] for letter in "AB")
    return np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
