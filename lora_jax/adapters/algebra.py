"""Arithmetic of what adapters add to weights: exact sums, compression with its error, TIES, DARE.

PEFT's `linear`, `ties` and `dare` modes act on A and B apart, which has cross terms; everything
here acts on the dense update, one matrix at a time, or on its exact factors. Computed in float64 on
the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.adapters.stacking import check_alike
from lora_jax.core.changes import Change
from lora_jax.core.lowrank import LowRank
from lora_jax.core.matrix import to_matrix
from lora_jax.core.paths import flatten, nearest
from lora_jax.core.trainable import Trainable, Trainables
from lora_jax.core.trained_weight import TrainedWeight

Index = tuple[int, ...]
# An entry of the result, and the norms of what it lost: alone, and over that of the update.
Made = tuple[Trainable, tuple[float, float] | None]


@dataclass(frozen=True)
class Truncation:
    """What a lower rank lost, by path: the Frobenius norm, alone and over that of the whole update.

    By Eckart and Young (1936) no factors of that rank lose less.
    """

    absolute: Mapping[str, float]
    relative: Mapping[str, float]

    def __str__(self) -> str:
        lines = [
            f"{path}: lost {self.absolute[path]:.3e}, {self.relative[path]:.2%} of the update"
            for path in self.absolute
        ]
        return "\n".join(lines) or "nothing was truncated"


def weighted_sum(
    adapters: Sequence[Trainables],
    weights: Sequence[float] | None = None,
    *,
    base: Mapping[str, Any] | None = None,
) -> dict[str, Trainable]:
    """The adapter whose update is exactly the weighted sum of the updates; their ranks are added.

    Negative weights subtract (task arithmetic, Ilharco et al. 2023); weights are 1 by default. A
    site that some adapters leave out counts as an update of 0 there. Dropout is kept where all
    agree, and left out else. One adapter with weight 1 is itself.

    Args:
        base: the pretrained weights, for weights trained whole: those move by the weighted sum of
            their moves from the base.

    Raises:
        ValueError: no adapters or not one weight each; shapes that differ; DoRA (its update depends
            on the norm of the whole weight, and is no sum); a weight trained whole without `base`,
            unless one adapter alone has it, with weight 1.
    """
    weights = _weights(adapters, weights)
    if len(adapters) == 1 and weights == [1.0]:
        return dict(adapters[0])
    out: dict[str, Trainable] = {}
    for path, found in _by_path(adapters, weights).items():
        if found[0][0].replaces:
            out[path] = _whole_sum(path, found, base)
        else:
            out[path] = _concatenated([(plain_lora(path, leaf), weight) for leaf, weight in found])
    return out


def compress(
    trainable: Trainables, *, rank: int | None = None, tolerance: float | None = None
) -> tuple[dict[str, Trainable], Truncation]:
    """The nearest adapter of lower rank at every site, and what it lost; the dense update is never
    formed.

    The update's singular values come from the QR factors of `a * scale` and `b`. Factors share them
    evenly, and the scale is 1.

    Args:
        rank: at most this many columns a site.
        tolerance: the smallest rank whose loss is at most this fraction of the update's Frobenius
            norm, layer by layer.

    Raises:
        ValueError: neither or both of rank and tolerance are given, or are out of range; DoRA.
    """
    by_rank = tolerance is None and rank is not None and rank >= 1
    by_loss = rank is None and tolerance is not None and 0 <= tolerance < 1
    if not by_rank and not by_loss:
        raise ValueError(
            f"Give a rank of at least 1 or a tolerance in [0, 1), and not both; got rank={rank}, "
            f"tolerance={tolerance}."
        )

    made: dict[str, Made] = {}
    for path, leaf in trainable.items():
        if leaf.replaces:
            made[path] = leaf, None
            continue
        low = plain_lora(path, leaf)
        layers = {index: _singular(low, index) for index in _indices(low)}
        made[path] = _stacked(low, layers, rank, tolerance)
    return _truncated(made)


def ties(
    adapters: Sequence[Trainables],
    weights: Sequence[float] | None = None,
    *,
    density: float,
    rank: int,
    sign: str = "total",
    base: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Trainable], Truncation]:
    """TIES merging of updates (Yadav et al. 2023, arXiv 2306.01708, section 3), back to `rank`.

    In every matrix, each update keeps its largest `density` of entries; each entry's sign is
    elected, by the weighted sum ('total') or by the number of adapters ('frequency'); the entries
    that agree with it are averaged. What the rank lost comes second.

    Raises:
        ValueError: density is not in (0, 1], or the sign method is unknown; or as `weighted_sum`.
    """
    if not 0 < density <= 1 or sign not in ("total", "frequency"):
        raise ValueError(
            f"TIES needs density in (0, 1] and sign 'total' or 'frequency', got {density} and "
            f"{sign!r}."
        )

    def combine(updates: list[np.ndarray], factors: list[float]) -> np.ndarray:
        parts = zip(updates, factors)
        kept = np.stack([_largest(update, density) * factor for update, factor in parts])
        # Updates of the other sign than the elected one are left out of the mean, not counted as 0.
        elected = np.sign((kept if sign == "total" else np.sign(kept)).sum(0))
        agrees = (np.sign(kept) == elected) & (kept != 0)
        return (kept * agrees).sum(0) / np.maximum(agrees.sum(0), 1)

    return _in_dense_form(adapters, weights, combine, rank, base)


def dare(
    adapters: Sequence[Trainables],
    weights: Sequence[float] | None = None,
    *,
    density: float,
    rank: int,
    key: jax.Array,
    base: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Trainable], Truncation]:
    """DARE (Yu et al. 2024, arXiv 2311.03099): sums of updates with entries dropped at random.

    An entry is kept with probability `density` and divided by it, so the expected sum is the exact
    one. The result is brought back to `rank`; what that lost comes second.

    Raises:
        ValueError: density is not in (0, 1]; or as `weighted_sum`.
    """
    if not 0 < density <= 1:
        raise ValueError(f"DARE needs density in (0, 1], got {density}.")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))

    def combine(updates: list[np.ndarray], factors: list[float]) -> np.ndarray:
        total = 0.0
        for update, factor in zip(updates, factors):
            total = total + factor * (update * (rng.random(update.shape) < density) / density)
        return total

    return _in_dense_form(adapters, weights, combine, rank, base)


def factorize(
    base: Mapping[str, Any], tuned: Mapping[str, Any], *, rank: int, like: Trainables
) -> tuple[dict[str, Trainable], Truncation]:
    """The adapter of a rank nearest to a fully fine-tuned model's change, at the sites of `like`.

    Such a change is a task vector; what the rank lost of it comes second.

    Raises:
        KeyError: a model lacks a site.
    """
    first, second = flatten(base), flatten(tuned)
    made: dict[str, Made] = {}
    for path, leaf in like.items():
        if leaf.replaces:
            made[path] = TrainedWeight(value=jnp.asarray(second[path])), None
            continue
        if path not in first or path not in second:
            raise KeyError(
                f"There is no weight {path!r}. Nearest: {', '.join(nearest(path, first))}."
            )

        if isinstance(leaf, Change):
            leaf.plain()
        stack = leaf.a.ndim - 2
        change = jnp.asarray(second[path], jnp.float32) - jnp.asarray(first[path], jnp.float32)
        matrix = np.asarray(to_matrix(change, change.ndim - stack, leaf.in_axes), np.float64)
        layers = {index: _svd(matrix[index]) for index in _indices(leaf)}
        made[path] = _stacked(leaf, layers, rank, None)
    return _truncated(made)


def plain_lora(path: str, leaf: Any) -> LowRank:
    """Ordinary factors of the leaf's update.

    Raises:
        ValueError: it has a magnitude (DoRA), so that its effect is no sum of base and update, or
            it is another kind of leaf.
    """
    if not leaf.rank:
        raise ValueError(
            f"{path!r} is a {type(leaf).__name__}, whose effect is no update of a weight: it "
            "cannot be added or truncated."
        )
    if leaf.magnitude is not None:
        raise ValueError(
            f"{path!r} is DoRA: its effect depends on the norm of base and update together, so "
            "adapters cannot be added or truncated exactly. Merge it into the base (merge), and "
            "take the difference (factorize)."
        )
    if leaf.rounded:
        raise ValueError(
            f"{path!r} is merge-aware: its effect is that of the rounded sum with its base, so "
            "adapters cannot be added or truncated exactly. Merge it into the base instead "
            "(merge_quantized)."
        )
    return leaf.plain()


def _weights(adapters: Sequence[Trainables], weights: Sequence[float] | None) -> list[float]:
    given = [1.0] * len(adapters) if weights is None else [float(weight) for weight in weights]
    if not adapters or len(given) != len(adapters) or not all(map(math.isfinite, given)):
        raise ValueError(
            f"Needed adapters and one finite weight each; came {len(adapters)} adapters and the "
            f"weights {given}."
        )
    return given


def _by_path(
    adapters: Sequence[Trainables], weights: Sequence[float]
) -> dict[str, list[tuple[Any, float]]]:
    check_alike(adapters)
    found: dict[str, list[tuple[Any, float]]] = {}
    for trainable, weight in zip(adapters, weights):
        for path, leaf in trainable.items():
            found.setdefault(path, []).append((leaf, weight))
    return found


def _whole_sum(
    path: str, found: Sequence[tuple[TrainedWeight, float]], base: Mapping[str, Any] | None
) -> TrainedWeight:
    if len(found) == 1 and found[0][1] == 1.0:
        return found[0][0]
    start = None if base is None else flatten(base).get(path)
    if start is None:
        raise ValueError(
            f"{path!r} is trained whole by {len(found)} of the adapters with weights "
            f"{[weight for _, weight in found]}; its sum is one of moves from the base. Pass "
            "base=..., the pretrained weights."
        )
    start = np.asarray(start, np.float64)
    moved = sum(weight * (np.asarray(leaf.value, np.float64) - start) for leaf, weight in found)
    return TrainedWeight(value=jnp.asarray(start + moved, found[0][0].value.dtype))


def _concatenated(found: Sequence[tuple[LowRank, float]]) -> LowRank:
    rates = [leaf.dropout for leaf, _ in found]
    agree = all(rate is not None and np.array_equal(rate, rates[0]) for rate in rates)
    return LowRank(
        a=jnp.concatenate([leaf.a for leaf, _ in found], -1),
        b=jnp.concatenate([leaf.b for leaf, _ in found], -2),
        scale=jnp.concatenate([leaf.scale * weight for leaf, weight in found], -1),
        dropout=rates[0] if agree else None,
        in_axes=found[0][0].in_axes,
    )


def _in_dense_form(
    adapters: Sequence[Trainables],
    weights: Sequence[float] | None,
    combine: Callable[[list[np.ndarray], list[float]], np.ndarray],
    rank: int,
    base: Mapping[str, Any] | None,
) -> tuple[dict[str, Trainable], Truncation]:
    """Dense updates of a matrix, combined and brought back to `rank`; whole weights are summed."""
    made: dict[str, Made] = {}
    for path, found in sorted(_by_path(adapters, _weights(adapters, weights)).items()):
        if found[0][0].replaces:
            made[path] = _whole_sum(path, found, base), None
            continue
        lows = [plain_lora(path, leaf) for leaf, _ in found]
        factors = [weight for _, weight in found]
        layers = {
            index: _svd(combine([np.matmul(*_factors(low, index)) for low in lows], factors))
            for index in _indices(lows[0])
        }
        made[path] = _stacked(lows[0], layers, rank, None)
    return _truncated(made)


def _truncated(made: Mapping[str, Made]) -> tuple[dict[str, Trainable], Truncation]:
    lost = {path: norms for path, (_, norms) in made.items() if norms is not None}
    return {path: leaf for path, (leaf, _) in made.items()}, Truncation(
        absolute={path: norms[0] for path, norms in lost.items()},
        relative={path: norms[1] for path, norms in lost.items()},
    )


def _indices(low: LowRank) -> Iterator[Index]:
    return np.ndindex(*low.a.shape[:-2])


def _factors(low: LowRank, index: Index) -> tuple[np.ndarray, np.ndarray]:
    a, b, scale = (np.asarray(x[index], np.float64) for x in (low.a, low.b, low.scale))
    return a * scale, b


def _singular(low: LowRank, index: Index) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The SVD of `(a * scale) @ b` from the QR factors of both."""
    a, b = _factors(low, index)
    left, r_left = np.linalg.qr(a)
    right, r_right = np.linalg.qr(b.T)
    u, s, v = _svd(r_left @ r_right.T)
    return left @ u, s, v @ right.T


def _svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.linalg.svd(matrix, full_matrices=False)


def _largest(update: np.ndarray, density: float) -> np.ndarray:
    """The update with all but its largest entries set to 0."""
    keep = math.ceil(density * update.size)
    if keep >= update.size:
        return update
    threshold = np.partition(np.abs(update).ravel(), update.size - keep)[update.size - keep]
    return np.where(np.abs(update) >= threshold, update, 0.0)


def _stacked(
    like: LowRank,
    layers: Mapping[Index, tuple[np.ndarray, np.ndarray, np.ndarray]],
    rank: int | None,
    tolerance: float | None,
) -> tuple[LowRank, tuple[float, float]]:
    """Truncated factors of all layers at their largest rank, and the norms of what was cut."""
    chosen = {index: _enough(s, rank, tolerance) for index, (_, s, _) in layers.items()}
    wide, stack, rows, out = max(chosen.values()), like.a.shape[:-2], like.rows, like.columns
    a, b, scale = (np.zeros((*stack, *s)) for s in ((rows, wide), (wide, out), (wide,)))

    lost = total = 0.0
    for index, (u, s, v) in layers.items():
        k = chosen[index]
        root = np.sqrt(s[:k])
        a[index][:, :k], b[index][:k] = u[:, :k] * root, root[:, None] * v[:k]
        scale[index][:k] = s.any()  # A layer without an update stays one that is not adapted.
        lost, total = lost + float((s[k:] ** 2).sum()), total + float((s**2).sum())

    a, b, scale = (jnp.asarray(x, jnp.float32) for x in (a, b, scale))
    made = LowRank(a=a, b=b, scale=scale, dropout=like.dropout, in_axes=like.in_axes)
    return made, (math.sqrt(lost), math.sqrt(lost / total) if total else 0.0)


def _enough(s: np.ndarray, rank: int | None, tolerance: float | None) -> int:
    if rank is not None:
        return min(rank, len(s))
    tails = np.sqrt(np.append(np.cumsum((s**2)[::-1])[::-1], 0.0))  # Lost if the first k are kept.
    return max(1, int(np.argmax(tails <= tolerance * tails[0] + 1e-300)))
