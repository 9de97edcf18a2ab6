"""Fingerprints: equal for equal content on host or device, different for any other path, dtype,
shape or bit.
"""

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lora_jax import QuantSpec, fingerprint, quantize

BASE = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.float32(1.0)}


def test_content_decides_and_the_order_and_place_of_arrays_do_not() -> None:
    name = fingerprint(BASE)
    assert len(name) == 16 and int(name, 16) >= 0
    assert (
        fingerprint({"b": jnp.float32(1.0), "a": {"kernel": jnp.asarray(BASE["a"]["kernel"])}})
        == name
    )
    strided = np.asfortranarray(BASE["a"]["kernel"])
    assert fingerprint({"a": {"kernel": strided}, "b": np.float32(1.0)}) == name


def test_any_other_content_has_another_name() -> None:
    kernel = BASE["a"]["kernel"]
    others = [
        BASE,
        {"a": {"kernel": kernel}, "b": np.float32(np.nextafter(np.float32(1), np.float32(2)))},
        {"a": {"kernel": kernel}, "b": np.ones(1, np.float32)},
        {"a": {"kernel": kernel.reshape(3, 2)}, "b": np.float32(1.0)},
        {"a": {"kernel": kernel.astype(np.int32)}, "b": np.float32(1.0)},
        {"a": {"kernel": kernel.astype(ml_dtypes.bfloat16)}, "b": np.float32(1.0)},
        {"a": {"bias": kernel}, "b": np.float32(1.0)},
        {"a": {"kernel": kernel}},
        {},
    ]
    assert len({fingerprint(tree) for tree in others}) == len(others)


def test_quantised_weights_are_told_apart_by_their_codes_and_their_format() -> None:
    w = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    specs = [
        QuantSpec("nf4", 4, False),
        QuantSpec("fp4", 4, False),
        QuantSpec("nf4", 4, True),
        QuantSpec("int8", 4, False),
    ]
    names = {fingerprint({"w": quantize(jnp.asarray(w), spec)}) for spec in specs}
    assert len(names) == 4 and fingerprint({"w": quantize(jnp.asarray(w), specs[0])}) in names
