"""C23: under Adam, scaling both factors and their rates is undone by alpha."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lab.claim import Claim, Finding, Part
from lora_jax import LoraSpec, adapt, apply, create_state, make_optimizer, make_train_step
from lora_jax.config import OptimConfig
from lora_jax.tasks.losses import Sums

CLAIM = Claim(
    id="C23",
    title="Adam does not see how alpha, start and rates share one scale",
    source="LoRA Without Regret, 2025",
    published="alpha to alpha/(pq), start of a times p, rate of a times p, rate of b times q: training unchanged",
    expected="50 losses equal to 1e-5 relative in float32 with epsilon 1e-30, (p, q) = (4, 1/4) and (3, 7)",
    kind="theorem",
    minutes=1,
    models="a network of two layers, 16 to 32 to 8",
    regime="Adam with no decay, no clipping and an epsilon that is nothing beside the gradients",
    limits={"relative": 1e-5},
)
STEPS = 50


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="down", use_bias=False)(
            jnp.tanh(nn.Dense(32, name="up", use_bias=False)(x))
        )


@functools.cache
def trace(
    p: float, q: float, *, eps: float = 1e-30, weight_decay: float = 0.0, clip_norm: float = 0.0
) -> np.ndarray:
    """The losses of 50 steps of a two-layer network that learns another one's outputs, with the
    scales p and q.
    """
    model, x = _Net(), jax.random.normal(jax.random.key(1), (64, 16))
    params = model.init(jax.random.key(0), x)["params"]
    goal = model.apply({"params": model.init(jax.random.key(2), x)["params"]}, x)
    frozen, trainable = adapt(
        model,
        params,
        (x,),
        lora=[(".*", LoraSpec(rank=4, alpha=8.0 / (p * q)))],
        key=jax.random.key(3),
    )
    trainable = {path: leaf.replace(a=leaf.a * p) for path, leaf in trainable.items()}

    def loss(frozen, trainable, batch, key):
        total = ((apply(model, frozen, trainable, batch) - goal) ** 2).sum()
        return total, Sums(loss=total, correct=jnp.zeros(()), weight=jnp.float32(goal.size))

    optim = OptimConfig(
        learning_rate=p * 1e-2,
        lora_plus_ratio=q / p,
        eps=eps,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        schedule="constant",
        warmup_fraction=0.0,
    )
    tx = make_optimizer(optim, STEPS)
    state, step = create_state(trainable, tx, jax.random.key(4)), jax.jit(make_train_step(loss, tx))
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, frozen, x)
        losses.append(float(metrics["loss"]))
    return np.array(losses)


def difference(p: float, q: float, **options) -> float:
    """The largest relative difference between the losses with scales (p, q) and with none."""
    plain = trace(1.0, 1.0, **options)
    return float(np.abs(trace(p, q, **options) / plain - 1).max())


def judge(worst: float):
    """The verdict on the largest relative difference."""
    return "reproduced" if worst < CLAIM.limits["relative"] else "not reproduced"


def run(lab):
    exact = {f"p={p:g}, q={q:g}": difference(p, q) for p, q in ((4.0, 0.25), (3.0, 7.0))}
    broken = {
        "weight decay 0.1": difference(3.0, 7.0, weight_decay=0.1),
        "epsilon 1e-3": difference(3.0, 7.0, eps=1e-3),
        # Adam undoes a common factor: clipping matters only by which steps it clips.
        "clipping at 0.01": difference(3.0, 7.0, clip_norm=0.01),
    }
    worst = max(exact.values())
    part = Part(
        "losses with both scales and with none",
        "exact",
        judge(worst),
        f"differ by {worst:.1e} at most ("
        + ", ".join(f"{name}: {value:.1e}" for name, value in exact.items())
        + ")",
    )
    return Finding(
        (part,),
        {"exact": exact, "broken_by": broken, "losses": trace(1.0, 1.0).tolist()},
        note="Powers of two are exact; 3 and 7 round. It breaks, by the largest relative "
        "difference, with "
        + ", ".join(f"{name} ({value:.1e})" for name, value in broken.items())
        + ".",
        plot={
            "lines": {
                "none": [[n + 1, float(x)] for n, x in enumerate(trace(1.0, 1.0))],
                "p = 3, q = 7": [[n + 1, float(x)] for n, x in enumerate(trace(3.0, 7.0))],
                "p = 3, q = 7, weight decay 0.1": [
                    [n + 1, float(x)] for n, x in enumerate(trace(3.0, 7.0, weight_decay=0.1))
                ],
            },
            "x": "step",
            "y": "loss",
            "log": "y",
        },
        seeds=(0,),
    )
