"""Runs side by side in one program: each has the losses, factors, files and fate that it has
alone.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_encoder import save_tiny_encoder, write_reviews
from tiny_tasks import write_task
from user_models import same_bits

from lora_jax import load_adapter, load_run
from lora_jax.config import Config, from_config_dict, to_dict
from lora_jax.training import programs
from lora_jax.training.interrupted import Interrupted
from lora_jax.training.loop import Stopped, fit, train
from lora_jax.training.metrics import MetricsLog
from lora_jax.training.result import RunResult
from lora_jax.training.run import Diverged, Run
from lora_jax.training.sharing import widest

# What the issue promises: float32 sums in another order, magnified by training.
CLOSE = 1e-5
STEPS = 12


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_encoder(folder / "model")
    write_reviews(folder / "reviews.csv")
    return folder


def run_of(
    where: Path,
    method: str = "lora",
    lora: Any = None,
    optim: Any = None,
    train: Any = None,
    data: Any = None,
) -> Config:
    return from_config_dict(
        dict(
            model=dict(name=str(where / "model")),
            data=dict(name=str(where / "reviews.csv"), max_length=16, buckets=(16,)) | (data or {}),
            method=method,
            lora=dict(rank=2, alpha=8.0, calibration_batches=2) | (lora or {}),
            quant=dict(format="nf4" if method == "qlora" else "none", block_size=4),
            optim=dict(learning_rate=5e-3) | (optim or {}),
            train=dict(
                total_steps=STEPS,
                batch_size=16,
                eval_batch_size=16,
                log_every=3,
                checkpoint_every=5,
                eval_every=8,
            )
            | (train or {}),
        )
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in json.loads(line).items() if k != "time"}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def side_by_side(runs: list[Config], folder: Path, **more: Any) -> dict[int, Any]:
    """What became of each run, by its number; its folder is that number."""
    folders = [folder / str(n) for n in range(len(runs))]
    outcomes: dict[int, Any] = {}
    jobs = [Run(run, where) for run, where in zip(runs, folders, strict=True)]
    settings = dict(wide=widest(runs), slots=len(runs), quiet=True) | more
    fit(jobs, lambda job, outcome: outcomes.update({int(job.folder.name): outcome}), **settings)
    return outcomes


def check_equal(mine: Path, alone: Path) -> None:
    """The same rows and the same adapter, up to the order of sums."""
    ours, theirs = rows(mine), rows(alone)
    assert [(row["step"], row["split"]) for row in ours] == [
        (row["step"], row["split"]) for row in theirs
    ]
    for one, two in zip(ours, theirs, strict=True):
        numbers = [
            {name: value for name, value in row.items() if name not in ("split", "grad_norm")}
            for row in (one, two)
        ]
        assert numbers[0] == pytest.approx(numbers[1], rel=CLOSE, abs=1e-6)
        # A gradient is a small difference of large terms, and rounding grows in it while the loss
        # hardly moves: 1.9e-4 was seen in 100 steps.
        assert one.get("grad_norm", 0) == pytest.approx(
            two.get("grad_norm", 0), rel=100 * CLOSE, abs=1e-6
        )
    one, two = (load_adapter(folder / "adapter") for folder in (mine, alone))
    # The checksum is of the numbers, which the order of sums changes.
    said = [{**told, "checksum": ""} for _, told in (one, two)]
    assert said[0] == said[1]
    assert jax.tree.map(np.shape, one[0]) == jax.tree.map(np.shape, two[0])
    for x, y in zip(jax.tree.leaves(one[0]), jax.tree.leaves(two[0]), strict=True):
        # Adam divides by what small gradients are: 2.7e-5 was seen beside 1e-2. Where a gradient is
        # rounding itself, its step is one of the rate in either direction: of one number in 64,
        # 2.2e-4 was seen on a processor without AVX-512.
        size, apart = max(1.0, float(np.abs(y).max())), np.abs(np.asarray(x) - y)
        few = apart > 1e-3 * np.abs(y) + 5 * CLOSE * size
        assert few.sum() <= np.ceil(0.02 * few.size) and apart.max() < 50 * CLOSE * size


MIXED = [
    dict(
        lora=dict(rank=1, alpha=4.0, targets="query+value"),
        optim=dict(learning_rate=1e-3, weight_decay=0.1),
    ),
    dict(
        lora=dict(rank=4, scaling="rslora"),
        optim=dict(lora_plus_ratio=8.0, clip_norm=0.0, schedule="cosine"),
    ),
    dict(
        lora=dict(rank=3, targets="mlp"),
        optim=dict(head_learning_rate=2e-2, warmup_fraction=0.5),
        train=dict(seed=0),
    ),
]


def alone(run: Config, folder: Path, among: list[Config]) -> RunResult:
    """The run alone, padded as the others are so that all share a program: that padding changes
    nothing is tested with the loop.
    """
    return train(run, folder, wide=widest(among), quiet=True)


def check_runs(runs: list[Config], folder: Path, **more: Any) -> dict[int, RunResult]:
    outcomes = side_by_side(runs, folder / "stacked", **more)
    for number, run in enumerate(runs):
        result = alone(run, folder / f"alone{number}", runs)
        mine = outcomes[number]
        assert isinstance(mine, RunResult), mine
        check_equal(folder / "stacked" / str(number), folder / f"alone{number}")
        assert mine.stacked == more.get("slots", len(runs)) and result.stacked is None
        assert {key for key, value in mine.row().items() if value is None} <= {
            key for key, value in result.row().items() if value is None
        }
        for figure in (
            "trainable_parameters",
            "base_bytes",
            "adapter_bytes",
            "base_bits_per_weight",
            "steps",
            "examples",
            "padding_fraction",
        ):
            assert getattr(mine, figure) == getattr(result, figure), figure
        assert mine.value("test", "loss") == pytest.approx(
            result.value("test", "loss"), rel=CLOSE
        ) and mine.value("test", "accuracy") == result.value("test", "accuracy")
        assert mine.primary == result.primary and set(mine.row()) == set(result.row())
        for split, named in result.scores.items():
            assert set(mine.scores[split]) == set(named)
            for name, score in named.items():
                # A correlation is of predictions' small differences: 6e-6 was seen.
                close = pytest.approx(score.value, rel=CLOSE, abs=10 * CLOSE)
                assert mine.value(split, name) == close, name
    return outcomes


@pytest.mark.parametrize(
    ("method", "lanes"), [("lora", 1), pytest.param("qlora", 3, marks=pytest.mark.slow)]
)
def test_runs_side_by_side_equal_the_runs_alone(
    where: Path, tmp_path: Path, method: str, lanes: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(programs, "lanes_for", lambda slots: lanes)
    check_runs([run_of(where, method, **fields) for fields in MIXED], tmp_path)


@pytest.mark.parametrize(
    ("recipe", "metrics"),
    [
        ("classification", ("matthews", "accuracy")),
        pytest.param("regression", ("pearson", "spearman"), marks=pytest.mark.slow),
    ],
)
def test_the_metrics_of_a_recipe_are_those_of_the_run_alone(
    where: Path, tmp_path: Path, recipe: str, metrics: tuple[str, ...]
) -> None:
    """As CoLA and STS-B of GLUE have them."""
    file = write_task(tmp_path / "a.jsonl", recipe)
    data = dict(name=str(file), recipe=recipe, metrics=metrics, max_length=24, buckets=(24,))
    runs = [run_of(where, lora=dict(rank=rank), data=data) for rank in (1, 3)]
    results = check_runs(runs, tmp_path).values()
    assert {result.primary for result in results} == {metrics[0]}
    assert all(set(metrics) <= set(result.scores["test"]) for result in results)
    assert any(abs(result.value("test")) > 0.01 for result in results)


def test_runs_of_different_seeds_read_their_own_data_in_their_own_order(
    where: Path, tmp_path: Path
) -> None:
    check_runs(
        [
            run_of(where, train=dict(seed=seed, total_steps=5), data=dict(buckets=(8, 16)))
            for seed in (0, 1)
        ],
        tmp_path,
    )


KINDS = [
    [dict(dora=True), dict(dora=True, rank=3, targets="mlp")],
    [dict(dropout=0.1), dict(dropout=0.4, rank=3)],
]
MORE_KINDS = [
    [dict(init="pissa"), dict(init="pissa", rank=4)],
    [dict(init="olora"), dict(init="olora", rank=1)],
    [dict(init="lora_ga"), dict(init="lora_ga", rank=3)],
    [dict(init="eva"), dict(init="eva", alpha=2.0)],
    [dict(init="corda"), dict(init="corda", rank=1)],
    [
        dict(variant="vera", targets="query+value"),
        dict(variant="vera", rank=4, targets="query+value"),
    ],
    [dict(variant="lora_fa"), dict(variant="lora_fa", rank=1)],
    [dict(init="gaussian"), dict(init="orthogonal", rank=4), dict()],
]


def title(kind: Any) -> str:
    return "-".join(str(value) for value in kind[0].values())


@pytest.mark.parametrize(
    "kind",
    [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE_KINDS)],
    ids=title,
)
def test_every_kind_of_adapter_can_stand_beside_its_like(
    where: Path, tmp_path: Path, kind: list[dict[str, Any]]
) -> None:
    check_runs([run_of(where, lora=lora, train=dict(total_steps=6)) for lora in kind], tmp_path)


@pytest.mark.slow
def test_an_initialiser_that_chooses_the_base_shares_it_among_learning_rates(
    where: Path, tmp_path: Path
) -> None:
    check_runs(
        [
            run_of(
                where, "qlora", dict(init="loftq"), dict(learning_rate=rate), dict(total_steps=6)
            )
            for rate in (1e-3, 1e-2)
        ],
        tmp_path,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    [
        dict(),
        dict(scaling="rslora"),
        dict(dora=True),
        dict(init="pissa"),
        dict(init="olora"),
        dict(init="orthogonal"),
    ],
    ids=str,
)
def test_after_a_hundred_steps_losses_still_are_those_of_the_runs_alone(
    where: Path, tmp_path: Path, kind: dict[str, Any]
) -> None:
    runs = [
        run_of(
            where,
            lora=dict(rank=rank) | kind,
            optim=dict(learning_rate=rate, lora_plus_ratio=ratio),
            train=dict(total_steps=100),
        )
        for rank, rate, ratio in (
            (2, 5e-4, 1.0),
            (4, 5e-4, 16.0),
            (6, 1e-3, 4.0),
        )  # even: the orthogonal start has two halves
    ]
    check_runs(runs, tmp_path)


def test_a_run_that_diverges_fails_alone_and_its_slot_goes_to_the_next(
    where: Path, tmp_path: Path
) -> None:
    sound = [run_of(where, lora=dict(rank=rank)) for rank in (1, 2, 3)]
    broken = run_of(where, optim=dict(learning_rate=1e30, warmup_fraction=0.0))
    outcomes = side_by_side([broken, *sound], tmp_path / "stacked", slots=2)
    assert isinstance(outcomes[0], Diverged) and "The loss at step 2 is nan" in str(outcomes[0])
    assert [row["step"] for row in rows(tmp_path / "stacked" / "0")] == [1] and not (
        tmp_path / "stacked" / "0" / "adapter"
    ).exists()
    for number, run in enumerate(sound, 1):
        alone(run, tmp_path / str(number), sound)
        check_equal(tmp_path / "stacked" / str(number), tmp_path / str(number))


def test_a_finished_run_can_be_used_like_one_that_was_trained_alone(
    where: Path, tmp_path: Path
) -> None:
    runs = [run_of(where, "qlora", dict(rank=rank), train=dict(total_steps=4)) for rank in (1, 2)]
    outcomes = side_by_side(runs, tmp_path)
    for number, run in enumerate(runs):
        (tmp_path / str(number) / "config.json").write_text(json.dumps(to_dict(run)))
        again = load_run(tmp_path / str(number)).evaluate("test")
        assert again["loss"] == pytest.approx(outcomes[number].value("test", "loss"), rel=1e-6)
        assert outcomes[number].tokens_per_second > 0 and outcomes[number].seconds > 0


def test_a_run_that_does_not_fit_is_an_error_that_names_the_settings(
    where: Path, tmp_path: Path
) -> None:
    runs = [
        run_of(where),
        run_of(where, lora=dict(dora=True)),
        run_of(where, train=dict(batch_size=8)),
    ]
    outcomes = side_by_side(runs, tmp_path, wide=runs[0])
    assert isinstance(outcomes[0], RunResult)
    assert "cannot be trained beside the others: lora.dora: True, False" in str(outcomes[1])
    assert "train.batch_size: 8, 16" in str(outcomes[2])


PAIR = [
    dict(lora=dict(rank=1)),
    dict(lora=dict(rank=3, targets="mlp"), optim=dict(learning_rate=1e-3)),
]


@pytest.fixture(scope="module")
def uninterrupted(where: Path) -> Path:
    folder = where / "uninterrupted"
    side_by_side([run_of(where, **fields) for fields in PAIR], folder)
    return folder


def check_bits(folder: Path, reference: Path) -> None:
    for number in ("0", "1"):
        assert rows(folder / number) == rows(reference / number)
        assert same_bits(
            load_adapter(folder / number / "adapter")[0],
            load_adapter(reference / number / "adapter")[0],
        )


def test_runs_stopped_by_sigterm_go_on_bit_for_bit(
    where: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = where / "stopped", MetricsLog.write
    runs = [run_of(where, **fields) for fields in PAIR]

    def stop_at_6(self: MetricsLog, step: int, split: str, values: Any) -> None:
        write(self, step, split, values)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "write", stop_at_6)
    # The second run's row asks a second time, which would end at once: one signal is enough.
    monkeypatch.setattr(
        os,
        "kill",
        lambda pid, number, kill=os.kill: (
            monkeypatch.setattr(os, "kill", lambda *_: None) or kill(pid, number)
        ),
    )
    with pytest.raises(Interrupted, match="Stopped at step 7"):
        side_by_side(runs, folder)
    monkeypatch.undo()
    assert [row["step"] for row in rows(folder / "1")] == list(range(1, 8))
    side_by_side(runs, folder)
    check_bits(folder, uninterrupted)


def test_runs_that_were_killed_before_their_scores_train_no_step_more(
    where: Path, uninterrupted: Path
) -> None:
    runs = [run_of(where, **fields) for fields in PAIR]
    before = [rows(uninterrupted / number) for number in "01"]
    outcomes = side_by_side(runs, uninterrupted)
    assert [rows(uninterrupted / number) for number in "01"] == before
    # What their steps took was measured when they were run.
    assert all(outcome.tokens_per_second > 0 for outcome in outcomes.values())


KILLED = """
import json, os, signal, sys
from pathlib import Path
from lora_jax.config import from_config_dict
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.sharing import widest
from lora_jax.training.loop import fit
from lora_jax.training.run import Run
save, saved = Checkpoints.save, []
def kill_between(self, state, data):
    save(self, state, data)
    saved.append(int(state.step))
    if saved == [5, 5, 10]:  # the first run has its second checkpoint, the other has not
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.save = kill_between
runs = [from_config_dict(values) for values in json.loads(sys.argv[1])]
jobs = [Run(run, Path(sys.argv[2]) / str(n)) for n, run in enumerate(runs)]
fit(jobs, print, wide=widest(runs), slots=2, quiet=True)
"""


def test_runs_killed_between_their_checkpoints_go_on_bit_for_bit(
    where: Path, uninterrupted: Path
) -> None:
    folder = where / "killed"
    runs = [run_of(where, **fields) for fields in PAIR]
    command = [
        sys.executable,
        "-c",
        KILLED,
        json.dumps([to_dict(run) for run in runs]),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert [
        max(
            int(path.name) for path in (folder / n / "checkpoints").iterdir() if path.name.isdigit()
        )
        for n in "01"
    ] == [10, 5]
    side_by_side(runs, folder)
    check_bits(folder, uninterrupted)


def test_a_run_begun_alone_goes_on_beside_others_in_other_padding(
    where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run_of(where, **fields) for fields in PAIR]
    for number in (0, 1):
        train(runs[number], tmp_path / f"alone{number}", quiet=True)
    monkeypatch.setattr(MetricsLog, "write", lambda self, step, split, values, write=MetricsLog.write: (write(self, step, split, values), step == 6 and os.kill(os.getpid(), signal.SIGTERM)))  # fmt: skip
    with pytest.raises(Interrupted):
        train(runs[0], tmp_path / "stacked" / "0", quiet=True)
    monkeypatch.undo()
    side_by_side(runs, tmp_path / "stacked")
    for number in (0, 1):
        check_equal(tmp_path / "stacked" / str(number), tmp_path / f"alone{number}")


def test_a_judge_stops_runs_at_their_rungs_and_the_survivors_are_as_alone(
    where: Path, tmp_path: Path
) -> None:
    runs = [run_of(where, lora=dict(rank=rank)) for rank in (1, 2, 3, 4)]
    asked: list[tuple[str, int]] = []

    def judge(job: Run, step: int, score: dict[str, float]) -> bool:
        asked.append((job.folder.name, step))
        assert score["loss"] > 0 and score["examples"] > 0
        return job.folder.name in ("1", "3")

    outcomes: dict[str, Any] = {}
    jobs = [Run(run, tmp_path / str(n), rungs=(4, 7)) for n, run in enumerate(runs)]
    fit(
        jobs,
        lambda job, outcome: outcomes.update({job.folder.name: outcome}),
        wide=widest(runs),
        slots=2,
        judge=judge,
        quiet=True,
    )
    assert asked == [("0", 4), ("1", 4), ("1", 7), ("2", 4), ("3", 4), ("3", 7)]
    assert all(isinstance(outcomes[n], Stopped) and outcomes[n].step == 4 for n in ("0", "2"))
    for number in (1, 3):
        alone(runs[number], tmp_path / f"alone{number}", runs)
        check_equal(tmp_path / str(number), tmp_path / f"alone{number}")
    assert all((tmp_path / n / "checkpoints" / "4").is_dir() for n in ("0", "2"))
    # One that was killed at its rung is judged there before it takes another step.
    outcomes.clear()
    fit(
        [Run(runs[0], tmp_path / "0", rungs=(4, 7))],
        lambda job, outcome: outcomes.update({job.folder.name: outcome}),
        wide=widest(runs),
        judge=judge,
        quiet=True,
    )
    assert asked[6:] == [("0", 4)] and isinstance(outcomes["0"], Stopped)
    # What was stopped can go on from where it was.
    alone(runs[0], tmp_path / "0", runs)
    alone(runs[0], tmp_path / "alone0", runs)
    check_equal(tmp_path / "0", tmp_path / "alone0")
