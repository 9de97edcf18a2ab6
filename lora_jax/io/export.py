"""The way out: a merged model as a Hugging Face folder, or as one GGUF file, for the engines of the
ecosystem.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lora_jax.core.extras import needs
from lora_jax.core.json_files import save_json
from lora_jax.core.paths import flatten
from lora_jax.core.replacing import replacing
from lora_jax.data.text_tokenizers import TextTokenizer, save_text_tokenizer
from lora_jax.io.gguf_tables import experts_together
from lora_jax.io.gguf_tokenizer_keys import tokenizer_keys
from lora_jax.io.gguf_write import gguf_names, gguf_of, header_of
from lora_jax.io.named_weights import named_tensors
from lora_jax.io.names import in_layout
from lora_jax.io.weights import SHARD_BYTES, save_decoder
from lora_jax.models.decoder_config import DecoderConfig

# llama.cpp keeps these in F32.
_KEPT = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight")


def export_merged(
    folder: Path | str,
    config: DecoderConfig,
    params: Mapping[str, Any],
    tokenizer: TextTokenizer | None = None,
    *,
    dtype: Any = np.float32,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers loads: config.json, safetensors, and the tokenizer if
    given.

    Args:
        params: plain weights, such as the first result of `lora_jax.merge`.
        dtype, shard_bytes: as `save_model`.

    Raises:
        ValueError: the params are not this model's, hold a box or a NaN. OSError: the folder cannot
            be written.
    """
    if tokenizer is None:
        save_decoder(folder, config, params, dtype=dtype, shard_bytes=shard_bytes)
        return
    ends: Any = (
        tokenizer.eos_ids[0] if len(tokenizer.eos_ids) == 1 else list(tokenizer.eos_ids) or None
    )
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends, "pad_token_id": tokenizer.pad_id}
    save_decoder(folder, config, params, dtype=dtype, shard_bytes=shard_bytes, special_ids=ids)
    save_text_tokenizer(folder, tokenizer)
    save_json(Path(folder) / "generation_config.json", ids)


def export_gguf(
    path: Path | str,
    config: DecoderConfig,
    params: Mapping[str, Any],
    source: Path | str | TextTokenizer,
    *,
    format: Literal["F32", "F16", "Q8_0"] = "F16",
) -> None:
    """Writes a GGUF file with these weights and a tokenizer, in one step.

    Matrices are stored in `format`; norms, biases, routers and tables of positions in F32. Rows
    that are no multiple of 32 long are stored in F16 under Q8_0.

    Args:
        source: the tokenizer: a GGUF file, whose keys are taken over, or a byte-level or
            SentencePiece BPE: a Hugging Face folder, or what `load_text_tokenizer` read.

    Raises:
        ImportError: the package gguf is missing (extra 'gguf').
        ValueError: GGUF cannot say what this model is, the params are not this model's, a weight is
            too large for float16, or `source` has no tokenizer that can be written or one with more
            words than the model.
        OSError: the file cannot be written; what was there is kept.
    """
    with needs("gguf"):
        import gguf
    arch = gguf_of(config).architecture
    metadata, factors = header_of(config)
    flat = flatten(params)
    told = tokenizer_keys(source, arch, config.vocab_size)

    path = Path(path)
    with replacing(path) as new:
        writer = gguf.GGUFWriter(str(new), arch)  # This writes general.architecture as well.
        # As llama.cpp's readers want each kind of value.
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }

        for key, value in (metadata | told).items():
            if key != "general.architecture":
                add[type(value)](key, value)
        for name, factor in factors.items():
            writer.add_tensor(name, factor)
        tensors = named_tensors(in_layout(gguf_names(config), flat), flat)
        for name, tensor in experts_together(tensors):
            stored = _format_of(name, tensor, format)
            if stored == "F16" and np.abs(tensor).max() > np.finfo(np.float16).max:
                raise ValueError(
                    f"{name} holds {np.abs(tensor).max():g}, more than float16 can. Use format "
                    "'F32'."
                )
            kind = gguf.GGMLQuantizationType[stored]
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _format_of(name: str, tensor: np.ndarray, format: str) -> str:
    if tensor.ndim == 1 or name.endswith(_KEPT):
        return "F32"
    return "F16" if format == "Q8_0" and tensor.shape[-1] % 32 else format
