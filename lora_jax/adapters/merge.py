"""`merge` adapters into plain weights, or `merge_quantized` into a quantised base again, with a
report of what that cost.

Neither touches the frozen weights it is given, so unmerging is exact: go on with those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Array

from lora_jax.adapters.apply import apply, join
from lora_jax.adapters.requantize import requantize
from lora_jax.adapters.sites import check_inputs
from lora_jax.core.adapted import Adapted
from lora_jax.core.boxes import is_boxed
from lora_jax.core.paths import flatten, nearest, unflatten
from lora_jax.core.quantize import QuantizedArray, QuantSpec
from lora_jax.core.rounded import RoundedSum
from lora_jax.core.trainable import Trainables


@dataclass(frozen=True)
class OutputChange:
    """How far the merged model's output is from the unmerged one's, on a sample.

    max_abs, mean_abs: of the difference. divergence: mean Kullback-Leibler divergence of the
    softmax along the last axis, in nats, from the unmerged to the merged. agreement: fraction of
    rows with the same largest entry.
    """

    max_abs: float
    mean_abs: float
    divergence: float
    agreement: float

    def __str__(self) -> str:
        return (
            f"output on the sample: change at most {self.max_abs:.2e}, {self.mean_abs:.2e} on "
            f"average, divergence {self.divergence:.2e} nats, same largest entry in "
            f"{self.agreement:.1%} of rows"
        )


@dataclass(frozen=True)
class MergeReport:
    """How much each merged weight moved and what storing it cost, by path.

    change: norm of the update over norm of the base. rounding: norm of (stored - exact merged
    weight) over norm of the update; at 1 the storage is too coarse to hold the update. error: the
    same difference over the norm of the exact merged weight.
    output: what it does to the model's output, if a sample was given.
    """

    change: Mapping[str, float]
    rounding: Mapping[str, float]
    error: Mapping[str, float]
    output: OutputChange | None = None

    def __str__(self) -> str:
        lines = [
            f"{path}: change {self.change[path]:.2e}, rounding {self.rounding[path]:.2e}, "
            f"error {self.error[path]:.2e}"
            for path in self.change
        ]
        lines += [] if self.output is None else [str(self.output)]
        return "\n".join(lines) or "nothing was merged"


def merge(
    frozen: Mapping[str, Any],
    trainable: Trainables,
    *,
    dtype: Any = None,
    model: Any = None,
    sample: Sequence[Any] = (),
) -> tuple[dict[str, Any], MergeReport]:
    """Plain params that compute what `apply(model, frozen, trainable, ...)` does, and a report.

    Quantised weights are dequantised; sums are formed in float32. DoRA's rescaling is part of the
    merged weight. A tied weight is one array with all its readers, so merging it changes all of
    them, as the adapter did.

    Args:
        dtype: dtype of the merged and dequantised weights; each weight's own by default. A weight
            whose update bfloat16 is too coarse for shows as rounding near 1 in the report.
        model, sample: the module, and positional inputs on which the outputs before and after are compared.

    Raises:
        ValueError: an update, or a weight trained whole, holds a NaN or an infinity.
    """

    def keep(leaf: Any) -> Any:
        weight = meta.unbox(leaf)
        return weight.astype(dtype) if dtype is not None and is_boxed(leaf) else weight

    def store(path: str, leaf: Adapted, exact: Array) -> Array:
        return exact.astype(dtype or leaf.dtype)

    return _merged(frozen, trainable, store, keep, model, sample)


def merge_quantized(
    frozen: Mapping[str, Any],
    trainable: Trainables,
    *,
    spec: QuantSpec | None = None,
    moments: Mapping[str, Any] | None = None,
    model: Any = None,
    sample: Sequence[Any] = (),
) -> tuple[dict[str, Any], MergeReport]:
    """Frozen weights with the adapters merged in, quantised again where the base was: ready for
    `apply(model, merged, {}, ...)`.

    Args:
        spec: format of the merged weights; each base's own by default, and no quantisation where
            the base has none.
        moments: by path, the second moments x xᵀ of a sample of the weight's inputs, (*stack, in,
            in). With them the rounding error of each input row is fed back into the rows that are
            not yet rounded, so that the error of the *outputs* is small (GPTQ, Frantar et al.
            2022); without, every weight goes to its nearest level.
            What was trained merge-aware is stored as it was trained, bit for bit, unless `spec` or
            `moments` ask for something else.
        model, sample: the module, and positional inputs on which the outputs before and after are compared.

    Raises:
        KeyError: `moments` names a path that has no adapter.
        ValueError: an update holds a NaN or an infinity, or moments have a wrong shape.
    """
    moments = moments or {}
    if unknown := [path for path in moments if path not in trainable]:
        raise KeyError(
            f"moments has {unknown[0]!r}, which has no adapter. Nearest: "
            f"{', '.join(nearest(unknown[0], trainable))}."
        )

    def keep(leaf: Any) -> Any:
        return leaf if isinstance(leaf, QuantizedArray) else meta.unbox(leaf)

    def store(path: str, leaf: Adapted, exact: Array) -> Any:
        wanted = spec or getattr(leaf.base, "spec", None)
        if wanted is None:
            return exact.astype(leaf.dtype)
        if leaf.lora.rounded and wanted == leaf.base.spec and path not in moments:
            return _rounded(leaf.frozen())
        ndim, axes = len(leaf.kernel_shape), tuple(leaf.lora.in_axes)
        made = requantize(exact, wanted, kernel_ndim=ndim, in_axes=axes, moments=moments.get(path))
        return made.replace(dtype=leaf.dtype)

    return _merged(frozen, trainable, store, keep, model, sample)


def compare_outputs(before: Any, after: Any) -> OutputChange:
    """How far two outputs are apart: their first arrays, whose last axis holds the logits."""
    first, second = (jnp.asarray(jax.tree.leaves(out)[0], jnp.float32) for out in (before, after))
    p, q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
    return OutputChange(
        max_abs=float(jnp.abs(first - second).max()),
        mean_abs=float(jnp.abs(first - second).mean()),
        divergence=float((jnp.exp(p) * (p - q)).sum(-1).mean()),
        agreement=float((first.argmax(-1) == second.argmax(-1)).mean()),
    )


def _merged(
    frozen: Mapping[str, Any],
    trainable: Trainables,
    store: Callable[[str, Adapted, Array], Any],
    keep: Callable[[Any], Any],
    model: Any,
    sample: Sequence[Any],
) -> tuple[dict[str, Any], MergeReport]:
    """Adapted weights as `store` makes them of their exact sums, all others as `keep` has them."""
    merged: dict[str, Any] = {}
    figures: dict[str, tuple[float, float, float]] = {}
    for path, leaf in flatten(join(frozen, trainable)).items():
        adapted = isinstance(leaf, Adapted)
        exact = _exact(leaf) if adapted else leaf
        if path in trainable and not bool(jnp.isfinite(meta.unbox(exact)).all()):
            raise ValueError(
                f"What was trained of {path!r} holds a NaN or an infinity; nothing was merged. "
                "Train it again from a sound checkpoint."
            )
        merged[path] = store(path, leaf, exact) if adapted else keep(leaf)
        if adapted:
            figures[path] = _figures(leaf, exact, meta.unbox(merged[path]))

    tree, output = unflatten(merged), None
    if model is not None:
        check_inputs(sample)
        before = apply(model, frozen, trainable, *sample)
        output = compare_outputs(before, apply(model, tree, {}, *sample))
    columns = ({path: row[column] for path, row in figures.items()} for column in range(3))
    return tree, MergeReport(*columns, output)


def _exact(leaf: Adapted) -> Array:
    """The merged weight in float32, of a base that is not rounded again in between; of a merge-aware
    one, what it was trained as.
    """
    if leaf.lora.rounded:
        return _rounded(leaf.frozen()).replace(dtype=jnp.dtype(jnp.float32)).unbox()
    return Adapted(base=meta.unbox(leaf.base).astype(jnp.float32), lora=leaf.lora).unbox()


_rounded = jax.jit(RoundedSum.merged)


def _figures(leaf: Adapted, exact: Array, stored: Array) -> tuple[float, float, float]:
    """The change, the rounding and the error of a `MergeReport`."""
    base = meta.unbox(leaf.base).astype(jnp.float32)
    size = lambda x: float(jnp.linalg.norm(x))
    moved, lost = size(exact - base), size(stored.astype(jnp.float32) - exact)
    rounding = lost / moved if moved else 0.0
    return moved / max(size(base), 1e-30), rounding, lost / max(size(exact), 1e-30)
