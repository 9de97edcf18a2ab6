"""DeBERTa-v2 and -v3 compute what transformers computes, go back to their files, and load
strictly.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.apply import apply
from lora_jax.adapters.merge import merge
from lora_jax.adapters.surgery import adapt
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.quantize import QuantSpec
from lora_jax.io import safetensors
from lora_jax.io.peft import load_peft, save_peft
from lora_jax.io.tensor_files import ModelFolder
from lora_jax.io.weights import encoder_names, load_encoder, save_encoder
from lora_jax.models.deberta import DebertaConfig, relative_rows
from lora_jax.models.encoder import Encoder

GOLDEN = Path(__file__).parents[1] / "golden" / "deberta"
STORED = np.load(GOLDEN / "golden.npz")
FORMS = ("v3", "v2_xxlarge", "other")
BATCH = (jnp.asarray(STORED["tokens"]), jnp.asarray(STORED["mask"]))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_hidden_states_and_logits_equal_transformers(form, scan):
    config, params = load_encoder(GOLDEN / form, num_classes=3, scan=scan)
    # fp32, two layers of width 16; three texts of 31, 17 and 3 tokens.
    np.testing.assert_allclose(
        jax.jit(Encoder(config, scan=scan).apply)({"params": params}, *BATCH),
        STORED[f"{form}/logits"],
        atol=1e-4,
    )
    bare = dataclasses.replace(config, num_classes=None)
    params = {name: leaf for name, leaf in params.items() if name not in ("pooler", "classifier")}
    hidden, first = jax.jit(Encoder(bare, scan=scan).apply)({"params": params}, *BATCH)
    there = STORED["mask"][..., None]
    np.testing.assert_allclose(
        np.where(there, hidden, 0), np.where(there, STORED[f"{form}/hidden"], 0), atol=1e-4
    )
    assert np.array_equal(first, hidden[:, 0])


def test_distances_share_rows_as_published():
    config = DebertaConfig(
        vocab_size=9,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=8,
        max_positions=512,
    )
    rows, time = relative_rows(config, 601), 601
    stored = dict(zip(STORED["distance"].tolist(), STORED["bucket_256_512"].tolist(), strict=True))
    wanted = [np.clip(stored[i - j] + 256, 0, 511) for i, j in ((0, n) for n in range(time))]
    assert rows[0].tolist() == wanted and rows[:, 0].tolist() == [
        np.clip(stored[n] + 256, 0, 511) for n in range(time)
    ]
    assert np.array_equal(rows[10:20, 10:20], rows[:10, :10])


@pytest.mark.parametrize("form", FORMS)
def test_saving_gives_the_same_tensors_and_config_back(form, tmp_path):
    config, params = load_encoder(GOLDEN / form, num_classes=3)
    save_encoder(tmp_path, config, params)
    ours, theirs = dict(ModelFolder(tmp_path)), dict(ModelFolder(GOLDEN / form))
    assert (
        set(ours)
        == set(theirs)
        == {name.parameter for name in encoder_names(config, scan=False).values()}
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert load_encoder(tmp_path, num_classes=3)[0] == config


def test_every_tensor_is_used_and_of_the_right_shape(tmp_path):
    shutil.copy(GOLDEN / "v3" / "config.json", tmp_path)
    stored = {name: np.array(tensor) for name, tensor in ModelFolder(GOLDEN / "v3").items()}
    broken = dict(stored)
    broken["deberta.encoder.layer.0.attention.self.query_pro.weight"] = broken.pop(
        "deberta.encoder.layer.0.attention.self.query_proj.weight"
    )
    broken["deberta.encoder.rel_embeddings.weight"] = np.zeros((4, 16), np.float32)
    safetensors.write(tmp_path / "model.safetensors", broken)
    with pytest.raises(ValueError, match=r"1 missing, 1 left over, 1 of another shape") as caught:
        load_encoder(tmp_path, num_classes=3)
    assert (
        "query_proj.weight  (perhaps 'deberta.encoder.layer.0.attention.self.query_pro.weight')"
        in str(caught.value)
    )
    assert "rel_embeddings.weight: (4, 16), config.json says (16, 16)" in str(caught.value)


def test_a_pretrained_file_gets_a_new_head_and_its_pretraining_parts_are_not_read(tmp_path):
    shutil.copy(GOLDEN / "v3" / "config.json", tmp_path)
    stored = {
        name: np.array(tensor)
        for name, tensor in ModelFolder(GOLDEN / "v3").items()
        if name.startswith("deberta.")
    }
    stored["deberta.embeddings.position_embeddings.weight"] = np.ones(
        (40, 16), np.float32
    )  # the published files have it, unread
    for name in (
        "lm_predictions.lm_head.bias",
        "mask_predictions.dense.bias",
        "cls.predictions.bias",
    ):
        stored[name] = np.ones(4, np.float32)
    safetensors.write(tmp_path / "model.safetensors", stored)
    with pytest.raises(ValueError, match="needs a random key"):
        load_encoder(tmp_path, num_classes=2)
    config, params = load_encoder(tmp_path, num_classes=2, key=jax.random.key(0))
    assert (
        params["classifier"]["kernel"].shape == (16, 2)
        and 0 < np.abs(params["pooler"]["kernel"]).max() < 0.2
    )
    assert "position" not in params["embeddings"] and load_encoder(tmp_path)[
        0
    ] == dataclasses.replace(config, num_classes=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_att_type": "p2c|p2p"}, "Unknown terms of the attention: p2p"),
        ({"attention_head_size": 4}, "attention_head_size 4 is not supported; needed 8"),
        ({"conv_kernel_size": 4}, "odd size"),
        ({"hidden_act": "swish"}, "Unknown activation 'swish'"),
        ({"relative_attention": False}, "needs relative_attention"),
        ({"hidden_size": "16"}, "hidden_size must be a whole number"),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_an_error(changes, message, tmp_path):
    raw = json.loads((GOLDEN / "v3" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(ValueError, match=message):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("form", "scan"),
    [("v3", False), ("v2_xxlarge", True), pytest.param("other", True, marks=pytest.mark.slow)],
)
def test_adapters_on_quantised_weights_compute_alike_factored_dense_merged_and_remade_from_PEFTs_format(
    form, scan, tmp_path
):
    config, params = load_encoder(GOLDEN / form, num_classes=3, scan=scan)
    model, blocks = Encoder(config, scan=scan, remat=True), r"layers(_\d+)?/.*/kernel"
    rules = dict(
        lora=[(blocks, LoraSpec(2, 4.0))],
        quant=[(blocks, QuantSpec("nf4", 8, False))],
        whole=["(classifier|pooler)/.*"],
    )
    frozen, trainable = adapt(model, params, BATCH, key=jax.random.key(0), **rules)
    trainable = {
        path: leaf.replace(b=leaf.b + 0.1) if hasattr(leaf, "b") else leaf
        for path, leaf in trainable.items()
    }
    compute = jax.jit(lambda adapter: apply(model, frozen, adapter, *BATCH))
    ours = compute(trainable)
    merged, _ = merge(frozen, trainable, dtype=jnp.float32)
    # fp32; products of one update in two orders.
    np.testing.assert_allclose(ours, jax.jit(model.apply)({"params": merged}, *BATCH), atol=2e-4)
    names = encoder_names(config, scan=scan)
    save_peft(tmp_path, trainable, names, task_type="SEQ_CLS")
    keys = set(safetensors.read(tmp_path / "adapter_model.safetensors"))
    assert (
        "base_model.model.deberta.encoder.layer.1.attention.self.query_proj.lora_A.weight" in keys
    )
    np.testing.assert_allclose(compute(load_peft(tmp_path, names)[0]), ours, atol=1e-5)


def test_padding_and_the_batch_beside_it_change_nothing():
    config, params = load_encoder(GOLDEN / "v2_xxlarge", num_classes=3)
    alone = jax.jit(Encoder(config).apply)(
        {"params": params}, BATCH[0][1:2, :17], BATCH[1][1:2, :17]
    )
    np.testing.assert_allclose(alone[0], STORED["v2_xxlarge/logits"][1], atol=1e-4)
