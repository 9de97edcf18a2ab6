"""Folders that are quantised in another tool's layout, as bases: bitsandbytes' against files and
figures of transformers (experiments/make_golden_quantised.py), the others against float64 weights.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import lora_jax
from lora_jax import cli
from lora_jax.analysis import plan
from lora_jax.analysis.memory_plan import held_in, sizes_of
from lora_jax.commands import plan as plan_command
from lora_jax.config import (
    Config,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    QuantConfig,
    with_value,
)
from lora_jax.core.fingerprint import fingerprint
from lora_jax.core.mesh import bytes_on_device
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray, QuantSpec, bytes_of, quantize
from lora_jax.io import safetensors
from lora_jax.io.bitsandbytes import quantize_4bit
from lora_jax.io.layouts import part_of
from lora_jax.io.weights import load_decoder, open_model
from lora_jax.models.decoder import Decoder
from lora_jax.tasks.building import params_of
from lora_jax.tasks.language import DecoderTask
from lora_jax.tasks.shapes import shapes_task
from lora_jax.training.programs import programs_for
from lora_jax.training.run import initial_state

GOLDEN = Path(__file__).parents[1] / "golden" / "quantised"
WEIGHTS = json.loads((GOLDEN / "weights.json").read_text())
TOKENS = np.arange(1, 13)[None]
DRAW = np.random.default_rng(0)


def digest(array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_folder_of_transformers_and_bitsandbytes_is_the_weights_that_they_dequantise(name):
    stored = open_model(GOLDEN / name, scan=True)
    flat = flatten(stored.read())
    whole: dict[str, dict] = {}
    for path, own in stored.names.items():
        weight = flat[path]
        dense = np.asarray(weight.unbox() if isinstance(weight, QuantizedArray) else weight)
        for index, parameter in own.layers():
            if len(own.shape) > 1:
                part = own.part[0] if own.part else 0
                whole.setdefault(parameter, {})[part] = own.to_theirs(dense[index])
    for parameter, parts in whole.items():
        theirs = np.concatenate([parts[n] for n in sorted(parts)])
        assert digest(theirs) == WEIGHTS[name][parameter], parameter

    tensors = stored.tensors
    # Each of three fused parts has a third of the bytes, rounded down.
    assert sum(map(tensors.size, tensors)) == pytest.approx(stored._file_bytes, abs=2)
    logits = Decoder(stored.config).apply({"params": stored.read()}, TOKENS)
    wanted = np.load(GOLDEN / "logits.npz")[name]
    # Sums in another order: float32 rounding of logits up to 12.
    np.testing.assert_allclose(logits, wanted, atol=3e-5)


def test_fingerprints_of_what_is_read_and_of_files_are_one():
    for scan in (True, False):
        stored = open_model(GOLDEN / "llama_nf4", scan=scan)
        own = fingerprint(stored.read())
        passing = stored.fingerprinted()
        for path in sorted(stored.names):
            passing.leaf(path)
        assert not passing.passing._left
        assert own == stored.fingerprint() == passing.fingerprint()


def config_of(name: str, **quant) -> Config:
    return Config(
        method="qlora",
        model=ModelConfig(name=str(GOLDEN / name)),  # or an absolute path
        quant=QuantConfig(**quant),
        lora=LoraConfig(rank=2, targets="all-linear"),
    )


def task_of(config: Config) -> DecoderTask:
    stored = open_model(config.model.name)
    model = Decoder(stored.config)
    return DecoderTask(
        model=model,
        params=params_of(stored, config.model),
        sites=lora_jax.find_sites(model, TOKENS),
        splits={},
        fingerprint=stored.fingerprint,
    )


def test_a_run_takes_the_codes_as_they_are_and_refuses_to_call_them_something_else():
    config = config_of("llama_int8", format="int8", block_size=None, double=False)
    task = task_of(config)
    frozen, trained = task.trainable(config, jax.random.key(0))
    flat, read = flatten(frozen), flatten(load_decoder(GOLDEN / "llama_int8")[1])
    boxes = {path for path, leaf in flat.items() if isinstance(leaf, QuantizedArray)}
    assert (
        boxes
        == set(trained)
        == {path for path in read if path.startswith("layers/") and "norm" not in path}
    )
    for path in list(boxes)[:2]:
        np.testing.assert_array_equal(flat[path].codes, read[path].codes)
    assert bytes_of(task.shapes(config)) == bytes_of((frozen, trained))
    again, _ = task.trainable(config, jax.random.key(1), frozen=frozen)
    assert flatten(again)[min(boxes)] is flat[min(boxes)]

    for wrong, says in (
        (replace(config, method="lora", quant=QuantConfig()), "Set config.method to 'qlora'"),
        (config_of("llama_int8", format="nf4"), "format 'int8', not 'nf4'.*quant.double=False"),
        (
            replace(config, quant=replace(config.quant, targets="attention")),
            "leaves it out: results would name another base",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            task.trainable(wrong, jax.random.key(0))
    with pytest.raises(ValueError, match="quantised already"):
        task._select(replace(config, method="full"), task.params, jax.random.key(0))
    with pytest.raises(ValueError, match="format 'int8', not 'nf4'"):
        load_decoder(GOLDEN / "llama_int8", quant=[(".*/q/kernel", QuantSpec())])


# --- The other methods, their folders written number by number.

IN, OUT, GROUP = 64, 64, 32
CONFIG = json.loads((GOLDEN / "llama_nf4" / "config.json").read_text())
CONFIG |= {"num_key_value_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
FP4 = {"format": "nvfp4-pack-quantized", "config_groups": {}, "ignore": ["lm_head"]}
SETTINGS = {
    "gptq": {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "awq": {"bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
    "compressed-tensors": FP4,
}


def packed(codes: np.ndarray) -> np.ndarray:
    """int32 numbers of eight codes along the last axis, the first in the lowest bits."""
    parts = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, 8)
    return (parts << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32).view(np.int32)


def integers() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    codes = DRAW.integers(0, 16, (IN, OUT))
    zeros = DRAW.integers(1, 16, (IN // GROUP, OUT))
    scales = DRAW.uniform(0.01, 0.1, zeros.shape).astype(np.float16)
    spread = lambda x: np.repeat(x, GROUP, axis=0).astype(np.float64)
    return codes, zeros, scales, (codes - spread(zeros)) * spread(scales)


def gptq() -> tuple[dict, np.ndarray]:
    codes, zeros, scales, dense = integers()
    return dict(qweight=packed(codes.T).T, qzeros=packed(zeros - 1), scales=scales), dense


def awq() -> tuple[dict, np.ndarray]:
    codes, zeros, scales, dense = integers()
    turned = lambda x: x.reshape(len(x), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(len(x), -1)
    return dict(qweight=packed(turned(codes)), qzeros=packed(turned(zeros)), scales=scales), dense


def nvfp4() -> tuple[dict, np.ndarray]:
    codes = DRAW.integers(0, 16, (OUT, IN)).astype(np.uint8)
    scale = DRAW.uniform(1, 400, (OUT, IN // 16)).astype(ml_dtypes.float8_e4m3fn)
    levels = codes.view(np.uint8).astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    dense = levels * np.repeat(scale.astype(np.float64), 16, axis=1) / 2048
    tensors = dict(
        weight_packed=codes[:, ::2] | codes[:, 1::2] << 4,
        weight_scale=scale,
        weight_global_scale=np.float32([2048]),
        input_global_scale=np.float32([1]),
    )
    return tensors, dense.T


MADE = {"gptq": gptq, "awq": awq, "compressed-tensors": nvfp4}


def folder_of(at: Path, method: str, dtype: str = "float32") -> tuple[Path, dict]:
    """A LLaMA whose linear layers are stored by this method, and its weights (in, out)."""
    tensors = {"model.norm.weight": np.ones(64, np.float32)}
    tensors |= {
        name: DRAW.normal(size=(16, 64)).astype(np.float32)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    dense = {}
    for n in range(2):
        block = f"model.layers.{n}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{block}{norm}.weight"] = np.ones(64, np.float32)
        for module in (
            *(f"self_attn.{x}_proj" for x in "qkvo"),
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ):
            own, dense[f"{block}{module}.weight"] = MADE[method]()
            tensors |= {f"{block}{module}.{part}": value for part, value in own.items()}
    at.mkdir(exist_ok=True)
    safetensors.write(at / "model.safetensors", tensors)
    write_config(at, {"quant_method": method, **SETTINGS[method]}, dtype)
    return at, dense


def write_config(at: Path, quantization: dict, dtype: str = "float32") -> None:
    said = CONFIG | {"quantization_config": quantization, "dtype": dtype}
    (at / "config.json").write_text(json.dumps(said))


@pytest.mark.parametrize("method", MADE)
def test_a_folder_of_another_method_is_its_codes_times_its_scales(tmp_path, method):
    folder, dense = folder_of(tmp_path / "model", method)
    stored = open_model(folder)
    flat = flatten(stored.read())
    for path, name in stored.names.items():
        for index, parameter in name.layers():
            if parameter in dense:
                mine = np.asarray(jax.tree.map(lambda x, at=index: x[at], flat[path]).unbox())
                # One rounding of the product and one of the sum, to float32.
                np.testing.assert_allclose(mine, dense[parameter], rtol=3e-7, atol=1e-6)
                assert parameter in stored.tensors.stored
    assert fingerprint(stored.read()) == stored.fingerprint()
    # Read as a tensor, a weight is dense, (out, in).
    name = min(dense)
    np.testing.assert_allclose(stored.tensors[name].T, dense[name], rtol=3e-7, atol=1e-6)
    half = {
        path: leaf.dtype
        for path, leaf in flatten(
            open_model(folder_of(tmp_path / "half", method, "bfloat16")[0]).boxes
        ).items()
    }
    assert set(half.values()) == {jnp.dtype(jnp.bfloat16)}


QUANTISED = [("llama_nf4", "nf4"), ("gptq", "int4_asym")]


@pytest.mark.parametrize(("name", "format"), QUANTISED, ids=dict(QUANTISED))
def test_a_folder_that_is_quantised_is_planned_in_the_codes_that_its_files_hold(
    name, format, tmp_path
):
    folder = GOLDEN / name
    if not folder.exists():
        folder, _ = folder_of(tmp_path / "model", name)
    asked = ["plan", str(folder), "--batch", "1x16", "--config.model.scan=false"]
    config = plan_command.config_of(cli.parse(asked)[1])
    assert (config.method, config.quant.format) == ("qlora", format)
    stored = open_model(folder, dtype=jnp.bfloat16, scan=False).read()
    held = held_in(str(folder), scan=False)
    frozen, _ = shapes_task(config, sizes_of(str(folder)), held=held).shapes(config)
    assert bytes_of(frozen) == bytes_of(stored)
    if name == "gptq":  # The parts of one.
        found = plan(config, compiled=False).footprint
        boxes = [x for x in flatten(stored).values() if isinstance(x, QuantizedArray)]
        assert found.codes == sum(x.codes.nbytes for x in boxes) > 0
        base = found.codes + found.scales + found.embeddings + found.head + found.other
        assert base == bytes_of(stored)

    wrong = with_value(config, "quant.format", "nf4" if format != "nf4" else "int8")
    with pytest.raises(ValueError, match=f"stored in other codes.*quant.format='{format}'"):
        plan(wrong, compiled=False)
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "alone")
    with pytest.raises(ValueError, match="only their files say"):
        plan(with_value(config, "model.name", str(tmp_path / "alone")), compiled=False)


@pytest.mark.parametrize(
    "name",
    # Of bitsandbytes also blocks that run on from row to row.
    ["llama_nf4", *(pytest.param(name, marks=pytest.mark.long) for name in ("llama_int8", *MADE))],
)
def test_on_a_mesh_losses_from_stored_codes_are_those_of_one_device(name, tmp_path):
    folder = GOLDEN / name if (GOLDEN / name).exists() else folder_of(tmp_path / name, name)[0]
    spec = next(iter(open_model(folder).boxes.values())).spec
    quant = {key: getattr(spec, key) for key in ("format", "block_size", "double", "second_level")}
    config = with_value(config_of(str(folder), **quant), "optim.learning_rate", 0.01)
    task, tokens = task_of(config), DRAW.integers(0, 16, (8, 12)).astype(np.int32)
    ones = np.ones(tokens.shape, np.float32)
    batch = dict(tokens=tokens, labels=np.roll(tokens, -1, 1), segments=ones.astype(np.int32))
    batch |= dict(loss_weight=ones, mask=ones > 0, weight=ones[:, 0])
    losses, sizes = [], []
    for mesh in (MeshConfig(), MeshConfig(data=2, fsdp=2, model=2)):
        run = replace(config, mesh=mesh, train=replace(config.train, total_steps=3))
        frozen, state = initial_state(run, task, 3)
        sizes.append(bytes_on_device(frozen))
        train = programs_for(task.per_example, run, 3).train
        for _ in range(3):
            state, metrics = train(state, frozen, batch)
            losses.append(float(metrics["loss"]))
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-5) and losses[2] < losses[0]
    assert sizes[1] < sizes[0] / 2


@pytest.mark.parametrize(
    ("quantization", "says"),
    [
        ({"quant_method": "aqlm"}, "'aqlm' is not read; needed one of bitsandbytes, gptq, awq"),
        ({"quant_method": "mxfp4"}, "gpt-oss's, whose architecture is none"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 32}, "3 bits are not read"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 16}, "group_size 16"),
        ({"quant_method": "gptq", "bits": 4}, "lacks the field 'group_size'"),
        (SETTINGS["gptq"] | {"quant_method": "gptq", "desc_act": True}, "no g_idx"),
        (SETTINGS["gptq"] | {"quant_method": "gptq", "dynamic": {"x": {}}}, "dynamic"),
        (SETTINGS["gptq"] | {"quant_method": "gptq", "checkpoint_format": "marlin"}, "marlin"),
        (SETTINGS["gptq"] | {"quant_method": "gptq", "format": "marlin"}, "marlin"),
        (
            SETTINGS["gptq"] | {"quant_method": "gptq", "format": "gptq_v2", "checkpoint_format": "gptq"},
            "gptq and gptq_v2. Zeros are off by one",
        ),
        (SETTINGS["awq"] | {"quant_method": "awq", "version": "gemv"}, "version 'gemv'"),
        (FP4 | {"quant_method": "compressed-tensors", "format": "float-quantized"}, "float-quantized"),
        ({"quant_method": "bitsandbytes"}, "belongs to other weights"),
    ],
)  # fmt: skip
def test_what_is_stored_otherwise_is_refused_by_name(tmp_path_factory, quantization, says):
    folder = tmp_path_factory.getbasetemp() / "refused_gptq"
    if not folder.is_dir():
        folder_of(folder, "gptq")
    write_config(folder, quantization)
    with pytest.raises(ValueError, match=says):
        load_decoder(folder)


def test_layers_of_two_kinds_are_read_apart(tmp_path):
    folder, dense = folder_of(tmp_path / "model", "gptq")
    tensors = safetensors.read(folder / "model.safetensors")
    module = "model.layers.1.mlp.down_proj"
    for part in ("qweight", "qzeros", "scales"):
        del tensors[f"{module}.{part}"]
    tensors[f"{module}.weight"] = dense[f"{module}.weight"].T.astype(np.float32)
    safetensors.write(folder / "model.safetensors", tensors)
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.down_proj.weight as floating.*scan=False"
    ):
        open_model(folder)
    flat = flatten(open_model(folder, scan=False).read())
    assert isinstance(flat["layers_0/mlp/down/kernel"], QuantizedArray)
    np.testing.assert_allclose(
        flat["layers_1/mlp/down/kernel"], dense[f"{module}.weight"], rtol=1e-6
    )


def test_a_dense_layer_of_gpt2_keeps_its_direction_beside_a_quantised_one(tmp_path):
    folder = shutil.copytree(GOLDEN / "gpt2_nf4", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 2}))
    tensors = dict(safetensors.read(folder / "model.safetensors"))
    weight = flatten(load_decoder(GOLDEN / "gpt2_nf4", scan=False)[1])["layers_0/attn/o/kernel"]
    dense = np.asarray(weight.unbox(), np.float32)

    # The same layer twice, one weight of the second as Conv1D has it, (in, out).
    second = {key.replace("h.0.", "h.1."): value for key, value in tensors.items() if "h.0." in key}
    name = "transformer.h.1.attn.c_proj.weight"
    second = {key: value for key, value in second.items() if not key.startswith(name)}
    safetensors.write(folder / "model.safetensors", tensors | second | {name: dense})
    flat = flatten(load_decoder(folder, scan=False)[1])
    assert isinstance(flat["layers_0/attn/o/kernel"], QuantizedArray)
    np.testing.assert_array_equal(flat["layers_1/attn/o/kernel"], dense)


def test_parts_of_fused_weights_are_theirs_or_refused():
    w = jnp.asarray(DRAW.normal(size=(64, 768)), jnp.float32)
    for spec in (QuantSpec(), QuantSpec("fp4_e2m1", 16, second_level="tensor")):
        q = quantize(w, spec)
        for outputs in (slice(256, 512), slice(512, 768)):
            np.testing.assert_array_equal(part_of(q, outputs).unbox(), q.unbox()[:, outputs])
    with pytest.raises(ValueError, match="256 scales share one"):
        part_of(quantize(w, QuantSpec()), slice(0, 100))
    with pytest.raises(ValueError, match="two parts of this fused weight"):
        part_of(quantize_4bit(w[:48]), slice(0, 64))
