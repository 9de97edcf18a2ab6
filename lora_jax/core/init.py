"""First values of the factors: one table of initialisers, and `initialize`, which applies one.

The adapted model starts as the base whatever the initialiser, and the stored base is never changed
by one: where an initialiser takes its start out of the base (PiSSA, MiLoRA, OLoRA, LoRA-GA, LoRA-One, CorDA),
the start is kept as fixed factors that are subtracted (`LowRank.a0`, `b0`), and `LowRank.plain` folds
them into ordinary factors of twice the rank. What makes up for the rounding of a quantised base starts
nearer to the weight that was quantised: LoftQ and QPiSSA are about which codes are stored, so they
return a base of their own; CLoQ and EoRA take the codes as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.core.changes import Change
from lora_jax.core.initializers import calibrated, random, spectral
from lora_jax.core.lowrank import LoraSpec, LowRank
from lora_jax.core.paths import entry
from lora_jax.core.quantize import QuantizedArray, QuantSpec
from lora_jax.core.tables import register
from lora_jax.core.variants import VARIANTS, Variant


@dataclass(frozen=True)
class Initializer:
    """A function (W, data, key, spec) -> (a, b, residual) and what it needs.

    reads: 'shape' (W is not looked at), 'weight', 'gradient' (data is dL/dW), 'inputs' (data is the
    second moment of W's inputs), 'format' (data is the QuantSpec that W is stored in, and the
    residual is the quantised base), 'error' (data is the inputs' second moment and the dequantised
    base).
    """

    function: Callable[..., Any]
    reads: Literal["shape", "weight", "gradient", "inputs", "format", "error"] = "shape"

    @property
    def measures(self) -> Literal["gradient", "inputs", ""]:
        """What has to be measured on batches of data for it; '' if nothing has to be."""
        return {"gradient": "gradient", "inputs": "inputs", "error": "inputs"}.get(self.reads, "")

    @property
    def makes_up(self) -> bool:
        """Whether its start makes up for the rounding of a quantised base: it is not that base."""
        return self.reads in ("format", "error")


INITIALIZERS: dict[str, Initializer] = {
    "kaiming": Initializer(random.kaiming),
    "gaussian": Initializer(random.gaussian),
    "orthogonal": Initializer(random.orthogonal),
    "pissa": Initializer(spectral.pissa, "weight"),
    "pissa_niter_16": Initializer(functools.partial(spectral.pissa, iterations=16), "weight"),
    "milora": Initializer(spectral.milora, "weight"),
    "olora": Initializer(spectral.olora, "weight"),
    "loftq": Initializer(spectral.loftq, "format"),
    "qpissa": Initializer(spectral.qpissa, "format"),
    "cloq": Initializer(calibrated.cloq, "error"),
    "eora": Initializer(functools.partial(calibrated.cloq, values_in_b=True), "error"),
    "lora_ga": Initializer(calibrated.lora_ga, "gradient"),
    "lora_one": Initializer(calibrated.lora_one, "gradient"),
    "eva": Initializer(calibrated.eva, "inputs"),
    "corda": Initializer(calibrated.corda, "inputs"),
    "corda_kpm": Initializer(functools.partial(calibrated.corda, last=True), "inputs"),
}


def register_initializer(name: str, initializer: Initializer) -> Initializer:
    """Adds an initialiser to the table, for every function and setting that takes its name. Its
    function gives (a, b, residual) of one matrix: a residual in place of None takes the start out
    of the base.

    >>> ones = lambda w, data, key, spec: Start(  # doctest: +SKIP
    ...     jnp.ones((w.shape[0], spec.rank)), jnp.zeros((spec.rank, w.shape[1])), None)
    >>> register_initializer("ones", Initializer(ones))  # doctest: +SKIP

    Raises:
        ValueError: the name is taken by another initialiser.
    """
    return register(INITIALIZERS, name, initializer, "LoRA init")


def initializer_named(name: str) -> Initializer:
    """The initialiser of that name; `pissa_niter_N` is one for every N.

    Raises:
        ValueError: there is none; near names are listed.
    """
    if found := re.fullmatch(r"pissa_niter_(\d+)", name):
        pissa = functools.partial(spectral.pissa, iterations=int(found[1]))
        return Initializer(pissa, "weight")
    return entry(INITIALIZERS, name, "LoRA init")


def reads(spec: Any) -> str:
    """What the first values of a specification's factors read, as `Initializer.reads` has it; a
    variant's own count as well.
    """
    given = initializer_named(spec.init).reads
    return "weight" if given == "shape" and VARIANTS[spec.variant].reads_weight else given


def initialize(
    key: jax.Array,
    stack: tuple[int, ...],
    rows: int,
    out: int,
    spec: LoraSpec,
    *,
    in_axes: tuple[int, ...] = (0,),
    shared_key: jax.Array | None = None,
    weight: Float[Array, "*stack in out"] | None = None,
    data: Any = None,
) -> LowRank | Change:
    """New factors of a site whose weights are a stack of (rows, out) matrices.

    Layers that `spec` leaves out have scale 0. Every matrix of the stack has a key of its own.
    `magnitude` is not set here: see `with_magnitude`.

    Args:
        shared_key: of the random factors that all sites share (VeRA); `key` by default.
        weight: the pretrained matrices, for initialisers that decompose them.
        data: what the initialiser reads besides: a gradient (*stack, in, out), a second moment
            (*stack, in, in), or that and the dequantised base.

    Raises:
        ValueError: the rank exceeds the smaller side, the initialiser is unknown or lacks what it
            reads, `spec.layers` does not fit the stack, or `spec.parts` or `spec.group_size` do not
            divide the weight's sides.
    """
    variant, init = VARIANTS[spec.variant], initializer_named(spec.init)
    _check_sizes(rows, out, spec)
    _check_merge_aware(init, spec)
    on = _layer_mask(stack, spec.layers)
    group = spec.group_size if variant.grouped else 1
    columns, inner = spec.columns, rows // group
    if variant.change:
        own = _by_variant(variant, key, stack, rows, out, spec, weight)
        scale = on[..., None] * spec.effective_scale
        return Change(
            scale=jnp.broadcast_to(scale, own["value"].shape).astype(jnp.float32),
            form=variant.change,
            rows=rows,
            columns=out,
            block=spec.rank if variant.change == "oft" else 0,
            in_axes=in_axes,
            **own,
        )

    moves = False
    own = {}
    if variant.shared:
        a, b = _shared(key if shared_key is None else shared_key, inner, out, columns)
        a, b = (jnp.broadcast_to(x, (*stack, *x.shape)) for x in (a, b))
    elif variant.small is not None:
        a_key, b_key = jax.random.split(key)
        a = variant.small * jax.random.normal(a_key, (*stack, inner, columns), jnp.float32)
        b = variant.small * jax.random.normal(b_key, (*stack, columns, out), jnp.float32)
    elif variant.start is not None:
        own = _by_variant(variant, key, stack, rows, out, spec, weight)
        a, b = own.pop("a"), own.pop("b")
    else:
        a, b, moves = _by_initializer(init, key, stack, inner, out, spec, weight, data)

    # A layer that is left out holds nothing, but for shared factors: its scale is 0 anyway.
    mask = on[..., None, None]
    a, b = (a, b) if variant.shared else (a * mask, b * mask)
    own = {name: x * mask for name, x in own.items()}

    def vector(value: float | None, size: int) -> Array | None:
        return None if value is None else jnp.full((*stack, size), value, jnp.float32)

    scale = jnp.broadcast_to(on[..., None] * spec.effective_scale, (*stack, columns))
    return LowRank(
        a=a,
        b=b,
        scale=scale.astype(jnp.float32),
        dropout=jnp.full(stack, spec.dropout, jnp.float32) if spec.dropout else None,
        gain=vector(variant.gain, columns),
        out_gain=vector(variant.out_gain, out),
        parts=_parts(spec, stack),
        a0=jnp.array(a, copy=True) if moves else None,
        b0=jnp.array(b, copy=True) if moves else None,
        in_axes=in_axes,
        blocks=spec.blocks if variant.blocked else 1,
        of_base=variant.of_base,
        group=group,
        fixed=variant.fixed,
        **own,
    )


def initialize_with_base(
    key: jax.Array,
    weight: Float[Array, "*stack in out"],
    spec: LoraSpec,
    format: QuantSpec,
    *,
    in_axes: tuple[int, ...] = (0,),
) -> tuple[LowRank, QuantizedArray]:
    """New factors and the quantised matrices of an initialiser that chooses both (LoftQ, QPiSSA).

    Raises:
        ValueError: as `initialize`; or the initialiser chooses no base; or `spec.layers` leaves
            layers out.
    """
    init = initializer_named(spec.init)
    rows, out = weight.shape[-2:]
    if init.reads != "format":
        raise ValueError(f"init={spec.init!r} leaves the base as it is; use `initialize`.")
    if spec.layers is not None:
        raise ValueError(
            f"init={spec.init!r} stores another base in every layer, so layers={spec.layers} "
            "cannot leave layers out."
        )
    _check_merge_aware(init, spec)
    plain = dataclasses.replace(spec, init="kaiming")
    low = initialize(key, weight.shape[:-2], rows, out, plain, in_axes=in_axes)
    a, b, base = init.function(weight, format, key, spec)
    return low.replace(a=a, b=b), base


def with_magnitude(low: LowRank, base: Float[Array, "*stack in out"]) -> LowRank:
    """The same factors with DoRA's magnitude at the column norms of base + update.

    So the start is the base. The base's squared column norms are kept (`base_square`), so that no
    step sums them again.
    """
    base = base.astype(jnp.float32)
    low = low.replace(base_square=(base * base).sum(-2))
    return low.replace(magnitude=jnp.sqrt(low.column_squares(base)))


def _by_initializer(
    init: Initializer,
    key: jax.Array,
    stack: tuple[int, ...],
    rows: int,
    out: int,
    spec: LoraSpec,
    weight: Any,
    data: Any,
) -> tuple[Array, Array, bool]:
    """a, b, and whether they are taken out of the base."""
    spec = dataclasses.replace(spec, rank=spec.columns, parts=None)
    keys = jax.random.split(key, math.prod(stack))
    if init.reads == "shape":
        shape = jax.ShapeDtypeStruct((rows, out), jnp.float32)
        start = jax.vmap(lambda k: init.function(shape, None, k, spec))(keys)
        return start.a.reshape(*stack, rows, -1), start.b.reshape(*stack, -1, out), False

    if init.reads == "format":
        raise ValueError(
            f"init={spec.init!r} chooses the codes of a quantised base, and this site has no "
            "quantisation rule. Give it one."
        )
    if weight is None:
        raise ValueError(
            f"init={spec.init!r} decomposes the weight, and none was given (weight=...)."
        )
    if init.reads != "weight" and data is None:
        raise ValueError(
            f"init={spec.init!r} needs measurements of this site ({init.measures}). Measure them "
            "with lora_jax.adapters.calibration and give adapt(..., statistics=...)."
        )

    def flat(x: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(stack) :]), x)

    def one(w: Array, d: Any, k: jax.Array) -> Any:
        return init.function(w, d, k, spec)

    every = jax.vmap(one, in_axes=(0, None if data is None else 0, 0))
    args = (flat(weight), flat(data), keys)
    moves = jax.eval_shape(every, *args).residual is not None
    # Compiled without the residual: a dense one of the base's size would be made for nothing.
    a, b = jax.jit(lambda *args: every(*args)[:2])(*args)
    return a.reshape(*stack, rows, -1), b.reshape(*stack, -1, out), moves


def _by_variant(
    variant: Variant,
    key: jax.Array,
    stack: tuple[int, ...],
    rows: int,
    out: int,
    spec: LoraSpec,
    weight: Any,
) -> dict[str, Array]:
    """The arrays that a variant starts with."""
    if variant.reads_weight and weight is None:
        raise ValueError(
            f"variant {variant.name!r} decomposes the weight, and none was given (weight=...)."
        )
    keys = jax.random.split(key, math.prod(stack))
    if variant.reads_weight:
        made = jax.vmap(lambda w, k: variant.start(w, k, spec))(weight.reshape(-1, rows, out), keys)
    else:
        shape = jax.ShapeDtypeStruct((rows, out), jnp.float32)
        made = jax.vmap(lambda k: variant.start(shape, k, spec))(keys)
    return {name: x.reshape(*stack, *x.shape[1:]) for name, x in made.items()}


def _shared(key: jax.Array, rows: int, out: int, rank: int) -> tuple[Array, Array]:
    """VeRA's frozen matrices: row i of `a` and column j of `b` are the same at sites of every size.

    Kaiming uniform as in PEFT, in +-sqrt(6 / in) and +-sqrt(6 / rank), with the site's own number
    of inputs.
    """
    a_key, b_key = jax.random.split(key)

    def rows_of(k: jax.Array, n: int) -> Array:
        # A key a row: a site with more rows has those of the smaller ones first.
        keys = jax.vmap(lambda i: jax.random.fold_in(k, i))(jnp.arange(n))
        return jax.vmap(lambda k: jax.random.uniform(k, (rank,), jnp.float32, -1.0, 1.0))(keys)

    return rows_of(a_key, rows) * math.sqrt(6 / rows), rows_of(b_key, out).T * math.sqrt(6 / rank)


def _parts(spec: LoraSpec, stack: tuple[int, ...]) -> Float[Array, "*stack r parts"] | None:
    """Which part of a fused kernel each column writes to: `rank` columns for each adapted part."""
    if spec.parts is None:
        return None
    chosen = jnp.asarray([index for index, on in enumerate(spec.parts) if on])
    one_hot = jax.nn.one_hot(chosen, len(spec.parts), dtype=jnp.float32)
    return jnp.broadcast_to(
        jnp.repeat(one_hot, spec.rank, axis=0), (*stack, spec.columns, len(spec.parts))
    )


def _check_merge_aware(init: Initializer, spec: LoraSpec) -> None:
    if init.makes_up and spec.merge_aware:
        raise ValueError(
            f"init={spec.init!r} starts from factors that make up for the base's rounding, and "
            "merge_aware rounds their sum again: nothing of that start would be left. Take "
            "another init."
        )


def _check_sizes(rows: int, out: int, spec: LoraSpec) -> None:
    variant = VARIANTS[spec.variant]
    if spec.parts is not None and out % len(spec.parts):
        raise ValueError(
            f"parts={spec.parts} cuts the outputs into {len(spec.parts)} equal parts, and {out} "
            "outputs do not divide."
        )
    if variant.grouped and rows % spec.group_size:
        raise ValueError(
            f"group_size must divide the weight's {rows} inputs, got {spec.group_size}."
        )
    inner = rows // (spec.group_size if variant.grouped else 1)
    side = min(inner, out // (1 if spec.parts is None else len(spec.parts)))
    # VeRA's rank counts shared random directions, of which there may be more than the weight has.
    if spec.rank > side and not variant.shared and not variant.change:
        raise ValueError(
            f"Rank {spec.rank} is larger than the smaller side of a {rows} x {out} weight: at most "
            f"{side} columns can differ. Lower the rank here, or give this site a rule of its own."
        )


def _layer_mask(stack: tuple[int, ...], layers: tuple[int, ...] | None) -> Float[Array, "*stack"]:
    if layers is None:
        return jnp.ones(stack, jnp.float32)
    if not stack:
        raise ValueError(
            f"layers={layers} needs a site with a stack of layers, and this one has none. Select "
            "layers by path instead."
        )
    wrong = [index for index in layers if not 0 <= index < stack[0]]
    if wrong or not layers:
        raise ValueError(
            f"layers={layers} must name some of the layers 0 to {stack[0] - 1} of this stack; "
            f"{wrong or 'none'} do not exist."
        )
    mask = jnp.zeros(stack[0], jnp.float32).at[jnp.asarray(layers)].set(1.0)
    return jnp.broadcast_to(mask.reshape(-1, *[1] * (len(stack) - 1)), stack)
