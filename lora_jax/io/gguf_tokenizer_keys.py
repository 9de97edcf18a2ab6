"""A tokenizer as the metadata of a GGUF file: taken over from another one, or written from a byte-level BPE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.data.text_tokenizers import TextTokenizer
from lora_jax.io.decoder_weights import gguf_file
from lora_jax.io.gguf import GgufFile
from lora_jax.io.gguf_splits import SPLITS
from lora_jax.io.gguf_tokenizer import CONTROL, USER_DEFINED, gguf_tokenizer, load_text_tokenizer

_NORMAL, _UNUSED = 1, 5  # tokenizer.ggml.token_type
_PREFIX = "tokenizer."
# Texts on which a tokenizer that is written must agree with the one it came from.
_PROBES = (
    "Hello, world!", "  two  spaces ", "it's WE'LL I'M", "12345 3.14", "a\n\n b\t\tc\r\n", "x=[1,2];//...", "naïve café e\u0301", "日本語", "🙂👩‍👩‍👧",
    "\x00\x7f<s>",
)  # fmt: skip


def tokenizer_keys(source: Path | str | TextTokenizer, arch: str, vocab_size: int) -> dict[str, Any]:
    """The tokenizer.* keys; a vocabulary that is smaller than the model's is filled up with tokens that are never made.

    Raises:
        FileNotFoundError: there is no tokenizer. ValueError: it is larger than the model's vocabulary, or of a kind that
            cannot be written.
    """
    if not isinstance(source, TextTokenizer):
        file = gguf_file(Path(source))
        if file is not None and file.suffix != ".model":
            return _filled(_taken_over(file), vocab_size)
        source = load_text_tokenizer(source)
    keys = _byte_level_keys(source)
    written = gguf_tokenizer(keys | {"general.architecture": arch}, "the new file")
    for text in _PROBES:
        if written.encode(text) != source.encode(text):
            raise ValueError(
                f"GGUF cannot say how this tokenizer splits {text!r}: {source.encode(text)} would become {written.encode(text)}. "
                "Give the tokenizer of a GGUF file of the model."
            )
    return _filled(keys, vocab_size)


def _taken_over(file: Path) -> dict[str, Any]:
    keys = {key: value for key, value in GgufFile(file).metadata.items() if key.startswith(_PREFIX)}
    if "tokenizer.ggml.tokens" not in keys:
        raise ValueError(f"{file} has no tokenizer to take over. Give the GGUF file that the model was loaded from.")
    return keys


def _filled(keys: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    tokens = keys["tokenizer.ggml.tokens"]
    if len(tokens) > vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokens)} words and the model's embedding {vocab_size}: they do not belong together. Use the "
            "tokenizer that the model was trained with."
        )
    more = vocab_size - len(tokens)
    if not more:
        return dict(keys)
    types = keys.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    out = dict(keys) | {
        "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{n}]" for n in range(len(tokens), vocab_size))],
        "tokenizer.ggml.token_type": [*types, *[_UNUSED] * more],
    }
    if scores := keys.get("tokenizer.ggml.scores"):
        out["tokenizer.ggml.scores"] = [*scores, *[min(scores) - 1.0] * more]
    return out


def _byte_level_keys(tokenizer: TextTokenizer) -> dict[str, Any]:
    told = json.loads(tokenizer.backend.to_str())
    model, added = told["model"], {token["id"]: token for token in told["added_tokens"]}
    name = next((name for name, split in SPLITS.items() if _is_split(told, split)), None)
    if model["type"] != "BPE" or name is None:
        raise ValueError(
            f"The tokenizer, of type {model['type']!r} with the pre-tokenizer {_kind(told['pre_tokenizer'])}, cannot be written as GGUF; a "
            "byte-level BPE that splits as GPT-2's, Llama 3's or Qwen's can. Give the tokenizer of a GGUF file of the model."
        )
    tokens = tokenizer.backend.get_vocab(with_added_tokens=True)
    by_id = {n: token for token, n in tokens.items()}
    if set(by_id) != set(range(len(by_id))):
        raise ValueError(f"The tokenizer has {len(by_id)} tokens with ids up to {max(by_id)}; GGUF needs them without gaps.")
    types = {n: CONTROL if token["special"] else USER_DEFINED for n, token in added.items()}
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [by_id[n] for n in range(len(by_id))],
        "tokenizer.ggml.token_type": [types.get(n, _NORMAL) for n in range(len(by_id))],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_ids[0] if tokenizer.eos_ids else None,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos,
        "tokenizer.ggml.add_eos_token": tokenizer.add_eos,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    return {key: value for key, value in keys.items() if value is not None}


def _is_split(told: Mapping[str, Any], split: Any) -> bool:
    """Whether a tokenizer.json cuts texts as a split does."""
    steps = json.loads(split.pre_tokenizer().__getstate__())
    same = _essence(told["pre_tokenizer"]) == _essence(steps)
    return same and bool(told["model"].get("ignore_merges")) == split.whole and (_kind(told["normalizer"]) == ["NFC"]) == split.composed


def _essence(step: Any) -> Any:
    """A pre-tokenizer without what does not change the pieces."""
    if not isinstance(step, Mapping):
        return step
    if step["type"] == "Sequence":
        return [_essence(inner) for inner in step["pretokenizers"]]
    return {key: value for key, value in step.items() if key != "trim_offsets"}


def _kind(step: Mapping[str, Any] | None) -> list[str]:
    if step is None:
        return []
    inner = step.get("pretokenizers") or step.get("normalizers") or [step]
    return [each["type"] for each in inner]
