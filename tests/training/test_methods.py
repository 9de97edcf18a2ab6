"""Every variant and baseline by configuration: what is selected, trained, saved, resumed and
refused.
"""

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.apply import apply
from lora_jax.adapters.sites import find_sites
from lora_jax.adapters.surgery import trainable_parameters
from lora_jax.config import config_hash, from_config_dict, load_config
from lora_jax.core.trained_weight import TrainedWeight
from lora_jax.data import Encoded
from lora_jax.io.adapter import load_adapter, save_adapter
from lora_jax.io.contents import contents
from lora_jax.models.encoder import Encoder, EncoderConfig
from lora_jax.models.kinds import example_inputs
from lora_jax.tasks.encoder import EncoderTask
from lora_jax.training.loop import train
from lora_jax.training.run import initial_state

SIZES = EncoderConfig(
    vocab_size=30,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=16,
    max_positions=32,
    num_classes=2,
)
HEAD = 8 * 2 + 2
D, F, L = 8, 16, 2


def encoded(count, seed):
    """Random texts whose label says whether word 5 or word 6 comes second."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    tokens = [
        np.asarray([1, 5 + label, *rng.integers(10, 30, rng.integers(2, 6))], np.int32)
        for label in labels
    ]
    return Encoded(
        tokens,
        [np.zeros_like(t) for t in tokens],
        labels,
        max_length=8,
        pad_id=0,
        truncated=0,
        fingerprint="t",
    )


@functools.cache
def task():
    """A tiny encoder with a task of its own, and no file behind it."""
    model = Encoder(SIZES, scan=True)
    tokens = jnp.ones((1, 8), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens, tokens > 0)["params"]
    splits = {"train": encoded(32, 0), "validation": encoded(8, 1), "test": encoded(8, 2)}
    return EncoderTask(
        model,
        params,
        find_sites(model, *example_inputs(model.config)),
        splits,
        fingerprint=lambda: "base",
        label_names=("five", "six"),
        buckets=(8,),
    )


def config(**groups):
    """A small run."""
    train = dict(total_steps=4, batch_size=8, eval_batch_size=8, checkpoint_every=2, log_every=4)
    data = dict(max_length=8)
    return from_config_dict(dict(train=train, data=data, **groups))


def lora(**fields):
    """The settings of an adapter on query and value."""
    return dict(dict(rank=2, alpha=4.0, targets="query+value"), **fields)


ADALORA = dict(adalora=dict(target_rank=1.0, warmup_steps=1, final_steps=1, interval=1))
NF4 = dict(format="nf4", block_size=4, double=False)
COUNTS = {
    "lora": (dict(lora=lora()), 2 * L * 2 * 2 * D + HEAD),
    "dora": (dict(lora=lora(dora=True)), 2 * L * (2 * 2 * D + D) + HEAD),
    "lora_fa": (
        dict(lora=lora(variant="lora_fa"), optim=dict(precondition_b=True)),
        2 * L * 2 * D + HEAD,
    ),
    "vera": (dict(lora=lora(variant="vera", rank=16)), 2 * L * (16 + D) + HEAD),
    "adalora": (dict(lora=lora(variant="adalora"), optim=ADALORA), 2 * L * (2 * 2 * D + 2) + HEAD),
    "qa_lora": (dict(lora=lora(variant="qa_lora", group_size=4)), 2 * L * 2 * (D // 4 + D) + HEAD),
    "pissa": (dict(lora=lora(init="pissa_niter_4")), 2 * L * 2 * 2 * D + HEAD),
    "loftq": (dict(lora=lora(init="loftq"), method="qlora", quant=NF4), 2 * L * 2 * 2 * D + HEAD),
    "eva": (dict(lora=lora(init="eva", calibration_batches=2)), 2 * L * 2 * 2 * D + HEAD),
    "lora_ga": (dict(lora=lora(init="lora_ga", calibration_batches=2)), 2 * L * 2 * 2 * D + HEAD),
    "parts": (dict(lora=lora(parts=[True, False])), 2 * L * 2 * (D + D // 2) + HEAD),
    "lora_only": (dict(lora=lora(bias="lora_only")), 2 * L * (2 * 2 * D + D) + HEAD),
    "rows": (dict(lora=lora(embedding_rows=[5, 6])), 2 * L * 2 * 2 * D + 2 * D + HEAD),
    "bitfit": (
        dict(method="bitfit"),
        L * (4 * D + F + D + 2 * D) + D + D + HEAD,
    ),  # blocks, embedding norm, pooler
    "top_layers": (
        dict(method="top_layers", baseline=dict(top_layers=1)),
        4 * D * (D + 1) + 2 * D * F + F + D + 4 * D + D * (D + 1) + HEAD,
    ),
    "bottleneck": (
        dict(method="bottleneck", baseline=dict(size=3)),
        2 * L * (2 * D * 3 + 3 + D) + HEAD,
    ),
    "prefix_embedding": (
        dict(method="prefix_embedding", baseline=dict(prefix=3, infix=1)),
        4 * D + HEAD,
    ),
    "prefix_layers": (
        dict(method="prefix_layers", baseline=dict(prefix=3, infix=1)),
        L * 4 * D + HEAD,
    ),
    "ia3": (dict(method="ia3"), L * (2 * D + F) + HEAD),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_configuration_selects_as_many_parameters_as_its_formula_says_and_starts_at_the_base(
    name,
):
    groups, count = COUNTS[name]
    frozen, trained = task().trainable(config(**groups), jax.random.key(0))
    assert trainable_parameters(trained) == count
    tokens, mask = jnp.asarray([[1, 5, 20, 21, 22, 23, 24, 25]]), jnp.ones((1, 8), bool)
    head = {path: leaf for path, leaf in trained.items() if isinstance(leaf, TrainedWeight)}
    if name in (
        "dora",
        "pissa",
        "eva",
        "vera",
        "rows",
        "top_layers",
    ):  # Pieces' starts are tested with the pieces.
        np.testing.assert_array_equal(apply(task().model, frozen, trained, tokens, mask), apply(task().model, frozen | {}, _base(frozen, trained, head), tokens, mask))  # fmt: skip


def _base(frozen, trained, head):
    """The trained weights without adapters and pieces: the head, and rows at the values they
    started from.
    """
    return head | {path: leaf for path, leaf in trained.items() if type(leaf).__name__ == "Rows"}


@pytest.mark.parametrize(
    ("name", "rate"),
    [("dora", 0.0), ("adalora", 0.0), ("loftq", 0.0), ("prefix_layers", 0.0), ("lora", 0.1)],
)
def test_a_run_trains_saves_and_resumes_bit_for_bit(name, rate, tmp_path):
    run = config(**COUNTS[name][0])
    rates = dict(dropout=rate, attention_dropout=rate, head_dropout=rate)
    here = replace(task(), model=Encoder(replace(SIZES, **rates), scan=True))
    result = train(run, tmp_path / "whole", task=here, quiet=True)
    shutil.copytree(
        tmp_path / "whole" / "checkpoints" / "2", tmp_path / "part" / "checkpoints" / "2"
    )
    again = train(run, tmp_path / "part", task=here, quiet=True)
    assert (
        again.value("test", "loss") == result.value("test", "loss")
        and result.trainable_parameters == COUNTS[name][1]
    )
    ours, theirs = (
        load_adapter(tmp_path / folder / "adapter", base="base")[0] for folder in ("whole", "part")
    )
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(left, right)
    _, start = task().trainable(run, jax.random.split(jax.random.key(0))[0])
    changed = {
        path: [
            n
            for n in leaf.trained_fields()
            if np.any(np.asarray(getattr(leaf, n)) != np.asarray(getattr(start[path], n)))
        ]
        for path, leaf in ours.items()
    }
    # Factors behind a `b` or a gain of 0 move from the second step on.
    assert all(changed[path] == list(leaf.trained_fields()) for path, leaf in ours.items()), changed
    fixed = {
        path: [n for n in ("scale", "a0", "parts") if getattr(leaf, n, None) is not None]
        for path, leaf in ours.items()
    }
    assert all(
        np.array_equal(getattr(ours[p], n), getattr(start[p], n))
        for p, names in fixed.items()
        for n in names
    )


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (dict(lora=lora(variant="dora")), "config.lora.variant must be one of"),
        (dict(lora=lora(init="piza")), "config.lora.init must be one of .* Nearest: 'pissa'"),
        (dict(lora=lora(init="loftq")), "needs config.method 'qlora'"),
        (dict(lora=lora(variant="adalora")), "target_rank"),
        (dict(lora=lora(), optim=ADALORA), "has no budget"),
        (
            dict(lora=lora(variant="adalora"), optim=dict(adalora=dict(target_rank=3.0))),
            "at most config.lora.rank",
        ),
        (dict(lora=lora(), optim=dict(precondition_b=True)), "'lora_fa'"),
        (dict(lora=lora(variant="vera", init="eva")), "first values of its own"),
        (dict(lora=lora(variant="qa_lora", init="pissa")), "pools its inputs"),
        (dict(lora=lora(parts=[False, False])), "must name something"),
        (dict(lora=lora(embedding_rows=[])), "must name something"),
        (dict(lora=lora(merge_aware=True)), "a base that is not quantised merges exactly"),
        (dict(lora=lora(group_size=0)), "config.lora.group_size must be 1 or more"),
        (dict(lora=lora(bias="some")), "config.lora.bias must be one of"),
        (dict(method="prefix_layers", baseline=dict(prefix=0)), "at least one token"),
        (dict(method="bottleneck", baseline=dict(kind="houlsbi")), "Nearest: 'houlsby'"),
        (dict(method="ia2"), "config.method must be one of"),
        (dict(method="bitfit", sweep=dict(rank=[1, 2])), "needs adapters"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_at_the_door(groups, says):
    with pytest.raises(ValueError, match=says):
        config(**groups)


@pytest.mark.parametrize("name", COUNTS)
def test_shapes_alone_tell_what_a_configuration_selects(name):
    run = config(**COUNTS[name][0])
    real = task().trainable(run, jax.random.key(0))
    shapes = task().shapes(run)
    assert jax.tree.structure(shapes) == jax.tree.structure(real)
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [
        leaf.shape for leaf in jax.tree.leaves(real)
    ]


def test_padded_to_a_wider_run_it_selects_and_counts_the_same():
    for fields in (dict(dora=True), dict(init="pissa"), dict(embedding_rows=[5])):
        narrow, wide = (
            config(lora=lora(**fields)),
            config(lora=lora(rank=4, targets="all-linear", **fields)),
        )
        _, state = initial_state(narrow, task(), 4, like=task().widest(wide))
        _, alone = initial_state(narrow, task(), 4)
        assert (
            set(state.trainable) > set(alone.trainable)
            and trainable_parameters(state.trainable) > 0
        )
        tokens, mask = jnp.asarray([[1, 5, 20, 21]]), jnp.ones((1, 4), bool)
        frozen = task().trainable(narrow, jax.random.key(0))[0]
        outputs = [
            apply(task().model, frozen, one.trainable, tokens, mask) for one in (state, alone)
        ]
        np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6, atol=1e-6)


def test_every_setting_is_reached_from_the_command_line():
    overrides = [
        "lora.dora=true",
        "lora.init=pissa",
        "lora.variant=lora",
        "lora.parts=true,false",
        "lora.bias=lora_only",
        "lora.embedding_rows=3,4",
    ]
    path = Path(__file__).parents[2] / "configs" / "default.py"
    with pytest.raises(ValueError, match="fused kernel"):
        load_config(str(path), [f"--config.{text}" for text in overrides])
    read = load_config(str(path), [f"--config.{text}" for text in overrides if "pissa" not in text])
    assert (read.lora.dora, read.lora.parts, read.lora.bias, read.lora.embedding_rows) == (
        True,
        (True, False),
        "lora_only",
        (3, 4),
    )
    budget = [
        "--config.lora.variant=adalora",
        "--config.optim.adalora.target_rank=4",
        "--config.optim.adalora.interval=5",
    ]
    assert load_config(str(path), budget).optim.adalora.target_rank == 4.0


def test_a_prefix_that_needs_more_positions_than_the_model_has_is_refused():
    with pytest.raises(ValueError, match="need 33 positions, and .* has 32"):
        task().trainable(
            config(method="prefix_embedding", baseline=dict(prefix=25)), jax.random.key(0)
        )


def test_runs_are_told_apart_by_what_they_read_and_by_nothing_else():
    same = config_hash(config(method="full"))
    assert same == config_hash(config(method="full", lora=lora(dora=True), baseline=dict(size=3)))
    assert config_hash(config(lora=lora())) != config_hash(config(lora=lora(dora=True)))
    assert config_hash(config(method="bottleneck")) != config_hash(
        config(method="bottleneck", baseline=dict(size=3))
    )


def test_full_fine_tuning_trains_the_named_weights_and_the_head():
    part = config(method="full", baseline=dict(full_targets="query+value"))
    trained = task().trainable(part, jax.random.key(0))[1]
    assert {path for path in trained if not path.startswith("classifier/")} == {
        "layers/attn/q/kernel",
        "layers/attn/v/kernel",
    }
    assert {path for path in trained if path.startswith("classifier/")} == {
        "classifier/kernel",
        "classifier/bias",
    }
    whole = config(method="full")
    assert config_hash(part) != config_hash(whole)
    assert config_hash(whole) == config_hash(
        config(method="full", baseline=dict(full_targets=".*"))
    )
    with pytest.raises(ValueError, match="nope"):
        wrong = config(method="full", baseline=dict(full_targets="nope/.*"))
        task().trainable(wrong, jax.random.key(0))


def test_sweeps_group_runs_by_the_structure_of_their_adapters():
    from lora_jax.training.sharing import groups

    runs = [
        config(lora=lora(**fields))
        for fields in (
            dict(),
            dict(rank=1),
            dict(dora=True),
            dict(init="pissa"),
            dict(variant="vera"),
        )
    ]
    assert [len(members) for _, members in groups(runs)] == [2, 1, 1, 1]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The saved adapter of a run with another head, and what it trained."""
    _, trained = task().trainable(config(lora=lora(dora=True)), jax.random.key(7))
    trained = {
        path: leaf.replace(**{name: getattr(leaf, name) + 0.3 for name in leaf.trained_fields()})
        for path, leaf in trained.items()
    }
    folder = tmp_path_factory.mktemp("other")
    save_adapter(folder, trained, base="base", model="tiny")
    return folder, trained


def test_a_run_goes_on_from_another_adapter_with_a_new_head(other, tmp_path):
    folder, theirs = other
    run = config(lora=lora(dora=True, dropout=0.0, init_from=str(folder)))
    run = replace(run, train=replace(run.train, total_steps=1, log_every=1))
    new = initial_state(config(lora=lora(dora=True)), task(), 1)[1].trainable
    frozen, state = initial_state(run, task(), 1)
    for path, leaf in state.trainable.items():
        source = new if path.startswith("classifier/") else theirs
        same = [
            np.array_equal(getattr(leaf, n), getattr(source[path], n))
            for n in leaf.trained_fields()
        ]
        assert all(same) and same, path

    # The first step's loss is the other adapter's evaluation, under this head.
    train(run, tmp_path, task=task(), quiet=True)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    there = theirs | {path: leaf for path, leaf in new.items() if path.startswith("classifier/")}
    batch = task().batches("train", 8, seed=0)[0]
    losses = jax.jit(task().per_example)(frozen, there, batch)
    assert first["loss"] == pytest.approx(float(losses.total / losses.weight.sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "base", "says"),
    [
        (dict(targets="attention"), "base", r"differ at 2: layers/attn/k/kernel \(here alone\)"),
        (dict(rank=3), "base", r"layers/attn/q/kernel it has \{'a': \(2, 8, 3\)"),
        (dict(dora=False), "base", "'magnitude': "),
        (dict(alpha=6.0), "base", r"its own scale: at layers/attn/q/kernel it is \[3.\]"),
        (dict(), "another", "was trained on base base"),
        (dict(init_from="nowhere"), "base", "nowhere is none. Train the run to start from"),
    ],
)
def test_an_adapter_that_does_not_fit_a_run_is_named(other, fields, base, says):
    run = config(lora=lora(**dict(dora=True, init_from=str(other[0])) | fields))
    here = replace(task(), fingerprint=lambda: base)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        initial_state(run, here, 1)


def test_a_start_is_part_of_what_a_run_is_made_of(other):
    run = config(lora=lora(dora=True, init_from=str(other[0])))
    assert config_hash(run) != config_hash(config(lora=lora(dora=True)))
    assert str(other[0]) in contents(run.names)  # Changed content is another run: see RunConflict.
    assert str(other[0]) not in replace(run, method="head").names
