"""Token ids: known ids of BERT's uncased vocabulary, pairs, truncation, and vocab.txt as good as
tokenizer.json.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lora_jax.data import (
    RECIPES,
    Dataset,
    Encoded,
    Example,
    Tokenizer,
    tokenizer_fingerprint,
)
from lora_jax.data import encode as encode_splits
from lora_jax.data.tokenizers import load_tokenizer

SENTENCES = (
    "hello world",
    "The café's naïve Düsseldorf-ers weren't happy...",
    "电影 is great!\tReally?\x00",
    "unaffable " * 30,
    "x" * 150,
)


def encode(records: Dataset, tokenizer: Tokenizer, max_length: int) -> Encoded:
    return encode_splits(records, tokenizer, max_length)["train"]


def records(*texts: str, pairs: tuple[str, ...] | None = None) -> Dataset:
    """Texts, or pairs of them, all of class no."""
    recipe = RECIPES["pair_classification" if pairs else "classification"]
    more = [{"text_pair": pair} for pair in pairs] if pairs else [{}] * len(texts)
    rows = [{"text": text, "label": "no"} | pair for text, pair in zip(texts, more)]
    examples = tuple(Example("here", row) for row in rows)
    return Dataset("given", recipe, {"train": examples}, ("no", "yes"), "", "")


def test_ids_are_those_of_the_bert_vocabulary(minilm_folder: Path) -> None:
    encoded = encode(records("hello world", "Hello, WORLD", ""), load_tokenizer(minilm_folder), 128)
    # Known ids of bert-base-uncased, whose vocabulary MiniLM uses: hello 7592, world 2088, comma
    # 1010.
    known = [[101, 7592, 2088, 102], [101, 7592, 1010, 2088, 102], [101, 102]]
    assert [tokens.tolist() for tokens in encoded.tokens] == known
    assert encoded.lengths.tolist() == [4, 5, 2] and encoded.truncated == 0 and encoded.pad_id == 0
    assert encoded.tokens[0].dtype == encoded.types[0].dtype == np.int32


def test_a_pair_has_two_separators_and_types_0_and_1(minilm_folder: Path) -> None:
    encoded = encode(records("hello", pairs=("world world",)), load_tokenizer(minilm_folder), 128)
    assert encoded.tokens[0].tolist() == [101, 7592, 102, 2088, 2088, 102]
    assert encoded.types[0].tolist() == [0, 0, 0, 1, 1, 1]


def test_truncation_keeps_the_special_tokens_and_is_counted(minilm_folder: Path) -> None:
    tokenizer = load_tokenizer(minilm_folder)
    encoded = encode(records("hello world hello world", "hello", "hello world hello"), tokenizer, 5)
    assert [tokens.tolist() for tokens in encoded.tokens][0] == [101, 7592, 2088, 7592, 102]
    assert encoded.truncated == 1
    pair = encode(records("hello", pairs=("world " * 20,)), tokenizer, 8)
    assert (
        pair.tokens[0].tolist() == [101, 7592, 102, 2088, 2088, 2088, 2088, 102]
        and pair.truncated == 1
    )
    # The file asks for truncation to 128 and padding to 128; an encoding leaves neither behind.
    assert len(tokenizer.backend.encode("hello " * 200).ids) == 202


def test_vocab_txt_gives_the_ids_of_tokenizer_json(minilm_folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(minilm_folder / name, tmp_path)
    full, plain = load_tokenizer(minilm_folder), load_tokenizer(tmp_path)
    for given in (records(*SENTENCES), records(*SENTENCES, pairs=SENTENCES[::-1])):
        for ours, theirs in zip(
            encode(given, plain, 64).tokens, encode(given, full, 64).tokens, strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    assert plain.vocab_size == full.vocab_size == 30522
    assert plain.decode(encode(records("hello world"), plain, 16).tokens[0]) == "hello world"


def test_the_fingerprint_follows_the_ids_not_the_padding(
    minilm_folder: Path, tmp_path: Path
) -> None:
    definition = json.loads((minilm_folder / "tokenizer.json").read_text(encoding="utf-8"))
    fingerprint = load_tokenizer(minilm_folder).fingerprint
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(definition | {"padding": None, "truncation": None})
    )
    assert (
        load_tokenizer(tmp_path).fingerprint
        == tokenizer_fingerprint(load_tokenizer(tmp_path))
        == fingerprint
    )
    definition["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert load_tokenizer(tmp_path).fingerprint != fingerprint


def test_wrong_folders_and_files_are_one_paragraph(minilm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"tokenizer\.json or vocab\.txt, but holds neither \(no such folder\)",
    ):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[CLS]\nhello\n")
    with pytest.raises(ValueError, match=r"but \[UNK\], \[SEP\] is not among its 3 lines"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(
        (minilm_folder / "tokenizer.json").read_text(encoding="utf-8")[:1000]
    )
    with pytest.raises(ValueError, match="does not parse"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("pairs", "least"), [(None, 3), (("b",), 5)])
def test_a_max_length_without_room_for_text_is_an_error(
    pairs, least: int, minilm_folder: Path
) -> None:
    tokenizer = load_tokenizer(minilm_folder)
    assert encode(records("a", pairs=pairs), tokenizer, least).lengths.tolist() == [least]
    with pytest.raises(
        ValueError, match=f"max_length needs to be at least {least} .* but {least - 1} came"
    ):
        encode(records("a", pairs=pairs), tokenizer, least - 1)


def test_separators_of_unicode_inside_vocab_txt_move_no_id(tmp_path: Path) -> None:
    """Only a newline ends a token: str.splitlines would cut at U+2028 and U+0085 as well."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a\u2028b", "c\u0085", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8", newline="")
    tokenizer = load_tokenizer(tmp_path)
    assert encode(records("film"), tokenizer, 8).tokens[0].tolist() == [2, 6, 3]


def test_a_question_that_fills_the_window_is_named(minilm_folder: Path) -> None:
    values = dict(question="hello " * 20, context="world", answers=[dict(text="world", start=0)])
    data = Dataset("given", RECIPES["qa"], {"train": (Example("a:1", values),)}, (), "", "")
    with pytest.raises(ValueError, match="a:1: a question needs to leave room .* has 20 tokens"):
        encode(data, load_tokenizer(minilm_folder), 16)


def test_settings_of_another_type_and_a_byte_order_mark(tmp_path: Path) -> None:
    tokens = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "film"])
    (tmp_path / "vocab.txt").write_text("\ufeff" + tokens, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": null}')
    assert encode(records("Film"), load_tokenizer(tmp_path), 8).tokens[0].tolist() == [2, 4, 3]
    for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({name: "no"}))
        with pytest.raises(ValueError, match=f"config.json': {name} needs to be true or false"):
            load_tokenizer(tmp_path)


def test_a_panic_of_the_backend_names_its_file(tmp_path: Path) -> None:
    """tokenizers panics over this table of letters when a text comes, not before."""
    from tokenizers import normalizers

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "film"]))
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.backend.normalizer = normalizers.Precompiled(b"\0\0\0\0")
    with pytest.raises(ValueError, match="vocab.txt' needs to be a tokenizer definition.*bounds"):
        encode(records("film"), tokenizer, 8)
