"""SentencePiece files give the ids and texts that the sentencepiece package gives."""

import json
import shutil
import struct
from pathlib import Path

import pytest

from lora_jax.data import RECIPES, Dataset, Example, encode
from lora_jax.io.encoder_tokenizer import load_tokenizer
from lora_jax.io.gguf_tokenizer import load_text_tokenizer
from lora_jax.io.sentencepiece import sentencepiece_tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "sentencepiece"
GOLDEN = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", GOLDEN)
def test_ids_and_texts_equal_sentencepiece(kind):
    tokenizer = sentencepiece_tokenizer(FOLDER / f"{kind}.model")
    for text, ids, decoded in GOLDEN[kind]:
        assert tokenizer.encode(text, special=False) == ids, text
        # Unknown pieces are written as a mark there and as the token's name here.
        if 0 not in ids:
            assert tokenizer.decode(ids) == decoded
    assert tokenizer.encode("a")[0] == tokenizer.bos_id == 1 and tokenizer.eos_ids == (2,)


def test_a_folder_with_only_tokenizer_model_is_understood(tmp_path):
    shutil.copy(FOLDER / "bpe.model", tmp_path / "tokenizer.model")
    text, ids, _ = GOLDEN["bpe"][0]
    assert load_text_tokenizer(tmp_path).encode(text) == [1, *ids]


def test_T5s_spiece_model_is_understood(tmp_path):
    shutil.copy(FOLDER / "unigram.model", tmp_path / "spiece.model")
    text, ids, _ = GOLDEN["unigram"][0]
    assert load_text_tokenizer(tmp_path).encode(text, special=False) == ids


def deberta_model(pieces: list[str]) -> bytes:
    """A unigram model with DeBERTa's special pieces: [PAD], [CLS] and [SEP] are control pieces,
    [UNK] is the unknown one.
    """

    def message(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    kinds = {"[PAD]": 3, "[CLS]": 3, "[SEP]": 3, "[UNK]": 2}
    out = b""
    for n, piece in enumerate([*kinds, *pieces]):
        text, score = piece.encode(), struct.pack("<f", 0.0 if piece in kinds else -1.0 - 0.01 * n)
        out += message(
            1, message(1, text) + bytes([2 << 3 | 5]) + score + bytes([3 << 3, kinds.get(piece, 1)])
        )
    ids = b"".join(
        bytes([number << 3 & 127 | 128, number >> 4, value])
        for number, value in ((40, 3), (41, 1), (42, 2), (43, 0))
    )
    return out + message(2, ids)


def test_DeBERTas_spm_model_lays_out_texts_and_pairs(tmp_path):
    (tmp_path / "spm.model").write_bytes(deberta_model(["▁a", "▁good", "▁film", "s", "."]))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.vocab_size) == (
        0,
        1,
        2,
        10,
    )
    values = (("a good film.", "good"), ("films", "q"))
    examples = tuple(Example("", dict(text=a, text_pair=b, label="x")) for a, b in values)
    recipe = RECIPES["pair_classification"]
    data = Dataset("name", recipe, {"train": examples}, ("x",), "", "")
    encoded = encode(data, tokenizer, 12)["train"]
    assert (
        encoded.tokens[0].tolist() == [1, 4, 5, 6, 8, 2, 5, 2]
        and encoded.types[0].tolist() == [0] * 6 + [1] * 2
    )
    assert encoded.tokens[1].tolist() == [1, 6, 7, 2, 3, 2]
    assert (
        tokenizer.backend.token_to_id("[MASK]") == 9
        and tokenizer.decode(encoded.tokens[0]) == "a good film. good"
    )
    assert encode(data, tokenizer, 6)["train"].truncated == 1
    (tmp_path / "spm.model").write_bytes(deberta_model(["▁a"]).replace(b"[CLS]", b"[CLZ]"))
    with pytest.raises(
        ValueError,
        match=r"spm.model' needs the tokens \[PAD\], \[CLS\] and \[SEP\].*\[CLS\] is not in its vocabulary",
    ):
        load_tokenizer(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    whole = (FOLDER / "bpe.model").read_bytes()
    # A table of letters that is a number, and one that tokenizers panics over.
    tables = (b"\x1a\x02\x10\x05", b"\x1a\x06\x12\x04" + bytes(4))
    for content in (whole[: len(whole) // 2], b"\xff" * 40, b"", whole + tables[0]):
        (tmp_path / "x.model").write_bytes(content)
        with pytest.raises(ValueError, match="SentencePiece|pieces"):
            sentencepiece_tokenizer(tmp_path / "x.model")
    (tmp_path / "x.model").write_bytes(whole + tables[1])
    with pytest.raises(ValueError, match="x.model' needs to be a tokenizer definition"):
        sentencepiece_tokenizer(tmp_path / "x.model").encode("a")
