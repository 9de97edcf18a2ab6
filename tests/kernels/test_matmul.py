"""The two products: gradients equal float64's, and the backward pass keeps codes, never a dense
copy of a frozen weight.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from residuals import floats_of_shapes, saved_arrays, weight_shapes

import lora_jax
from lora_jax import LoraSpec, QuantSpec, adapt, bytes_of, dequantize, join, quantize
from lora_jax.core import QuantizedArray
from lora_jax.core.paths import flatten
from lora_jax.kernels.matmul import frozen_matmul, head_matmul, lowrank_matmul
from lora_jax.models import Encoder, EncoderConfig

RNG = np.random.default_rng(0)
T, IN, OUT, R = 7, 12, 10, 3
# A dot product of 12 terms in float32 (6e-8 a rounding), relative to the largest entry; bfloat16
# rounds each factor by 4e-3.
TOLERANCE = {jnp.float32: 1e-6, jnp.bfloat16: 2e-2}


def far(ours: Any, oracle: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours, np.float64) - oracle).max() / np.abs(oracle).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(IN, OUT), (3, 4, OUT), (IN, 2, 5)])
@pytest.mark.parametrize("format", [None, "nf4", "int8"])
def test_frozen_product_and_its_gradient_equal_float64(
    format: str | None, shape: tuple[int, ...], dtype: Any
) -> None:
    in_axes = (0, 1) if shape[0] == 3 else (0,)
    w = jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    weight = (
        w
        if format is None
        else quantize(w, QuantSpec(format, 4, False), kernel_ndim=len(shape), in_axes=in_axes)
    )
    dense = np.asarray(w if format is None else weight.unbox(), np.float64).reshape(IN, OUT)
    x, g = (
        jnp.asarray(RNG.standard_normal((T, IN)), dtype),
        jnp.asarray(RNG.standard_normal((T, OUT)), dtype),
    )
    y, pull = jax.vjp(lambda x: frozen_matmul(x, weight), x)
    (dx,) = pull(g)
    assert y.dtype == dx.dtype == dtype
    assert far(y, np.asarray(x, np.float64) @ dense) < TOLERANCE[dtype]
    assert far(dx, np.asarray(g, np.float64) @ dense.T) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowrank_product_and_its_gradients_equal_float64(dtype: Any) -> None:
    x, g = (
        jnp.asarray(RNG.standard_normal((T, IN)), dtype),
        jnp.asarray(RNG.standard_normal((T, OUT)), dtype),
    )
    a, b = (jnp.asarray(RNG.standard_normal(s), jnp.float32) for s in ((IN, R), (R, OUT)))
    scale = jnp.asarray([0.5, 2.0, 0.0])
    y, pull = jax.vjp(lambda x, a, b: lowrank_matmul(x, a, b, scale), x, a, b)
    dx, da, db = pull(g)
    assert (y.dtype, dx.dtype, da.dtype, db.dtype) == (dtype, dtype, jnp.float32, jnp.float32)
    x, g, a, b, s = (np.asarray(v, np.float64) for v in (x, g, a, b, scale))
    for ours, oracle in (
        (y, x @ a * s @ b),
        (dx, g @ b.T * s @ a.T),
        (da, x.T @ (g @ b.T * s)),
        (db, (x @ a * s).T @ g),
    ):
        assert far(ours, oracle) < TOLERANCE[dtype]
    # A zero in `scale` zeroes the gradient of its column exactly.
    assert not np.any(da[:, 2]) and not np.any(db[2])


def test_products_work_under_vmap_over_weights_and_adapters() -> None:
    x, w = (jnp.asarray(RNG.standard_normal(s), jnp.float32) for s in ((2, T, IN), (2, IN, OUT)))
    stacked = quantize(w, QuantSpec("nf4", 4))
    ours = jax.vmap(jax.grad(lambda x, w: jnp.sin(frozen_matmul(x, w)).sum()))(x, stacked)
    dense = jax.vmap(jax.grad(lambda x, w: jnp.sin(x @ w).sum()))(x, stacked.unbox())
    assert far(ours, np.asarray(dense, np.float64)) < 1e-5


# --- what the backward pass keeps ----------------------------------------------------------------------------------

# All sizes differ, so that a shape tells which array it is.
CONFIG = EncoderConfig(
    vocab_size=50,
    hidden_size=24,
    num_layers=3,
    num_heads=2,
    intermediate_size=56,
    max_positions=16,
    num_classes=5,
)
LINEAR = r"layers(_\d+)?/.*/kernel"
TOKENS = jax.ShapeDtypeStruct((2, 7), jnp.int32), jax.ShapeDtypeStruct((2, 7), jnp.bool_)


def encoder_case(
    scan: bool, remat: bool, format: str | None, config: EncoderConfig = CONFIG
) -> tuple[Any, Any, Any, Any]:
    model = Encoder(config, scan=scan, remat=remat)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *TOKENS)["params"]
    params = jax.tree.map(
        lambda x: jnp.asarray(0.1 * RNG.standard_normal(x.shape), x.dtype), shapes
    )
    quant = [(LINEAR, QuantSpec(format, 4))] if format else []
    frozen, trainable = adapt(
        model, params, TOKENS, lora=[(LINEAR, LoraSpec(2))], quant=quant, key=jax.random.key(0)
    )
    inputs = jnp.zeros((2, 7), jnp.int32), jnp.ones((2, 7), bool)
    return model, frozen, trainable, inputs


def trained(trainable: Any) -> Any:
    return {path: (low.a, low.b) for path, low in trainable.items()}


def put(trainable: Any, factors: Any) -> Any:
    return {
        path: low.replace(a=factors[path][0], b=factors[path][1]) for path, low in trainable.items()
    }


@pytest.mark.parametrize("format", [None, "nf4", "int8"])
@pytest.mark.parametrize(
    ("scan", "remat"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_no_float_array_of_a_frozen_shape_is_saved_for_the_backward_pass(
    scan: bool, remat: bool, format: str | None
) -> None:
    model, frozen, trainable, inputs = encoder_case(scan, remat, format)
    shapes = weight_shapes(frozen, trainable)

    def loss(factors: Any, frozen: Any) -> jax.Array:
        return lora_jax.apply(model, frozen, put(trainable, factors), *inputs).sum()

    saved = saved_arrays(loss, trained(trainable), frozen)
    assert floats_of_shapes(saved, shapes) == []
    assert saved  # The activations, at least.


def test_the_check_sees_the_dense_copies_that_plain_autodiff_saves() -> None:
    model, frozen, trainable, inputs = encoder_case(True, False, "nf4")
    plain = lambda factors, frozen: model.apply(
        {"params": join(frozen, put(trainable, factors))}, *inputs
    ).sum()
    saved = saved_arrays(plain, trained(trainable), frozen)
    assert (3, 24, 56) in {
        array.shape for array in floats_of_shapes(saved, weight_shapes(frozen, trainable))
    }


def test_a_compiled_step_with_scan_remat_and_nf4_has_no_room_for_a_dense_base() -> None:
    wide = EncoderConfig(
        vocab_size=50,
        hidden_size=128,
        num_layers=12,
        num_heads=2,
        intermediate_size=512,
        max_positions=16,
        num_classes=5,
    )
    dense = 4 * 12 * (4 * 128 * 128 + 2 * 128 * 512)

    def temporaries(remat: bool, factored: bool) -> int:
        model, frozen, trainable, inputs = encoder_case(True, remat, "nf4", wide)
        stored = {path: leaf for path, leaf in flatten(frozen).items() if path in trainable}
        assert (
            sum(4 * leaf.size for leaf in stored.values()) == dense and bytes_of(stored) < dense / 3
        )

        def loss(factors: Any, frozen: Any) -> jax.Array:
            low = put(trainable, factors)
            run = (
                lora_jax.apply(model, frozen, low, *inputs)
                if factored
                else model.apply({"params": join(frozen, low)}, *inputs)
            )
            return run.sum()

        return (
            jax.jit(jax.grad(loss))
            .lower(trained(trainable), frozen)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    # One layer in float32 and its activations, against the whole base that plain autodiff keeps.
    assert (
        temporaries(remat=True, factored=True)
        < dense / 3
        < dense
        < temporaries(remat=False, factored=False)
    )


def chain(x: jax.Array, weights: list[Any]) -> jax.Array:
    for weight in weights:
        x = jnp.tanh(frozen_matmul(x, weight))
    return x


def in_a_loop(x: jax.Array, weights: list[Any]) -> jax.Array:
    return jax.lax.fori_loop(0, 3, lambda _, x: chain(x, weights), x)


def of_each_entry(x: jax.Array, weights: list[Any]) -> jax.Array:
    return jax.vmap(chain, in_axes=(0, None))(x[:, None], weights)


def gradient(x: jax.Array, weights: list[Any]) -> jax.Array:
    return jax.grad(lambda x: chain(x, weights).sum())(x)


@pytest.mark.parametrize("program", [chain, in_a_loop, of_each_entry, gradient])
def test_layers_of_an_unrolled_model_are_dequantised_one_by_one_and_not_kept(program: Any) -> None:
    size, layers = 256, 8
    key = jax.random.key(0)
    weights = [
        quantize(w, QuantSpec("nf4")) for w in jax.random.normal(key, (layers, size, size)) / 16
    ]
    x = jnp.ones((5, size))
    compiled = jax.jit(program).lower(x, weights).compile()
    # A dense weight, its blocked form and the activations: some two and a half weights, where
    # keeping all of them takes eight.
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * 4 * size * size
    dense = [weight.unbox() for weight in weights]
    assert far(compiled(x, weights), np.asarray(program(x, dense), np.float64)) < 1e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, 3e-38])
def test_what_the_codes_wait_for_does_not_change_them(value: float, dtype: Any) -> None:
    weight = quantize(jax.random.normal(jax.random.key(0), (8, 6)), QuantSpec("nf4", 4))
    x = jnp.ones((3, 8), dtype).at[0, 0].set(value)
    assert np.array_equal(
        jax.jit(frozen_matmul)(x, weight)[1:],
        jax.jit(frozen_matmul)(jnp.ones((3, 8), dtype), weight)[1:],
    )


def test_a_dequantised_tree_is_the_same_model_without_quantised_weights() -> None:
    model, frozen, trainable, inputs = encoder_case(True, False, "nf4")
    dense = dequantize(frozen)
    assert not any(isinstance(leaf, QuantizedArray) for leaf in flatten(dense).values())
    assert (
        far(
            lora_jax.apply(model, dense, trainable, *inputs),
            np.asarray(lora_jax.apply(model, frozen, trainable, *inputs), np.float64),
        )
        < 1e-5
    )


def test_products_in_16_bits_make_no_float32_copy_of_the_weight() -> None:
    x, w = jnp.ones((16, 256), jnp.bfloat16), jnp.ones((256, 1024), jnp.bfloat16)
    programs = {
        "frozen": lambda x, w: jax.value_and_grad(
            lambda x: frozen_matmul(x, w).astype(jnp.float32).sum()
        )(x),
        "head": lambda x, w: jax.value_and_grad(lambda x: head_matmul(x, w).sum())(x),
    }
    for name, program in programs.items():
        weight = w.T if name == "head" else w
        memory = jax.jit(program).lower(x, weight).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 4 * w.size, name


@pytest.mark.parametrize("shape", [(T,), (2, T)])
def test_the_head_in_16_bits_has_logits_that_are_rounded_nowhere_and_gradients_of_its_dtype(
    shape: tuple[int, ...],
) -> None:
    x, e = (jnp.asarray(RNG.standard_normal(s), jnp.bfloat16) for s in ((*shape, IN), (OUT, IN)))
    g = jnp.asarray(RNG.standard_normal((*shape, OUT)), jnp.bfloat16).astype(jnp.float32)
    y, pull = jax.vjp(head_matmul, x, e)
    dx, de = pull(g)
    assert (y.dtype, dx.dtype, de.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    x, e, g = (np.asarray(v, np.float64) for v in (x, e, g))
    assert far(y, x @ e.T) < TOLERANCE[jnp.float32]
    assert far(dx, g @ e) < TOLERANCE[jnp.bfloat16]
    assert far(de, g.reshape(-1, OUT).T @ x.reshape(-1, IN)) < TOLERANCE[jnp.bfloat16]


def test_a_tied_head_in_16_bits_gives_through_apply_what_it_gives_by_itself_without_a_float32_copy() -> (
    None
):
    head = nn.Embed(1024, 256, dtype=jnp.bfloat16)
    params = head.init(jax.random.key(0), jnp.zeros((1,), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    x = jax.random.normal(jax.random.key(1), (4, 256), jnp.bfloat16)
    ours = lambda x: lora_jax.apply(head, params, {}, x, method="attend")
    plain = head.apply({"params": params}, x, method="attend")
    assert ours(x).dtype == plain.dtype == jnp.bfloat16
    assert far(ours(x), np.asarray(plain, np.float64)) < TOLERANCE[jnp.bfloat16]
    both = jax.jit(
        jax.value_and_grad(
            lambda x, params: (
                lora_jax.apply(head, params, {}, x, method="attend").astype(jnp.float32).sum()
            )
        )
    )
    assert both.lower(x, params).compile().memory_analysis().temp_size_in_bytes < 4 * 1024 * 256


def test_a_tied_head_reads_its_embedding_as_it_lies() -> None:
    """For one text XLA copied `embedding.T` in front of the product: 150 of 200 ms a token of
    Gemma-3-270M (jax 0.12).
    """
    head, x = nn.Embed(1024, 256), jax.random.normal(jax.random.key(1), (1, 256))
    params = head.init(jax.random.key(0), jnp.zeros((1,), jnp.int32))["params"]
    attend = lambda params, x: lora_jax.apply(head, params, {}, x, method="attend")
    ours = jax.value_and_grad(lambda x: jnp.square(attend(params, x)).sum())
    plain = jax.value_and_grad(lambda x: jnp.square(x @ params["embedding"].T).sum())
    for got, wanted in zip(ours(x), plain(x), strict=True):
        assert far(got, np.asarray(wanted, np.float64)) < TOLERANCE[jnp.float32]
    # In a loop, as a generation has it: there the copy was made.
    repeat = lambda params, x: jax.lax.fori_loop(
        0, 3, lambda i, y: attend(params, y)[:, :256] / 16, x
    )
    assert "[256,1024]" not in jax.jit(repeat).lower(params, x).compile().as_text()
