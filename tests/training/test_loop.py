"""Whole runs on a tiny encoder: every method learns, runs that are stopped or killed go on bit for
bit, and divergence is named.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_encoder import save_tiny_encoder, write_reviews
from user_models import same_bits

from lora_jax import load_adapter, load_run
from lora_jax.config import Config, from_config_dict, to_dict
from lora_jax.tasks.opening import open_task
from lora_jax.training import loop
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.compile import Program
from lora_jax.training.interrupted import Interrupted, stop_signals
from lora_jax.training.loop import train
from lora_jax.training.metrics import MetricsLog
from lora_jax.training.programs import forget_programs
from lora_jax.training.run import Diverged

STEPS = 24


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_encoder(folder / "model")
    write_reviews(folder / "reviews.csv")
    return folder


def config_of(where: Path, method: str, **optim: Any) -> Config:
    return from_config_dict(
        dict(
            model=dict(name=str(where / "model")),
            data=dict(name=str(where / "reviews.csv"), max_length=16, buckets=(16,)),
            method=method,
            lora=dict(rank=2, alpha=8.0, dropout=0.1 if method == "qlora" else 0.0),
            quant=dict(format="nf4" if method == "qlora" else "none", block_size=4),
            optim=dict(learning_rate=1e-2, head_learning_rate=1e-2) | optim,
            train=dict(
                total_steps=STEPS,
                batch_size=16,
                eval_batch_size=16,
                log_every=3,
                checkpoint_every=5,
                eval_every=10,
            ),
        )
    )


def rows(folder: Path, split: str = "train") -> list[tuple[Any, ...]]:
    """Every figure of the split's rows but the time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        tuple(value for name, value in line.items() if name != "time")
        for line in lines
        if line["split"] == split
    ]


@pytest.fixture(scope="module")
def uninterrupted(where: Path) -> tuple[Config, Path, dict[str, Any]]:
    config = config_of(where, "qlora")
    folder = where / "uninterrupted"
    forget_programs()
    return config, folder, train(config, folder, quiet=True)


# Parameters of the tiny encoder: 16 hidden, 24 wide, 2 layers, 19 words, 32 positions, 2 types, 2
# classes.
HEAD = 16 * 2 + 2
LORA = HEAD + 2 * (2 * 4 * (16 + 16) + 2 * 2 * (16 + 24)) + 2 * (16 + 16)
FULL = (
    HEAD
    + (19 + 32 + 2) * 16
    + 2 * 16
    + 2 * (4 * (16 * 16 + 16) + 2 * 16 * 24 + 24 + 16 + 4 * 16)
    + 16 * 16
    + 16
)


@pytest.mark.parametrize(
    ("method", "trained"), [("full", FULL), ("head", HEAD), ("lora", LORA), ("qlora", LORA)]
)
def test_every_method_trains_what_it_says_and_leaves_a_run_that_can_be_used(
    where: Path, method: str, trained: int, uninterrupted: tuple[Config, Path, dict[str, Any]]
) -> None:
    config, folder = config_of(where, method), where / f"run-{method}"
    if method == "qlora":
        _, folder, result = uninterrupted
    else:
        result = train(config, folder, quiet=True)
    assert result.trainable_parameters == trained and result.steps == STEPS
    losses = [row[2] for row in rows(folder)]
    assert [row[0] for row in rows(folder)] == list(range(1, STEPS + 1)) and np.isfinite(
        losses
    ).all()
    if method != "head":
        assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.02
    assert [row[0] for row in rows(folder, "validation")] == [10, 20, STEPS]
    # The base is measured from the arrays: 4 bits a weight and its scales under qlora, nothing
    # under full.
    if method == "full":
        assert result.base_bytes == 0
    else:
        assert (
            result.base_bits_per_weight == 32
            if method != "qlora"
            else 4 < result.base_bits_per_weight < 16
        )
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    again = load_run(folder).evaluate("test")
    assert again["accuracy"] == result.value("test", "accuracy") and again["loss"] == pytest.approx(
        result.value("test", "loss"), rel=1e-6
    )
    _, metadata = load_adapter(folder / "adapter")
    assert metadata["base"] == open_task(config).base and json.loads(metadata["labels"]) == [
        "neg",
        "pos",
    ]


def test_a_run_stopped_by_sigterm_goes_on_bit_for_bit(
    where: Path, uninterrupted: tuple[Config, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, reference, expected = uninterrupted
    folder, write = where / "stopped", MetricsLog.write

    def stop_at_12(self: MetricsLog, step: int, split: str, values: Any) -> None:
        write(self, step, split, values)
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(MetricsLog, "write", stop_at_12)
    with pytest.raises(Interrupted, match="Stopped at step 13; a checkpoint was written") as caught:
        train(config, folder, quiet=True)
    monkeypatch.undo()
    assert caught.value.step == 13 and len(rows(folder)) == 13 and not (folder / "adapter").exists()
    assert signal.getsignal(signal.SIGTERM) is handler
    result = train(config, folder, quiet=True)
    assert rows(folder) == rows(reference) and rows(folder, "validation") == rows(
        reference, "validation"
    )
    assert result.value("test", "loss") == expected.value("test", "loss")
    assert same_bits(load_adapter(folder / "adapter")[0], load_adapter(reference / "adapter")[0])


def figures_of(folder: Path) -> dict[str, Any]:
    """What the checkpoint after the last step says that the run has used."""
    checkpoints = Checkpoints(folder / "checkpoints", base="", run="")
    return checkpoints._read(STEPS, meta=ocp.args.JsonRestore()).meta["data"]["figures"]


def test_the_first_step_of_each_shape_is_no_part_of_the_speed(uninterrupted) -> None:
    config, folder, result = uninterrupted
    steps = iter(open_task(config).batches("train", config.train.batch_size))
    shapes, known, every = set(), 0, 0
    for batch in (next(steps) for _ in range(STEPS)):
        tokens = int(batch["mask"][batch["weight"] > 0].sum())
        known += tokens if batch["mask"].shape in shapes else 0
        every += tokens
        shapes.add(batch["mask"].shape)
    figures = figures_of(folder)
    assert 0 < figures["tokens"] == known < every
    assert 0 < figures["training"] < figures["seconds"] - figures["compiling"]


def test_what_a_run_used_before_it_was_stopped_counts(uninterrupted, where, monkeypatch) -> None:
    """The process that goes on takes no step, so that it knows of no peak by itself."""
    config, _, expected = uninterrupted
    folder = where / "used"
    stopping(monkeypatch, Checkpoints, "save", lambda _, state, data: int(state.step) == STEPS)
    with pytest.raises(Interrupted):
        train(config, folder, quiet=True)
    figures = figures_of(folder)
    result = train(config, folder, quiet=True)
    assert result.peak_bytes == expected.peak_bytes
    assert result.seconds > figures["seconds"] > figures["training"] > 0
    assert result.tokens_per_second == pytest.approx(
        figures["tokens"] / figures["training"], abs=0.06
    )


def stopping(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Any) -> None:
    """A SIGINT at the end of the first call for which `when` says so."""
    call, sent = getattr(owner, name), []

    def spy(*args: Any, **options: Any) -> Any:
        result = call(*args, **options)
        if not sent and when(*args):
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, spy)


@pytest.mark.parametrize(
    ("name", "owner", "method", "when", "said"),
    [
        ("loading", loop, "initial_state", lambda *args: True, "before the first step"),
        ("compiling", Program, "_shape", lambda *args: True, "at step 1; a checkpoint"),
        (
            "evaluating",
            MetricsLog,
            "write",
            lambda log, step, split, _: (step, split) == (10, "validation"),
            "at step 11; a checkpoint",
        ),
        (
            "last checkpoint",
            Checkpoints,
            "save",
            lambda _, state, data: int(state.step) == STEPS,
            f"at step {STEPS}; a checkpoint",
        ),
        (
            "last evaluation",
            MetricsLog,
            "write",
            lambda log, step, split, _: (step, split) == (STEPS, "validation"),
            f"at step {STEPS}; a checkpoint",
        ),
    ],
)
def test_a_signal_at_any_moment_stops_the_run_and_nothing_is_lost(
    where: Path, name: str, owner: Any, method: str, when: Any, said: str,
    uninterrupted: tuple[Config, Path, Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config, reference, expected = uninterrupted
    folder = where / name
    forget_programs()
    stopping(monkeypatch, owner, method, when)
    with pytest.raises(Interrupted, match=f"Stopped {said}"):
        train(config, folder, quiet=True)
    monkeypatch.undo()
    result = train(config, folder, quiet=True)
    for split in ("train", "validation", "test"):
        assert rows(folder, split) == rows(reference, split)
    assert result.value("test", "loss") == expected.value("test", "loss")


def test_a_signal_that_comes_when_all_is_done_goes_to_whoever_was_asked_before(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        stopping(monkeypatch, loop.Run, "result", lambda *args: True)
        train(config_of(where, "head"), where / "done", quiet=True)
        assert asked == [signal.SIGINT]
        stopping(monkeypatch, loop.Run, "result", lambda *args: True)
        with stop_signals() as stopped, pytest.raises(Interrupted):
            train(config_of(where, "head"), where / "done", quiet=True)
            assert stopped.is_set() and len(asked) == 1
            raise Interrupted(None)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    where: Path,
    damaged: int,
    uninterrupted: tuple[Config, Path, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, reference, _ = uninterrupted
    folder = where / f"damaged {damaged}"
    stopping(monkeypatch, MetricsLog, "write", lambda log, step, *_: step == 12)
    with pytest.raises(Interrupted):
        train(config, folder, quiet=True)
    for step in (13, 10)[:damaged]:
        for path in (folder / "checkpoints" / str(step) / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with (folder / "metrics.jsonl").open("r+") as file:
        lines = file.read().splitlines()
        file.seek(0)
        file.write("\n".join([*lines[:12], "{broken", *lines[12:], ""]))
    with pytest.warns(UserWarning, match="/1[03] is damaged: .*, and the one before it is used"):
        train(config, folder, quiet=True)
    assert rows(folder) == rows(reference) and rows(folder, "test") == rows(reference, "test")
    assert same_bits(load_adapter(folder / "adapter")[0], load_adapter(reference / "adapter")[0])


def test_a_run_whose_folder_is_removed_ends_and_leaves_no_half_of_one(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = where / "removed", MetricsLog.write

    def remove_at_7(self: MetricsLog, step: int, split: str, values: Any) -> None:
        write(self, step, split, values)
        if step == 7:
            shutil.rmtree(folder)

    monkeypatch.setattr(MetricsLog, "write", remove_at_7)
    with pytest.raises(FileNotFoundError, match="removed was removed while the run was trained"):
        train(config_of(where, "head"), folder, quiet=True)
    assert not folder.exists()


KILLED = """
import json, os, signal, sys
from pathlib import Path
from lora_jax.config import from_config_dict
from lora_jax.training.loop import train
from lora_jax.training.metrics import MetricsLog
write = MetricsLog.write
def kill_at_12(self, step, split, values):
    write(self, step, split, values)
    if step == 12:
        with open(self.path, "a") as file:
            file.write('{"step": 13, "sp')  # what a kill in the middle of a write leaves
        os.kill(os.getpid(), signal.SIGKILL)
MetricsLog.write = kill_at_12
train(from_config_dict(json.loads(sys.argv[1])), Path(sys.argv[2]), quiet=True)
"""


def test_a_run_killed_with_kill_9_goes_on_bit_for_bit(
    where: Path, uninterrupted: tuple[Config, Path, dict[str, Any]]
) -> None:
    config, reference, _ = uninterrupted
    folder = where / "killed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(to_dict(config)), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert len(train_lines(folder)) == 12
    train(config, folder, quiet=True)
    assert rows(folder) == rows(reference) and rows(folder, "validation") == rows(
        reference, "validation"
    )
    assert same_bits(load_adapter(folder / "adapter")[0], load_adapter(reference / "adapter")[0])


def train_lines(folder: Path) -> list[str]:
    return [
        line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"train"' in line
    ]


def test_a_finished_run_that_is_started_again_trains_no_step_more(
    uninterrupted: tuple[Config, Path, dict[str, Any]],
) -> None:
    config, folder, expected = uninterrupted
    before = rows(folder), rows(folder, "validation"), rows(folder, "test")
    result = train(config, folder, quiet=True)
    assert (rows(folder), rows(folder, "validation"), rows(folder, "test")) == before
    assert result.value("test", "loss") == expected.value("test", "loss")
    # What its steps took was measured when they were run.
    assert result.tokens_per_second == expected.tokens_per_second > 0


def test_a_run_is_not_resumed_by_another_configuration(
    where: Path, uninterrupted: tuple[Config, Path, dict[str, Any]]
) -> None:
    config, folder, _ = uninterrupted
    with pytest.raises(
        ValueError, match="belongs to run .*, and this run has run .*Train in another folder"
    ):
        train(replace(config, optim=replace(config.optim, learning_rate=2e-2)), folder, quiet=True)


def test_divergence_stops_the_run_and_names_the_step(where: Path) -> None:
    folder = where / "diverged"
    with pytest.raises(
        Diverged, match=r"The loss at step 2 is nan .*training diverged. Lower optim.learning_rate"
    ):
        train(
            config_of(
                where, "lora", learning_rate=1e30, head_learning_rate=1e30, warmup_fraction=0.0
            ),
            folder,
            quiet=True,
        )
    # The last sound step is logged; nothing broken is kept.
    assert [row[0] for row in rows(folder)] == [1]
    assert not (folder / "adapter").exists() and not [
        path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()
    ]


def test_a_run_padded_to_a_wider_one_has_the_losses_of_the_unpadded_run(where: Path) -> None:
    narrow = replace(
        config_of(where, "lora"),
        lora=replace(config_of(where, "lora").lora, rank=1, targets="query+value"),
    )
    wide = replace(narrow, lora=replace(narrow.lora, rank=4, targets="all-linear"))
    alone, padded = (
        train(narrow, where / "alone", quiet=True),
        train(narrow, where / "padded", wide=wide, quiet=True),
    )
    ours, theirs = ([row[2] for row in rows(where / name)] for name in ("padded", "alone"))
    # Zero columns are summed in another order; Adam magnifies that over the steps.
    assert ours == pytest.approx(theirs, rel=1e-4)
    for figure in ("trainable_parameters", "adapter_bytes", "base_bytes"):
        assert getattr(alone, figure) == getattr(padded, figure)
    one, two = (load_adapter(where / name / "adapter")[0] for name in ("alone", "padded"))
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, two)


def test_an_adapter_wider_than_its_group_is_refused(where: Path) -> None:
    config = config_of(where, "lora")
    wide = replace(config, lora=replace(config.lora, rank=1))
    with pytest.raises(ValueError, match="an adapter of rank 2 cannot be padded to rank 1"):
        train(config, where / "too-wide", wide=wide, quiet=True)
