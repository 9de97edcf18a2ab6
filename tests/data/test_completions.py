"""Prompts with completions become ids of which only the completion counts, and rows that hold
several examples.
"""

import json

import numpy as np
import pytest
from tiny_language import write_completions, write_tiny_model

from lora_jax.data import load
from lora_jax.data.completions import (
    Completions,
    encode_completions,
    read_completions,
    to_completions,
)
from lora_jax.data.text_tokenizers import read_text_tokenizer
from lora_jax.data.token_packing import PackedBatches, pack


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return read_text_tokenizer(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


COLUMNS = dict(prompt="input", completion="ideal")


def read(path):
    """All prompts and completions of a file."""
    return read_completions(str(path), columns=COLUMNS)


@pytest.fixture
def encoded(tokenizer, tmp_path):
    records = read(write_completions(tmp_path / "a.jsonl", 23))
    return encode_completions(records, tokenizer, 24)


def test_messages_and_lists_of_answers_are_understood(tmp_path, tokenizer):
    records = read(write_completions(tmp_path / "a.jsonl", 12))
    assert (
        records.prompts[1] == "turn\nbax" and records.completions[1] == "ab" and len(records) == 12
    )
    encoded = encode_completions(records, tokenizer, 24)
    ids, split = encoded.tokens[1], encoded.prompt_lengths[1]
    assert (
        tokenizer.decode(ids[:split], special=True) == "<bos>turn\nbax\n"
        and tokenizer.decode(ids[split:], special=True) == "ab<eos>"
    )


def test_what_is_too_long_is_cut_at_the_start_of_the_prompt(tokenizer):
    encoded = encode_completions(
        Completions(("abcdefgh", "ab"), ("xy", "0123456789" * 2)), tokenizer, 8
    )
    first, second = (tokenizer.decode(ids, special=True) for ids in encoded.tokens)
    assert first == "<bos>fgh\nxy<eos>" and encoded.truncated == 2
    assert (
        len(encoded.tokens[1]) <= 8
        and second.startswith("<bos>")
        and encoded.prompt_lengths[1] >= 1
    )


def test_every_epoch_of_rows_has_an_order_of_its_own(encoded):
    first, second = (PackedBatches(encoded, 8, seed=3).plan(epoch) for epoch in (0, 1))
    assert first != second and first == PackedBatches(encoded, 8, seed=3).plan(0)
    still = PackedBatches(encoded, 8, shuffle=False)
    assert still.plan(0) == still.plan(1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"a\.jsonl:2: this line is not JSON"),
        ('{"input": "a", "idea": "b"}', r"a\.jsonl:2: .* Nearest: 'idea'"),
        ('{"input": [3], "ideal": "b"}', r"a\.jsonl:2: prompt needs to be a text, but '\[3\]'"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "a", "ideal": "b"}\n' + line + "\n")
    with pytest.raises(ValueError, match=said):
        read(path)


def test_splits_share_no_prompt_and_lose_none(tmp_path):
    path = write_completions(tmp_path / "a.jsonl", 200)
    splits = to_completions(load(str(path), "completion", columns=COLUMNS))
    prompts = {name: set(split.prompts) for name, split in splits.items()}
    assert sum(map(len, splits.values())) == 200 and len(prompts["test"]) >= 6
    assert (
        not prompts["train"] & (prompts["test"] | prompts["validation"])
        and not prompts["test"] & prompts["validation"]
    )
    path.write_text('{"input": "a", "ideal": "b"}\n' * 50)
    with pytest.raises(ValueError, match="is empty .* Give more rows"):
        load(str(path), "completion", columns=COLUMNS)


def test_packing_puts_every_example_into_one_row():
    lengths = np.random.default_rng(0).integers(1, 40, 200)
    rows = pack(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(200))
    assert max(sum(lengths[row]) for row in rows) <= 64
    assert (
        len(rows) <= 1.15 * lengths.sum() / 64
    )  # first-fit decreasing: at most 11/9 of the best, here near it
    with pytest.raises(ValueError, match="does not fit"):
        pack([65], 64)


def test_a_batch_counts_the_completions_tokens_and_no_others(encoded):
    batches = PackedBatches(encoded, 8, seed=3, epochs=1)
    seen = 0
    for index in range(len(batches)):
        batch = batches[index]
        assert batch["tokens"].shape == batches[0]["tokens"].shape
        for row in range(len(batch["tokens"])):
            for segment in range(1, batch["segments"][row].max() + 1):
                where = np.flatnonzero(batch["segments"][row] == segment)
                counted = where[batch["loss_weight"][row, where] > 0]
                assert len(counted) == 3  # two letters and the end
                assert (
                    batch["labels"][row, counted[:-1]] == batch["tokens"][row, counted[:-1] + 1]
                ).all()
                assert batch["labels"][row, counted[-1]] == 2
                seen += 1
    assert seen == len(encoded) and batches.padding_fraction < 0.6


def test_the_same_seed_gives_the_same_batches_and_positions_are_restored(encoded):
    iterator = iter(PackedBatches(encoded, 4, seed=1))
    first = [next(iterator) for _ in range(3)]
    state = json.loads(json.dumps(iterator.get_state()))
    fourth = next(iterator)
    again = iter(PackedBatches(encoded, 4, seed=1))
    again.set_state(state)
    resumed = next(again)
    assert all((resumed[name] == fourth[name]).all() for name in ("tokens", "segments"))
    assert not np.array_equal(fourth["tokens"], first[0]["tokens"])
    with pytest.raises(ValueError, match="fingerprint"):
        iter(PackedBatches(encoded, 4, seed=2)).set_state(state)
