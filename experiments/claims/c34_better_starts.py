"""C34: PiSSA, OLoRA and LoRA-GA start faster than random factors."""

import jax
import jax.numpy as jnp
import numpy as np

from lab import arms, small_model
from lab.protocol import Claim, Finding, Reason, compare, interval_of, shown, with_
from lab.verdicts import judge_all
from lab.weights import minilm_matrices
from lora_jax import LoraSpec
from lora_jax.analysis.spectra import dense_svd, effective_rank
from lora_jax.config import from_config_dict
from lora_jax.core.init import initialize
from lora_jax.core.paths import flatten

CLAIM = Claim(
    id="C34",
    title="PiSSA, OLoRA and LoRA-GA start faster",
    source="PiSSA (2404.02948), OLoRA (2406.01775), LoRA-GA (2407.05000)",
    published="PiSSA toy: loss .888 to .335 in 5 steps, LoRA .554; LoRA-GA 2-4 times faster",
    expected="first step of LoRA-GA nearer to the negative gradient than a random start's, which is about sqrt(r/d); every start gives the base's output to 1e-5; on S, loss at step 20 below LoRA's for PiSSA and OLoRA, each at its own best rate",
    kind="exact",
    tolerance={"output": 1e-5},
)
INITS = ("kaiming", "pissa", "olora", "lora_ga")
STEP = 20
ENCODER_RATES = (3.16e-4, 1e-3, 3.16e-3)


def problem(d: int = 96):
    """A weight with a falling spectrum, inputs, and the gradient of a regression loss whose
    solution is far from it.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    weight = jax.random.normal(keys[0], (d, d)) * 0.95 ** jnp.arange(d) / d**0.5
    x = jax.random.normal(keys[1], (512, d))
    goal = x @ (
        weight + jax.random.normal(keys[2], (d, 8)) @ jax.random.normal(keys[3], (8, d)) / d
    )
    loss = lambda w: 0.5 * ((x @ w - goal) ** 2).mean()
    return weight, x, loss, jax.grad(loss)(weight)


def first_step(init: str, rank: int, seed: int = 5) -> tuple[float, float]:
    """(cosine of the first step of gradient descent with the negative gradient, largest output
    difference at the start).
    """
    weight, x, loss, gradient = problem()
    needs = {
        "pissa": {"weight": weight},
        "olora": {"weight": weight},
        "lora_ga": {"weight": weight, "data": gradient},
    }
    low = initialize(
        jax.random.key(seed),
        (),
        *weight.shape,
        LoraSpec(rank=rank, alpha=float(rank), init=init),
        **needs.get(init, {}),
    )
    off = float(jnp.abs(x @ low.delta()).max() / jnp.abs(x @ weight).max())
    grads = jax.grad(lambda ab: loss(weight + low.replace(a=ab[0], b=ab[1]).delta()))(
        (low.a, low.b)
    )
    small = 1e-4
    moved = (
        low.replace(a=low.a - small * grads[0], b=low.b - small * grads[1]).delta() - low.delta()
    )
    cosine = -(moved * gradient).sum() / (jnp.linalg.norm(moved) * jnp.linalg.norm(gradient))
    return float(cosine), off


def encoder_config():
    """MiniLM on Rotten Tomatoes: 30 steps of 16 sentences, cut at 32 tokens, at a constant rate,
    rank 8 on all linear layers.
    """
    return from_config_dict(
        {
            "model": {"name": "minilm-l6"},
            "data": {"name": "rotten_tomatoes", "max_length": 32, "buckets": [32]},
            "lora": {"rank": 8, "alpha": 16.0},
            "optim": {"weight_decay": 0.0, "schedule": "constant", "warmup_fraction": 0.0},
            "train": {
                "total_steps": 30,
                "batch_size": 16,
                "eval_examples": 256,
                "checkpoint_every": 10_000,
            },
            "out": "runs/claims",
        }
    )


def flatness(weights) -> float:
    """Effective rank over full rank, mean over matrices: 1 for equal singular values."""
    spectra = [dense_svd(w).s for w in weights]
    return float(np.mean([(effective_rank(s) / s.shape[-1]).mean() for s in spectra]))


def pretrained_encoder(lab) -> Reason:
    """Whether principal directions are worth more on weights that were pretrained for long: the
    same starts, and LoRA-GA, on MiniLM.
    """
    _, params = small_model.load(small_model.pretrained())
    own = [np.asarray(w) for path, w in flatten(params).items() if path.endswith("/kernel")]
    flat = {"S": flatness(own), "MiniLM": flatness(minilm_matrices().values())}
    tuned = {
        init: lab.arm(
            f"MiniLM {init}",
            with_(encoder_config(), **{"lora.init": init}),
            ENCODER_RATES,
            seeds=(0, 1),
        )
        for init in INITS
    }
    early = {init: [_at(run, STEP) for run in arm.runs] for init, arm in tuned.items()}
    gains = {init: [a - b for a, b in zip(early["kaiming"], early[init])] for init in INITS[1:]}
    final = {init: compare(tuned["kaiming"], tuned[init])[0] for init in gains}
    return Reason(
        (
            "S was pretrained for minutes, its spectra are flat, and principal directions are "
            "nothing special; on MiniLM, which was pretrained for long, PiSSA and OLoRA should be "
            "ahead at step 20 in both seeds"
        ),
        f"effective over full rank is {flat['S']:.2f} for S and {flat['MiniLM']:.2f} for MiniLM; on MiniLM (Rotten Tomatoes, each at its own best rate) at step {STEP} "
        + ", ".join(
            f"{init} {np.mean(row):+.3f} nats ({min(row):+.3f} to {max(row):+.3f})"
            for init, row in gains.items()
        )
        + "; test loss after 30 steps "
        + ", ".join(f"{init} {shown(v)}" for init, v in final.items()),
        all(min(gains[init]) > 0 for init in ("pissa", "olora")),
        {
            "effective_over_full_rank": flat,
            "gain_at_step_20": gains,
            "final_gain": {k: interval_of(v) for k, v in final.items()},
            "arms": {a.name: a.summary() for a in tuned.values()},
        },
    )


def run(lab):
    cosines = {init: {rank: first_step(init, rank) for rank in (1, 4, 16)} for init in INITS}
    d = problem()[0].shape[0]
    exact = all(cosines["lora_ga"][r][0] > cosines["kaiming"][r][0] for r in (1, 4, 16))
    exact &= (
        max(off for row in cosines.values() for _, off in row.values()) < CLAIM.tolerance["output"]
    )
    tuned = {
        init: arms.lora_arm(lab, 8, name=init, **{"lora.init": init})
        for init in ("kaiming", "pissa", "olora")
    }
    early = {
        init: [_at(run, STEP) for run in arm.runs if run.result] for init, arm in tuned.items()
    }
    gains = {
        init: [a - b for a, b in zip(early["kaiming"], early[init])] for init in ("pissa", "olora")
    }
    final = {init: compare(tuned["kaiming"], tuned[init])[0] for init in gains}
    reason = pretrained_encoder(lab)
    part = lambda row: (
        "reproduced" if min(row) > 0 else "not reproduced" if max(row) < 0 else "inconclusive"
    )
    return Finding(
        judge_all(["reproduced" if exact else "not reproduced", *map(part, gains.values())]),
        f"cosine at rank 4: random {cosines['kaiming'][4][0]:.2f} (sqrt(r/d) {np.sqrt(4 / d):.2f}), LoRA-GA {cosines['lora_ga'][4][0]:.2f}; at step {STEP} "
        + ", ".join(f"{init} {np.mean(row):+.3f} nats" for init, row in gains.items()),
        {
            "first_step": cosines,
            "gain_at_step_20": gains,
            "final_gain": {k: interval_of(v) for k, v in final.items()},
            "arms": {a.name: a.summary() for a in tuned.values()},
            "reason": reason.entry(),
        },
        note="Gains are LoRA's training loss minus the other's, mean of the steps from 16 to 20. At the end: "
        + ", ".join(f"{init} {shown(v)}" for init, v in final.items())
        + ". LoRA-GA measures gradients of classifiers only here, so it has no arm on S; it has one on MiniLM below."
        + reason.text,
        plot={
            "x": "rank",
            "y": "cosine with the gradient",
            "log": "x",
            "lines": {i: [[r, c] for r, (c, _) in row.items()] for i, row in cosines.items()},
        },
        seeds=lab.seeds,
        diverged=tuple(d for arm in tuned.values() for d in arm.diverged),
    )


def _at(run, step: int) -> float:
    """Training loss about that step: the mean of five, as single batches are noisy."""
    return float(np.mean([loss for at, loss in run.trace() if step - 5 < at <= step]))
