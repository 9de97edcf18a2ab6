"""The tokenizer that a GGUF file's metadata describes, as a `tokenizers` pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lora_jax.data.text_tokenizers import TextTokenizer, read_text_tokenizer
from lora_jax.io.decoder_weights import gguf_file
from lora_jax.io.gguf import GgufFile
from lora_jax.io.merges import merges_of
from lora_jax.io.sentencepiece import sentencepiece_tokenizer

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
# How byte-level vocabularies split texts before merging (llama.cpp's names; patterns as the models' own files have them).
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2}
_PLAIN = ("default", "gpt-2", None)


def load_text_tokenizer(path: Path | str) -> TextTokenizer:
    """The tokenizer of a Hugging Face folder (tokenizer.json, else the SentencePiece file tokenizer.model or, of T5, spiece.model), of
    a GGUF file, or of a folder that holds one.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged, or of an unsupported kind.
    """
    path = Path(path)
    file = gguf_file(path)
    if file is not None:
        return sentencepiece_tokenizer(file) if file.suffix == ".model" else gguf_tokenizer(GgufFile(file))
    for name in ("tokenizer.model", "spiece.model"):
        if not (path / "tokenizer.json").is_file() and (path / name).is_file():
            return sentencepiece_tokenizer(path / name)
    return read_text_tokenizer(path)


def gguf_tokenizer(file: GgufFile) -> TextTokenizer:
    """The tokenizer in a GGUF file: SentencePiece BPE ('llama') or byte-level BPE ('gpt2').

    Raises:
        ValueError: a key is missing, an id is not in the vocabulary, or the kind is not supported.
    """
    keys = file.metadata
    kind, tokens = keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{file.path} holds no vocabulary (tokenizer.ggml.tokens). Give the tokenizer of the original model.")
    if kind == "llama":
        gemma = str(keys.get("general.architecture", "")).startswith("gemma")
        backend = _sentencepiece(file, tokens, keys, gemma=gemma)
    elif kind == "gpt2":
        backend = _byte_level(file, tokens, keys)
    else:
        raise ValueError(f"{file.path} has the tokenizer {kind!r}, which is not supported; needed 'llama' or 'gpt2'.")
    types = keys.get("tokenizer.ggml.token_type") or []
    known = backend.get_vocab()
    named = [(token, type_) for token, type_ in zip(tokens, types) if token in known]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token, type_ in named if type_ == _CONTROL])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token, type_ in named if type_ == _USER_DEFINED])
    if backend.get_vocab_size() != len(tokens):
        raise ValueError(f"{file.path} has {len(tokens)} tokens, of which {backend.get_vocab_size()} differ. Convert the model again.")
    bos, eos, pad = (_id(file, keys, name, len(tokens)) for name in ("bos", "eos", "padding"))
    template = keys.get("tokenizer.chat_template")
    ends = {eos, *(backend.token_to_id(token) for token in ("<end_of_turn>", "<|eot_id|>", "<|im_end|>") if template and token in template)}
    eos_ids = tuple(dict.fromkeys(i for i in (eos, *sorted(ends - {None})) if i is not None))
    return TextTokenizer(
        backend,
        bos,
        eos_ids,
        pad_id=next((i for i in (pad, *eos_ids) if i is not None), 0),
        # As llama.cpp: files of SentencePiece vocabularies that do not say want a bos.
        add_bos=bool(keys.get("tokenizer.ggml.add_bos_token", kind == "llama")),
        add_eos=bool(keys.get("tokenizer.ggml.add_eos_token", False)),
        chat_template=template,
    )


def _sentencepiece(file: GgufFile, tokens: list[str], keys: Mapping[str, Any], *, gemma: bool) -> Tokenizer:
    if gemma:  # Runs of spaces are kept as spaces in these files, and looked up as '▁'.
        tokens = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
        rank = {token: -n for n, token in enumerate(tokens)}  # Gemma's merges follow the order of its tokens, not their scores.
    else:
        scores = keys.get("tokenizer.ggml.scores")
        if not isinstance(scores, list) or len(scores) != len(tokens):
            raise ValueError(f"{file.path} needs a score for each of {len(tokens)} tokens. Convert the model again.")
        rank = dict(zip(tokens, scores))
    vocabulary = {token: n for n, token in enumerate(tokens)}
    unknown = tokens[_id(file, keys, "unknown", len(tokens)) or 0]
    backend = Tokenizer(models.BPE(vocabulary, merges_of(vocabulary, rank), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = not gemma and keys.get("tokenizer.ggml.add_space_prefix", True)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif prefix:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence(steps)
    return backend


def _byte_level(file: GgufFile, tokens: list[str], keys: Mapping[str, Any]) -> Tokenizer:
    merges, split = keys.get("tokenizer.ggml.merges"), keys.get("tokenizer.ggml.pre")
    if not isinstance(merges, list) or not all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges):
        raise ValueError(f"{file.path} needs merges of two tokens each (tokenizer.ggml.merges). Convert the model again.")
    if split not in _SPLITS and split not in _PLAIN:
        raise ValueError(f"{file.path} splits texts as {split!r}, which is not supported; needed one of {', '.join(_SPLITS)} or gpt-2.")
    vocabulary = {token: n for n, token in enumerate(tokens)}
    try:
        backend = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    except Exception as error:  # The package raises bare Exception.
        raise ValueError(f"{file.path} has merges that do not fit its vocabulary: {error}. Convert the model again.") from error
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in _PLAIN)
    if split in _SPLITS:
        byte_level = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_SPLITS[split]), "isolated"), byte_level])
    backend.pre_tokenizer = byte_level
    backend.decoder = decoders.ByteLevel()
    return backend


def _id(file: GgufFile, keys: Mapping[str, Any], name: str, size: int) -> int | None:
    found = keys.get(f"tokenizer.ggml.{name}_token_id")
    if found is not None and not (type(found) is int and 0 <= found < size):
        raise ValueError(f"{file.path} gives the {name} token the id {found!r}, and its vocabulary has {size} tokens.")
    return found
