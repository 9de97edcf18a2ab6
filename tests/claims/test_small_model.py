"""S is made from its texts alone, kept, tuned and looked into; here a very small one on made-up
reviews.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lab import small_model
from lab.changes import Merged, Moved, Stored
from lab.measured import Lab
from lab.setting import FULL, S
from lab.small_model import SmallModel
from lora_jax.analysis.spectra import dense_svd
from lora_jax.core.lowrank import LowRank
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantSpec, bytes_of, quantize
from lora_jax.training.saved import load_run

TINY = SmallModel(width=32, layers=2, steps=4, batch_size=8)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A cache with the texts of both domains in it, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("cache")
    words = [
        "the",
        "film",
        "is",
        "a",
        "long",
        "warm",
        "grim",
        "tale",
        "of",
        "two",
        "men",
        "who",
        "never",
        "say",
        "what",
        "they",
        "want",
        "until",
        "it",
        "ends",
        "well",
    ]
    dice = np.random.default_rng(0)
    for domain in ("imdb", "imdb_held_out", "rotten_tomatoes"):
        rows = list(small_model._pieces([" ".join(dice.choice(words, 24)) for _ in range(80)]))
        (folder / "claims").mkdir(exist_ok=True)
        (folder / "claims" / f"{domain}-v{small_model.VERSION}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    return folder


@pytest.fixture
def folder(home, monkeypatch) -> Path:
    monkeypatch.setenv("LORA_JAX_CACHE", str(home))
    return small_model.pretrained(TINY)


def test_texts_are_cut_into_prompts_and_completions():
    rows = list(
        small_model._pieces(
            ["a b c d e<br />f g h i j", "too short", " ".join(map(str, range(60)))]
        )
    )
    assert [row["prompt"] for row in rows] == ["a b c", "0 1 2", "28 29 30"]
    assert rows[0]["completion"] == "d e f g h i j" and rows[1]["completion"].split()[-1] == "27"
    with pytest.raises(
        ValueError, match="A domain is one of imdb, imdb_held_out, rotten_tomatoes, got 'a'"
    ):
        small_model.texts("a")


def test_made_texts_are_backward_sentences_or_rows_of_random_words(home, monkeypatch):
    monkeypatch.setenv("LORA_JAX_CACHE", str(home))
    read = lambda path: [json.loads(line) for line in path.read_text().splitlines()]
    forward = read(small_model.texts("rotten_tomatoes"))
    backward = read(small_model.texts("backwards"))
    assert read(small_model.texts("both")) == forward + backward
    one, other = (f"{row['prompt']} {row['completion']}" for row in (forward[5], backward[5]))
    assert other.split() == ["backwards:", *one.split()[::-1]]

    with pytest.raises(ValueError, match="needs 256 whole words"):
        small_model.texts("random-6")
    monkeypatch.setattr(small_model, "VOCABULARY", 8)
    folder = small_model.texts("random-6")
    splits = [read(folder / f"{split}.jsonl") for split in ("train", "validation", "test")]
    assert splits[0] == splits[1] == splits[2] == small_model._random_rows(9)[:6]
    words = {word for row in splits[0] for word in row["completion"].split()}
    assert len(words) <= 8 and all(len(row["completion"].split()) == 16 for row in splits[0])


def test_s_is_pretrained_once_from_its_seed_and_kept(folder, monkeypatch):
    told = json.loads((folder / "pretraining.json").read_text())
    assert (
        told["train"]["total_steps"] == 4
        and 0 < told["validation_loss"] < np.log(small_model.WORDS) + 1
    )
    assert not folder.with_name(folder.name + ".work").exists()
    from lora_jax.training import loop

    monkeypatch.setattr(loop, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert small_model.pretrained(TINY) == folder


@pytest.fixture
def lab(folder, tmp_path, monkeypatch):
    """A lab in which every S is the tiny one."""
    monkeypatch.setattr(small_model, "pretrained", lambda model=None: folder)
    return Lab(tmp_path, seeds=(0,), say=lambda text: None)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_updates_are_what_the_run_added_to_each_matrix(lab, method):
    kind = FULL if method == "full" else {"lora.rank": 2}
    run = lab.run(S.with_(**kind, **{"train.total_steps": 3}), 0, 1e-2)
    found = lab.updates(run, ("q", "down"))
    assert sorted((m.path.split("/")[-2], m.layer) for m in found) == [
        ("down", 0),
        ("down", 1),
        ("q", 0),
        ("q", 1),
    ]
    saved = load_run(run.folder)
    assert "embed/embedding" not in saved.trainable
    for m in found:
        leaf = saved.trainable[m.path]
        base = np.asarray(flatten(saved.task.params)[m.path])[m.layer]
        new = (
            base + np.asarray(leaf.delta())[m.layer]
            if isinstance(leaf, LowRank)
            else np.asarray(leaf.value)[m.layer]
        )
        np.testing.assert_allclose(
            m.tuned, new, atol=1e-6
        )  # float32's rounding of weights of about 1
        assert m.update.s[0] > 0 and (m.a is None) == (m.start is None) == (method == "full")
        np.testing.assert_allclose(
            dense_svd(m.tuned - m.weight).s[: len(m.update.s)], m.update.s, atol=1e-9
        )
    assert len(lab.updates(run)) == 14


def test_factors_before_the_first_step_are_made_again_from_the_seed(lab):
    # A rate at which nothing moves: after training the factors are still the starts.
    run = lab.run(S.with_(**{"lora.rank": 2, "train.total_steps": 1}), 5, 1e-30)
    found = lab.updates(run)
    assert len(found) == 14
    for m in found:
        np.testing.assert_array_equal(m.a, m.start)


def test_what_is_added_to_frozen_weights_moves_losses_and_is_kept_by_its_name(lab):
    run = lab.run(S.with_(**{"lora.rank": 2, "train.total_steps": 3}), 0, 1e-2)
    path = "layers/mlp/up/kernel"
    shape = flatten(load_run(run.folder).task.params)[path].shape
    none, some = (Moved(f"up-{by}", {path: np.full(shape, by)}) for by in (0.0, 0.1))
    plain = lab.losses(run, "A")[0]
    np.testing.assert_allclose(lab.losses(run, "A", none)[0], plain, rtol=1e-6)
    assert np.abs(lab.losses(run, "A", some)[0] - plain).max() > 1e-4
    assert (run.folder / "losses_A-up-0.1.npz").is_file()


def test_losses_on_domain_a_are_of_reviews_that_s_was_not_trained_on(lab):
    losses, weights = lab.losses((S, 0), "A")
    assert len(losses) == 80 and (weights > 0).all()
    run = lab.run(S.with_(**{"train.total_steps": 3}), 0, 1e-2)
    assert np.abs(lab.losses(run, "A")[0] - losses).max() > 1e-6
    quantised = {"method": "qlora", "quant.format": "nf2", "quant.block_size": 32}
    assert np.abs(lab.losses((S.with_(**quantised), 0), "A")[0] - losses).max() > 1e-4


ONE = replace(S, bases=1)


def test_a_base_in_a_format_is_the_one_that_qlora_trains_on(lab, folder, monkeypatch):
    change = Stored("nf2", 32, double=False)
    losses, weights = lab.in_formats(ONE, [change])
    assert list(losses) == [None, change] and losses[None].shape == (1, 80)
    assert (weights > 0).all() and np.abs(losses[change] - losses[None]).max() > 1e-4
    boxed, _ = lab.losses((ONE.quantised("nf2", 32, double=False), 0), "A")
    np.testing.assert_allclose(losses[change][0], boxed, rtol=1e-6)

    # Of equal content and not measured again.
    monkeypatch.setattr(Lab, "_measure", lambda *a: pytest.fail("measured again"))
    assert np.array_equal(lab.in_formats(ONE, [change])[0][change], losses[change])


@pytest.mark.parametrize("double", [False, True])
def test_bits_of_linear_layers_are_those_of_the_stored_arrays(folder, double):
    _, params = small_model.load(folder)
    kernels = [w for p, w in flatten(params).items() if re.fullmatch(small_model.LINEARS, p)]
    spec = QuantSpec("nf4", 32, double)
    stored = 8 * sum(bytes_of(quantize(jnp.asarray(w), spec)) for w in kernels)
    assert len(kernels) == 7 and small_model.linear_bits(TINY, spec) == stored
    assert small_model.linear_bits(TINY, None) == 16 * sum(w.size for w in kernels)


def test_adapters_merged_mixed_and_side_by_side_give_what_each_gives_alone(lab):
    short = ONE.with_(**{"lora.rank": 2, "train.total_steps": 3, "train.log_every": 1})
    pairs = [(0, 1e-2), (1, 5e-3)]
    runs = [lab.run(short, seed, rate) for seed, rate in pairs]
    alone, merged = (lab.losses(runs[0], "B", change)[0] for change in (None, Merged()))
    np.testing.assert_allclose(merged, alone, rtol=1e-5)
    assert lab.mixed(runs) < 1e-5
    for run, trace in zip(runs, lab.together(short, pairs)):
        np.testing.assert_allclose(trace, lab.trace(run), rtol=1e-5)

    coarse = lab.run(short.quantised("nf4", 32), 0, 1e-2)
    apart, again = (lab.losses(coarse, "B", c)[0] for c in (None, Merged(again=True)))
    assert np.abs(again - apart).max() > 1e-6
