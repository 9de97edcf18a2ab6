"""The best epoch in place of the last step: which it is, what is kept of it, and after a stop."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_encoder import save_tiny_encoder, write_reviews

from lora_jax import load_adapter
from lora_jax.config import Config, from_config_dict
from lora_jax.tasks.opening import open_task
from lora_jax.training.loop import fit, train
from lora_jax.training.run import Run


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_encoder(folder / "model")
    write_reviews(folder / "reviews.csv")
    return folder


def config_of(where: Path, **train: Any) -> Config:
    """A constant rate, so that a shorter run is the beginning of a longer one; too large a one, so
    that the last epoch is not the best.
    """
    usual = dict(batch_size=16, eval_batch_size=16, select="best_epoch", checkpoint_every=5)
    return from_config_dict(
        dict(
            model=dict(name=str(where / "model")),
            data=dict(name=str(where / "reviews.csv"), max_length=16, buckets=(16,)),
            lora=dict(rank=2, alpha=8.0),
            optim=dict(learning_rate=0.3, schedule="constant", warmup_fraction=0.0),
            train=usual | train,
        )
    )


def validation(folder: Path) -> dict[int, float]:
    """{step: accuracy}"""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["accuracy"] for row in rows if row["split"] == "validation"}


def leaves(folder: Path) -> list[np.ndarray]:
    return jax.tree.leaves(load_adapter(folder / "adapter")[0])


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def test_the_first_of_the_best_epochs_is_scored_and_kept_also_after_a_stop(where, tmp_path):
    config = config_of(where, epochs=4.0)
    task = open_task(config)
    last = replace(config, train=replace(config.train, select="last"))
    ends = task.batches("train", 16).steps_per_epoch
    scores = {}
    for epoch in range(1, 5):
        part = replace(last, train=replace(last.train, epochs=float(epoch)))
        scores[epoch * ends] = train(part, tmp_path / f"{epoch}", task=task, quiet=True)
    accuracy = {step: result.value("validation") for step, result in scores.items()}
    best = max(accuracy, key=accuracy.get)
    assert best < 4 * ends  # or this test says nothing

    result = train(config, tmp_path / "whole", task=task, quiet=True)
    assert (result.selected_step, result.steps) == (best, 4 * ends)
    assert {split: result.value(split) for split in ("validation", "test")} == {
        split: scores[best].value(split) for split in ("validation", "test")
    }
    assert same(leaves(tmp_path / "whole"), leaves(tmp_path / f"{best // ends}"))
    seen = validation(tmp_path / "whole")
    assert {step: seen[step] for step in accuracy if step < 4 * ends} == {
        step: value for step, value in accuracy.items() if step < 4 * ends
    }
    assert seen[4 * ends] == accuracy[best]

    # As a run that is only to be tuned by is scored later: from its last checkpoint.
    assert train(config, tmp_path / "whole", task=task, quiet=True).scores == result.scores
    # Stopped between two epochs, with what had been kept by then.
    for name in ("best", "checkpoints"):
        shutil.copytree(tmp_path / "whole" / name, tmp_path / "again" / name)
    shutil.rmtree(tmp_path / "again" / "checkpoints" / str(4 * ends))
    again = train(config, tmp_path / "again", task=task, quiet=True)
    assert again.selected_step == best and again.scores == result.scores
    assert same(leaves(tmp_path / "whole"), leaves(tmp_path / "again"))


def test_runs_side_by_side_take_their_own_best_epochs(where, tmp_path):
    # At a rate at which other orders of sums stay what they are.
    runs = [config_of(where, epochs=3.0, seed=seed) for seed in (0, 1)]
    runs = [replace(run, optim=replace(run.optim, learning_rate=0.01)) for run in runs]
    alone = [train(run, tmp_path / f"{n}", quiet=True) for n, run in enumerate(runs)]
    found = {}
    fit(
        [Run(run, tmp_path / f"beside{n}") for n, run in enumerate(runs)],
        lambda run, outcome: found.update({run.config.train.seed: outcome}),
        wide=runs[0],
        slots=2,
        quiet=True,
    )
    assert any(one.selected_step < one.steps for one in alone)
    for seed, one in enumerate(alone):
        assert found[seed].selected_step == one.selected_step
        assert found[seed].value("test", "loss") == pytest.approx(one.value("test", "loss"), 1e-4)
