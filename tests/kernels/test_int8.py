"""LLM.int8(): outlier features keep their precision, everything else is a product of integers."""

import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.core.quantize import QuantSpec, quantize
from lora_jax.kernels.int8 import int8_matmul

SPEC = QuantSpec("int8", None, double=False)


def case(outlier: float) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(0)
    x, w = (
        dice.standard_normal((16, 64)).astype(np.float32),
        dice.standard_normal((64, 24)).astype(np.float32) * 0.1,
    )
    x[:, 5] *= outlier
    x[0, 7] = 6.0  # the paper's outliers begin here
    return x, w


def reference(x, w, threshold) -> np.ndarray:
    """The method as the paper has it, in float64 where it is exact."""
    half = x.astype(np.float16).astype(np.float64)
    large = (np.abs(half) >= threshold).any(0) if threshold else np.zeros(x.shape[1], bool)
    calm = np.where((np.abs(half) >= threshold) & (threshold > 0), 0, half)
    row, column = np.abs(calm).max(1, keepdims=True), np.abs(w).max(0, keepdims=True)
    a, b = np.rint(calm * 127 / row), np.rint(w * 127 / column)
    a[:, large] = 0
    return a @ b * row * column / 127**2 + half[:, large] @ (b * column / 127)[large]


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("outlier", [1.0, 60.0])
def test_it_is_the_method_of_the_paper(outlier, threshold):
    x, w = case(outlier)
    y = int8_matmul(jnp.asarray(x), quantize(jnp.asarray(w), SPEC), threshold=threshold)
    # The weights of outlier features are rounded to float16: 2**-11 of each product.
    np.testing.assert_allclose(
        y, reference(x, w, threshold), atol=2e-3 * np.abs(x).max() * 0.1, rtol=1e-4
    )


def test_outliers_cost_precision_only_without_the_threshold():
    x, w = case(60.0)
    q = quantize(jnp.asarray(w), SPEC)
    exact = x @ np.asarray(q.matrix())  # what rounding the weights loses is the same with both
    rest = np.linalg.norm(np.delete(x, 5, 1) @ np.delete(w, 5, 0))
    errors = [
        np.linalg.norm(int8_matmul(jnp.asarray(x), q, threshold=t) - exact) / rest
        for t in (0.0, 6.0)
    ]
    assert errors[0] > 0.1 and errors[1] < 0.02


def test_rows_of_zeros_and_other_weights():
    x, w = case(1.0)
    x[3] = 0
    assert not np.asarray(int8_matmul(jnp.asarray(x), quantize(jnp.asarray(w), SPEC)))[3].any()
    with pytest.raises(ValueError, match="QuantSpec\\('int8', None, double=False\\)"):
        int8_matmul(jnp.asarray(x), quantize(jnp.asarray(w), QuantSpec()))
