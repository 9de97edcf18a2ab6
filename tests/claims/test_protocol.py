"""Arms find their own best rate, equal runs are trained once, divergence is an outcome, and losses
of examples add up to the evaluation.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from tiny_language import write_completions, write_tiny_model

from lab import protocol
from lab.examples import example_losses
from lab.protocol import FACTOR, Arm, Lab, Reason, Run, compare, with_
from lora_jax.config import Config, from_config_dict
from lora_jax.sweeps.grid import run_id
from lora_jax.training import loop
from lora_jax.training.result import RunResult
from lora_jax.training.run import Diverged


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("tiny")
    return from_config_dict(
        {
            "model": {"name": str(write_tiny_model(folder / "model"))},
            "data": {"task": "completion", "name": str(write_completions(folder / "a.jsonl")), "text": "input", "label": "ideal", "max_length": 24},
            "lora": {"rank": 2, "targets": r"layers/attn/.*/kernel"},
            "train": {"total_steps": 3, "batch_size": 8, "log_every": 1},
        }
    )  # fmt: skip


def _result(**values) -> RunResult:
    return RunResult.from_json({"test_accuracy": 0.5, **values})


class FakeLab(Lab):
    """Runs cost nothing: the validation loss is a bowl around `best` in log rate, infinite above
    `limit`.
    """

    def __init__(self, root: Path, best: float, limit: float = math.inf) -> None:
        super().__init__(root)
        self.best, self.limit, self.rates = best, limit, []

    def run(self, config: Config) -> Run:
        rate = config.optim.learning_rate
        self.rates.append(rate)
        loss = 1 + math.log(rate / self.best) ** 2
        return Run(
            "fake",
            config,
            Path("."),
            _result(validation_loss=loss) if rate < self.limit else None,
            None if rate < self.limit else "Diverged",
        )


def test_an_arm_stands_at_the_best_rate_of_its_grid(tmp_path):
    arm = FakeLab(tmp_path, best=1.1e-3).arm("a", Config(), (3.16e-4, 1e-3, 3.16e-3))
    assert arm.rate == 1e-3 and [rate for rate, _ in arm.tuning] == [3.16e-4, 1e-3, 3.16e-3]
    assert [run.config.train.seed for run in arm.runs] == [0, 1, 2] and {
        run.config.optim.learning_rate for run in arm.runs
    } == {1e-3}


@pytest.mark.parametrize("best", [1e-4, 1e-1])
def test_a_grid_grows_where_its_best_is_at_an_end_and_stays_on_round_rates(tmp_path, best):
    arm = FakeLab(tmp_path, best=best).arm("a", Config(), (1e-3, 3.16e-3, 1e-2))
    assert arm.rate == pytest.approx(best, rel=1e-2)
    # Rates reached by growing are those that a written grid would have, so that runs are shared.
    assert all(
        rate in (1e-5, 3.16e-5, 1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1, 3.16e-1, 1.0)
        for rate, _ in arm.tuning
    )
    assert FakeLab(tmp_path, best=1e-9).arm("a", Config(), (1e-3, 3.16e-3)).rate == pytest.approx(
        1e-3 / FACTOR**3, rel=1e-2
    )


def test_a_rate_that_diverges_is_never_the_best_and_is_named(tmp_path):
    arm = FakeLab(tmp_path, best=1e-1, limit=5e-3).arm("a", Config(), (1e-3, 3.16e-3, 1e-2))
    assert arm.rate == 3.16e-3 and arm.diverged == ("a at rate 0.01",)
    lost = FakeLab(tmp_path, best=1e-1, limit=1e-4).arm("b", Config(), (1e-3, 3.16e-3))
    assert lost.rate < 1e-4 and len(lost.diverged) >= 2


def test_equal_runs_are_trained_once_and_losses_of_examples_add_up(
    tiny_config, tmp_path, monkeypatch
):
    lab = Lab(tmp_path / "runs", say=lambda text: None)
    run = lab.run(tiny_config)
    assert run.result.steps == 3 and [step for step, _ in run.trace()] == [1, 2, 3]
    losses, weights = run.losses("test")
    # The same sums in another order, in float32.
    assert (losses * weights).sum() / weights.sum() == pytest.approx(
        run.result.value("test", "loss"), rel=1e-5
    )
    assert (weights > 0).all() and weights.sum() > len(weights)
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("trained again"))
    later = Lab(tmp_path / "runs", say=lambda text: None)
    again = later.run(tiny_config)
    # A claim is told what its runs took, also where another claim trained them.
    assert (
        later.account() == {run.name: run.result.seconds}
        and later.seconds_here() == 0
        and lab.seconds_here() > 0
    )
    later.new_account()
    assert later.account() == {}
    assert again.result == run.result and np.array_equal(again.losses("test")[0], losses)


def test_a_run_that_diverges_is_recorded_and_not_tried_again(tiny_config, tmp_path, monkeypatch):
    calls = []

    def diverge(*args, **options):
        calls.append(args)
        raise Diverged("The loss at step 2 is nan")

    monkeypatch.setattr(loop, "train", diverge)
    lab = Lab(tmp_path / "runs", say=lambda text: None)
    for _ in range(2):
        run = lab.run(with_(tiny_config, **{"optim.learning_rate": 7.0}))
        assert (
            run.result is None and run.validation_loss == math.inf and "step 2 is nan" in run.error
        )
    assert len(calls) == 1
    with pytest.raises(ValueError, match="diverged"):
        run.losses()
    with pytest.raises(ValueError, match="Every seed of the arm 'x' diverged"):
        Arm("x", 7.0, (run,), ()).losses()


def test_other_failures_are_not_swallowed(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("disk")))
    lab = Lab(tmp_path / "runs", say=lambda text: None)
    with pytest.raises(RuntimeError, match="disk"):
        lab.run(tiny_config)
    monkeypatch.undo()
    # Nor is a failure that somebody recorded an outcome.
    lab.store.start(run_id(tiny_config), tiny_config, {})
    lab.store.fail(run_id(tiny_config), RuntimeError("disk"))
    assert lab.run(tiny_config).result is not None  # and may be tried again


def test_arms_are_compared_example_by_example(tmp_path):
    weights = np.arange(200.0)  # tokens of each example: long ones count for more

    def arm(shift: float) -> Arm:
        runs = []
        for seed in range(3):
            folder = tmp_path / f"{shift}-{seed}"
            folder.mkdir()
            base = np.random.default_rng(0).exponential(size=200)
            losses = base + shift + 0.001 * seed
            np.savez(folder / "losses_test.npz", losses=losses, weights=weights)
            runs.append(
                Run(
                    "r",
                    with_(Config(), **{"train.seed": seed}),
                    folder,
                    _result(trainable_parameters=1),
                )
            )
        return Arm("a", 1e-3, tuple(runs), ((1e-3, 1.0),))

    expected = np.average(np.random.default_rng(0).exponential(size=200), weights=weights)
    assert arm(0.0).by_seed() == pytest.approx([expected, expected + 0.001, expected + 0.002])
    assert arm(0.5).mean() == pytest.approx(expected + 0.501)
    interval, each = compare(arm(0.2), arm(0.1))
    assert (
        interval.value == pytest.approx(0.1)
        and interval.high - interval.low < 1e-9
        and each == pytest.approx([0.1] * 3)
    )
    assert arm(0.3).spread() == pytest.approx(0.001, rel=1e-6) and arm(0.4).summary()["tuning"] == [
        [1e-3, 1.0]
    ]


def test_padded_and_sorted_batches_give_each_classified_example_its_own_loss(tiny):
    from lora_jax.config import load_config
    from lora_jax.tasks.opening import open_task
    from lora_jax.training.run import initial_state

    default = Path(__file__).parents[2] / "configs" / "default.py"
    config = load_config(str(default), [f"{key}={value}" for key, value in tiny.items()])
    task = open_task(config)
    frozen, state = initial_state(config, task, 1)
    together = example_losses(
        task.model, task.splits["test"], frozen, state.trainable, buckets=task.buckets, batch_size=7
    )
    alone = example_losses(
        task.model, task.splits["test"], frozen, state.trainable, buckets=task.buckets, batch_size=1
    )
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-5)
    assert (together[1] == 1).all() and len(together[0]) == len(task.splits["test"])


def test_shown_and_with_():
    assert protocol.shown(protocol.Interval(0.1234, 0.1, 0.2), 2) == "0.12 [0.10, 0.20]"
    assert with_(Config(), **{"lora.rank": 3, "method": "full"}).lora.rank == 3


@pytest.mark.parametrize(("supported", "word"), [(True, "supports"), (False, "refutes")])
def test_a_reason_says_what_was_supposed_and_what_came_of_it(supported, word):
    reason = Reason("x is small, so y should be above 1", "y is 2", supported, {"y": 2})
    assert reason.text.endswith(
        f"*Reason tested:* x is small, so y should be above 1. *Measured:* y is 2. This {word} it."
    )
    assert reason.entry() == {
        "supposed": reason.supposed,
        "measured": "y is 2",
        "supported": supported,
        "y": 2,
    }
