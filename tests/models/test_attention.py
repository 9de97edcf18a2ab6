"""Attention: equal to its formula in float64, one choice of who computes it, and cuDNN's form of it
for CUDA.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from lora_jax.models import attention
from lora_jax.models.attention import attend, chosen

RNG = np.random.default_rng(0)
BATCH, QUERIES, KEYS, DIM = 2, 6, 8, 16


def inputs(heads: int, kv: int, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    shapes = ((BATCH, QUERIES, heads, DIM), (BATCH, KEYS, kv, DIM), (BATCH, KEYS, kv, DIM))
    return tuple(jnp.asarray(RNG.standard_normal(shape), dtype) for shape in shapes)


def formula(
    q: Any, k: Any, v: Any, scale: float, bias: Any, mask: Any, softcap: float | None
) -> np.ndarray:
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q * scale, k)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    scores = scores + (0 if bias is None else np.asarray(bias, np.float64))
    scores = scores if mask is None else np.where(np.asarray(mask)[:, None], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("with_bias", [None, "heads", "keys"])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_it_is_its_formula(
    heads: int, kv: int, with_mask: bool, with_bias: str | None, softcap: float | None
) -> None:
    q, k, v = inputs(heads, kv)
    mask = (
        jnp.asarray(RNG.random((BATCH, QUERIES, KEYS)) > 0.4).at[:, :, 0].set(True)
        if with_mask
        else None
    )
    shape = {"heads": (1, heads, QUERIES, KEYS), "keys": (BATCH, 1, 1, KEYS)}.get(with_bias)
    bias = jnp.asarray(RNG.standard_normal(shape), jnp.float32) if shape else None
    wanted = formula(q, k, v, 0.3, bias, mask, softcap)
    # Float32 sums of 16 products and a softmax of 8: about ten roundings of 6e-8.
    np.testing.assert_allclose(
        attend(q, k, v, scale=0.3, bias=bias, mask=mask, softcap=softcap), wanted, atol=3e-6
    )


def test_a_query_that_sees_nothing_stays_finite() -> None:
    q, k, v = inputs(2, 2)
    mask = jnp.zeros((BATCH, QUERIES, KEYS), bool)
    value, grads = jax.value_and_grad(lambda q: attend(q, k, v, scale=1.0, mask=mask).sum())(q)
    assert np.isfinite(value) and np.isfinite(grads).all()


# --- Who computes it.


def choice(dtype: Any = jnp.bfloat16, queries: int = 128, dim: int = 64, **other: Any) -> str:
    q, k = (jax.ShapeDtypeStruct((2, n, 4, dim), dtype) for n in (queries, 128))
    return chosen(q, k, **{"masked": True, "biased": False, "softcap": None} | other)


def test_a_gpu_takes_flash_attention_where_dtype_and_shape_allow(
    hopper: None, capsys: pytest.CaptureFixture[str]
) -> None:
    attention.say_once.cache_clear()
    assert [
        choice(),
        choice(jnp.float16),
        choice(biased=True, masked=False),
        choice(masked=False),
    ] == ["cudnn"] * 4
    assert capsys.readouterr().err == ""
    assert [
        choice(jnp.float32),
        choice(dim=60),
        choice(queries=127),
        choice(softcap=50.0),
        choice(jnp.float32),
    ] == ["xla"] * 5
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and all(
        line.startswith("lora_jax: attention is computed by XLA, not by cuDNN: ") for line in said
    )
    for line, word in zip(said, ("dtype", "multiple of 8", "sequence length", "soft-capped")):
        assert word in line


def test_a_cpu_computes_it_itself_and_says_so_only_if_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attention.say_once.cache_clear()
    assert choice() == "xla" and capsys.readouterr().err == ""
    monkeypatch.setenv("LORA_JAX_ATTENTION", "cudnn")
    assert choice() == choice() == "xla"
    assert (
        capsys.readouterr().err
        == "lora_jax: attention is computed by XLA, not by cuDNN: the backend is 'cpu', not 'gpu'.\n"
    )
    monkeypatch.setenv("LORA_JAX_ATTENTION", "flash")
    with pytest.raises(ValueError, match="must be auto, xla or cudnn, got 'flash'"):
        choice()


@pytest.mark.parametrize(("heads", "kv", "biased"), [(4, 4, True), (4, 1, False)])
def test_it_is_lowered_for_cuda_with_its_gradient_without_a_gpu(
    hopper: None, heads: int, kv: int, biased: bool
) -> None:
    q, k, v = inputs(heads, kv, jnp.bfloat16)
    bias = jnp.zeros((BATCH, 1, 1, KEYS)) if biased else None
    mask = None if biased else jnp.ones((BATCH, QUERIES, KEYS), bool)
    grads = jax.jit(
        jax.grad(
            lambda q, k, v: (
                attend(q, k, v, scale=0.25, bias=bias, mask=mask).astype(jnp.float32).sum()
            ),
            (0, 1, 2),
        )
    )
    off = [export.DisabledSafetyCheck.custom_call(f"__cudnn$fmha{name}") for name in NAMES]
    text = export.export(grads, platforms=["cuda"], disabled_checks=off)(q, k, v).mlir_module()
    assert (
        text.count("__cudnn$fmha") == 2 and "Backward" in text
    )  # forward and backward, nothing else
    assert f"tensor<{BATCH}x{heads}x{QUERIES}x{KEYS}xf32>" not in text  # no scores


NAMES = ("Softmax", "ScaleBiasSoftmax", "SoftmaxBackward", "ScaleBiasSoftmaxBackward")


@pytest.mark.gpu
@pytest.mark.parametrize("biased", [False, True])
def test_flash_attention_on_a_gpu_is_the_formula(biased: bool) -> None:
    q, k, v = inputs(4, 2, jnp.bfloat16)
    bias = (
        jnp.where(jnp.arange(KEYS) < 5, 0.0, attention.HIDDEN)[None, None, None] if biased else None
    )
    mask = None if biased else jnp.tril(jnp.ones((BATCH, QUERIES, KEYS), bool))
    ours = jax.jit(lambda q, k, v: attend(q, k, v, scale=0.25, bias=bias, mask=mask))(q, k, v)
    assert chosen(q, k, masked=not biased, biased=biased, softcap=None) == "cudnn"
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), formula(q, k, v, 0.25, bias, mask, None), atol=3e-2
    )  # bfloat16
