"""What is learnt from rewards follows the gradient of the expected reward."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lab.reward import RewardLosses


class Words(nn.Module):
    """Three numbers a text to two classes."""

    @nn.compact
    def __call__(self, tokens, mask, types):
        return nn.Dense(2, use_bias=False)(tokens)


def test_drawn_answers_give_the_gradient_of_the_expected_reward():
    dice = np.random.default_rng(0)
    batch = {
        "tokens": jnp.asarray(dice.normal(size=(4, 3)), jnp.float32),
        "mask": None,
        "types": None,
        "labels": jnp.asarray([0, 1, 1, -1]),
        "weight": jnp.asarray([1.0, 1.0, 1.0, 0.0]),
    }
    model = Words()
    params = model.init(jax.random.key(0), batch["tokens"], None, None)["params"]
    losses = RewardLosses(model)
    exact = losses(params, {}, batch)
    assert exact.weight.sum() == 3 and exact.loss[3] == 0
    right = jax.nn.softmax(batch["tokens"] @ params["Dense_0"]["kernel"])[
        jnp.arange(3), jnp.array([0, 1, 1])
    ]
    np.testing.assert_allclose(exact.loss[:3], 1 - right, rtol=1e-5)

    slope = jax.grad(lambda p, key: losses(p, {}, batch, key).total)
    drawn = jax.jit(jax.vmap(slope, (None, 0)))(params, jax.random.split(jax.random.key(1), 20_000))
    mean, error = (f(drawn["Dense_0"]["kernel"], 0) for f in (jnp.mean, jnp.std))
    wanted = jax.grad(lambda p: losses(p, {}, batch).total)(params)["Dense_0"]["kernel"]
    # The baseline holds a third of each answer's own reward.
    np.testing.assert_array_less(jnp.abs(mean - wanted * 2 / 3), 5 * error / np.sqrt(20_000))
    assert jnp.abs(wanted).max() > 10 * error.max() / np.sqrt(20_000)
