"""apply and join: the interceptor never changes the function, a fresh adapter changes nothing,
dropout acts where it must.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from user_models import QUANTS, WRAPS, adapted, build, error, same_bits, with_b

import lora_jax
from lora_jax import LoraSpec, QuantSpec, adapt, find_sites, join, merge, split

# Sums of products in another order: float32 has 6e-8, and the worst logit passes two blocks of ten
# modules.
FLOAT32 = 1e-5
# The dense path rounds each adapted weight to float32 and products to bfloat16 (4e-3); the factored
# one rounds factors.
BFLOAT16 = 4e-2
CASES = [(wrap, "nf4", None) for wrap in WRAPS]
CASES += [
    ("loop", "plain", None),
    ("scan", "int8", None),
    ("loop", "plain", jnp.bfloat16),
    ("scan", "nf4", jnp.bfloat16),
]


@pytest.mark.parametrize(("wrap", "quant", "dtype"), CASES)
def test_interceptor_never_changes_the_function_and_neither_does_merging(
    wrap: str, quant: str, dtype: Any
) -> None:
    built = build(wrap, dtype)
    frozen, trainable = adapted(built, QUANTS[quant])
    plain, _ = merge(frozen, trainable)

    @jax.jit
    def three(frozen: Any, trainable: Any, plain: Any) -> tuple[jax.Array, ...]:
        factored = lora_jax.apply(built.model, frozen, trainable, *built.inputs)
        return factored, *(
            built.model.apply({"params": params}, *built.inputs)
            for params in (join(frozen, trainable), plain)
        )

    factored, boxed, dense = three(frozen, trainable, plain)
    tolerance = FLOAT32 if dtype is None else BFLOAT16
    assert factored.dtype == boxed.dtype == dense.dtype
    assert error(factored, dense) < tolerance and error(boxed, dense) < tolerance
    base = lora_jax.apply(built.model, frozen, {}, *built.inputs)
    assert (
        error(factored, base) > 0.05
    )  # The factors matter: the equalities above are not about zeros.


@pytest.mark.parametrize(("wrap", "quant"), [("loop", "plain"), ("scan_remat", "nf4")])
def test_gradients_of_the_factors_are_those_of_the_dense_weights(wrap: str, quant: str) -> None:
    built = build(wrap)
    frozen, trainable = adapted(built, QUANTS[quant])
    factors = {path: (low.a, low.b) for path, low in trainable.items()}

    def loss(factors: Any, run: Any) -> jax.Array:
        low = {
            path: leaf.replace(a=factors[path][0], b=factors[path][1])
            for path, leaf in trainable.items()
        }
        return jnp.sin(run(low)).sum()

    factored = lambda low: lora_jax.apply(built.model, frozen, low, *built.inputs)
    boxed = lambda low: built.model.apply({"params": join(frozen, low)}, *built.inputs)
    ours, theirs = jax.jit(
        lambda tree: tuple(jax.grad(partial(loss, run=run))(tree) for run in (factored, boxed))
    )(factors)
    # float32 cancellation: some entries of a gradient are sums of terms a hundred times larger.
    assert error(ours, theirs) < 1e-4
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(ours))


@pytest.mark.parametrize(("wrap", "quant"), [("loop", "plain"), ("scan_remat", "nf4")])
def test_a_fresh_adapter_gives_the_frozen_output_bit_for_bit(wrap: str, quant: str) -> None:
    built = build(wrap)
    frozen, fresh = adapted(built, QUANTS[quant], trained=False)
    run = jax.jit(
        lambda frozen, trainable: lora_jax.apply(built.model, frozen, trainable, *built.inputs)
    )
    assert same_bits(run(frozen, fresh), run(frozen, {}))
    assert not same_bits(run(frozen, with_b(fresh)), run(frozen, {}))


@pytest.mark.parametrize("wrap", WRAPS)
def test_splitting_joined_params_is_the_identity(wrap: str) -> None:
    built = build(wrap)
    frozen, trainable = adapt(
        built.model,
        built.params,
        built.inputs,
        lora=[(".*(query|conv|unheads)/kernel", LoraSpec(rank=2))],
        quant=[(".*kernel", QuantSpec(block_size=4))],
        whole=[".*norm/.*"],
        key=jax.random.key(0),
    )
    again, factors = split(join(frozen, trainable))
    assert same_bits(again, frozen) and same_bits(factors, trainable)
    joined = join(frozen, trainable)
    assert same_bits(join(*split(joined)), joined)


def test_a_quantised_model_without_adapters_runs_by_the_interceptor_too() -> None:
    built = build("loop")
    frozen, _ = adapted(built, QUANTS["nf4"])
    # Both paths dequantise the same numbers.
    assert (
        error(
            lora_jax.apply(built.model, frozen, {}, *built.inputs),
            built.model.apply({"params": frozen}, *built.inputs),
        )
        < FLOAT32
    )


# --- one module at a time ------------------------------------------------------------------------------------------


class Calls(nn.Module):
    """A module called with given positional and keyword arguments."""

    inner: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.inner(x, *self.args, **(self.kwargs or {}))


X4 = (2, 3, 4, 6)
MODULES: dict[str, tuple[nn.Module, tuple[int, ...], bool]] = {
    # name: module, input shape, whether there is a rule
    "dense on a vector": (nn.Dense(5), (6,), True),
    "dense without bias": (nn.Dense(5, use_bias=False), (2, 3, 6), True),
    "dense with a precision": (nn.Dense(5, precision="highest"), (2, 6), False),
    "dense with its own promotion": (
        nn.Dense(5, promote_dtype=lambda *xs, dtype=None, inexact=True: [2 * xs[0], *xs[1:]]),
        (2, 6),
        False,
    ),
    "general, one axis": (nn.DenseGeneral((3, 2)), X4, True),
    "general, axes in the middle": (nn.DenseGeneral(5, axis=(1, 2)), X4, True),
    "general, axes out of order": (nn.DenseGeneral((5, 2), axis=(-1, 1)), X4, True),
    "general, negative axes out of order": (nn.DenseGeneral(5, axis=(-1, -2)), X4, True),
    "general, batch axes": (nn.DenseGeneral(5, axis=(-1,), batch_dims=(0,)), X4, False),
    "einsum with dots": (nn.Einsum((6, 7), "...d,df->...f"), X4, True),
    "einsum that permutes": (nn.Einsum((7, 6, 3), "bqtd,fdg->bgtfq", use_bias=False), X4, True),
    "einsum with a shared letter": (nn.Einsum((4, 6, 5), "bqtd,tdf->bqtf"), X4, False),
    "einsum that sums the input": (nn.Einsum((6, 5), "bqtd,df->bqf", use_bias=False), X4, False),
    "einsum, equation in the call": (
        Calls(nn.Einsum((6, 5), use_bias=False), ("bqtd,df->bqtf",)),
        X4,
        True,
    ),
    "einsum, equation by keyword": (
        Calls(nn.Einsum((6, 5)), (), {"einsum_str": "bqtd,df->bqtf"}),
        X4,
        True,
    ),
    "conv 1d strided": (nn.Conv(5, (3,), strides=2, padding="VALID"), (2, 9, 6), True),
    "conv 2d dilated": (nn.Conv(5, (2, 3), kernel_dilation=2, use_bias=False), X4, True),
    "conv circular": (nn.Conv(5, (3,), padding="CIRCULAR"), (2, 9, 6), True),
    "conv without a batch axis": (nn.Conv(5, (3,)), (9, 6), True),
    "conv in groups": (nn.Conv(4, (3,), feature_group_count=2), (2, 9, 6), False),
    "transposed conv": (nn.ConvTranspose(5, (3,)), (2, 9, 6), False),
    "local conv": (nn.ConvLocal(5, (3,)), (2, 9, 6), False),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_way_to_call_a_module_computes_what_its_merged_weight_computes(name: str) -> None:
    module, shape, has_rule = MODULES[name]
    x = jax.random.normal(jax.random.key(0), shape)
    params = module.init(jax.random.key(1), x)["params"]
    sites = find_sites(module, x)
    assert [site.has_rule for path, site in sites.items() if path.endswith("kernel")] == [has_rule]
    for quant in ([], [(".*kernel", QuantSpec("int8", 4))]):
        rules = [(".*kernel", LoraSpec(rank=2))]
        frozen, trainable = adapt(
            module, params, (x,), lora=rules, quant=quant, key=jax.random.key(2), sites=sites
        )
        trainable = with_b(trainable)
        plain, report = merge(frozen, trainable)
        assert (
            error(lora_jax.apply(module, frozen, trainable, x), module.apply({"params": plain}, x))
            < FLOAT32
        )
        assert min(report.change.values()) > 0.01


def test_integer_and_low_precision_inputs_promote_as_linen_promotes() -> None:
    module = nn.Dense(3)
    for x in (jnp.arange(8).reshape(2, 4), jnp.ones((2, 4), jnp.bfloat16), jnp.ones((2, 4), bool)):
        params = module.init(jax.random.key(0), x)["params"]
        frozen, trainable = adapt(
            module, params, (x,), lora=[("kernel", LoraSpec(rank=1))], key=jax.random.key(1)
        )
        ours, theirs = (
            lora_jax.apply(module, frozen, trainable, x),
            module.apply({"params": params}, x),
        )
        assert ours.dtype == theirs.dtype and error(ours, theirs) < FLOAT32


def test_a_subclass_is_left_to_its_own_computation() -> None:
    class Doubled(nn.Dense):
        @nn.compact
        def __call__(self, inputs: jax.Array) -> jax.Array:
            return 2 * super().__call__(inputs)

    x = jnp.ones((2, 4))
    params = Doubled(3).init(jax.random.key(0), x)["params"]
    frozen, trainable = adapt(
        Doubled(3), params, (x,), lora=[("kernel", LoraSpec(rank=1))], key=jax.random.key(1)
    )
    trainable = with_b(trainable)
    dense = Doubled(3).apply({"params": merge(frozen, trainable)[0]}, x)
    assert error(lora_jax.apply(Doubled(3), frozen, trainable, x), dense) < FLOAT32


def test_other_collections_are_passed_and_updated() -> None:
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x))

    x = jax.random.normal(jax.random.key(0), (8, 4))
    variables = Normed().init(jax.random.key(0), x)
    frozen, trainable = adapt(
        Normed(),
        variables["params"],
        (x,),
        lora=[(".*kernel", LoraSpec(rank=1))],
        key=jax.random.key(1),
    )
    stats = {"batch_stats": variables["batch_stats"]}
    y, updated = lora_jax.apply(
        Normed(), frozen, trainable, x, collections=stats, mutable=["batch_stats"]
    )
    y2, updated2 = Normed().apply(variables, x, mutable=["batch_stats"])
    assert error(y, y2) < FLOAT32 and error(updated, updated2) < FLOAT32


# --- dropout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["loop", "scan"])
def test_dropout_needs_a_key_and_differs_by_key(wrap: str) -> None:
    built = build(wrap)
    frozen, trainable = adapted(built, spec=LoraSpec(rank=2, alpha=4.0, dropout=0.5))
    none = {path: leaf.replace(dropout=None) for path, leaf in trainable.items()}
    run = jax.jit(
        lambda trainable, key: lora_jax.apply(
            built.model, frozen, trainable, *built.inputs, key=key
        )
    )
    off = run(trainable, None)
    assert (
        error(off, run(none, None)) < FLOAT32 and error(run(none, jax.random.key(0)), off) < FLOAT32
    )
    one, again, other = (run(trainable, jax.random.key(seed)) for seed in (0, 0, 1))
    assert same_bits(one, again) and error(one, off) > 0.01 and error(one, other) > 0.01


def test_dropped_entries_are_zero_and_kept_ones_are_scaled_up() -> None:
    x, module = jnp.ones((1, 400)), nn.Dense(400, use_bias=False)
    params = {"kernel": jnp.zeros((400, 400))}
    frozen, trainable = adapt(
        module,
        params,
        (x,),
        lora=[("kernel", LoraSpec(rank=400, alpha=400.0, dropout=0.25))],
        key=jax.random.key(0),
    )
    trainable = {"kernel": trainable["kernel"].replace(a=jnp.eye(400), b=jnp.eye(400))}
    seen = np.asarray(lora_jax.apply(module, frozen, trainable, x, key=jax.random.key(1)))[0]
    assert set(np.unique(seen)) == {0.0, np.float32(1 / 0.75)}
    # Standard deviation of the dropped share: sqrt(.25 * .75 / 400) = 0.022.
    assert abs((seen == 0).mean() - 0.25) < 0.08


def test_dropout_masks_differ_between_sites_layers_and_keys() -> None:
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            layer = nn.vmap(
                nn.Dense,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=None,
                axis_size=2,
            )
            return jnp.stack(
                [
                    *layer(64, use_bias=False, name="layers")(x),
                    nn.Dense(64, use_bias=False, name="other")(x),
                ]
            )

    x = jnp.ones((1, 64))
    params = jax.tree.map(jnp.zeros_like, Pair().init(jax.random.key(0), x)["params"])
    frozen, trainable = adapt(
        Pair(),
        params,
        (x,),
        lora=[(".*", LoraSpec(rank=64, alpha=64.0, dropout=0.5))],
        key=jax.random.key(0),
    )
    trainable = {
        path: leaf.replace(
            a=jnp.broadcast_to(jnp.eye(64), leaf.a.shape),
            b=jnp.broadcast_to(jnp.eye(64), leaf.b.shape),
        )
        for path, leaf in trainable.items()
    }
    masks = [
        np.asarray(lora_jax.apply(Pair(), frozen, trainable, x, key=jax.random.key(seed)))[:, 0]
        != 0
        for seed in (0, 1)
    ]
    rows = [tuple(row) for mask in masks for row in mask]
    assert (
        len(set(rows)) == 6
    )  # 2 keys x (2 layers + 1 site): equal ones would have probability 2**-64.


def test_dropout_on_a_module_without_a_rule_is_an_error_not_a_no_op() -> None:
    built = build("loop")
    with pytest.raises(
        ValueError,
        match="'block_0/gate' has LoRA dropout 0.1, and its module .Block. has no factored product",
    ):
        adapt(
            built.model,
            built.params,
            built.inputs,
            lora=[(".*gate", LoraSpec(2, dropout=0.1))],
            key=jax.random.key(0),
        )
    frozen, trainable = adapted(built, spec=LoraSpec(rank=2, dropout=0.5))
    with pytest.raises(ValueError, match=r"dropout needs the factored product.*Set dropout=0\.0"):
        built.model.apply({"params": join(frozen, trainable, key=jax.random.key(0))}, *built.inputs)


# --- adapters that do not fit --------------------------------------------------------------------------------------


def test_an_adapter_of_another_layout_is_refused() -> None:
    loop, scan = build("loop"), build("scan")
    frozen, _ = adapted(scan)
    _, trainable = adapted(loop)
    with pytest.raises(
        KeyError, match=r"factors for 'block_0/.*no such weight. Nearest: .*another layout"
    ):
        join(frozen, {path: leaf for path, leaf in trainable.items() if path.startswith("block_0")})
    _, other = adapted(scan)
    short = other["blocks/up/kernel"].replace(a=jnp.zeros((2, 7, 2)))
    with pytest.raises(
        ValueError,
        match=r"adapter of 'blocks/up/kernel' does not fit: factors \(2, 7, 2\) and \(2, 2, 12\)",
    ):
        join(frozen, {"blocks/up/kernel": short})


def test_a_frozen_weight_cannot_be_written() -> None:
    built = build("loop")
    frozen, trainable = adapted(built, QUANTS["nf4"])
    with pytest.raises(TypeError, match="Adapted is read-only"):
        join(frozen, trainable)["words"]["embedding"].replace_boxed(jnp.zeros((20, 8)))
