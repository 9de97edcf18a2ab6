"""bitsandbytes' bytes, from files that bitsandbytes 0.50.2 wrote
(experiments/make_golden_bitsandbytes.py) and, if it is there, from itself.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lora_jax.core.bit_packing import unpack
from lora_jax.core.quantize import QuantSpec, quantize
from lora_jax.io import bitsandbytes as bnb
from lora_jax.io import safetensors

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "bitsandbytes.json").read_text())


def weight(shape, seed, dtype):
    """As experiments/make_golden_bitsandbytes.py makes it."""
    index = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(1000003 * seed)
    unit = ((index * np.uint64(2654435761)) % np.uint64(2**32)).astype(np.float64) / 2**31 - 1
    w = (unit**3 * 0.125).astype(np.float32).reshape(shape)
    w[:1] *= 1 - seed % 2
    return w.astype(jnp.dtype(dtype))


def digest(array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def mismatches(cases, backend: str) -> list:
    wrong = []
    for case in cases:
        w = weight(case["shape"], case["seed"], case["dtype"])
        assert digest(w.astype(np.float32)) == case["weights"]
        q = bnb.quantize_4bit(
            jnp.asarray(w.T), case["kind"], case["block"], case["double"], backend=backend
        )
        tensors = bnb.to_tensors("w", q)
        same = (
            digest(tensors["w"]) == case["codes"] and digest(tensors["w.absmax"]) == case["absmax"]
        )
        if case["double"]:
            same &= (
                digest(tensors["w.nested_absmax"]) == case["nested"]
                and float(q.scale.offset) == case["offset"]
            )
        wrong += [] if same else [case]
    return wrong


def test_every_byte_of_the_cpu_backend_in_264_cases():
    # As users compile: in the way of the tests a mean of 1e-38 is 0.
    given = "import test_bitsandbytes as t; assert (len(t.CASES), t.mismatches(t.CASES, 'cpu')) == "
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", given + "(264, [])"], check=True, env=environment)


def test_cuda_rules_give_the_same_bytes_where_the_backends_agree():
    # Neither blocks of zeros, nor a short last block, nor FP4, nor the scale codes that come from a
    # table of 65,536 steps.
    agree = [
        case for case in CASES
        if case["kind"] == "nf4" and case["seed"] != 1 and not case["double"] and np.prod(case["shape"]) % case["block"] == 0
    ]  # fmt: skip
    assert len(agree) >= 16
    assert mismatches(agree, "cuda") == []


def test_cuda_and_cpu_differ_only_as_named():
    zeros, ramp = np.zeros((64, 1), np.float32), np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    nf4 = {
        backend: np.asarray(
            bnb.quantize_4bit(jnp.asarray(zeros), double=False, backend=backend).codes
        )
        for backend in ("cuda", "cpu")
    }
    assert (nf4["cuda"] == 0).all() and (nf4["cpu"] == 0x77).all()
    fp4 = np.asarray([1.0, -0.0859375, 0.0859375, 1e-4, -1e-4, 0.0, 0.5, -0.5], np.float32)[:, None]
    codes = {
        backend: unpack(
            bnb.quantize_4bit(jnp.asarray(fp4), "fp4", double=False, backend=backend).codes, 4, 8
        )
        for backend in nf4
    }
    assert codes["cuda"].ravel().tolist() == [3, 9, 1, 0, 8, 0, 5, 13]
    assert codes["cpu"].ravel().tolist() == [3, 14, 1, 8, 0, 0, 5, 13]
    both = [bnb.quantize_4bit(jnp.asarray(ramp), double=False, backend=backend) for backend in nf4]
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), *both))


def test_own_layout_holds_the_same_weight_as_the_flat_one():
    w = jnp.asarray(weight((32, 128), 0, "float32").T)
    ours, flat = quantize(w, QuantSpec()), bnb.quantize_4bit(w)
    np.testing.assert_array_equal(ours.matrix(), flat.matrix())
    mine, theirs = bnb.to_tensors("w", ours), bnb.to_tensors("w", flat)
    assert list(mine) == list(theirs)
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("straddling", bnb.FlatQuantized),
        ("even", bnb.QuantizedArray),
        ("plain", bnb.QuantizedArray),
    ],
)
def test_state_dict_of_bitsandbytes_is_read_to_its_own_dequantised_weight(name, kind):
    tensors = safetensors.read(GOLDEN / "bitsandbytes.safetensors")
    q = bnb.from_tensors(f"{name}.weight", tensors)
    expected = tensors[f"{name}.dequantised"].T
    assert type(q) is kind and q.shape == expected.shape
    # One unit in the last place: FP4 on the CPU (see the module), and compilers that join a product
    # and a sum.
    np.testing.assert_allclose(q.matrix(), expected, rtol=1.2e-7)


def eight_bits(w):
    """As Linear8bitLt, which rounds weights to float16 first."""
    spec = QuantSpec("int8", None, double=False)
    return quantize(w.astype(jnp.float16), spec).replace(dtype=w.dtype)


def test_8_bit_weight_of_bitsandbytes_is_read_and_made():
    tensors = safetensors.read(GOLDEN / "bitsandbytes.safetensors")
    q = bnb.from_tensors("eight.weight", tensors)
    np.testing.assert_array_equal(q.matrix(), tensors["eight.dequantised"].T)
    made = bnb.to_tensors("eight.weight", eight_bits(jnp.asarray(weight((16, 64), 0, "float32").T)))
    for key in ("eight.weight", "eight.SCB", "eight.weight_format"):
        assert made[key].dtype == tensors[key].dtype and made[key].shape == tensors[key].shape
        np.testing.assert_array_equal(made[key], tensors[key])


def test_each_weight_goes_to_its_devices(tmp_path):
    """Of a folder's file as of one by itself."""
    tensors = safetensors.read(GOLDEN / "bitsandbytes.safetensors")
    safetensors.write(tmp_path / "model.safetensors", tensors)
    whole = bnb.read(GOLDEN / "bitsandbytes.safetensors")
    sharding = NamedSharding(jax.make_mesh((2,), ("x",)), PartitionSpec())
    placed = bnb.read(tmp_path, place=lambda name, like: jax.tree.map(lambda _: sharding, like))
    assert jax.tree.structure(placed) == jax.tree.structure(whole)
    for ours, theirs in zip(jax.tree.leaves(placed), jax.tree.leaves(whole), strict=True):
        assert ours.sharding == sharding
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_written_is_byte_for_byte_what_was_read(tmp_path):
    tensors = {
        key: value
        for key, value in safetensors.read(GOLDEN / "bitsandbytes.safetensors").items()
        if not key.endswith("dequantised")
    }
    safetensors.write(tmp_path / "theirs.safetensors", tensors)
    weights = bnb.read(tmp_path / "theirs.safetensors")
    assert sorted(weights) == [
        "eight.weight",
        *(
            f"{name}.{part}"
            for name in ("even", "plain", "straddling")
            for part in ("bias", "weight")
        ),
    ]
    bnb.write(tmp_path / "ours.safetensors", weights)
    ours = safetensors.read(tmp_path / "ours.safetensors")
    assert set(ours) == set(tensors)
    for key, value in tensors.items():
        assert ours[key].dtype == value.dtype and ours[key].tobytes() == value.tobytes(), key


def even() -> dict:
    return {
        key: value
        for key, value in safetensors.read(GOLDEN / "bitsandbytes.safetensors").items()
        if key.startswith("even.")
    }


def with_state(**changes) -> dict:
    tensors = even()
    key = "even.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(tensors[key])) | changes
    return tensors | {key: np.frombuffer(json.dumps(state).encode(), np.uint8)}


def without(*names) -> dict:
    return {
        key: value for key, value in even().items() if key.removeprefix("even.weight.") not in names
    }


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (without("absmax"), r"even.weight: missing tensors \['absmax'\]"),
        (without("nested_absmax", "nested_quant_map"), r"missing tensors \['nested_absmax', 'nested_quant_map'\]"),
        (even() | {"even.weight.extra": np.zeros(1, np.float32)}, r"left over \['extra'\]"),
        (without("quant_state.bitsandbytes__nf4"), "needed one of quant_state.bitsandbytes__nf4"),
        (even() | {"even.weight.nested_absmax": even()["even.weight.nested_absmax"].astype(np.float16)}, "nested_absmax must be .* float32"),
        (even() | {"even.weight.absmax": even()["even.weight.absmax"].astype(np.float32)}, "absmax must be 64 numbers of uint8"),
        (even() | {"even.weight": even()["even.weight"][:-1]}, "weight must be 2048 numbers of uint8, got 2047"),
        (even() | {"even.weight.nested_absmax": np.full(1, np.nan, np.float32)}, "holds a NaN"),
        (even() | {"even.weight.quant_map": np.zeros(16, np.float32)}, "quant_map is not the table of 'nf4'"),
        (even() | {"even.weight.nested_quant_map": np.zeros(256, np.float32)}, "not the signed dynamic map"),
        (with_state(blocksize=48), "in blocks of 32, 64"),
        (with_state(shape=[32]), "needs a JSON object"),
        (with_state(shape=[32, 1280]), "absmax must be 640"),
        (with_state(dtype="int8"), "needs a JSON object"),
        (with_state(nested_blocksize=128), "nested block size"),
        (with_state(nested_offset="0.1"), "nested block size, dtype and offset"),
        (even() | {"even.weight.quant_state.bitsandbytes__nf4": np.frombuffer(b"{", np.uint8)}, "needs a JSON object"),
    ],
)  # fmt: skip
def test_wrong_state_dicts_are_refused_with_the_name(tensors, words):
    with pytest.raises(ValueError, match=words) as caught:
        bnb.from_tensors("even.weight", tensors)
    assert "even.weight" in str(caught.value)


def test_pieces_without_their_weight_and_unknown_names_are_refused(tmp_path):
    safetensors.write(
        tmp_path / "x.safetensors",
        {key: value for key, value in even().items() if key != "even.weight"},
    )
    with pytest.raises(ValueError, match="not in the file"):
        bnb.read(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="Quantised weights: even.weight"):
        bnb.from_tensors("odd.weight", even())


@pytest.mark.parametrize(
    ("spec", "rows", "words"),
    [
        (QuantSpec("nf4"), 100, "run on into the next row"),
        (QuantSpec("int4"), 128, "bitsandbytes has the formats nf4, fp4"),
        (QuantSpec("nf4", 16), 128, "blocks of 32, 64"),
        (QuantSpec("nf4", second_level="log"), 128, "second level 'mean'"),
        (QuantSpec("nf4", double=False, scale_dtype="bfloat16"), 128, "float32 scales"),
    ],
)
def test_what_bitsandbytes_cannot_hold_is_not_written(spec, rows, words):
    with pytest.raises(ValueError, match=words):
        bnb.to_tensors("w", quantize(jnp.asarray(weight((8, rows), 0, "float32").T), spec))


def test_stacks_are_written_layer_by_layer():
    q = quantize(jnp.ones((2, 64, 8)), QuantSpec())
    with pytest.raises(ValueError, match="one by one"):
        bnb.to_tensors("w", q)
    assert bnb.to_tensors("w", jax.tree.map(lambda part: part[1], q))["w"].shape == (256, 1)


_PEER = """
import sys, torch, bitsandbytes as bnb
from safetensors.torch import load_file
for name, (rows, out), kind in (("even", (128, 32), "nf4"), ("straddling", (100, 16), "nf4"), ("plain", (64, 8), "fp4")):
    state = {key.removeprefix(name + "."): value for key, value in load_file(sys.argv[1]).items() if key.startswith(name + ".")}
    expected, bias = state.pop("expected"), state.pop("bias")
    stats = {key.removeprefix("weight."): value for key, value in state.items() if key != "weight"}
    loaded = bnb.nn.Params4bit.from_prequantized(data=state["weight"], quantized_stats=stats, device="cpu")
    got = bnb.functional.dequantize_4bit(loaded.data, loaded.quant_state)
    assert torch.allclose(got, expected, rtol=2e-7, atol=0), (name, (got - expected).abs().max())
    x = torch.randn(3, rows)
    assert torch.allclose(bnb.matmul_4bit(x, loaded.data.t(), quant_state=loaded.quant_state), x @ expected.T, rtol=1e-4, atol=1e-4)
state = load_file(sys.argv[1])
layer = bnb.nn.Linear8bitLt(64, 16, bias=False, has_fp16_weights=False)
layer.weight = bnb.nn.Int8Params(torch.zeros(16, 64), requires_grad=False, has_fp16_weights=False)
layer = layer.to("cpu")
layer.load_state_dict({key.removeprefix("eight."): value for key, value in state.items() if key.startswith("eight.") and "expected" not in key})
got = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
assert torch.equal(got, state["eight.expected"])
print("loaded")
"""


@pytest.mark.peer
def test_bitsandbytes_loads_what_is_written(tmp_path):
    shapes = {
        "even": (32, 128, "nf4", True),
        "straddling": (16, 100, "nf4", True),
        "plain": (8, 64, "fp4", False),
    }
    weights: dict = {}
    for name, (out, rows, kind, double) in shapes.items():
        q = bnb.quantize_4bit(jnp.asarray(weight((out, rows), 2, "float32").T), kind, 64, double)
        weights |= {
            f"{name}.weight": q,
            f"{name}.bias": np.zeros(out, np.float32),
            f"{name}.expected": np.asarray(q.matrix()).T,
        }
    eight = eight_bits(jnp.asarray(weight((16, 64), 2, "float32").T))
    weights |= {"eight.weight": eight, "eight.expected": np.asarray(eight.matrix()).T}
    bnb.write(tmp_path / "ours.safetensors", weights)
    # An environment of its own may have torch: name its Python in LORA_JAX_PEER_PYTHON.
    python = os.environ.get("LORA_JAX_PEER_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-c", _PEER, str(tmp_path / "ours.safetensors")], capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("loaded"), done.stderr[-2000:]
