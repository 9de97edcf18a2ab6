"""The tokenizer that a GGUF file's metadata describes, as a `tokenizers` pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.core.extras import needs
from lora_jax.core.paths import nearest
from lora_jax.data.text_tokenizers import TextTokenizer, read_text_tokenizer
from lora_jax.data.tokenizers import backend_errors, switch, wrong_setting
from lora_jax.io.described import gguf_file
from lora_jax.io.gguf import GgufFile
from lora_jax.io.gguf_splits import SPLITS, Split
from lora_jax.io.merges import add_tokens, joined_pieces, merged_model
from lora_jax.io.sentencepiece import sentencepiece_tokenizer

with needs("data"):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers


# What GGUF's names of special tokens are called by chat templates; the one is misspelt there.
_NAMES = {"bos": "bos", "eos": "eos", "unknown": "unk", "seperator": "sep", "padding": "pad"}


def load_text_tokenizer(path: Path | str) -> TextTokenizer:
    """The tokenizer of a Hugging Face folder (tokenizer.json, else the SentencePiece file
    tokenizer.model or, of T5, spiece.model), of a GGUF file, or of a folder that holds one.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged, or of an unsupported kind.
    """
    path = Path(path)
    file = gguf_file(path)
    if file is not None:
        return (
            sentencepiece_tokenizer(file)
            if file.suffix == ".model"
            else gguf_tokenizer(GgufFile(file).metadata, file)
        )
    for name in ("tokenizer.model", "spiece.model"):
        if not (path / "tokenizer.json").is_file() and (path / name).is_file():
            return sentencepiece_tokenizer(path / name)
    return read_text_tokenizer(path)


def gguf_tokenizer(keys: Mapping[str, Any], path: Path | str) -> TextTokenizer:
    """The tokenizer that the metadata of a GGUF file describes: SentencePiece BPE ('llama') or
    byte-level BPE ('gpt2').

    Args:
        path: of the file, for errors.

    Raises:
        ValueError: a key is missing, an id is not in the vocabulary, or the kind is not supported.
    """
    kind, tokens = keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.tokens")
    if (
        not isinstance(tokens, list)
        or not tokens
        or not all(isinstance(token, str) for token in tokens)
    ):
        raise ValueError(
            f"{path} holds no vocabulary (tokenizer.ggml.tokens). Give the tokenizer of the "
            "original model."
        )
    name = keys.get("tokenizer.ggml.pre")
    split = Split() if name is None else SPLITS.get(name) if isinstance(name, str) else None
    if kind == "llama":
        with backend_errors(path):
            arch = str(keys.get("general.architecture", ""))
            backend = _sentencepiece(path, tokens, keys, arch=arch)
    elif kind == "gpt2":
        if split is None:
            raise ValueError(
                f"{path} splits texts as {name!r}, which is not supported. Nearest: "
                f"{nearest(str(name), SPLITS, 1)[0]!r}; known: {', '.join(SPLITS)}. Give the "
                "tokenizer of the original model."
            )
        with backend_errors(path):
            backend = _byte_level(path, tokens, keys, split)
    else:
        raise ValueError(
            f"{path} has the tokenizer {kind!r}, which is not supported; needed 'llama' or 'gpt2'."
        )
    known, types = backend.get_vocab(), keys.get("tokenizer.ggml.token_type") or []
    if not isinstance(types, list):
        raise wrong_setting(path, "tokenizer.ggml.token_type", "a list of numbers", types)
    with backend_errors(path):
        add_tokens(backend, (pair for pair in zip(tokens, types) if pair[0] in known))

    if backend.get_vocab_size() != len(tokens):
        raise ValueError(
            f"{path} has {len(tokens)} tokens, of which {backend.get_vocab_size()} differ. Convert "
            "the model again."
        )
    bos, eos, pad = (_id(path, keys, name, len(tokens)) for name in ("bos", "eos", "padding"))
    template = keys.get("tokenizer.chat_template")
    tool_template = keys.get("tokenizer.chat_template.tool_use")
    for text in (template, tool_template):
        if text is not None and not isinstance(text, str):
            raise wrong_setting(path, "tokenizer.chat_template", "a text", text)
    eos_ids = _ends(backend, eos, template or "")
    add_bos = switch(path, keys, "tokenizer.ggml.add_bos_token")
    named = {name: _id(path, keys, said, len(tokens)) for said, name in _NAMES.items()}
    return TextTokenizer(
        backend,
        bos,
        eos_ids,
        pad_id=next((i for i in (pad, *eos_ids) if i is not None), 0),
        # As llama.cpp: files that do not say want a bos if the vocabulary is SentencePiece's, or
        # Llama 3's.
        add_bos=kind == "llama" or split.bos if add_bos is None else add_bos,
        add_eos=bool(switch(path, keys, "tokenizer.ggml.add_eos_token")),
        chat_template=template,
        tool_template=tool_template,
        named_tokens={f"{name}_token": tokens[n] for name, n in named.items() if n is not None},
        source=str(path),
    )


def _ends(backend: Tokenizer, eos: int | None, template: str) -> tuple[int, ...]:
    """What ends an answer: eos, and what ends a turn by the template."""
    turns = ("<end_of_turn>", "<|eot_id|>", "<|im_end|>")
    ends = {backend.token_to_id(token) for token in turns if token in template}
    return tuple(dict.fromkeys(i for i in (eos, *sorted(ends - {None})) if i is not None))


def _sentencepiece(
    path: Path | str, tokens: list[str], keys: Mapping[str, Any], *, arch: str
) -> Tokenizer:
    gemma = arch.startswith("gemma")
    if gemma:  # Runs of spaces are kept as spaces in these files, and looked up as '▁'.
        tokens = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
        # Gemma's merges follow the order of its tokens, not their scores.
        rank = {token: -n for n, token in enumerate(tokens)}
    else:
        scores = keys.get("tokenizer.ggml.scores")
        if (
            not isinstance(scores, list)
            or len(scores) != len(tokens)
            or not all(isinstance(score, (int, float)) for score in scores)
        ):
            raise ValueError(
                f"{path} needs a score for each of {len(tokens)} tokens. Convert the model again."
            )
        rank = dict(zip(tokens, scores))
    vocabulary = {token: n for n, token in enumerate(tokens)}
    unknown = tokens[_id(path, keys, "unknown", len(tokens)) or 0]
    backend = Tokenizer(merged_model(vocabulary, rank, unknown))
    prefix = not gemma and switch(path, keys, "tokenizer.ggml.add_space_prefix") is not False
    backend.decoder = joined_pieces(prefix=prefix)
    if gemma:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif prefix and arch == "phi3":
        # Unlike in LLaMA's, a text that begins with a space gets the prefix as well.
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        scheme = "first" if prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    return backend


def _byte_level(
    path: Path | str, tokens: list[str], keys: Mapping[str, Any], split: Split
) -> Tokenizer:
    merges = keys.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(
        isinstance(merge, str) and merge.count(" ") == 1 for merge in merges
    ):
        raise ValueError(
            f"{path} needs merges of two tokens each (tokenizer.ggml.merges). Convert the model "
            "again."
        )

    vocabulary = {token: n for n, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    backend = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=split.whole))
    if (normalizer := split.normalizer()) is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = split.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend


def _id(path: Path | str, keys: Mapping[str, Any], name: str, size: int) -> int | None:
    found = keys.get(f"tokenizer.ggml.{name}_token_id")
    if found is not None and not (type(found) is int and 0 <= found < size):
        raise ValueError(
            f"{path} gives the {name} token the id {found!r}, and its vocabulary has {size} tokens."
        )
    return found
