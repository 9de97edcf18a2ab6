"""MXFP4 and NVFP4, byte by byte, against their public definitions in float64."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lora_jax.core.quantize import QuantSpec, bytes_of, quantize
from lora_jax.io import fp4, safetensors

OUT, IN = 24, 64
WEIGHT = np.random.default_rng(0).normal(size=(OUT, IN)).astype(np.float32)
WEIGHT *= np.float32(2.0) ** np.random.default_rng(1).integers(-6, 6, (OUT, 1))
WEIGHT[3, :32] = 0


def halves(codes: np.ndarray) -> np.ndarray:
    """Two codes to a byte, the first in the low half."""
    return codes[..., ::2] | codes[..., 1::2] << 4


def e2m1(x: np.ndarray) -> np.ndarray:
    """Codes by ml_dtypes of float64 numbers, the largest beyond the format's."""
    return np.clip(x, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15


def test_mxfp4_has_the_bytes_of_the_open_compute_definition_and_comes_back():
    blocks = WEIGHT.astype(np.float64).reshape(OUT, -1, 32)
    top = np.abs(blocks).max(-1)
    exponent = np.where(top > 0, np.floor(np.log2(np.where(top > 0, top, 1))) - 2, -127)
    wanted = halves(e2m1(blocks / np.exp2(exponent)[..., None]))

    q = quantize(jnp.asarray(WEIGHT.T), fp4.MXFP4)
    made = fp4.to_mxfp4(q)
    np.testing.assert_array_equal(made["scales"], (exponent + 127).astype(np.uint8))
    np.testing.assert_array_equal(made["blocks"][top > 0], wanted[top > 0])
    assert not (made["blocks"][top == 0] & 0x77).any()
    again = fp4.from_mxfp4(made, dtype=jnp.float32)
    np.testing.assert_array_equal(again.matrix(), q.matrix())
    np.testing.assert_array_equal(again.codes, q.codes)
    scales = made["scales"].view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    levels = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    low, high = made["blocks"] & 15, made["blocks"] >> 4
    dense = levels[np.stack([low, high], -1)].reshape(OUT, -1, 32) * scales[..., None]
    np.testing.assert_array_equal(q.matrix().T, dense.reshape(OUT, IN))

    stack = quantize(jnp.asarray(np.stack([WEIGHT.T, -WEIGHT.T])), fp4.MXFP4)
    assert fp4.to_mxfp4(stack)["blocks"].shape == (2, OUT, 2, 16)
    np.testing.assert_array_equal(
        fp4.from_mxfp4(fp4.to_mxfp4(stack), dtype=jnp.float32).matrix(), stack.matrix()
    )


def test_nvfp4_has_the_bytes_of_its_definition_and_comes_back(tmp_path):
    blocks = WEIGHT.astype(np.float64).reshape(OUT, -1, 16)
    # The scale of a matrix is a float32 number: what is computed with it is of that number.
    tensor = np.float64(np.abs(WEIGHT).max() / np.float32(6 * 448))
    scale = (np.abs(blocks).max(-1) / 6 / tensor).astype(ml_dtypes.float8_e4m3fn)
    real = scale.astype(np.float64) * tensor
    safe = np.where(real > 0, real, 1)
    wanted = halves(np.where(real[..., None] > 0, e2m1(blocks / safe[..., None]), 0))

    q = quantize(jnp.asarray(WEIGHT.T), fp4.NVFP4)
    made = fp4.to_nvfp4(q)
    np.testing.assert_array_equal(made["weight_scale"].view(np.uint8), scale.view(np.uint8))
    np.testing.assert_array_equal(made["weight_packed"] & 0x77, wanted.reshape(OUT, -1) & 0x77)
    signs = np.stack([made["weight_packed"] & 8, made["weight_packed"] >> 4 & 8], -1) > 0
    moved = np.asarray(q.matrix().T) != 0
    np.testing.assert_array_equal(signs.reshape(OUT, IN)[moved], (WEIGHT < 0)[moved])
    np.testing.assert_allclose(made["weight_global_scale"], 1 / tensor, rtol=1e-6)

    safetensors.write(tmp_path / "w.safetensors", made, {})
    again = fp4.from_nvfp4(safetensors.read(tmp_path / "w.safetensors"), dtype=jnp.float32)
    np.testing.assert_array_equal(again.codes, q.codes)
    np.testing.assert_array_equal(again.scale.codes, q.scale.codes)
    # One over one over a number: the last bit.
    np.testing.assert_allclose(again.matrix(), q.matrix(), rtol=3e-7)
    levels = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    both = np.stack([made["weight_packed"] & 15, made["weight_packed"] >> 4], -1)
    dense = levels[both].reshape(OUT, -1, 16) * real[..., None]
    np.testing.assert_allclose(q.matrix().T, dense.reshape(OUT, IN), rtol=2e-7)
    # 4 bits, 8 for 16 weights, and two numbers a matrix (one of them an offset of 0).
    assert bytes_of(q) == OUT * IN // 2 + OUT * IN // 16 + 8


def test_tensor_scales_save_restore_and_refuse():
    with pytest.raises(ValueError, match="symmetric format"):
        QuantSpec("int4_asym", 16, second_level="tensor")
    q = quantize(jnp.zeros((32, 8)), fp4.NVFP4)
    assert not np.asarray(q.matrix()).any()
    stack = quantize(jnp.asarray(np.stack([WEIGHT.T, WEIGHT.T * 100])), fp4.NVFP4)
    np.testing.assert_allclose(stack.matrix()[1], stack.matrix()[0] * 100, rtol=1e-5)
    error = np.abs(stack.matrix()[0] - WEIGHT.T).mean() / np.abs(WEIGHT).mean()
    assert error < 0.1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(weight_scale=None), "needed a tensor 'weight_scale'"),
        (dict(weight_scale=np.zeros((OUT, 4), np.float32)), "float8_e4m3fn"),
        (dict(weight_packed=np.zeros((OUT, IN), np.uint8)), "needs weight_packed"),
        (dict(weight_packed=np.zeros((OUT, IN // 2), np.int8)), "must hold bytes"),
        (dict(weight_global_scale=np.zeros(1, np.float32)), "above 0"),
    ],
)
def test_damaged_tensors_are_refused(change, says):
    made = fp4.to_nvfp4(quantize(jnp.asarray(WEIGHT.T), fp4.NVFP4)) | change
    with pytest.raises(ValueError, match=says):
        fp4.from_nvfp4({name: value for name, value in made.items() if value is not None})


def test_other_formats_and_damaged_blocks_are_refused():
    nf4 = quantize(jnp.asarray(WEIGHT.T), QuantSpec("nf4", 32, double=False))
    for write, name in ((fp4.to_mxfp4, "MXFP4"), (fp4.to_nvfp4, "NVFP4")):
        with pytest.raises(ValueError, match=f"{name} is .* Quantise it so"):
            write(nf4)
    with pytest.raises(ValueError, match="weight by weight"):
        fp4.to_nvfp4(quantize(jnp.asarray(np.stack([WEIGHT.T] * 2)), fp4.NVFP4))
    made = fp4.to_mxfp4(quantize(jnp.asarray(WEIGHT.T), fp4.MXFP4))
    with pytest.raises(ValueError, match="no number"):
        fp4.from_mxfp4(made | {"scales": np.full_like(made["scales"], 255)})
    with pytest.raises(ValueError, match="MXFP4 needs blocks"):
        fp4.from_mxfp4(made | {"scales": made["scales"][1:]})
