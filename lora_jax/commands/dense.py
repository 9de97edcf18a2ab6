"""A run's model with its adapter merged, as the dense files of other tools."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spm.model", "special_tokens_map.json")  # fmt: skip


def write_dense(saved: Any, out: Path, *, gguf: str | None, dtype: str, shard_bytes: int) -> None:
    """Writes the merged weights of a run and its tokenizer, to a folder that transformers loads or
    to one GGUF file of that type, and prints what was written.

    Raises:
        ValueError: the model is none that such files can say, or GGUF of what is no decoder.
        OSError: the folder cannot be written.
    """
    import jax.numpy as jnp
    import ml_dtypes
    import numpy as np

    from lora_jax.adapters.merge import merge
    from lora_jax.io.described import gguf_file
    from lora_jax.io.export import export_gguf, export_merged
    from lora_jax.io.hub import resolve
    from lora_jax.io.weights import save_model
    from lora_jax.models.decoder_config import DecoderConfig

    config = saved.task.model.config
    decodes = isinstance(config, DecoderConfig)
    if gguf and not decodes:
        raise ValueError(
            f"A GGUF file holds a decoder, and this run's model is {type(config).__name__}'s. Leave "
            "out --gguf for a folder that transformers loads."
        )
    base = resolve(saved.config.model.name, revision=saved.config.model.revision)
    # A sum in the 16 bits of the base would lose most of a small update before it is written.
    merged, _ = merge(saved.frozen, saved.trainable, dtype=jnp.float32)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    if gguf:
        # The tokenizer of a base that is a GGUF file is taken over key by key.
        export_gguf(out, config, merged, gguf_file(base) or saved.task.tokenizer, format=gguf)
    elif decodes:
        export_merged(
            out, config, merged, saved.task.tokenizer, dtype=kind, shard_bytes=shard_bytes
        )
    else:
        save_model(out, config, merged, dtype=kind, shard_bytes=shard_bytes)
        for name in TOKENIZER:
            if (base / name).is_file():
                shutil.copy2(base / name, out / name)
    files = [out] if out.is_file() else [path for path in out.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"written: {out} ({size / 1e6:.1f} MB, {gguf or dtype})")
