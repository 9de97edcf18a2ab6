"""`adapt` a model's weights into frozen (quantised) ones and trainable ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta

from lora_jax.adapters.sites import Site, check_inputs, check_params, find_sites
from lora_jax.core.changes import Change
from lora_jax.core.host import StoredWeight, to_device
from lora_jax.core.init import (
    initialize,
    initialize_with_base,
    initializer_named,
    reads,
    with_magnitude,
)
from lora_jax.core.lowrank import LoraSpec, LowRank
from lora_jax.core.matrix import to_matrix
from lora_jax.core.paths import Rules, flatten, key_for, match, nearest, unflatten
from lora_jax.core.quantize import QuantizedArray, QuantSpec, quantize
from lora_jax.core.rows import rows_of
from lora_jax.core.trainable import Trainable, Trainables
from lora_jax.core.trained_weight import TrainedWeight
from lora_jax.core.variants import VARIANTS


def adapt(
    model: Any,
    params: Mapping[str, Any],
    inputs: Sequence[Any],
    *,
    lora: Rules[LoraSpec] = (),
    quant: Rules[QuantSpec] = (),
    whole: Sequence[str] = (),
    key: jax.Array,
    sites: Mapping[str, Site] | None = None,
    bias: str = "none",
    experts: Sequence[str] = (),
    statistics: Mapping[str, Any] | None = None,
    rows: Mapping[str, Sequence[int]] | None = None,
) -> tuple[dict[str, Any], dict[str, Trainable]]:
    """The frozen weights, quantised where a rule says so, and what is trained, by path.

    Three selections that do not depend on each other: `quant` (what is quantised, and how), `lora`
    (what gets factors, and which), `whole` (what is trained whole: heads, norms, or '.*' for full
    fine-tuning). Weights that are trained whole move to the second result, so nothing is held
    twice. The input weights are not changed; they are quantised one by one, so that the peak is the
    result plus one weight; of weights that still lie in files (`core.host.StoredWeight`), one
    matrix.

    Args:
        model: a Linen or an NNX module.
        params: its weights; of an NNX module `lora_jax.adapters.params_of(model)`.
        inputs: positional arguments of the model, arrays or jax.ShapeDtypeStruct, to find its sites
            with.
        key: for the first values of the factors; every site has a key of its own, from its path.
        sites: what `find_sites` found, if it has been called already.
        bias: which biases are trained whole besides: 'none', 'all' of the model, or 'lora_only',
            those of modules that are adapted.
        experts: patterns of kernels whose first axis counts matrices (the experts of a mixture):
            each gets factors of its own.
        rows: by path, rows that are trained while the weight's others stay frozen (words of an
            embedding).
        statistics: by path, what data-driven initialisers read (see
            `lora_jax.adapters.calibration`).

    Raises:
        TypeError: rules, inputs or the key are of another kind than they have to be.
        ValueError: a rule matches nothing, nothing at all would be trained, a rank exceeds a
            weight's smaller side, a weight that is not a matrix is to be adapted or quantised, a
            weight is both trained whole and adapted or quantised, dropout is asked for where no
            factored product exists, or a weight holds a NaN.
    """
    _check_arguments(inputs, key, whole=whole, experts=experts)
    check_params(model, params)
    flat = flatten(params)
    sites = find_sites(model, *inputs) if sites is None else sites
    _check_tree(flat, sites)
    sites = with_experts(sites, experts)
    adapted = match(lora, sites, what="lora", kind=LoraSpec)
    quantized = match(quant, sites, what="quant", kind=QuantSpec)
    trained = match([(pattern, True) for pattern in whole], sites, what="whole")
    trained |= biases(sites, adapted, bias)
    rows, statistics = rows or {}, statistics or {}
    _check_selection(sites, flat, adapted, quantized, trained, rows)

    frozen = {}
    out: dict[str, Trainable] = {}
    # In the order of their paths, so that a fingerprint can be made of those that are in files.
    for path, weight in sorted(flat.items()):
        if isinstance(weight, StoredWeight) and weight.like is not None:
            weight = weight.load(None)
        if path in trained:
            # Its own array: the training step donates what it trains, not the caller's weights.
            whole = meta.unbox(jax.tree.map(to_device, weight))
            out[path] = TrainedWeight(value=jnp.array(whole, copy=True))
            continue
        try:
            site, spec = sites[path], adapted.get(path)
            stored, low = _stored(site, weight, quantized.get(path), spec, key)
            frozen[path] = jax.tree.map(to_device, stored)
            if path in quantized:
                # Else the temporaries of many weights are alive at once.
                jax.block_until_ready(frozen[path])
            else:
                weight = frozen[path]  # A file is not read twice.
            if path in rows:
                out[path] = rows_of(jnp.asarray(meta.unbox(weight)), rows[path])
            if spec is not None:
                data = statistics.get(path)
                out[path] = _factors(site, spec, key, weight, frozen[path], data, low)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    order = [*(path for path in flat if path not in trained), *trained]
    kept = unflatten({path: frozen[path] for path in flat if path in frozen})
    return kept, {path: out[path] for path in order if path in out}


def quantized_as(weight: Any) -> QuantSpec | None:
    """The format of a weight that is quantised, here or in its file; None if it is not."""
    box = weight.like if isinstance(weight, StoredWeight) else weight
    return box.spec if isinstance(box, QuantizedArray) else None


def trainable_parameters(trainable: Trainables) -> int:
    """Number of trained weights: entries of factors whose scale is not 0, and of weights trained
    whole.
    """
    return sum(leaf.active_parameters() for leaf in trainable.values())


def with_experts(sites: Mapping[str, Site], patterns: Sequence[str]) -> dict[str, Site]:
    """The same sites, with the first axis of every kernel that a pattern matches counted as a stack
    of matrices.

    Raises:
        ValueError: a pattern matches nothing, or a weight with fewer than three axes.
    """
    out = dict(sites)
    for path in match([(pattern, True) for pattern in patterns], sites, what="experts"):
        site = sites[path]
        in_axes = tuple(axis - 1 for axis in site.in_axes if axis > 0)
        if len(site.shape) < 3 or not in_axes:
            raise ValueError(
                f"experts: {path!r} of shape {site.shape} is no stack of matrices: needed "
                "(experts, in, out)."
            )
        out[path] = replace(
            site, stack=(*site.stack, site.shape[0]), shape=site.shape[1:], in_axes=in_axes
        )
    return out


def biases(
    sites: Mapping[str, Site], adapted: Mapping[str, LoraSpec], mode: str
) -> dict[str, bool]:
    """The paths of the biases that PEFT's `bias` mode trains: none, all, or (lora_only) those
    beside an adapted weight.

    Raises:
        ValueError: the mode is unknown, or there is no such bias.
    """
    if mode not in ("none", "all", "lora_only"):
        raise ValueError(f"bias must be 'none', 'all' or 'lora_only', got {mode!r}.")
    if mode == "none":
        return {}
    every = [path for path in sites if path.rpartition("/")[2] == "bias"]
    beside = {path.rpartition("/")[0] for path in adapted}
    found = {path: True for path in every if mode == "all" or path.rpartition("/")[0] in beside}
    if not found:
        raise ValueError(
            f"bias={mode!r} would train biases, and "
            f"{'the model' if mode == 'all' else 'no adapted module'} has any."
        )
    return found


def _factors(
    site: Site,
    spec: LoraSpec,
    key: jax.Array,
    weight: Any,
    stored: Any,
    data: Any,
    low: LowRank | None,
) -> LowRank | Change:
    """The site's factors; `stored` is the weight as it is kept, `low` what was chosen with it."""

    def matrix(w: Any) -> Any:
        return to_matrix(jnp.asarray(meta.unbox(w)), len(site.shape), site.in_axes)

    if site.kind == "Embed" and VARIANTS[spec.variant].change == "oft":
        raise ValueError(
            f"variant {spec.variant!r} rotates inputs into each other, and those of an embedding "
            "are words. Leave this site out, or give it a rule of its own."
        )
    if initializer_named(spec.init).reads == "error" and data is not None:
        data = (data, matrix(stored))
    if low is None:
        needs_weight = reads(spec) != "shape"
        low = initialize(
            key_for(key, site.path),
            site.stack,
            site.rows,
            site.columns,
            spec,
            in_axes=site.in_axes,
            shared_key=key,
            weight=matrix(weight) if needs_weight else None,
            data=data,
        )
    if spec.dora:
        low = with_magnitude(low, matrix(stored))
    if spec.merge_aware and isinstance(stored, QuantizedArray):
        if spec.merge_scales == "refitted" and stored.spec.fit != "range":
            raise ValueError(
                "merge_scales='refitted' fits scales anew in every program, to the same bytes, and "
                f"fit {stored.spec.fit!r} adds up in an order that differs. Take merge_scales="
                "'kept', or fit 'range'."
            )
        low = low.replace(rounded=spec.merge_scales)
    # As in PEFT: the input of an embedding is an index, and there is nothing to drop.
    return low.replace(dropout=None) if site.kind == "Embed" and low.dropout is not None else low


def _stored(
    site: Site, weight: Any, format: QuantSpec | None, spec: LoraSpec | None, key: jax.Array
) -> tuple[Any, LowRank | None]:
    """The weight as it is kept, and the factors if the initialiser chooses both at once."""
    if format is not None and format.rotation != "none" and site.kind == "Embed":
        raise ValueError(
            f"rotation {format.rotation!r} mixes inputs, and those of an embedding are words: each "
            "would be read of many rows. Give it a rule with rotation 'none'."
        )
    init = None if spec is None else initializer_named(spec.init)
    both = init is not None and init.reads == "format"
    if (
        init is not None
        and init.makes_up
        and (format is None or isinstance(weight, QuantizedArray))
    ):
        what = "chooses the codes" if both else "makes up for the rounding"
        raise ValueError(
            f"init={spec.init!r} {what} of a quantised base: it needs the unquantised weight and a "
            "quant rule for it."
        )
    if format is None:
        return weight, None
    if not both and isinstance(weight, StoredWeight):
        return weight.load(format), None
    w = jnp.asarray(meta.unbox(weight))
    if not both:
        return quantize(w, format, kernel_ndim=len(site.shape), in_axes=site.in_axes), None

    matrix, site_key = to_matrix(w, len(site.shape), site.in_axes), key_for(key, site.path)
    low, base = initialize_with_base(site_key, matrix, spec, format, in_axes=site.in_axes)
    dtype = jnp.dtype(w.dtype)
    return base.replace(kernel_shape=site.shape, in_axes=site.in_axes, dtype=dtype), low


def _check_arguments(inputs: Any, key: Any, **patterns: Any) -> None:
    check_inputs(inputs)
    if not hasattr(key, "dtype"):
        raise TypeError(
            f"adapt needs a random key for the first factors, such as jax.random.key(0); got {key!r}."
        )
    for name, value in patterns.items():
        if isinstance(value, str):
            raise TypeError(f"{name} needs a list of patterns; got {value!r}. Give [{value!r}].")


def _check_tree(flat: Mapping[str, Any], sites: Mapping[str, Site]) -> None:
    missing, extra = sorted(set(sites) - set(flat)), sorted(set(flat) - set(sites))
    if missing or extra:
        raise ValueError(
            f"The weights are not this model's: missing {missing[:5] or 'none'} ({len(missing)}), "
            f"unexpected {extra[:5] or 'none'} ({len(extra)}). Load them for the same "
            "configuration (scan, head) that the model was built with."
        )
    for path, site in sites.items():
        shape = (*site.stack, *site.shape)
        if tuple(flat[path].shape) != shape:
            raise ValueError(
                f"The weight {path!r} has shape {tuple(flat[path].shape)}; the model needs {shape}."
            )


def _check_selection(
    sites: Mapping[str, Site],
    flat: Mapping[str, Any],
    adapted: Mapping[str, LoraSpec],
    quantized: Mapping[str, QuantSpec],
    trained: Mapping[str, bool],
    rows: Mapping[str, Sequence[int]],
) -> None:
    for path in rows:
        if path not in sites:
            raise ValueError(
                f"rows: there is no weight {path!r}. Nearest: {', '.join(nearest(path, sites))}."
            )
        if path in adapted or path in quantized or path in trained or sites[path].stack:
            raise ValueError(
                f"rows: {path!r} is also adapted, quantised or trained whole, or a scan slices its "
                "first axis. Take it out of the other rules."
            )
    if not adapted and not trained and not rows:
        raise ValueError(
            f"Nothing would be trained: no lora or whole rule matches any of {len(sites)} sites. "
            f"Give rules such as [({next(iter(sites))!r}, LoraSpec(rank=8))]."
        )

    for what, chosen in (("adapted", adapted), ("quantised", quantized)):
        for path in chosen:
            if not sites[path].is_matrix:
                matrices = [name for name, site in sites.items() if site.is_matrix]
                raise ValueError(
                    f"{path!r} of shape {sites[path].shape} cannot be {what}: it is no matrix. "
                    f"Narrow the rule to weights such as {', '.join(nearest(path, matrices, 3))}."
                )
            if path in trained:
                raise ValueError(
                    f"{path!r} is to be both {what} and trained whole. Take it out of one of the "
                    "rules."
                )

    aware = [path for path, spec in adapted.items() if spec.merge_aware]
    stored = {path for path in aware if quantized_as(flat[path]) is not None}
    if aware and not stored and not quantized.keys() & set(aware):
        raise ValueError(
            f"{aware[0]!r} is to be merge-aware, and none of the adapted weights is quantised: "
            "merging into them is exact. Leave merge_aware off, or give them a quant rule."
        )
    for path, spec in adapted.items():
        if spec.dropout and not sites[path].has_rule:
            raise ValueError(
                f"{path!r} has LoRA dropout {spec.dropout}, and its module ({sites[path].kind}) "
                "has no factored product to drop the input of. Give this site a rule with "
                "dropout=0.0."
            )
    for path in [*quantized, *trained]:
        if (spec := quantized_as(flat[path])) is not None:
            raise ValueError(
                f"{path!r} is quantised already ({spec.format}); it cannot be quantised "
                "again or trained whole."
            )
