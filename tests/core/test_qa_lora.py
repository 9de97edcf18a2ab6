"""QA-LoRA's merge is exact, and refused where it could not be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.core.codebooks import FORMATS
from lora_jax.core.init import initialize
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.qa_lora import fold_into_zeros
from lora_jax.core.quantize import QuantSpec, quantize

needs_zeros = pytest.mark.skipif(
    "int4_asym" not in FORMATS, reason="the asymmetric format is not there"
)


def update(group):
    """Trained QA-LoRA factors of two 16 x 6 matrices."""
    low = initialize(
        jax.random.key(1), (2,), 16, 6, LoraSpec(rank=2, variant="qa_lora", group_size=group)
    )
    return low.replace(b=jax.random.normal(jax.random.key(2), low.b.shape))


@needs_zeros
@pytest.mark.parametrize("group", [4, 8])
def test_the_update_moves_zeros_and_no_code(group):
    w = jax.random.normal(jax.random.key(0), (2, 16, 6))
    stored, low = quantize(w, QuantSpec("int4_asym", 4, False)), update(group)
    merged = fold_into_zeros(stored, low)
    np.testing.assert_array_equal(merged.codes, stored.codes)
    np.testing.assert_array_equal(merged.scale, stored.scale)
    assert float(jnp.abs(low.delta()).max()) > 0.1
    # One float32 sum more on either side.
    np.testing.assert_allclose(merged.matrix(), stored.matrix() + low.delta(), rtol=1e-5, atol=1e-5)


@needs_zeros
@pytest.mark.parametrize(
    ("spec", "group", "says"),
    [
        (("int4_asym", 8, False), 4, "no multiple of block_size 8"),
        (("int4_asym", 6, False), 8, "no multiple of block_size 6"),
        (("int4_asym", 4, True), 4, "double=False"),
    ],
)
def test_blocks_and_zeros_that_cannot_hold_the_update_are_refused(spec, group, says):
    with pytest.raises(ValueError, match=says):
        fold_into_zeros(quantize(jnp.ones((2, 16, 6)), QuantSpec(*spec)), update(group))


def test_a_format_without_zeros_is_refused():
    with pytest.raises(ValueError, match="'nf4' has none"):
        fold_into_zeros(quantize(jnp.ones((2, 16, 6)), QuantSpec("nf4", 4, False)), update(4))
