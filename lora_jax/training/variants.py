"""What variants add to the optimiser: AdaLoRA's budget, LoRA-FA's scaling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lora_jax.config import AdaLoraConfig
from lora_jax.core.lowrank import LowRank

_TRIPLET = ("a", "gain", "b")


def precondition_b(damping: float = 1e-8) -> optax.GradientTransformationExtraArgs:
    """The gradient of every `b` beside a fixed `a`, times `(a^T a + damping I)^-1 / scale^2`:
    PEFT's form of LoRA-FA.

    It makes the step that `a @ b` takes nearest to that of the full weight, whatever the scale.
    PEFT applies it in the optimiser, after clipping and before Adam's moments. Needs `fixed`, the
    tree of what is not trained, as an extra argument of `update`.
    """

    def update(
        grads: Any, state: Any, params: Any = None, *, fixed: Any, **_: Any
    ) -> tuple[Any, Any]:
        return {
            path: _preconditioned(leaf, fixed[path], damping) for path, leaf in grads.items()
        }, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _preconditioned(leaf: Any, fixed: Any, damping: float) -> Any:
    if not isinstance(leaf, LowRank) or leaf.b is None or fixed.a is None:
        return leaf
    a = fixed.a.astype(jnp.float32)
    gram = jnp.swapaxes(a, -1, -2) @ a + damping * jnp.eye(a.shape[-1], dtype=a.dtype)
    # A column of scale 0 is padding: its gradient is 0 and stays so.
    used = fixed.scale != 0
    inverse_scale = jnp.where(used, 1 / jnp.where(used, fixed.scale, 1.0), 0.0)[..., None]
    solved = jnp.linalg.solve(gram, (leaf.b * inverse_scale).astype(jnp.float32))
    return leaf.replace(b=(solved * inverse_scale).astype(leaf.b.dtype))


class AdaLoraState(NamedTuple):
    """Steps taken, and by path the smoothed sensitivity and uncertainty of every entry of a, gain
    and b.
    """

    step: Array
    sensitivity: Any
    uncertainty: Any
    inner: Any


def adalora(
    inner: optax.GradientTransformation, config: AdaLoraConfig, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """`inner` with AdaLoRA's rank budget and orthogonality penalty (Zhang et al. 2023, arXiv
    2303.10512, algorithm 1).

    Each step adds the gradient of `orthogonality * (||a^T a - I||^2 + ||b b^T - I||^2)`, smooths
    the importance |w * grad| of every entry and its fluctuation (equations 8-10), and scores a
    triplet by its gain's product of both plus the means of its column of `a` and its row of `b`
    (equation 7). At masking steps the triplets outside the budget get gain 0; until the final phase
    they go on being trained and may come back. The budget falls from all columns to `target_rank`
    for each matrix: cubically between `warmup_steps` and `final_steps` before the end, every
    `interval` steps.

    Sites without a gain are left to `inner`. Needs `fixed` (for the columns in use) as an extra
    argument of `update`.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Mapping[str, Any]) -> AdaLoraState:
        zeros = {
            path: {name: jnp.zeros_like(getattr(leaf, name)) for name in _TRIPLET}
            for path, leaf in _ranked(params).items()
        }
        return AdaLoraState(
            jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, zeros), inner.init(params)
        )

    def update(
        grads: Any, state: AdaLoraState, params: Any = None, *, fixed: Any, **extra: Any
    ) -> tuple[Any, AdaLoraState]:
        grads = {
            path: _add_penalty(leaf, params[path], config.orthogonality)
            for path, leaf in grads.items()
        }
        step = state.step + 1
        moving = step < total_steps - config.final_steps
        sensitivity, uncertainty = _smoothed(grads, params, state, config, moving)
        updates, new_inner = inner.update(grads, state.inner, params, fixed=fixed, **extra)

        # A masked gain is moved to 0, whatever the optimiser would do with it.
        scores = {
            path: triplet_scores(sensitivity[path], uncertainty[path]) for path in sensitivity
        }
        used = {path: fixed[path].scale != 0 for path in scores}
        keep = kept(scores, used, budget_at(step, used, config, total_steps))
        masks = _masks_at(step, config, total_steps)
        for path, mask in keep.items():
            gain, moved = params[path].gain, updates[path].gain
            updates[path] = updates[path].replace(gain=jnp.where(masks & ~mask, -gain, moved))
        return updates, AdaLoraState(step, sensitivity, uncertainty, new_inner)

    return optax.GradientTransformationExtraArgs(init, update)


def budget_at(
    step: Array, used: Mapping[str, Array], config: AdaLoraConfig, total_steps: int
) -> Array:
    """How many triplets are kept at a step (counted from 1): the paper's equation 12, rounded
    down.
    """
    columns = sum(mask.sum() for mask in used.values())
    target = config.target_rank * sum(mask.any(-1).sum() for mask in used.values())
    span = max(total_steps - config.final_steps - config.warmup_steps, 1)
    share = jnp.clip(1 - (step - config.warmup_steps) / span, 0.0, 1.0)
    falling = jnp.floor((columns - target) * share**3 + target)
    budget = jnp.where(step <= config.warmup_steps, columns, jnp.minimum(falling, columns))
    return budget.astype(jnp.int32)


def triplet_scores(
    sensitivity: Mapping[str, Array], uncertainty: Mapping[str, Array]
) -> Float[Array, "*stack r"]:
    """The importance of each triplet (equation 7)."""
    score = {name: sensitivity[name] * uncertainty[name] for name in _TRIPLET}
    return score["gain"] + score["a"].mean(-2) + score["b"].mean(-1)


def kept(scores: Mapping[str, Array], used: Mapping[str, Array], budget: Array) -> dict[str, Array]:
    """Which triplets are among the `budget` most important of all sites; equal scores at the edge
    are all kept.
    """
    low = {path: jnp.where(used[path], score, -jnp.inf) for path, score in scores.items()}
    ordered = jnp.sort(jnp.concatenate([score.ravel() for score in low.values()]))[::-1]
    edge = ordered[jnp.clip(budget - 1, 0, ordered.size - 1)]
    return {path: score >= edge for path, score in low.items()}


def prune(trainable: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter without the triplets whose gain is 0, and without the sites that have none left:
    what AdaLoRA has allocated.
    """
    out = {}
    for path, leaf in trainable.items():
        if isinstance(leaf, LowRank) and leaf.gain is not None and "gain" in leaf.trained_fields():
            leaf = leaf.replace(scale=jnp.where(leaf.gain != 0, leaf.scale, 0.0)).trim()
        if leaf is not None:
            out[path] = leaf
    return out


def _ranked(tree: Mapping[str, Any]) -> dict[str, LowRank]:
    return {
        p: leaf
        for p, leaf in tree.items()
        if isinstance(leaf, LowRank) and all(getattr(leaf, n) is not None for n in _TRIPLET)
    }


def _add_penalty(grad: Any, leaf: Any, weight: float) -> Any:
    if not weight or not _ranked({"": leaf}):
        return grad
    a, b = leaf.a.astype(jnp.float32), leaf.b.astype(jnp.float32)
    eye = jnp.eye(a.shape[-1], dtype=jnp.float32)
    da = 4 * weight * a @ (jnp.swapaxes(a, -1, -2) @ a - eye)
    db = 4 * weight * (b @ jnp.swapaxes(b, -1, -2) - eye) @ b
    return grad.replace(a=grad.a + da.astype(grad.a.dtype), b=grad.b + db.astype(grad.b.dtype))


def _smoothed(
    grads: Any, params: Any, state: AdaLoraState, config: AdaLoraConfig, moving: Array
) -> tuple[Any, Any]:
    sensitivity: dict[str, Any] = {}
    uncertainty: dict[str, Any] = {}
    for path in state.sensitivity:
        sensitivity[path], uncertainty[path] = {}, {}
        for name in _TRIPLET:
            now = jnp.abs(getattr(params[path], name) * getattr(grads[path], name))
            old, spread = state.sensitivity[path][name], state.uncertainty[path][name]
            mean = config.beta1 * old + (1 - config.beta1) * now
            sensitivity[path][name] = jnp.where(moving, mean, old)
            uncertainty[path][name] = jnp.where(
                moving, config.beta2 * spread + (1 - config.beta2) * jnp.abs(now - mean), spread
            )
    return sensitivity, uncertainty


def _masks_at(step: Array, config: AdaLoraConfig, total_steps: int) -> Array:
    """Whether triplets are masked at a step: every `interval` steps after the warm-up, and at all
    steps of the final phase.
    """
    final = step > total_steps - config.final_steps
    return (step > config.warmup_steps) & (final | (step % config.interval == 0))
