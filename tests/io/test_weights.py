"""Encoder weights: every tensor of a file is used exactly once, or the load fails with a list;
saving and loading is the identity.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_encoder import CONFIG, save_tiny_encoder

from lora_jax.core.paths import flatten
from lora_jax.io import load_encoder, safetensors, save_encoder
from lora_jax.io.tensor_files import ModelFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_encoder(tmp_path / "model")


def edit(folder: Path, change: Any) -> None:
    tensors = {
        name: np.array(tensor)
        for name, tensor in safetensors.read(folder / "model.safetensors").items()
    }
    change(tensors)
    safetensors.write(folder / "model.safetensors", tensors)


def test_every_tensor_of_minilm_is_used_exactly_once(minilm_folder: Path) -> None:
    stored = {
        name: t
        for name, t in ModelFolder(minilm_folder).items()
        if name != "embeddings.position_ids"
    }
    for scan in (True, False):
        _, params = load_encoder(minilm_folder, scan=scan)
        assert sum(leaf.size for leaf in flatten(params).values()) == sum(
            tensor.size for tensor in stored.values()
        )
        # Values, sorted, are the same multiset: nothing is used twice in place of something else.
        ours = np.sort(np.concatenate([leaf.ravel() for leaf in flatten(params).values()]))
        assert np.array_equal(
            ours, np.sort(np.concatenate([tensor.ravel() for tensor in stored.values()]))
        )


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("classes", [None, 3])
def test_saving_and_loading_is_the_identity(
    folder: Path, tmp_path: Path, classes: int | None, scan: bool
) -> None:
    config, params = load_encoder(folder, num_classes=classes, key=jax.random.key(1), scan=scan)
    save_encoder(tmp_path / "copy", config, params)
    again, copy = load_encoder(tmp_path / "copy", num_classes=classes, scan=scan)
    assert again == config
    assert {path: leaf.tobytes() for path, leaf in flatten(copy).items()} == {
        path: leaf.tobytes() for path, leaf in flatten(params).items()
    }


def test_layers_are_stacked_or_not_with_the_same_values(folder: Path) -> None:
    (_, scan), (_, loop) = (load_encoder(folder, scan=flag) for flag in (True, False))
    for layer in range(CONFIG.num_layers):
        for path, leaf in flatten(loop[f"layers_{layer}"]).items():
            assert np.array_equal(leaf, flatten(scan["layers"])[path][layer])


def test_missing_and_left_over_tensors_are_all_listed(folder: Path) -> None:
    def rename(tensors: dict[str, Any]) -> None:
        tensors["encoder.layer.1.output.dens.weight"] = tensors.pop(
            "encoder.layer.1.output.dense.weight"
        )
        del tensors["pooler.dense.bias"]
        tensors["cls.predictions.bias"] = np.zeros(3, np.float32)

    edit(folder, rename)
    with pytest.raises(
        ValueError, match="2 missing, 2 left over, 0 .* Every tensor must be used exactly once"
    ) as caught:
        load_encoder(folder)
    text = str(caught.value)
    assert (
        "missing    encoder.layer.1.output.dense.weight  (perhaps 'encoder.layer.1.output.dens.weight')"
        in text
    )
    assert "missing    pooler.dense.bias" in text and "left over  cls.predictions.bias" in text


def test_a_tensor_that_is_there_under_two_names_is_refused(folder: Path) -> None:
    edit(
        folder,
        lambda tensors: tensors.update(
            {"bert.pooler.dense.bias": tensors["pooler.dense.bias"] + 1}
        ),
    )
    with pytest.raises(
        ValueError, match="both with and without the prefix 'bert.*pooler.dense.bias"
    ):
        load_encoder(folder)


def test_wrong_shapes_are_all_listed(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 20}))
    with pytest.raises(ValueError, match=r"0 missing, 0 left over, 6 of another shape") as caught:
        load_encoder(folder)
    wrong = "encoder.layer.0.intermediate.dense.weight: (24, 16), config.json says (20, 16)"
    assert wrong in str(caught.value)


def test_prefixed_half_precision_files_with_position_ids_load_as_float32(folder: Path) -> None:
    _, before = load_encoder(folder)

    def as_transformers_saves(tensors: dict[str, Any]) -> None:
        old = dict(tensors)
        tensors.clear()
        tensors.update({f"bert.{name}": tensor.astype(np.float16) for name, tensor in old.items()})
        tensors["bert.embeddings.position_ids"] = np.arange(32)[None]

    edit(folder, as_transformers_saves)
    _, params = load_encoder(folder)
    for path, leaf in flatten(params).items():
        assert leaf.dtype == np.float32 and np.array_equal(
            leaf, flatten(before)[path].astype(np.float16).astype(np.float32)
        )


def test_a_stored_head_is_taken_and_a_new_one_needs_a_key(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"has no classifier, and a new one needs a random key: pass key=jax.random.key\(seed\)",
    ):
        load_encoder(folder, num_classes=3)
    config, params = load_encoder(folder, num_classes=3, key=jax.random.key(5))
    assert (
        params["classifier"]["kernel"].std() == pytest.approx(0.02, rel=0.4)
        and not params["classifier"]["bias"].any()
    )
    save_encoder(tmp_path / "headed", config, params)
    _, again = load_encoder(tmp_path / "headed", num_classes=3, key=jax.random.key(6))
    assert np.array_equal(again["classifier"]["kernel"], params["classifier"]["kernel"])
    with pytest.raises(
        ValueError, match=r"classifier.weight: \(3, 16\), config.json says \(2, 16\)"
    ):
        load_encoder(tmp_path / "headed", num_classes=2, key=jax.random.key(0))


CONFIG_ERRORS = {
    "no field": (lambda c: c.pop("hidden_size"), "lacks the field 'hidden_size'"),
    "other family": (
        lambda c: c.update(model_type="gpt2"),
        "model_type 'gpt2' .* is not supported; needed 'bert'",
    ),
    "other activation": (
        lambda c: c.update(hidden_act="swish"),
        "hidden_act 'swish' is not supported",
    ),
    "relative positions": (
        lambda c: c.update(position_embedding_type="relative_key"),
        "position_embedding_type 'relative_key' is not supported",
    ),
    "decoder": (lambda c: c.update(is_decoder=True), "is_decoder True is not supported"),
    "heads": (
        lambda c: c.update(num_attention_heads=3),
        "hidden_size 16 must be a multiple of num_heads 3",
    ),
    "text for a number": (lambda c: c.update(hidden_size="16"), "hidden_size .*'16'"),
    "text for a fraction": (
        lambda c: c.update(layer_norm_eps="1e-5"),
        "config.json .*norm_eps must be a finite number, and is '1e-5'",
    ),
    "no number": (
        lambda c: c.update(layer_norm_eps=float("nan")),
        "norm_eps must be a finite number, and is nan",
    ),
    "a number of hundreds of digits": (
        lambda c: c.update(layer_norm_eps=10**400),
        "norm_eps must be a finite number, and is 10000",
    ),
    "a list for a word": (lambda c: c.update(hidden_act=[]), r"config.json .*\[\]|unhashable"),
    "a size of no model": (
        lambda c: c.update(vocab_size=2**31),
        "vocab_size must be a whole number from 1, and is 2147483648",
    ),
}


@pytest.mark.parametrize("name", CONFIG_ERRORS)
def test_a_configuration_that_cannot_be_honoured_is_an_error(folder: Path, name: str) -> None:
    change, message = CONFIG_ERRORS[name]
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[1]", "is not a JSON object"), ("\xff", "is not JSON")],
)
def test_a_configuration_that_is_no_json_object_is_an_error(
    folder: Path, content: str, message: str
) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        load_encoder(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_named_with_its_file(folder: Path, bad: float) -> None:
    file = folder / "model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in safetensors.read(file).items()}
    tensors["pooler.dense.weight"][3, 2] = bad
    safetensors.write(file, tensors)
    with pytest.raises(ValueError, match=f"{folder}: pooler.dense.weight holds a NaN"):
        load_encoder(folder)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"needs model.safetensors .*but holds config.json, vocab.txt.*pytorch_model.bin alone",
    ):
        load_encoder(folder)
    with pytest.raises(FileNotFoundError, match="needs a config.json next to its weights"):
        load_encoder(tmp_path)
