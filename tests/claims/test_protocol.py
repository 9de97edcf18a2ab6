"""Arms find their own best rate, equal runs are trained once, divergence stays in the count, and
losses of examples add up to the evaluation.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tiny_language import write_completions, write_tiny_model

from lab import small_model
from lab.claim import Finding, Part, Reason, judge_all
from lab.contrast import Arm, contrast, difference, of_losses, shown
from lab.examples import example_losses
from lab.measured import Lab, machine_seconds
from lab.protocol import Arms, rate_at, vertex
from lab.setting import FULL, MINILM, Run, S, Setting
from lab.small_model import SmallModel
from lora_jax.config import from_config_dict
from lora_jax.statistics import Interval
from lora_jax.sweeps.grid import run_id
from lora_jax.sweeps.provenance import cpu_count
from lora_jax.training import loop
from lora_jax.training.result import RunResult
from lora_jax.training.run import Diverged


@pytest.fixture(scope="module")
def tiny_s(tmp_path_factory):
    """The settings of a tiny language model in place of S's."""
    folder = tmp_path_factory.mktemp("tiny")
    values = {
        "model": {"name": str(write_tiny_model(folder / "model"))},
        "data": {"task": "completion", "name": str(write_completions(folder / "a.jsonl")), "text": "input", "label": "ideal", "max_length": 24},
        "lora": {"rank": 2, "targets": r"layers/attn/.*/kernel"},
        "train": {"total_steps": 3, "batch_size": 8, "log_every": 1, "seed": 0},
    }  # fmt: skip
    return values


@pytest.fixture
def lab(tiny_s, tmp_path, monkeypatch):
    """A lab whose S is tiny."""

    def config(self, seed, rate=None):
        changes = dict(self.changes) | {"train.seed": seed}
        changes |= {} if rate is None else {"optim.learning_rate": rate}
        return from_config_dict(small_model.changed(json.loads(json.dumps(tiny_s)), changes))

    monkeypatch.setattr(Setting, "config", config)
    monkeypatch.setattr(Lab, "_pretrain", lambda self, base: None)
    return Lab(tmp_path / "runs", seeds=(0, 1, 2), say=lambda text: None)


class FakeLab(Arms):
    """Runs cost nothing: the validation loss is a bowl around `best` in log rate, infinite above
    `limit`.
    """

    def __init__(self, best: float, limit: float = math.inf) -> None:
        self.best, self.limit, self.asked = best, limit, []

    def run(self, setting, seed, rate, *, scored=True):
        self.asked.append((seed, rate, scored))
        loss = 1 + 0.01 * math.log2(rate / self.best) ** 2
        result = RunResult.from_json({"test_accuracy": 0.5, "validation_loss": loss})
        lost = rate >= self.limit
        error = "Diverged" if lost else None
        return Run("fake", setting, seed, rate, Path("."), None if lost else result, error)

    def untuned(self, setting, seed):
        return np.full(4, 2.0), np.ones(4)

    def answers(self, run):
        return np.full(4, run.validation_loss), None


def test_an_arm_stands_at_the_lowest_point_of_its_curve_and_is_scored_on_other_seeds():
    lab = FakeLab(best=1.1e-3)
    arm = lab.arm("a", S, guess=1e-3)
    assert arm.rate == pytest.approx(1.1e-3, rel=1e-2)
    assert list(arm.tuning) == [rate_at(n) for n in (-2, -1, 0, 1, 2)] and not arm.on_edge
    tuned = {seed for seed, rate, scored in lab.asked if not scored}
    assert tuned == {101, 102} and arm.seeds == (0, 1, 2, 3, 4)
    assert not tuned & set(arm.seeds)


@pytest.mark.parametrize("best", [1e-4, 3e-2])
def test_a_grid_grows_until_two_points_stand_on_each_side_of_the_best(best):
    arm = FakeLab(best=best).arm("a", S, guess=1e-3)
    assert arm.rate == pytest.approx(best, rel=1e-2)
    lowest = min(arm.tuning, key=arm.tuning.__getitem__)
    place = list(arm.tuning).index(lowest)
    assert 2 <= place <= len(arm.tuning) - 3
    # Rates reached by growing are those of every other arm's grid, so that runs are shared.
    assert all(math.log2(rate / 1e-3).is_integer() for rate in arm.tuning)
    assert FakeLab(best=1e-9).arm("a", S, guess=1e-3).on_edge


def test_a_rate_that_diverges_is_never_the_best():
    arm = FakeLab(best=1.0, limit=5e-3).arm("a", S, guess=1e-3)
    assert arm.rate == 4e-3 and arm.tuning[8e-3] == math.inf


def test_a_run_that_diverged_counts_with_its_untuned_losses():
    arm = FakeLab(best=1e-3, limit=1e-2).fixed("a", S, 2e-2)
    assert arm.losses.tolist() == arm.untuned.tolist() and len(arm.diverged) == 5
    assert "a at 0.02, seed 0" in arm.diverged and arm.gain().value == 0
    assert arm.summary()["tuning"] == []


def test_the_vertex_needs_both_neighbours():
    assert vertex({-1: 1.0, 0: 0.5, 1: 1.0}, 0) == 1e-3
    assert vertex({-1: 0.6, 0: 0.5, 1: 1.0}, 0) < 1e-3
    assert vertex({0: 0.5, 1: 1.0}, 0) == vertex({-1: 1.0, 0: 0.5, 1: math.inf}, 0) == 1e-3


def test_seeds_spread_over_pretrainings_and_settings_share_runs():
    assert [S.base_of(seed).seed for seed in (0, 1, 2, 3, 101)] == [0, 1, 2, 0, 2]
    assert Setting(SmallModel(width=64), bases=1).base_of(4).seed == 0
    assert MINILM.base_of(3) == "minilm" and S.with_(**FULL).method == "full"
    one, two = S.with_(**{"lora.rank": 4}).with_(**{"lora.alpha": 8.0}), S
    assert one == two.with_(**{"lora.alpha": 8.0, "lora.rank": 4}) and one.get("lora.rank") == 4


def test_equal_runs_are_trained_once_and_losses_of_examples_add_up(lab, tmp_path, monkeypatch):
    run = lab.run(S, 0, 1e-3)
    assert run.result.steps == 3 and [step for step, _ in lab.trace(run)] == [1, 2, 3]
    losses, weights = lab.losses(run, "B")
    assert (weights > 0).all() and weights.sum() > len(weights)
    assert np.array_equal(lab.answers(run)[0], losses) and lab.answers(run)[1] is None
    # A base that is not adapted has the losses of an adapter that changes nothing.
    before = lab.untuned(S, 0)
    assert not np.allclose(losses, before[0], rtol=1e-6)

    zeroed = lambda task, frozen, trainable: (frozen, lab_zero(trainable))
    np.testing.assert_allclose(lab.losses(run, "B", zeroed)[0], before[0], rtol=1e-5)

    monkeypatch.setattr(loop, "fit", lambda *a, **k: pytest.fail("trained again"))
    later = Lab(tmp_path / "runs", say=lambda text: None)
    again = later.run(S, 0, 1e-3)
    # A claim is told what its runs took, also where another claim trained them.
    took = machine_seconds(run.result.seconds, cpu_count())
    assert later.account() == {run.name: took} and later.seconds_here() == 0
    assert lab.seconds_here() > 0
    later.new_account()
    assert later.account() == {}
    assert again.result == run.result and np.array_equal(later.losses(again, "B")[0], losses)


def lab_zero(trainable):
    """Adapters whose update is nothing."""
    import jax

    return jax.tree.map(lambda x: x * 0, trainable)


def test_a_run_that_diverges_is_recorded_and_not_tried_again(lab, monkeypatch):
    calls = []

    def diverge(runs, finished, **options):
        calls.append(runs)
        finished(runs[0], Diverged("The loss at step 2 is nan"))

    monkeypatch.setattr(loop, "fit", diverge)
    for _ in range(2):
        run = lab.run(S, 0, 7.0)
        assert run.result is None and run.validation_loss == math.inf
        assert "step 2 is nan" in run.error
    assert len(calls) == 1
    with pytest.raises(ValueError, match="diverged"):
        lab.losses(run, "B")


def test_other_failures_are_not_swallowed(lab, monkeypatch):
    fail = lambda runs, finished, **k: finished(runs[0], RuntimeError("disk"))
    monkeypatch.setattr(loop, "fit", fail)
    with pytest.raises(RuntimeError, match="disk"):
        lab.run(S, 0, 1e-3)
    monkeypatch.undo()


def arm_of(losses, *, seeds=None, untuned=2.0, weights=None, name="a") -> Arm:
    losses = np.asarray(losses, float)
    seeds = tuple(range(len(losses))) if seeds is None else seeds
    before = np.full_like(losses, untuned)
    weights = np.ones(losses.shape[1]) if weights is None else np.asarray(weights, float)
    return Arm(name, S, 1e-3, seeds, losses, before, weights)


def test_arms_are_compared_by_seed_and_example():
    dice = np.random.default_rng(0)
    hard, noise = dice.exponential(size=200), 0.001 * np.arange(3)[:, None]
    weights = np.arange(1.0, 201.0)  # tokens of each example: long ones count for more
    one = arm_of(hard + 0.2 + noise, weights=weights)
    two = arm_of(hard + 0.1 + noise, weights=weights)
    assert one.by_seed()[0] == pytest.approx(np.average(hard, weights=weights) + 0.2)
    found = difference(one, two)
    assert found.value == pytest.approx(0.1) and found.by_seed == pytest.approx([0.1] * 3)
    assert found.interval().high - found.interval().low < 1e-6

    # Seeds are paired by their number, not by their place.
    turned = arm_of((hard + 0.1 + noise)[::-1], seeds=(2, 1, 0), weights=weights)
    assert difference(one, turned).by_seed == pytest.approx([0.1] * 3)
    fewer = arm_of((hard + 0.1 + noise)[1:], seeds=(1, 2), weights=weights)
    assert difference(one, fewer).seeds == 2


def test_contrasts_are_sums_of_arms_and_of_the_untuned_model():
    one, two = arm_of(np.full((3, 5), 1.0)), arm_of(np.full((3, 5), 1.5))
    assert contrast(((2.0, one), (-1.0, two))).value == pytest.approx(0.5)
    assert one.gain().value == pytest.approx(1.0)
    same = of_losses(((1.0, one.losses), (-1.0, two.losses)), one.weights)
    assert same.value == difference(one, two).value
    with pytest.raises(ValueError, match="seeds in common"):
        difference(one, arm_of(np.ones((3, 5)), seeds=(7, 8, 9)))
    with pytest.raises(ValueError, match="same examples"):
        difference(one, arm_of(np.ones((3, 4))))


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


def test_a_finding_has_the_verdict_of_all_its_parts():
    part = lambda verdict: Part("x", "effect", verdict, "3")
    assert Finding((part("reproduced"), part("inconclusive")), {}).verdict == "inconclusive"
    assert judge_all(["reproduced", "reproduced"]) == "reproduced"
    assert judge_all(["inconclusive", "not reproduced"]) == "not reproduced"
    assert judge_all(["opposite", "opposite"]) == "opposite"
    assert judge_all(["reproduced", "opposite"]) == "not reproduced"
    assert shown(Interval(0.1234, 0.1, 0.2), 2) == "0.12 [0.10, 0.20]"


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


def test_ids_of_the_labs_runs_are_those_of_sweeps(lab):
    run = lab.run(S, 1, 2e-3)
    assert run.name == run_id(run.config) and lab.store.folder(run.name) == run.folder
