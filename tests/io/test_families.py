"""Every family of models, both ways: what is written is what was read, of its weights and of its
configuration; nothing is read twice, and a base may be quantised while it is read.
"""

import dataclasses
import importlib
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import lora_jax
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray, QuantSpec
from lora_jax.io import safetensors
from lora_jax.io.differences import differences
from lora_jax.io.families import FAMILIES
from lora_jax.io.gguf_decoder import gguf_config
from lora_jax.io.gguf_write import Planned, gguf_names, header_of
from lora_jax.io.named_weights import named_tensors
from lora_jax.io.tensor_files import ModelFolder
from lora_jax.io.weights import kind_of, load_model, names_of, open_model, save_model
from lora_jax.models.kinds import example_inputs, model_of, shapes_of
from lora_jax.models.rotary import Rotary

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FOLDERS = sorted(
    str(path.parent.relative_to(GOLDEN))
    for path in GOLDEN.rglob("config.json")
    if (path.parent / "model.safetensors").is_file() and not {"peft", "quantised"} & {*path.parts}
)


def config_in(folder):
    raw = json.loads((GOLDEN / folder / "config.json").read_text())
    return FAMILIES[raw["model_type"]], raw


def head_of(folder):
    return {"num_classes": 3} if config_in(folder)[0].kind == "encoder" else {}


def test_every_family_has_a_golden_model():
    without = {"bert"}  # whose golden model is MiniLM, at its full size
    assert {config_in(folder)[0].name for folder in FOLDERS} | without == set(FAMILIES)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_names_are_those_of_the_models_own_weights(folder):
    config, _ = load_model(GOLDEN / folder, **head_of(folder))
    for scan in (True, False):
        tree = jax.eval_shape(
            model_of(config, scan=scan).init, jax.random.key(0), *example_inputs(config)
        )["params"]
        stored = open_model(GOLDEN / folder, scan=scan, **head_of(folder))
        shapes = {path: (*name.stack, *name.shape) for path, name in stored.names.items()}
        shapes |= {path: weight.shape for path, weight in stored.new.items()}
        assert shapes == {path: leaf.shape for path, leaf in flatten(tree).items()}


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_written_is_what_was_read(folder, scan, tmp_path):
    config, params = load_model(GOLDEN / folder, scan=scan, **head_of(folder))
    stored = dict(ModelFolder(GOLDEN / folder))
    written = dict(named_tensors(names_of(config, scan=scan), flatten(params)))
    assert set(written) == set(stored)
    for name, tensor in stored.items():
        # Gemma's norms pass through scale = 1 + w in float32; all else is bit for bit.
        shifted = config_in(folder)[0].name.startswith("gemma") and "norm" in name
        np.testing.assert_allclose(
            written[name], tensor.astype(np.float32), atol=2e-4 if shifted else 0, err_msg=name
        )
    save_model(tmp_path, config, params)
    again, copy = load_model(tmp_path, scan=scan, **head_of(folder))
    assert again == config
    for path, leaf in flatten(params).items():
        np.testing.assert_allclose(
            flatten(copy)[path], leaf, atol=1e-6 if "norm" in path else 0, err_msg=path
        )


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_configuration_survives_its_config_json(folder):
    family, raw = config_in(folder)
    config = family.from_json(raw)
    assert family.from_json(json.loads(json.dumps(family.to_json(config)))) == config


@pytest.mark.parametrize(
    ("folder", "changes"),
    [
        ("decoders/gemma3", {"local_rotary": Rotary(scaling="linear", factor=2.0)}),
        ("decoders/gemma3", {"local_rotary": Rotary(base=500.0)}),
        ("decoders/gemma3", {"rotary": Rotary(base=1e6, scaling="linear", factor=8.0)}),
        ("decoders/llama", {"rotary": Rotary(scaling="linear", factor=3.0)}),
        ("decoders/gpt_neox", {"activation": "gelu_tanh"}),
        ("decoders/opt", {"activation": "gelu_tanh"}),
        ("t5/v1_0", {"scaled": False}),
        ("t5/v1_1", {"scaled": True}),
    ],
)
def test_settings_that_no_golden_model_has_survive_as_well(folder, changes):
    family, raw = config_in(folder)
    config = dataclasses.replace(family.from_json(raw), **changes)
    assert differences(config, family.from_json(family.to_json(config))) == []


def test_what_config_json_has_no_words_for_is_not_written(tmp_path):
    config, params = load_model(GOLDEN / "decoders" / "mistral")
    odd = dataclasses.replace(config, final_softcap=30.0, rotary=Rotary(fraction=0.5))
    with pytest.raises(ValueError, match="partial_rotary_factor 0.5 is not supported"):
        save_model(tmp_path / "a", odd, params)
    odd = dataclasses.replace(config, final_softcap=30.0)
    with pytest.raises(ValueError, match="final_softcap 30.0 would be read as None"):
        save_model(tmp_path / "a", odd, params)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
@pytest.mark.parametrize("folder", ["deberta/v2_xxlarge", "roberta", "t5/v1_1", "decoders/mixtral"])
def test_a_base_quantised_while_it_is_read_is_that_which_adapt_makes(folder, scan):
    kind = head_of(folder)
    config, params = load_model(GOLDEN / folder, scan=scan, **kind)
    rules = [(r"(.*/)?layers(_\d+)?/(attn|mlp)/[a-z]*/kernel", QuantSpec("nf4", 8))]
    model, inputs = model_of(config, scan=scan), example_inputs(config)
    lora = [(r"(.*/)?layers(_\d+)?/attn/q/kernel", lora_jax.LoraSpec(2))]
    dense, _ = lora_jax.adapt(model, params, inputs, lora=lora, quant=rules, key=jax.random.key(0))
    _, streamed = load_model(GOLDEN / folder, scan=scan, quant=rules, **kind)
    assert any(isinstance(leaf, QuantizedArray) for leaf in flatten(streamed).values())
    assert lora_jax.fingerprint(streamed) == lora_jax.fingerprint(dense)


@pytest.mark.filterwarnings("ignore:Double quantisation moves")  # of matrices of 16 weights
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_base_read_onto_a_mesh_has_the_bytes_of_whole_weights_quantised(folder):
    mesh = jax.make_mesh((2,), ("fsdp",))

    def place(path, like):
        def cut(x):
            axes = [None] * (x.ndim - 1) + (["fsdp"] if x.ndim and x.shape[-1] % 2 == 0 else [])
            return NamedSharding(mesh, PartitionSpec(*axes))

        return jax.tree.map(cut, like)

    stored = open_model(GOLDEN / folder, **head_of(folder), key=jax.random.key(0))
    spec = QuantSpec("nf4", 8)
    matrices = {path: name for path, name in stored.names.items() if len(name.shape) > 1}
    whole, placed = stored.read(), dataclasses.replace(stored, place=place)
    rules = [(re.escape(path), spec) for path in matrices]
    read = flatten(placed.read(rules))
    for path, weight in flatten(whole).items():
        if path in matrices:
            name, weight = matrices[path], jnp.asarray(weight)
            options = dict(kernel_ndim=len(name.shape), in_axes=name.in_axes)
            weight = lora_jax.quantize(weight, spec, **options)
        assert jax.tree.structure(read[path]) == jax.tree.structure(weight)
        for ours, theirs in zip(jax.tree.leaves(read[path]), jax.tree.leaves(weight), strict=True):
            assert path in stored.new or ours.sharding == place(path, theirs)
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
@pytest.mark.parametrize("folder", ["deberta/v3", "t5/v1_0", "decoders/gemma3", "decoders/phi3"])
def test_the_fingerprint_of_a_model_in_its_files_is_that_of_its_params(folder, scan, monkeypatch):
    module = importlib.import_module("lora_jax.core.fingerprint")
    for dtype, at_once in ((np.float32, 1 << 26), (jnp.bfloat16, 50), (np.float32, 50)):
        monkeypatch.setattr(module, "_AT_ONCE", at_once)
        stored = open_model(GOLDEN / folder, scan=scan, dtype=dtype, **head_of(folder))
        base = {name: leaf for name, leaf in stored.read().items() if name != "classifier"}
        assert stored.fingerprint() == lora_jax.fingerprint(base)


def test_a_new_classifier_is_no_part_of_the_fingerprint_and_a_new_pooler_is(tmp_path):
    shutil.copy(GOLDEN / "roberta" / "config.json", tmp_path)
    tensors = dict(ModelFolder(GOLDEN / "roberta"))
    bare = {name: t for name, t in tensors.items() if not name.startswith("classifier.")}
    safetensors.write(tmp_path / "model.safetensors", bare)
    one, two = (open_model(tmp_path, num_classes=2, key=jax.random.key(n)) for n in (0, 1))
    base = {name: leaf for name, leaf in one.read().items() if name != "classifier"}
    assert one.fingerprint() == lora_jax.fingerprint(base) != two.fingerprint()
    assert set(one.new) == {
        f"{module}/{leaf}" for module in ("classifier", "pooler") for leaf in ("kernel", "bias")
    }


def test_the_older_words_and_the_pretraining_heads_of_bert_are_understood(tmp_path):
    config = lora_jax.models.EncoderConfig(20, 8, 1, 2, 12, 10)
    inputs = jnp.ones((1, 3), jnp.int32), jnp.ones((1, 3), bool)
    params = lora_jax.models.Encoder(config).init(jax.random.key(0), *inputs)["params"]
    save_model(tmp_path, config, params)
    plain = safetensors.read(tmp_path / "model.safetensors")
    older = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in plain.items()
    }
    heads = {
        "cls.predictions.bias": np.zeros(20, np.float32),
        "cls.seq_relationship.weight": np.zeros((2, 8), np.float32),
    }
    safetensors.write(tmp_path / "model.safetensors", older | heads)
    _, again = load_model(tmp_path)
    for path, leaf in flatten(params).items():
        assert np.array_equal(flatten(again)[path], leaf)


def test_numbers_that_are_no_weights_are_refused(tmp_path):
    shutil.copytree(GOLDEN / "decoders" / "llama", tmp_path / "a")
    tensors = safetensors.read(tmp_path / "a" / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)
    safetensors.write(tmp_path / "a" / "model.safetensors", tensors)
    with pytest.raises(ValueError, match="model.norm.weight holds numbers of int32"):
        load_model(tmp_path / "a")


@pytest.mark.parametrize("layers", [1000, 2**31])
def test_more_layers_than_the_files_have_are_refused_before_anything_is_made(tmp_path, layers):
    shutil.copytree(GOLDEN / "decoders" / "llama", tmp_path / "a")
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": layers}))
    with pytest.raises(ValueError, match="layers, and the files have 2[0-9] tensors"):
        load_model(tmp_path / "a")


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
# By what is wrong: a golden model, a change of its config.json, and words of the error.
SETTINGS = {
    "theta": ("llama", {"rope_parameters": {"rope_theta": None}}, "rope_theta must be a number"),
    "partial": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not"),
    "factor": ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "lacks the field 'factor'"),
    "no band": (
        "llama",
        {"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0, "high_freq_factor": 4.0}},
        "high_freq_factor must be above low_freq_factor, and they are 4.0 and 4.0",
    ),
    "two lengths": (
        "phi3",
        {"original_max_position_embeddings": 5},
        r"must be one number, .* \[5, ",
    ),
    # Of these transformers reads the first alone.
    "two activations": (
        "gemma",
        {"hidden_act": "relu", "hidden_activation": "gelu_pytorch_tanh"},
        "hidden_act 'relu' and hidden_activation 'gelu_pytorch_tanh' must be one",
    ),
    "no effect there": ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_are_missing_or_have_no_or_two_meanings_are_named(name, tmp_path):
    model, change, message = SETTINGS[name]
    shutil.copytree(GOLDEN / "decoders" / model, tmp_path / "a")
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "a")


def test_the_activation_of_the_first_gemma_is_that_of_hidden_act():
    family, raw = config_in("decoders/gemma")
    for act, ours in (("gelu", "gelu_tanh"), ("relu", "relu"), ("gelu_pytorch_tanh", "gelu_tanh")):
        told = {k: v for k, v in raw.items() if k != "hidden_activation"} | {"hidden_act": act}
        assert family.from_json(told).activation == ours


def test_llama3s_scaling_counts_from_all_positions_where_the_file_does_not_say():
    family, raw = config_in("decoders/llama3")
    del raw["rope_parameters"]["original_max_position_embeddings"]
    assert family.from_json(raw).rotary.original_positions == raw["max_position_embeddings"]


GGUF_KEYS = {
    "betas": (
        Rotary(scaling="yarn", factor=4.0, original_positions=16),
        {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0},
        Rotary(scaling="yarn", factor=4.0, original_positions=16, beta_fast=8.0, beta_slow=2.0),
    ),
    "2023's key": (
        Rotary(),
        {"rope.scale_linear": 4.0},
        Rotary(scaling="linear", factor=4.0),
    ),
    "no type": (
        Rotary(),
        {"rope.scaling.factor": 4.0},
        Rotary(scaling="linear", factor=4.0),
    ),
    "neutral": (Rotary(), {"rope.scaling.attn_factor": 1.0, "attention.scale": 0.0}, Rotary()),
    "yarn_attn_factor": (Rotary(), {"rope.scaling.yarn_attn_factor": 0.5}, None),
    "yarn_log_multiplier": (Rotary(), {"rope.scaling.yarn_log_multiplier": 1.0}, None),
    "another base": (Rotary(), {"rope.freq_base_swa": 1e4}, None),
    "scores": (Rotary(), {"attention.scale": 0.5}, None),
    "softcap": (Rotary(), {"final_logit_softcapping": 30.0}, None),
    "window": (Rotary(), {"attention.sliding_window": 4}, None),
    "values": (Rotary(), {"attention.value_length": 8}, None),
}


@pytest.mark.parametrize("name", GGUF_KEYS)
def test_keys_of_gguf_that_change_what_is_computed_are_read_or_refused(name):
    before, keys, wanted = GGUF_KEYS[name]
    config, _ = load_model(GOLDEN / "decoders" / "llama")
    config = dataclasses.replace(config, rotary=before)
    metadata, factors = header_of(config)
    metadata |= {f"llama.{key}": value for key, value in keys.items()}
    file = Planned(metadata, factors, gguf_names(config))
    if wanted is None:
        with pytest.raises(ValueError, match=f"{next(iter(keys))}|heads of 4 channels"):
            gguf_config(file)
        return
    assert gguf_config(file) == dataclasses.replace(config, rotary=wanted)
    # What is read can be written again.
    assert (
        differences(
            wanted, gguf_config(Planned(*header_of(gguf_config(file)), gguf_names(config))).rotary
        )
        == []
    )


def test_gemma3s_local_layers_are_those_that_the_file_names():
    config, _ = load_model(GOLDEN / "decoders" / "gemma3")
    local = tuple(bool((n + 1) % 6) for n in range(config.num_layers))
    config = dataclasses.replace(config, local_layers=local, query_scale=config.head_dim**-0.5)
    metadata, factors = header_of(config)
    metadata |= {"gemma3.attention.sliding_window_pattern": 2, "gemma3.rope.freq_base_swa": 500.0}
    read = gguf_config(Planned(metadata, factors, gguf_names(config)))
    assert read.local_layers == (True, False, True) and read.local_rotary == Rotary(base=500.0)


def test_a_family_that_is_written_in_the_wrong_shape_is_refused():
    config, params = load_model(GOLDEN / "decoders" / "llama")
    flat = flatten(params)
    flat["head/kernel"] = flat["head/kernel"].T
    with pytest.raises(ValueError, match="head/kernel has shape"):
        dict(named_tensors(names_of(config), flat))
    assert shapes_of(config)["head/kernel"] == (16, 40)


@pytest.mark.parametrize("name", [[], {}, 3, None, "x"])
def test_a_model_type_that_is_none_is_of_no_kind_and_is_named(name, tmp_path):
    shutil.copytree(GOLDEN / "roberta", tmp_path / "a")
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    assert kind_of(tmp_path / "a") == "encoder"
    (tmp_path / "a" / "config.json").write_text(json.dumps(raw | {"model_type": name}))
    assert kind_of(tmp_path / "a") is None
    with pytest.raises(ValueError, match="model_type .* is not supported"):
        open_model(tmp_path / "a")
