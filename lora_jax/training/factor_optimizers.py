"""Optimisers of pairs of factors, which see the product `a @ b` and not how it is shared out.

A product does not change under a -> c a, b -> b / c, yet the steps of Adam on either factor do.
Here each factor's gradient is divided by the size of the other before anything is computed with it,
and so is its step: the product's way is then the same for every c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lora_jax.core.lowrank import LowRank

# Of a Gram matrix's largest eigenvalue. With 1e-6, which is Zhang and Pilanci's for sizes near 1,
# the second step from b = 0 moves the weight by 149 times the rate, along what b hardly has.
DAMPING = 1e-2
_OF_SIGNS = 1e-6  # of what is only made orthogonal


class Frame(NamedTuple):
    """A factor x (n, r) in polar form, x = basis @ magnitude: what the other factor's gradient is
    divided by. `basis` (n, r) has orthonormal columns, or zeros where x has no such direction.
    """

    basis: Float[Array, "*stack n r"]
    magnitude: Float[Array, "*stack r r"]
    inverse: Float[Array, "*stack r r"]


def frame_of(x: Float[Array, "*stack n r"], damping: float) -> Frame:
    """The polar form, its magnitude (x^T x + damping ||x||^2 I)^(1/2) in the spectral norm; that of
    zeros is zero, and so is its inverse.
    """
    # Of the triangle: the singular values of a Gram matrix would have half of the digits.
    _, sizes, rows = jnp.linalg.svd(jnp.linalg.qr(x, mode="r"), full_matrices=False)
    columns, largest = jnp.swapaxes(rows, -1, -2), sizes[..., :1]
    damped = jnp.sqrt(jnp.square(sizes) + damping * jnp.square(largest))
    inverse = jnp.where(largest > 0, 1 / jnp.where(largest > 0, damped, 1), 0)

    of = lambda values: (columns * values[..., None, :]) @ rows
    return Frame(x @ of(inverse), of(damped), of(inverse))


def on_product(
    inner: optax.GradientTransformation, damping: float = DAMPING
) -> optax.GradientTransformationExtraArgs:
    """`inner` on the unmagnified gradients of pairs of factors: of `a` that of the whole weight
    times the directions of `b`, and the other way round.

    What `inner` gives of a pair becomes steps by the same division, so that with `inner` the
    identity this is scaled gradient descent, a -= rate grad_a (b b^T)^-1, and with Adam the
    Riemannian preconditioning of Zhang and Pilanci 2024 (arXiv 2402.02347). They have Adam divide
    by sizes after the whole division, which loses the invariance; here one half stands before it
    and one behind. `alpha` is part of `a`: rates are those of the weight itself, whatever alpha and
    rank. `inner` gets `frames` and the `norm` of all unmagnified gradients, which clipping is of.
    All but pairs (heads, biases, magnitudes) is `inner`'s as it is.

    Needs `fixed`, the tree of what is not trained, as an extra argument of `update`.

    Raises:
        ValueError: (update) a pair is that of a fused kernel's parts, which are pairs apart.
    """
    inner = optax.with_extra_args_support(inner)

    def update(
        grads: Any, state: Any, params: Any = None, *, fixed: Any, norm: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        known = {path: _frames(path, params[path], fixed[path], damping) for path in _pairs(grads)}
        scales = {path: _scales(fixed[path].scale) for path in known}

        def into(path: str, name: str, x: Array) -> Array:
            return (x * scales[path][name]) @ known[path][name].inverse

        def out_of(path: str, name: str, x: Array) -> Array:
            return (x @ known[path][name].inverse) * scales[path][name]

        grads = _changed(grads, into)
        norm = optax.tree.norm(grads)
        updates, state = inner.update(grads, state, params, norm=norm, frames=known, **extra)
        return _changed(updates, out_of), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _is_pair(leaf: Any) -> bool:
    """Whether what is trained of a weight are factors whose product alone counts."""
    if not isinstance(leaf, LowRank) or leaf.blocks > 1 or (leaf.a is None and leaf.b is None):
        return False
    between = (leaf.gain, leaf.out_gain, leaf.mix, leaf.a2, leaf.b2, leaf.outer)
    return all(x is None for x in between)


def _pairs(tree: Mapping[str, Any]) -> dict[str, LowRank]:
    return {path: leaf for path, leaf in tree.items() if _is_pair(leaf)}


def _trained(leaf: LowRank) -> dict[str, Array]:
    """The trained factors as (n, r)."""
    return {name: _tall(name, getattr(leaf, name)) for name in ("a", "b") if _has(leaf, name)}


def _has(leaf: LowRank, name: str) -> bool:
    return getattr(leaf, name) is not None


def _tall(name: str, x: Array) -> Array:
    """`a` (n, r) as it is and `b` (r, n) turned, or back again."""
    return x if name == "a" else jnp.swapaxes(x, -1, -2)


def _frames(path: str, leaf: LowRank, fixed: LowRank, damping: float) -> dict[str, Frame]:
    """By trained factor the frame of the other one, which may be fixed."""
    if fixed.parts is not None:
        raise ValueError(
            f"{path!r} has factors for the parts of a fused kernel, each of which is a product of "
            "its own. Train it with config.optim.factors 'adam', or adapt the parts apart."
        )
    sizes = {"a": fixed.scale, "b": fixed.scale != 0}
    found = {}
    for name, other in (("a", "b"), ("b", "a")):
        if _has(leaf, name):
            x = _tall(other, getattr(leaf if _has(leaf, other) else fixed, other))
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            found[name] = frame_of(wide * sizes[other][..., None, :], damping)
    return found


def _scales(scale: Array) -> dict[str, Array]:
    """What gradients and steps of the factors are multiplied by besides; nothing of padding."""
    used = scale != 0
    by_factor = {"a": jnp.where(used, 1 / jnp.where(used, scale, 1), 0), "b": used}
    return {name: x[..., None, :] for name, x in by_factor.items()}


def _changed(tree: Mapping[str, Any], change: Callable[[str, str, Array], Array]) -> dict[str, Any]:
    """The tree with `change(path, name, x)` of each factor (n, r) of a pair in its place."""
    out = dict(tree)
    for path, leaf in _pairs(tree).items():
        made = {name: (x, change(path, name, x)) for name, x in _trained(leaf).items()}
        out[path] = leaf.replace(
            **{name: _tall(name, new.astype(x.dtype)) for name, (x, new) in made.items()}
        )
    return out


class RiteState(NamedTuple):
    """LoRA-RITE's: by path the smoothed step and the bases of before, like the factors, and by
    trained factor the second moments (r, r) and what of them has escaped.
    """

    count: Array
    momentum: dict[str, LowRank]
    basis: dict[str, LowRank]
    second: dict[str, dict[str, Array]]


def scale_by_rite(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """LoRA-RITE's steps (Yen et al. 2024, arXiv 2410.20625, algorithm 1), for pairs alone, inside of
    `on_product`.

    Of an unmagnified gradient g (n, r), V is the mean over steps of g^T g / n, and the step that of
    g (V + rho I)^(-1/2); both means are without bias, as Adam's. What is remembered is turned into
    the frame of this step by P = basis^T basis_before, and rho, the escaped mass, is what V loses
    there at most in a direction. Any other basis of the same directions, as the paper's QR, gives
    the same steps.
    """

    def init(params: Any) -> RiteState:
        pairs = _pairs(params)
        zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), pairs)
        second = {}
        for path, leaf in pairs.items():
            second[path] = {}
            for name, x in _trained(leaf).items():
                stack, r = x.shape[:-2], x.shape[-1]
                second[path][f"{name}_square"] = jnp.zeros((*stack, r, r), x.dtype)
                second[path][f"{name}_escaped"] = jnp.zeros(stack, x.dtype)
        return RiteState(jnp.zeros((), jnp.int32), zeros(), zeros(), second)

    def update(
        grads: Any, state: RiteState, params: Any = None, *, frames: Any, **_: Any
    ) -> tuple[Any, RiteState]:
        count = optax.safe_increment(state.count)
        steps, bases, second = {}, {}, {}
        for path, leaf in grads.items():
            before, made = state.second[path], {}
            second[path], bases[path] = {}, {}
            for name, g in _trained(leaf).items():
                other, frame = "b" if name == "a" else "a", frames[path][name]
                turned = jnp.eye(g.shape[-1], dtype=g.dtype)
                if _has(leaf, other):  # One that is fixed stays where it was.
                    old = _tall(other, getattr(state.basis[path], other))
                    turned = jnp.swapaxes(frame.basis, -1, -2) @ old
                    bases[path][other] = _tall(other, frame.basis)

                momentum = _tall(name, getattr(state.momentum[path], name))
                square, escaped = before[f"{name}_square"], before[f"{name}_escaped"]
                square, escaped = _second_moment(g, turned, square, escaped, _kept(count, b2))
                step = g @ _inverse_root(square, escaped, eps)
                kept = _kept(count, b1)
                momentum = kept * momentum @ jnp.swapaxes(turned, -1, -2) + (1 - kept) * step
                made[name] = _tall(name, momentum)
                second[path] |= {f"{name}_square": square, f"{name}_escaped": escaped}
            steps[path] = leaf.replace(**made)
            bases[path] = leaf.replace(**bases[path])
        return steps, RiteState(count, steps, bases, second)

    return optax.GradientTransformationExtraArgs(init, update)


def _kept(count: Array, decay: float) -> Array:
    """What is kept of a mean at the step `count`, counted from 1, so that it has no bias."""
    return decay * (1 - decay ** (count - 1)) / (1 - decay**count)


def _second_moment(
    g: Array, turned: Array, square: Array, escaped: Array, kept: Array
) -> tuple[Array, Array]:
    """V and rho after this step."""
    moved = turned @ square @ jnp.swapaxes(turned, -1, -2)
    moved = (moved + jnp.swapaxes(moved, -1, -2)) / 2
    lost = (jnp.linalg.eigvalsh(square) - jnp.linalg.eigvalsh(moved)).max(-1)
    new = jnp.swapaxes(g, -1, -2) @ g / g.shape[-2]
    return kept * moved + (1 - kept) * new, kept * (escaped + jnp.maximum(lost, 0))


def _inverse_root(square: Array, escaped: Array, eps: float) -> Array:
    """(V + rho I)^(-1/2), zero in directions that are nothing beside the largest."""
    values, columns = jnp.linalg.eigh(square)
    values = jnp.maximum(values, 0) + escaped[..., None]
    least = values.shape[-1] * jnp.finfo(values.dtype).eps * values[..., -1:]
    values = jnp.where(values > least, 1 / (jnp.sqrt(values) + eps), 0)
    return (columns * values[..., None, :]) @ jnp.swapaxes(columns, -1, -2)


class MuonState(NamedTuple):
    """LoRA-Muon's: by path the mean of the factors' gradients."""

    momentum: dict[str, LowRank]


def scale_by_lora_muon(momentum: float) -> optax.GradientTransformationExtraArgs:
    """LoRA-Muon's steps (Cesista et al. 2026, arXiv 2606.12921), for pairs alone, inside of
    `on_product`: half the nearest orthogonal matrix to the smoothed gradient as seen in this step's
    frame. So each of two terms moves the weight itself by half the rate at most, in the spectral
    norm; a third is the product of both steps.

    The mean over steps is of each factor's own gradients, as the paper has it. Weight decay is that
    of the factors, where the paper's is the product's.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _pairs(params)))

    def update(
        grads: Any, state: MuonState, params: Any = None, *, frames: Any, **_: Any
    ) -> tuple[Any, MuonState]:
        def smoothed(path: str, name: str, g: Array) -> Array:
            before = _tall(name, getattr(state.momentum[path], name))
            return momentum * before + (1 - momentum) * g @ frames[path][name].magnitude

        def step(path: str, name: str, mean: Array) -> Array:
            return frame_of(mean @ frames[path][name].inverse, _OF_SIGNS).basis / 2

        means = _changed(grads, smoothed)
        return _changed(means, step), MuonState(means)

    return optax.GradientTransformationExtraArgs(init, update)


class PairsAndRest(NamedTuple):
    """The states of two optimisers."""

    pairs: Any
    rest: Any


def beside(
    of_pairs: optax.GradientTransformation, of_rest: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """One optimiser of pairs of factors, and one of all that is trained besides."""
    of_pairs, of_rest = map(optax.with_extra_args_support, (of_pairs, of_rest))

    def rest(tree: Any) -> Any:
        without = {path: leaf.replace(a=None, b=None) for path, leaf in _pairs(tree).items()}
        return {**tree, **without}

    def pairs(tree: Any) -> Any:
        return {
            path: LowRank(a=leaf.a, b=leaf.b, scale=None) for path, leaf in _pairs(tree).items()
        }

    def init(params: Any) -> PairsAndRest:
        return PairsAndRest(of_pairs.init(pairs(params)), of_rest.init(rest(params)))

    def update(
        grads: Any, state: PairsAndRest, params: Any = None, **extra: Any
    ) -> tuple[Any, PairsAndRest]:
        steps, first = of_pairs.update(pairs(grads), state.pairs, params, **extra)
        others, second = of_rest.update(rest(grads), state.rest, rest(params), **extra)
        both = {path: others[path].replace(a=leaf.a, b=leaf.b) for path, leaf in steps.items()}
        return {**others, **both}, PairsAndRest(first, second)

    return optax.GradientTransformationExtraArgs(init, update)
