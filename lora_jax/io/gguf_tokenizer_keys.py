"""A tokenizer as the metadata of a GGUF file: taken over from another one, or written from a BPE,
byte-level or SentencePiece's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.data.text_tokenizers import TextTokenizer
from lora_jax.io.described import gguf_file
from lora_jax.io.gguf import GgufFile
from lora_jax.io.gguf_splits import SPLITS
from lora_jax.io.gguf_tokenizer import gguf_tokenizer, load_text_tokenizer
from lora_jax.io.merges import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, merges_of

_BYTES = frozenset(f"<0x{n:02X}>" for n in range(256))
_NEVER = -1e6  # the score of a token that no merge makes
_PREFIX = "tokenizer."
# Texts on which a tokenizer that is written must agree with the one it came from.
_PROBES = (
    "Hello, world!", "  two  spaces ", "it's WE'LL I'M", "12345 3.14", "a\n\n b\t\tc\r\n", "x=[1,2];//...", "naïve café e\u0301", "日本語", "🙂👩‍👩‍👧",
    "\x00\x7f<s>",
)  # fmt: skip


def tokenizer_keys(
    source: Path | str | TextTokenizer, arch: str, vocab_size: int
) -> dict[str, Any]:
    """The tokenizer.* keys; a vocabulary that is smaller than the model's is filled up with tokens
    that are never made.

    Raises:
        FileNotFoundError: there is no tokenizer. ValueError: it is larger than the model's
            vocabulary, or of a kind that cannot be written.
    """
    if not isinstance(source, TextTokenizer):
        file = gguf_file(Path(source))
        if file is not None and file.suffix != ".model":
            return _filled(_taken_over(file), vocab_size)
        source = load_text_tokenizer(source)
    keys = _keys(source, arch)
    written = gguf_tokenizer(keys | {"general.architecture": arch}, "the new file")
    for text in _PROBES:
        if written.encode(text) != source.encode(text):
            raise ValueError(
                f"GGUF cannot say how this tokenizer splits {text!r}: {source.encode(text)} would "
                f"become {written.encode(text)}. Give the tokenizer of a GGUF file of the model."
            )
    return _filled(keys, vocab_size)


def _taken_over(file: Path) -> dict[str, Any]:
    keys = {key: value for key, value in GgufFile(file).metadata.items() if key.startswith(_PREFIX)}
    if "tokenizer.ggml.tokens" not in keys:
        raise ValueError(
            f"{file} has no tokenizer to take over. Give the GGUF file that the model was loaded "
            "from."
        )
    return keys


def _filled(keys: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    tokens = keys["tokenizer.ggml.tokens"]
    if len(tokens) > vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokens)} words and the model's embedding {vocab_size}: they "
            "do not belong together. Use the tokenizer that the model was trained with."
        )
    more = vocab_size - len(tokens)
    if not more:
        return dict(keys)
    types = keys.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    out = dict(keys) | {
        "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{n}]" for n in range(len(tokens), vocab_size))],
        "tokenizer.ggml.token_type": [*types, *[UNUSED] * more],
    }
    if scores := keys.get("tokenizer.ggml.scores"):
        out["tokenizer.ggml.scores"] = [*scores, *[min(scores) - 1.0] * more]
    return out


def _keys(tokenizer: TextTokenizer, arch: str) -> dict[str, Any]:
    told = json.loads(tokenizer.backend.to_str())
    by_id = {n: token for token, n in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    if set(by_id) != set(range(len(by_id))):
        raise ValueError(
            f"The tokenizer has {len(by_id)} tokens with ids up to {max(by_id)}; GGUF needs them "
            "without gaps."
        )
    tokens = [by_id[n] for n in range(len(by_id))]
    types = {
        token["content"]: CONTROL if token["special"] else USER_DEFINED
        for token in told["added_tokens"]
    }
    # Older files write a merge as one word.
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in told["model"].get("merges", ())
    ]
    name = next((name for name, split in SPLITS.items() if _is_split(told, split)), None)
    if told["model"]["type"] == "BPE" and name is not None:
        own = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": name,
            "tokenizer.ggml.token_type": [types.get(token, NORMAL) for token in tokens],
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        }
    elif told["model"]["type"] == "BPE" and told["model"].get("byte_fallback"):
        own = _sentencepiece(told, merges, tokens, types, arch)
    else:
        raise ValueError(
            f"The tokenizer, of type {told['model']['type']!r} with the pre-tokenizer "
            f"{_kind(told['pre_tokenizer'])}, cannot be written as GGUF; a SentencePiece BPE, or a "
            "byte-level BPE that splits as GPT-2's, Llama 3's or Qwen's can. Give the tokenizer of "
            "a GGUF file of the model."
        )
    keys = own | {
        "tokenizer.ggml.tokens": own.get("tokenizer.ggml.tokens", tokens),
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_ids[0] if tokenizer.eos_ids else None,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos,
        "tokenizer.ggml.add_eos_token": tokenizer.add_eos,
        "tokenizer.chat_template": tokenizer.chat_template,
        "tokenizer.chat_template.tool_use": tokenizer.tool_template,
        "tokenizer.chat_templates": ["tool_use"] if tokenizer.tool_template else None,
    }
    return {key: value for key, value in keys.items() if value is not None}


def _sentencepiece(
    told: Mapping[str, Any],
    merges: list[tuple[str, ...]],
    tokens: list[str],
    types: Mapping[str, int],
    arch: str,
) -> dict[str, Any]:
    """GGUF keeps a score for each token in place of merges: here, the place of the first merge that
    makes it.
    """
    place: dict[str, int] = {}
    for n, (left, right) in enumerate(merges):
        place.setdefault(left + right, n)
    # Gemma's readers take the order of the tokens, and spell runs of spaces as spaces.
    gemma = arch.startswith("gemma")
    ids = {token: n for n, token in enumerate(tokens)}
    rank = {token: -n for token, n in (ids if gemma else place).items()}
    odd = {*merges_of(ids, rank)} ^ {*merges}
    # Added tokens are found before anything is merged.
    if any("".join(pair) not in types for pair in odd):
        raise ValueError(
            "The merges of this tokenizer are not all those that its vocabulary allows, and GGUF "
            "has only the vocabulary. Give the tokenizer of a GGUF file of the model."
        )
    unknown = told["model"].get("unk_token")
    kinds = [
        UNKNOWN if token == unknown else BYTE if token in _BYTES else types.get(token, NORMAL)
        for token in tokens
    ]
    prefix = "Prepend" in json.dumps(told["normalizer"])
    prefix |= '"prepend_scheme": "first"' in json.dumps(told["pre_tokenizer"])
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [
            " " * len(token) if gemma and len(token) > 1 and not token.strip("▁") else token
            for token in tokens
        ],
        "tokenizer.ggml.scores": [
            float(-place[token]) if token in place else _NEVER for token in tokens
        ],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": tokens.index(unknown) if unknown in tokens else None,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _is_split(told: Mapping[str, Any], split: Any) -> bool:
    """Whether a tokenizer.json cuts texts as a split does."""
    steps = json.loads(split.pre_tokenizer().__getstate__())
    same = _essence(told["pre_tokenizer"]) == _essence(steps)
    return (
        same
        and bool(told["model"].get("ignore_merges")) == split.whole
        and (_kind(told["normalizer"]) == ["NFC"]) == split.composed
    )


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
