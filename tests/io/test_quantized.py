"""Quantised checkpoints come back exactly, without dense weights, and damage to them is noticed."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lora_jax.core import codebooks
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray, QuantSpec, quantize
from lora_jax.io import quantized, safetensors
from lora_jax.io.bitsandbytes import quantize_4bit
from lora_jax.io.quantized import FILE, load_quantized, save_quantized

SPECS = {
    "nf4": QuantSpec(),
    "log": QuantSpec("nf3", second_level="log"),
    "nvfp4": QuantSpec("fp4_e2m1", 16, second_level="tensor"),
    "asym": QuantSpec("int4_asym"),
    "plain": QuantSpec("int8", None, False),
    "half": QuantSpec("fp8_e4m3", 32, False, "bfloat16"),
    "mx": QuantSpec("fp4_e2m1", 32, False, "e8m0"),
}


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.fixture(scope="module")
def tree() -> dict:
    boxes = {name: {"kernel": quantize(normal((2, 64, 8)), spec)} for name, spec in SPECS.items()}
    scaled = boxes["nf4"]["kernel"].replace(in_scale=jnp.ones((2, 64)))
    flat = {
        "kernel": quantize_4bit(normal((100, 8))),
        "bias": jnp.ones(8, jnp.bfloat16),
        "step": np.int32(3),
    }
    return boxes | {"flat": flat, "scaled": {"kernel": scaled}}


def test_every_kind_of_weight_comes_back_equal(tree, tmp_path):
    save_quantized(tmp_path, tree, {"model": "made up", "losses": [1.5]})
    back, metadata = load_quantized(tmp_path)
    assert metadata == {"model": "made up", "losses": [1.5]}
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for path, leaf in flatten(tree).items():
        mine = flatten(back)[path]
        assert type(mine) is type(leaf) or not isinstance(leaf, QuantizedArray)
        for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(leaf), strict=True):
            assert x.dtype == np.asarray(y).dtype and np.array_equal(x, y)


@pytest.mark.parametrize("cut", [True, False])
def test_each_part_goes_to_its_devices(tree, cut, tmp_path):
    save_quantized(tmp_path, tree)
    mesh = jax.make_mesh((2,), ("x",))
    spec = lambda x: ["x"] if cut and x.ndim and x.shape[0] % 2 == 0 else []
    place = lambda path, like: jax.tree.map(
        lambda x: NamedSharding(mesh, PartitionSpec(*spec(x))), like
    )
    back, _ = load_quantized(tmp_path, place=place)
    for path, leaf in flatten(tree).items():
        for x, y in zip(jax.tree.leaves(flatten(back)[path]), jax.tree.leaves(leaf), strict=True):
            assert np.array_equal(x, y) and x.sharding == jax.tree.leaves(place(path, x))[0]


def test_file_is_as_small_as_the_codes_and_scales(tmp_path):
    q = quantize(normal((512, 512)), QuantSpec())
    path = save_quantized(tmp_path, {"kernel": q})
    assert path.stat().st_size < q.size * 4.13 / 8 + 4096


def test_loading_never_dequantises(tree, tmp_path, monkeypatch):
    """Nothing reads a box while loading, and no array of a weight's own size in floats is made."""
    save_quantized(tmp_path, tree)
    made = []

    def watched(shape, *args, **kwargs):
        made.append(shape)
        return real(shape, *args, **kwargs)

    def refused(self, *args, **kwargs):
        raise AssertionError("a weight was dequantised")

    real = quantized.Filling
    monkeypatch.setattr(quantized, "Filling", watched)
    monkeypatch.setattr(QuantizedArray, "matrix", refused)
    back, _ = load_quantized(tmp_path)
    stored = [leaf.shape for leaf in jax.tree.leaves(back)]
    assert sorted(made) == sorted(stored)
    floats = [leaf.size for leaf in jax.tree.leaves(back["nf4"]) if leaf.dtype == jnp.float32]
    assert max(floats) < back["nf4"]["kernel"].size / 64


def test_formats_of_ones_own_travel_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(codebooks, "FORMATS", dict(codebooks.FORMATS))
    codebooks.register_format(codebooks.Format("thirds", 2, (-1.0, -1 / 3, 1 / 3, 1.0)))
    q = quantize(normal((64, 8)), QuantSpec("thirds", double=False))
    save_quantized(tmp_path, {"kernel": q})
    del codebooks.FORMATS["thirds"]
    back, _ = load_quantized(tmp_path)
    np.testing.assert_array_equal(back["kernel"].matrix(), q.matrix())
    codebooks.FORMATS["thirds"] = codebooks.Format("thirds", 2, (-1.0, -0.5, 0.5, 1.0))
    with pytest.raises(ValueError, match="another codebook named 'thirds'"):
        load_quantized(tmp_path)


def test_corruptions_give_an_error_or_the_right_weights(tmp_path, pytestconfig):
    """Bytes overwritten, cut off, added, swapped or zeroed anywhere in the file."""
    tree = {
        "kernel": quantize(normal((64, 2)), QuantSpec()),
        "bias": np.arange(3, dtype=np.float32),
    }
    path = save_quantized(tmp_path, tree, {"model": "m"})
    whole, expected = path.read_bytes(), [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    dice = random.Random(0)
    kinds = {"error": 0, "right": 0}
    cases = pytestconfig.getoption("--fuzz") or 2_000
    for index in range(cases):
        path.write_bytes(_corrupt(whole, dice, index % 6))
        try:
            back, _ = load_quantized(tmp_path)
        except ValueError as error:
            assert FILE in str(error), error
            kinds["error"] += 1
            continue
        leaves = jax.tree.leaves(back)
        assert len(leaves) == len(expected) and all(map(np.array_equal, leaves, expected))
        kinds["right"] += 1
    assert kinds["error"] > 0.9 * cases


def _corrupt(data: bytes, dice: random.Random, kind: int) -> bytes:
    place, out = dice.randrange(len(data)), bytearray(data)
    if kind == 0:
        out[place] ^= 1 << dice.randrange(8)
    elif kind == 1:
        out[place] = dice.randrange(256)
    elif kind == 2:
        return bytes(out[:place])
    elif kind == 3:
        out[place:place] = dice.randbytes(dice.randrange(1, 9))
    elif kind == 4:
        other = dice.randrange(len(data))
        out[place], out[other] = out[other], out[place]
    else:
        length = dice.randrange(1, 65)
        out[place : place + length] = bytes(len(out[place : place + length]))
    return bytes(out)


def rewritten(tmp_path, change) -> None:
    """A file with a right checksum over wrong contents, as older versions wrote it."""
    path = save_quantized(tmp_path, {"kernel": quantize(normal((64, 8)), QuantSpec())})
    tensors, text = safetensors.read(path), safetensors.read_metadata(path)
    del text["checksum"], text["text_checksum"]
    change(tensors, text)
    safetensors.write(path, tensors, text | {"checksum": safetensors.checksum(tensors, text)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda tensors, text: tensors.pop("kernel#codes"),
            "'kernel' does not fit together .*codes",
        ),
        (
            lambda tensors, text: tensors.update({"kernel#codes": tensors["kernel#codes"][:-1]}),
            r"codes must be \(\*stack, 32, 8\)",
        ),
        (
            lambda tensors, text: tensors.update({"kernel#extra": np.zeros(1)}),
            r"left over: \['extra'\]",
        ),
        (
            lambda tensors, text: tensors.update({"other#codes": np.zeros(1)}),
            "'other' are missing or left over",
        ),
        (
            lambda tensors, text: tensors.update(
                {"kernel#scale.absmax": tensors["kernel#scale.absmax"].astype(np.float16)}
            ),
            "scale.absmax must be .* of float32",
        ),
        (
            lambda tensors, text: text.update(
                boxes=text["boxes"].replace('"block_size": 64', '"block_size": 63')
            ),
            "block_size must be",
        ),
        (lambda tensors, text: text.update(format="other"), "not a quantised checkpoint"),
    ],
)
def test_contents_that_do_not_fit_together_are_refused(tmp_path, change, words):
    rewritten(tmp_path, change)
    with pytest.raises(ValueError, match=words):
        load_quantized(tmp_path)


def test_a_file_of_an_older_version_is_read(tmp_path):
    rewritten(tmp_path, lambda tensors, text: None)
    q = quantize(normal((64, 8)), QuantSpec())
    np.testing.assert_array_equal(load_quantized(tmp_path)[0]["kernel"].codes, q.codes)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=FILE):
        load_quantized(tmp_path)
