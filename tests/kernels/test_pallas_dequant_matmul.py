"""The fused kernels: equal to dequantising and multiplying, by interpretation on a CPU; lowered for
CUDA; run on a GPU where there is one.
"""

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from lora_jax import QuantSpec, fingerprint, quantize
from lora_jax.core import QuantizedArray
from lora_jax.core.notice import say_once
from lora_jax.core.platform import traced_for
from lora_jax.io import save_quantized
from lora_jax.kernels.choice import MOST_TOKENS, kernel_for
from lora_jax.kernels.matmul import frozen_matmul
from lora_jax.kernels.pallas_dequant_matmul import (
    dequant_matmul,
    dequant_matmul_transposed,
    why_not,
)

RNG = np.random.default_rng(0)
# Sums of at most 101 products in another order: float32, and bfloat16 once at the end, where a
# rounding is 2**-9 of the number.
TOLERANCE = {"float32": 1e-5, "bfloat16": 8e-3}
SPECS = {
    "nf4": QuantSpec("nf4", 16),
    "nf4-plain": QuantSpec("nf4", 64, double=False),
    "fp4": QuantSpec("fp4", 32, double=False),
    "int4": QuantSpec("int4", 16),
    "int8": QuantSpec("int8", 16),
    "int8-column": QuantSpec("int8", None, double=False),
    "mxfp4": QuantSpec("fp4_e2m1", 32, double=False, scale_dtype="e8m0"),
    "fp8": QuantSpec("fp8_e4m3", 64, double=False),
}
# Tiles are 32 tokens, 32 or 64 rows, 64 columns: sizes below, at and beyond them, with odd rows,
# whose last byte is half empty.
SHAPES = [(37, 101, 70), (32, 64, 64), (3, 33, 129), (1, 2, 1)]


def case(
    spec: QuantSpec, shape: tuple[int, int, int], dtype: Any
) -> tuple[QuantizedArray, jax.Array, jax.Array]:
    tokens, rows, columns = shape
    w = jnp.asarray(RNG.standard_normal((rows, columns)), jnp.float32)
    x, g = (jnp.asarray(RNG.standard_normal((tokens, n)), dtype) for n in (rows, columns))
    return quantize(w, spec), x, g


def check(ours: jax.Array, wanted: np.ndarray, dtype: str) -> None:
    assert ours.dtype == dtype and ours.shape == wanted.shape
    assert (
        np.abs(np.asarray(ours, np.float64) - wanted).max()
        <= TOLERANCE[dtype] * np.abs(wanted).max()
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_both_products_equal_dequantising_and_multiplying(
    name: str, shape: tuple[int, int, int], dtype: str
) -> None:
    if dtype == "bfloat16" and shape != SHAPES[0]:
        shape = SHAPES[2]
    weight, x, g = case(SPECS[name], shape, dtype)
    dense = np.asarray(weight.matrix(dtype), np.float64)
    check(
        jax.jit(lambda x, w: dequant_matmul(x, w, interpret=True))(x, weight),
        np.asarray(x, np.float64) @ dense,
        dtype,
    )
    check(
        jax.jit(lambda g, w: dequant_matmul_transposed(g, w, interpret=True))(g, weight),
        np.asarray(g, np.float64) @ dense.T,
        dtype,
    )


def test_nothing_outside_the_arrays_is_read_into_a_result() -> None:
    """Rows and columns of NaN beyond the edges of a tile would show in a sum that reads them."""
    weight, x, g = case(SPECS["nf4-plain"], (5, 65, 65), jnp.float32)
    wide = weight.replace(scale=jnp.pad(weight.scale, [(0, 1), (0, 0)], constant_values=np.nan))
    assert (
        np.isfinite(dequant_matmul(x, weight, interpret=True)).all()
        and np.isfinite(wide.scale[:2]).all()
    )
    assert np.isfinite(dequant_matmul_transposed(g, weight, interpret=True)).all()


# The text of such a kernel is no promise of compatibility between versions, which nobody needs
# here.
ANY = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["nf4", "fp4", "int4", "int8"])
def test_the_kernels_are_lowered_for_cuda_without_a_gpu(name: str, dtype: str) -> None:
    weight, x, g = case(SPECS[name], SHAPES[0], dtype)
    for product, left in ((dequant_matmul, x), (dequant_matmul_transposed, g)):
        text = export.export(jax.jit(product), platforms=["cuda"], disabled_checks=ANY)(
            left, weight
        ).mlir_module()
        assert text.count("xla.gpu.triton") == 1
        # No dense weight beside the kernel.
        assert not re.search(r"tensor<10[12]x70xb?f", text)


def asking(kernel: str, dtype: Any = jnp.float32) -> QuantizedArray:
    weight, *_ = case(SPECS["nf4"], (8, 64, 64), dtype)
    return weight.replace(spec=replace(weight.spec, kernel=kernel))


@pytest.mark.parametrize(
    ("tokens", "dtype", "wanted"), [(8, "bfloat16", 1), (4096, "bfloat16", 0), (8, "float32", 0)]
)
def test_the_frozen_product_of_a_gpu_program_follows_the_table(
    tokens: int, dtype: str, wanted: int
) -> None:
    weight, x, _ = case(SPECS["nf4"], (tokens, 64, 64), dtype)
    step = jax.jit(jax.grad(lambda x, w: frozen_matmul(x, w).astype(jnp.float32).sum()))
    with traced_for("gpu"):
        text = export.export(step, platforms=["cuda"], disabled_checks=ANY)(x, weight).mlir_module()
    # The gradient of a sum needs the backward product alone.
    assert text.count("xla.gpu.triton") == wanted
    assert (tokens <= MOST_TOKENS.get((4, dtype), 0)) == bool(wanted)


def test_a_weight_can_ask_for_a_kernel_and_it_is_said_once_why_it_is_not_followed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say_once.cache_clear()
    weight = asking("pallas")
    assert kernel_for(weight, 8, jnp.float32) == kernel_for(weight, 8, jnp.float32) == "reference"
    printed = capsys.readouterr().err
    assert printed.count("lora_jax: ") == 1 and "the backend is 'cpu', not 'gpu'" in printed
    with traced_for("gpu"):
        assert kernel_for(weight, 4096, jnp.float32) == "pallas"
        assert kernel_for(asking("auto"), 8, jnp.bfloat16) == "pallas"
        assert kernel_for(asking("reference"), 8, jnp.bfloat16) == "reference"
    with traced_for("gpu", compute_capability="7.5"):
        assert kernel_for(weight, 4096, jnp.float32) == "reference"
    assert "8.0 or more, and this one has 7.5" in capsys.readouterr().err
    with pytest.raises(ValueError, match="Needed a platform of cpu, gpu, tpu, got 'cuda'"):
        traced_for("cuda").__enter__()
    with pytest.raises(ValueError, match="kernel must be one of auto, reference, pallas.*'triton'"):
        QuantSpec(kernel="triton")


def test_weights_that_ask_for_other_kernels_share_no_program_and_are_stored_alike(tmp_path) -> None:
    traces = []
    step = jax.jit(lambda x, w: traces.append(w.spec.kernel) or frozen_matmul(x, w))
    one = asking("auto")
    other = one.replace(spec=replace(one.spec, kernel="reference"))
    for weight in (one, other, one):
        step(jnp.ones((2, 64)), weight)
    assert traces == ["auto", "reference"]
    assert fingerprint({"kernel": one}) == fingerprint({"kernel": other})
    files = [save_quantized(tmp_path / w.spec.kernel, {"kernel": w}) for w in (one, other)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_on_a_cpu_it_is_never_chosen_and_nothing_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    weight, *_ = case(SPECS["nf4"], (8, 64, 64), jnp.bfloat16)
    assert kernel_for(weight, 8, jnp.bfloat16) == "reference" and capsys.readouterr().err == ""


def test_weights_that_the_kernels_cannot_read_are_named() -> None:
    w = jnp.ones((64, 64))
    assert "5 bits" in why_not(quantize(w, QuantSpec("nf5", 16)))
    assert "offset" in why_not(quantize(w, QuantSpec("int4_asym", 16)))
    assert "each input" in why_not(quantize(w, QuantSpec("nf4", 16)).replace(in_scale=jnp.ones(64)))
    assert "stack" in why_not(quantize(jnp.ones((3, 64, 64)), QuantSpec("nf4", 16)))
    assert why_not(quantize(w, QuantSpec("nf4", 16))) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [*SHAPES, (512, 640, 2048)], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_compiled_kernels_equal_dequantising_and_multiplying(
    name: str, shape: tuple[int, int, int], dtype: str
) -> None:
    weight, x, g = case(SPECS[name], shape, dtype)
    dense = np.asarray(weight.matrix(dtype), np.float64)
    check(jax.jit(dequant_matmul)(x, weight), np.asarray(x, np.float64) @ dense, dtype)
    check(jax.jit(dequant_matmul_transposed)(g, weight), np.asarray(g, np.float64) @ dense.T, dtype)
