"""SentencePiece files give the ids and texts that the sentencepiece package gives."""

import json
import shutil
from pathlib import Path

import pytest

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


def test_a_damaged_file_is_named(tmp_path):
    whole = (FOLDER / "bpe.model").read_bytes()
    for content in (whole[: len(whole) // 2], b"\xff" * 40, b""):
        (tmp_path / "x.model").write_bytes(content)
        with pytest.raises(ValueError, match="SentencePiece|pieces"):
            sentencepiece_tokenizer(tmp_path / "x.model")
