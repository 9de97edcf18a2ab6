"""The optimiser: schedule numbers, labels and rates, decay masks, and state for trained leaves
alone.
"""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_task import PLAIN, make

from lora_jax.config import OptimConfig
from lora_jax.core import TrainedWeight
from lora_jax.core.trainable import combine, partition, trainable_labels
from lora_jax.training.optim import Schedule, decay_mask, make_optimizer, structure_of


def factors(config: OptimConfig, total: int, steps: int) -> list[float]:
    start = Schedule.of(config, total)
    return [float(start._replace(count=jnp.int32(step)).factor()) for step in range(steps)]


@pytest.mark.parametrize(
    ("schedule", "falls"),
    [
        ("linear", [1 - k / 8 for k in range(9)]),
        ("cosine", [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]),
        ("constant", [1.0] * 9),
    ],
)
def test_the_schedule_warms_up_to_one_and_falls_to_zero_at_the_last_step(
    schedule: Any, falls: list[float]
) -> None:
    warmed = OptimConfig(schedule=schedule, warmup_fraction=0.2)
    assert factors(warmed, 10, 11) == pytest.approx([0.5, 1.0, *falls], abs=1e-6)
    bare = OptimConfig(schedule=schedule, warmup_fraction=0.0)
    assert factors(bare, 8, 9) == pytest.approx(falls, abs=1e-6)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_first_step_of_the_shortest_runs_moves(total: int) -> None:
    for fraction in (0.0, 0.06, 0.99):
        config = OptimConfig(warmup_fraction=fraction)
        assert all(0 < factor <= 1 for factor in factors(config, total, total))


def trees() -> tuple[Any, Any, Any]:
    _, trainable = make()
    return trainable, *partition(trainable)


def test_partition_and_combine_are_inverse_and_tell_trained_leaves_from_fixed_ones() -> None:
    trainable, trained, fixed = trees()
    again = combine(trained, fixed)
    assert jax.tree.structure(again) == jax.tree.structure(trainable)
    assert all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(trainable), strict=True)
    )
    assert len(jax.tree.leaves(trained)) == 2 * 2 + 2 and len(jax.tree.leaves(fixed)) == 2
    assert (
        trainable_labels(trained)["up/kernel"].a == "a"
        and trainable_labels(trained)["up/kernel"].b == "b"
        and trainable_labels(trained)["head/bias"].value == "whole"
    )


def first_updates(config: OptimConfig, grad: float = 1.0) -> Any:
    _, trained, _ = trees()
    tx = make_optimizer(config, 10)
    grads = jax.tree.map(lambda x: jnp.full(x.shape, grad), trained)
    return trained, jax.jit(tx.update)(grads, tx.init(trained), trained)[0]


def test_lora_plus_is_the_rate_of_b_over_that_of_a_and_the_head_has_its_own() -> None:
    _, updates = first_updates(
        replace(PLAIN, learning_rate=0.01, lora_plus_ratio=16.0, head_learning_rate=0.5)
    )
    # Adam's first step is the learning rate in every entry.
    assert np.allclose(updates["up/kernel"].a, -0.01) and np.allclose(updates["up/kernel"].b, -0.16)
    assert np.allclose(updates["head/kernel"].value, -0.5)
    _, updates = first_updates(replace(PLAIN, learning_rate=0.01))
    assert all(np.allclose(leaf, -0.01) for leaf in jax.tree.leaves(updates))


def test_weight_decay_is_decoupled_and_leaves_biases_alone() -> None:
    trained, updates = first_updates(replace(PLAIN, learning_rate=0.1, weight_decay=0.5), grad=0.0)
    assert np.allclose(updates["up/kernel"].a, -0.05 * trained["up/kernel"].a)
    assert np.allclose(updates["head/kernel"].value, -0.05 * trained["head/kernel"].value)
    assert np.any(trained["head/bias"].value) and not np.any(updates["head/bias"].value)


def test_the_decay_mask_knows_biases_and_norms_by_their_last_name() -> None:
    one = TrainedWeight(value=jnp.ones(2))
    paths = (
        "bias",
        "a/bias",
        "scale",
        "embeddings/norm/scale",
        "layers/attn_norm/scale",
        "LayerNorm_0/scale",
        "kernel",
        "a/embedding",
        "a/rescale",
    )
    decays = {path: leaf.value for path, leaf in decay_mask(dict.fromkeys(paths, one)).items()}
    assert [path for path, value in decays.items() if value] == [
        "kernel",
        "a/embedding",
        "a/rescale",
    ]


def test_clipping_bounds_the_global_norm_of_the_gradient() -> None:
    _, trained, _ = trees()
    grads = jax.tree.map(jnp.ones_like, trained)
    for clip, expected in ((0.5, 0.5), (1e3, float(optax.tree.norm(grads)))):
        state = make_optimizer(replace(PLAIN, clip_norm=clip, beta1=0.0), 10)
        _, new = state.update(grads, state.init(trained), trained)
        moments = next(part for part in new if isinstance(part, optax.ScaleByAdamState)).mu
        assert float(optax.tree.norm(moments)) == pytest.approx(expected, rel=1e-5)


def test_the_optimiser_holds_two_moments_of_trained_leaves_and_nothing_else() -> None:
    _, trained, _ = trees()
    state = make_optimizer(OptimConfig(), 10).init(trained)
    moments = [leaf.shape for leaf in jax.tree.leaves(state) if jnp.ndim(leaf)]
    assert sorted(moments) == sorted([leaf.shape for leaf in jax.tree.leaves(trained)] * 2)


def test_runs_that_differ_in_rates_have_states_of_one_structure() -> None:
    _, trained, _ = trees()
    one, two = (
        make_optimizer(
            OptimConfig(
                learning_rate=rate, lora_plus_ratio=ratio, weight_decay=0.0, warmup_fraction=warmup
            ),
            10,
        ).init(trained)
        for rate, ratio, warmup in ((1e-3, 1, 0.0), (0.5, 4, 0.2))
    )
    assert jax.tree.structure(one) == jax.tree.structure(two)
    # The numbers in the state are those that act: another run's compiled program serves this one.
    other = OptimConfig(
        learning_rate=1.0, weight_decay=0.3, clip_norm=1e-9, schedule="cosine", warmup_fraction=0.9
    )
    assert structure_of(other) == structure_of(OptimConfig())
    updates, _ = make_optimizer(other, 7).update(jax.tree.map(jnp.ones_like, trained), two, trained)
    # The first of two steps of warm-up, at half the rate.
    assert np.allclose(updates["up/kernel"].a, -0.25) and np.allclose(updates["up/kernel"].b, -1.0)
