"""SentencePiece models (tokenizer.model) as a `tokenizers` pipeline; the file's protobuf is read
here, field by field.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_jax.core.extras import needs
from lora_jax.data.text_tokenizers import TextTokenizer
from lora_jax.data.tokenizers import backend_errors
from lora_jax.io.merges import NORMAL, UNKNOWN, add_tokens, joined_pieces, merged_model

with needs("data"):
    from tokenizers import Regex, Tokenizer, models, normalizers


_UNIGRAM, _BPE = 1, 2


@dataclass
class _Model:
    """The fields of a ModelProto that tokenising needs, with the defaults of
    sentencepiece_model.proto.
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = _UNIGRAM
    byte_fallback: bool = False
    ids: dict[str, int] = field(default_factory=lambda: {"unk": 0, "bos": 1, "eos": 2, "pad": -1})
    charsmap: bytes = b""
    add_prefix: bool = True
    squeeze: bool = True


def sentencepiece_tokenizer(path: Path | str) -> TextTokenizer:
    """The tokenizer of a SentencePiece file, BPE or unigram; a text begins with bos if the model
    has one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no SentencePiece model, is cut off, or of a kind other than BPE and
            unigram.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. Give the tokenizer.model of a SentencePiece model."
        )
    try:
        model = _parse(path.read_bytes())
    except (
        LookupError,
        struct.error,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        raise ValueError(
            f"{path} needs to be a SentencePiece model, but cannot be read ({error}). Fetch it "
            "again."
        ) from None
    if not model.pieces or model.kind not in (_UNIGRAM, _BPE):
        raise ValueError(
            f"{path} has {len(model.pieces)} pieces and model type {model.kind}; needed BPE (2) or "
            "unigram (1) with pieces."
        )
    vocabulary = {piece: n for n, (piece, _, _) in enumerate(model.pieces)}
    if len(vocabulary) != len(model.pieces):
        raise ValueError(
            f"{path} has {len(model.pieces)} pieces, of which {len(vocabulary)} differ. Fetch it "
            "again."
        )

    with backend_errors(path):
        backend = _pipeline(model, vocabulary)
    ids = {name: n if 0 <= n < len(model.pieces) else None for name, n in model.ids.items()}
    eos = () if ids["eos"] is None else (ids["eos"],)
    pad = next((n for n in (ids["pad"], *eos) if n is not None), 0)
    begins = ids["bos"] is not None
    return TextTokenizer(backend, ids["bos"], eos, pad, add_bos=begins, source=str(path))


def _pipeline(model: _Model, vocabulary: dict[str, int]) -> Tokenizer:
    backend = Tokenizer(_core(model, vocabulary))
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.squeeze:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    # As there, a text that begins with a space gets the prefix as well.
    steps += [normalizers.Prepend("▁")] if model.add_prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    backend.decoder = joined_pieces(prefix=model.add_prefix)
    add_tokens(backend, ((piece, kind) for piece, _, kind in model.pieces))
    return backend


def _core(model: _Model, vocabulary: dict[str, int]) -> models.Model:
    unknown = next((n for n, (_, _, kind) in enumerate(model.pieces) if kind == UNKNOWN), 0)
    if model.kind == _UNIGRAM:
        scored = [(piece, score) for piece, score, _ in model.pieces]
        return models.Unigram(scored, unknown, model.byte_fallback)
    ranks = {piece: score for piece, score, kind in model.pieces if kind == NORMAL}
    return merged_model(
        vocabulary, ranks, model.pieces[unknown][0], byte_fallback=model.byte_fallback
    )


def _parse(content: bytes) -> _Model:
    model = _Model()
    for number, value in _fields(content):
        if number == 1:
            piece = {1: b"", 2: 0.0, 3: NORMAL} | dict(_fields(value))
            model.pieces.append((piece[1].decode("utf-8"), float(piece[2]), int(piece[3])))
        elif number == 2:
            told = dict(_fields(value))
            model.kind, model.byte_fallback = int(told.get(3, _UNIGRAM)), bool(told.get(35, 0))
            for name, at in (("unk", 40), ("bos", 41), ("eos", 42), ("pad", 43)):
                if at in told:
                    # Negative numbers are 64-bit two's complement.
                    model.ids[name] = told[at] - (1 << 64) if told[at] >> 63 else told[at]
        elif number == 3:
            told = dict(_fields(value))
            model.charsmap = told.get(2, b"")
            if not isinstance(model.charsmap, bytes):
                raise TypeError(f"its table of letters is {model.charsmap!r}")
            model.add_prefix, model.squeeze = bool(told.get(3, 1)), bool(told.get(4, 1))
    return model


def _fields(content: bytes) -> Iterator[tuple[int, bytes | int | float]]:
    """(number, value) of every field of a protobuf message."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)

        kind = tag & 7
        if kind == 0:
            value, at = _varint(content, at)
        elif kind == 5:
            value, at = struct.unpack_from("<f", content, at)[0], at + 4
        elif kind == 1:
            value, at = struct.unpack_from("<d", content, at)[0], at + 8
        elif kind == 2:
            size, at = _varint(content, at)
            if size > len(content) - at:
                raise ValueError(
                    f"a field claims {size} bytes at {at}, and {len(content) - at} are left"
                )
            value, at = content[at : at + size], at + size
        else:
            raise ValueError(f"wire type {kind} at byte {at}")

        yield tag >> 3, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(f"a number at byte {at} is too long")
