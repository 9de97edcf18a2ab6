"""GPTQ's and AWQ's tensors against their definitions, written here number by number."""

import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.io.gptq import from_awq, from_gptq

IN, OUT, GROUP = 32, 16, 8
DRAW = np.random.default_rng(0)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """int32 numbers of codes along the last axis, the first in the lowest bits."""
    each = 32 // bits
    out = np.zeros((*codes.shape[:-1], codes.shape[-1] // each), np.uint32)
    for place in range(each):
        out |= codes[..., place::each].astype(np.uint32) << np.uint32(bits * place)
    return out.view(np.int32)


def drawn(bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes, zeros, half scales, and the float64 weight."""
    codes = DRAW.integers(0, 2**bits, (IN, OUT))
    zeros = DRAW.integers(1, 2**bits, (IN // GROUP, OUT))
    scales = DRAW.uniform(0.01, 0.1, zeros.shape).astype(np.float16)
    spread = lambda x: np.repeat(x, GROUP, axis=0).astype(np.float64)
    return codes, zeros, scales, (codes - spread(zeros)) * spread(scales)


def gptq(bits: int) -> tuple[dict, np.ndarray]:
    codes, zeros, scales, dense = drawn(bits)
    tensors = dict(qweight=packed(codes.T, bits).T, qzeros=packed(zeros - 1, bits), scales=scales)
    return tensors | dict(g_idx=(np.arange(IN) // GROUP).astype(np.int32)), dense


def awq() -> tuple[dict, np.ndarray]:
    codes, zeros, scales, dense = drawn(4)
    turned = lambda x: x.reshape(len(x), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(len(x), -1)
    tensors = dict(qweight=packed(turned(codes), 4), qzeros=packed(turned(zeros), 4))
    return tensors | dict(scales=scales), dense


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_weights_are_codes_less_zeros_times_scales(bits):
    tensors, dense = gptq(bits)
    q = from_gptq(tensors, bits=bits, dtype=jnp.float32)
    assert q.spec.block_size == GROUP and q.shape == (IN, OUT)
    # One rounding of the product, one of the sum, to float32.
    np.testing.assert_allclose(q.matrix(), dense, rtol=0, atol=3e-7 * 2**bits * 0.1)
    np.testing.assert_array_equal(
        from_gptq({k: v for k, v in tensors.items() if k != "g_idx"}, bits=bits).codes, q.codes
    )


def test_gptq_of_version_2_has_its_zeros_as_stored():
    codes, zeros, scales, dense = drawn(4)
    tensors = dict(qweight=packed(codes.T, 4).T, qzeros=packed(zeros, 4), scales=scales)
    q = from_gptq(tensors, bits=4, zeros_as_stored=True, dtype=jnp.float32)
    np.testing.assert_allclose(q.matrix(), dense, rtol=0, atol=1e-6)


def test_awq_weights_have_their_outputs_in_order():
    tensors, dense = awq()
    np.testing.assert_allclose(
        from_awq(tensors, dtype=jnp.float32).matrix(), dense, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(g_idx=np.arange(IN, dtype=np.int32) % 4), "desc_act"),
        (dict(qzeros=None), "needed a tensor 'qzeros'"),
        (dict(scales=np.ones((3, OUT), np.float16)), "do not fit together"),
        (dict(scales=np.full((4, OUT), np.nan, np.float16)), "finite numbers"),
        (dict(qweight=np.zeros((4, OUT), np.int64)), "matrix of int32"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(change, says):
    tensors = gptq(4)[0] | change
    with pytest.raises(ValueError, match=says):
        from_gptq({name: value for name, value in tensors.items() if value is not None}, bits=4)
    with pytest.raises(ValueError, match="3 bits are not read"):
        from_gptq(gptq(4)[0], bits=3)
    with pytest.raises(ValueError, match="8 bits are not read"):
        from_awq(awq()[0], bits=8)
