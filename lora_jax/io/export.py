"""The way out: a merged model as a Hugging Face folder, or as one GGUF file, for the engines of the ecosystem."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lora_jax.data.text_tokenizers import TextTokenizer, save_text_tokenizer
from lora_jax.io.decoder_weights import save_decoder, tensors_by_table
from lora_jax.io.gguf import GgufFile
from lora_jax.io.gguf_decoder import ARCHITECTURES, gguf_table
from lora_jax.models.decoder_config import DecoderConfig

_ARCHITECTURE = {"mistral": "llama", "gemma3_text": "gemma3"}  # where GGUF's name differs from the family's
_TOKENIZER = "tokenizer."
_GEMMA_PATTERN = {"gemma2": 2, "gemma3": 6}


def export_merged(
    folder: Path | str, config: DecoderConfig, params: Mapping[str, Any], tokenizer: TextTokenizer | None = None, *, dtype: Any = np.float32
) -> None:
    """Writes a folder that transformers loads: config.json, safetensors, and the tokenizer if given.

    Args:
        params: plain weights, such as the first result of `lora_jax.merge`.

    Raises:
        ValueError: the params are not this model's, hold a box or a NaN. OSError: the folder cannot be written.
    """
    if tokenizer is None:
        save_decoder(folder, config, params, dtype=dtype)
        return
    ends: Any = tokenizer.eos_ids[0] if len(tokenizer.eos_ids) == 1 else list(tokenizer.eos_ids) or None
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends, "pad_token_id": tokenizer.pad_id}
    save_decoder(folder, config, params, dtype=dtype, special_ids=ids)
    save_text_tokenizer(folder, tokenizer)
    (Path(folder) / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")


def export_gguf(
    path: Path | str, config: DecoderConfig, params: Mapping[str, Any], source: Path | str, *, format: Literal["F32", "F16", "Q8_0"] = "F16"
) -> None:
    """Writes a GGUF file with these weights and the tokenizer of the GGUF file `source`, in one step.

    Matrices are stored in `format`, norms and biases in F32. Rows that are no multiple of 32 long are stored in F16 under Q8_0.

    Raises:
        ImportError: the package gguf is missing (extra 'gguf').
        ValueError: GGUF has no such architecture here, the params are not this model's, or `source` has no tokenizer.
        OSError: the file cannot be written; what was there is kept.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError("Writing GGUF needs the package gguf: pip install 'lora-jax[gguf]'.") from error
    arch = _ARCHITECTURE.get(config.family, config.family)
    _check(config, arch)
    told = GgufFile(source).metadata
    if f"{_TOKENIZER}ggml.tokens" not in told:
        raise ValueError(f"{source} has no tokenizer to take over. Give the GGUF file that the model was loaded from.")
    kinds = {"F32": gguf.GGMLQuantizationType.F32, "F16": gguf.GGMLQuantizationType.F16, "Q8_0": gguf.GGMLQuantizationType.Q8_0}
    path = Path(path)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    writer = gguf.GGUFWriter(str(new), arch)
    try:
        for key, value in _metadata(config, arch).items():
            _add(writer, f"{arch}.{key}", value)
        for key, value in told.items():
            if key.startswith(_TOKENIZER):
                _add(writer, key, value)
        for name, tensor in tensors_by_table(config, params, gguf_table(config, arch), dtype=np.float32):
            kind = kinds[format] if tensor.ndim > 1 else kinds["F32"]
            if format == "Q8_0" and tensor.shape[-1] % 32:
                kind = kinds["F16"] if tensor.ndim > 1 else kinds["F32"]
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _check(config: DecoderConfig, arch: str) -> None:
    rotary, local = config.rotary, config.local_rotary
    plain = rotary is not None and rotary.scaling in ("none", "linear") and (local is None or local.scaling == "none")
    if arch not in ARCHITECTURES or config.experts is not None or not plain or (config.window is not None and arch not in _GEMMA_PATTERN):
        raise ValueError(
            f"The family {config.family!r} with rotary scaling {rotary.scaling if rotary else 'none'!r} and window {config.window} cannot "
            f"be written as GGUF here; dense models of {', '.join(ARCHITECTURES)} without longer-text scaling can. Use export_merged."
        )
    if arch in _GEMMA_PATTERN and config.local_layers != tuple(bool((n + 1) % _GEMMA_PATTERN[arch]) for n in range(config.num_layers)):
        raise ValueError(f"GGUF fixes which layers of {arch} are local, every {_GEMMA_PATTERN[arch]}th not; this model has others.")


def _metadata(config: DecoderConfig, arch: str) -> dict[str, Any]:
    out = {
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.freq_base": float(config.rotary.base),
        "rope.dimension_count": int(config.head_dim * config.rotary.fraction),
        "vocab_size": config.vocab_size,
        "attention.sliding_window": config.window,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
    }
    if config.rotary.scaling == "linear":
        out |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rotary.factor)}
    return {key: value for key, value in out.items() if value is not None}


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
