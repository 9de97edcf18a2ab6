"""Scales that are chosen for the p-norm of the error or the entropy of the codes, against float64
NumPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.config import from_config_dict
from lora_jax.core import bit_packing
from lora_jax.core.calibrate import gptq
from lora_jax.core.codebooks import FORMATS
from lora_jax.core.quantize import QuantSpec, bytes_of, quantize
from lora_jax.core.quantize_columns import quantize_by_columns
from lora_jax.io.quantized import load_quantized, save_quantized

HEAVY = np.random.default_rng(0).standard_t(3, (2, 104, 8)).astype(np.float32)
ASYM = dict(format="int4_asym", block_size=32, double=False)


def by_block(values: np.ndarray, size: int = 32) -> list[np.ndarray]:
    """The blocks of a stack of matrices (stack, in, out), the last ones short."""
    return [values[:, first : first + size] for first in range(0, values.shape[1], size)]


def lost(w: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """The sum of |error| ** 0.7 of every block."""
    off = np.abs(w - np.float64(quantize(jnp.asarray(w), spec).matrix())) ** 0.7
    return np.stack([part.sum(1) for part in by_block(off)], 1)


@pytest.mark.parametrize(
    ("format", "fit"), [("int4_asym", "hqq"), ("nf4", "hqq"), ("nf4", "entropy")]
)
def test_gptq_of_inputs_that_do_not_mix_is_rounding_to_nearest_also_in_a_short_last_block(
    format, fit
):
    spec, w = QuantSpec(format, 32, double=False, fit=fit), jnp.asarray(HEAVY[0, :40])
    near = quantize(w, spec)
    np.testing.assert_allclose(
        gptq(w, jnp.eye(40), spec).matrix(), near.matrix(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("format", ["int4_asym", "nf4"])
def test_hqq_never_raises_the_p_norm_of_a_block_and_lowers_that_of_heavy_tails(format):
    plain = lost(HEAVY, QuantSpec(format, 32, double=False))
    hqq = lost(HEAVY, QuantSpec(format, 32, double=False, fit="hqq"))
    assert (hqq <= plain * (1 + 1e-4)).all()
    assert hqq.sum() < 0.985 * plain.sum()


def test_hqq_is_the_splitting_of_its_authors_in_steps_of_the_block():
    w = np.float64(HEAVY[:1, :32])
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    step, penalty, least = (high - low) / 15, 10.0, np.inf
    zero = low / step
    for _ in range(21):
        codes = np.clip(np.round(w / step - zero), 0, 15)
        off = w / step - codes - zero
        least = np.minimum(least, (np.abs(off) ** 0.7).sum(1))
        shrunk = np.sign(off) * np.maximum(
            np.abs(off) - np.maximum(np.abs(off), 1e-9) ** -0.3 / penalty, 0
        )
        zero, penalty = (w / step - shrunk - codes).mean(1, keepdims=True), penalty * 1.01
    ours = lost(HEAVY[:1, :32], QuantSpec(fit="hqq", **ASYM))[:, 0]
    # A weight that lies between two codes to float32's last bit may turn the path from there on.
    np.testing.assert_allclose(ours, least * step[:, 0] ** 0.7, rtol=0.01)


def test_a_weight_of_another_size_is_fitted_alike():
    one, other = (quantize(jnp.asarray(HEAVY * f), QuantSpec(fit="hqq", **ASYM)) for f in (1, 64))
    np.testing.assert_array_equal(one.codes, other.codes)


def entropy_of(codes: np.ndarray) -> np.ndarray:
    """Bits of the codes along the second axis."""
    shares = np.stack([(codes == code).mean(1) for code in range(16)])
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(0)


def test_offsets_give_codes_the_largest_entropy_of_all_that_are_tried():
    spec = QuantSpec("nf4", 32, double=False, fit="entropy")
    q, plain = (quantize(jnp.asarray(HEAVY), s) for s in (spec, QuantSpec("nf4", 32, False)))
    found, before = (
        np.stack([entropy_of(part) for part in by_block(np.asarray(codes))], 1)
        for codes in (bit_packing.unpack(x.codes, 4, 104) for x in (q, plain))
    )
    levels = np.float64(FORMATS["nf4"].table())
    best = np.zeros_like(found)
    for n, part in enumerate(by_block(np.float64(HEAVY))):
        middle, deviation = np.median(part, 1), part.std(1)
        for away in [None, *np.linspace(-0.1, 0.1, 41)]:
            zero = np.zeros_like(middle) if away is None else middle + away * deviation
            left = part - zero[:, None]
            left = left / np.abs(left).max(1, keepdims=True)
            codes = np.abs(left[..., None] - levels).argmin(-1)
            best[:, n] = np.maximum(best[:, n], entropy_of(codes))
    assert (found >= before - 1e-6).all() and found.mean() > before.mean() + 0.02
    # At a tie of two codes float32 may count one of 32 weights to the other.
    np.testing.assert_allclose(found, best, atol=0.08)
    np.testing.assert_allclose(found.mean(), best.mean(), atol=0.002)


def test_an_offset_takes_as_many_bytes_as_a_scale_and_is_read_back(tmp_path):
    w = jnp.asarray(np.random.default_rng(1).standard_normal((128, 16)).astype(np.float32))
    q, before = quantize(w, QuantSpec(fit="entropy")), quantize(w, QuantSpec())
    assert bytes_of(q) == bytes_of(before) + bytes_of(before) - bytes_of(before.codes)
    # Between two levels of nf4, with what 8 bits move scales and offsets by.
    assert float(jnp.abs(q.matrix() - w).max()) < 0.16 * float(jnp.abs(w).max())
    save_quantized(tmp_path, {"kernel": q})
    again = load_quantized(tmp_path)[0]["kernel"]
    assert again.spec == q.spec
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(again), jax.tree.leaves(q))


@pytest.mark.long
def test_fits_are_those_of_any_other_way_to_quantise():
    """Column by column, and by GPTQ of independent inputs, which is rounding to nearest."""
    w, spec = HEAVY[0, :64], QuantSpec(fit="hqq", **ASYM)
    q = quantize(jnp.asarray(w), spec).matrix()
    parts = quantize_by_columns(w, spec, at_once=4 * w.shape[0])
    np.testing.assert_allclose(parts.matrix(), q, atol=1e-6)
    one = gptq(jnp.asarray(w), jnp.eye(64), spec)
    np.testing.assert_allclose(one.matrix(), q, atol=1e-5)


def test_specifications_of_before_are_written_as_they_were():
    """Fingerprints of quantised bases are made of this text."""
    assert repr(QuantSpec()) == (
        "QuantSpec(format='nf4', block_size=64, double=True, scale_dtype='float32', "
        "second_level='mean')"
    )
    assert repr(QuantSpec(fit="hqq")).endswith("second_level='mean', fit='hqq')")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(format="int4_asym", fit="entropy"), "has an offset of its own"),
        (dict(format="int8", fit="entropy"), "has 8 bits"),
        (dict(format="nf4", fit="entropy", formats="layers_0/.*: int8"), "has 8 bits"),
        (dict(format="fp4_e2m1", double=False, scale_dtype="e8m0", fit="hqq"), "powers of two"),
    ],
)
def test_fits_that_have_no_meaning_are_refused_in_specifications_and_configs(settings, words):
    with pytest.raises(ValueError, match=f"config.quant.fit: .*{words}"):
        from_config_dict({"method": "qlora", "quant": settings})
    if "formats" not in settings:
        with pytest.raises(ValueError, match=words):
            QuantSpec(**settings)
