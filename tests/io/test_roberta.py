"""RoBERTa computes what transformers computes, goes back to its files, and trains with its head as
one new part.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_tasks import write_task

from lora_jax.adapters.apply import apply
from lora_jax.adapters.surgery import adapt
from lora_jax.config import from_config_dict
from lora_jax.core.lowrank import LoraSpec
from lora_jax.io import safetensors
from lora_jax.io.tensor_files import ModelFolder
from lora_jax.io.weights import encoder_names, load_encoder, save_encoder
from lora_jax.models.encoder import Encoder
from lora_jax.training.loop import train

GOLDEN = Path(__file__).parents[1] / "golden" / "roberta"
STORED = np.load(GOLDEN / "golden.npz")


@pytest.mark.parametrize("scan", [True, False])
def test_hidden_states_and_logits_equal_transformers(scan):
    config, params = load_encoder(GOLDEN, num_classes=3, scan=scan)
    # fp32, two layers of width 16.
    logits = Encoder(config, scan=scan).apply(
        {"params": params}, STORED["tokens"], STORED["mask"], np.ones_like(STORED["tokens"])
    )
    np.testing.assert_allclose(logits, STORED["logits"], atol=1e-4)
    hidden, _ = Encoder(dataclasses.replace(config, num_classes=None), scan=scan).apply(
        {"params": params}, STORED["tokens"], STORED["mask"]
    )
    np.testing.assert_allclose(
        np.where(STORED["mask"][..., None], hidden, 0),
        np.where(STORED["mask"][..., None], STORED["hidden"], 0),
        atol=1e-4,
    )


def test_an_adapter_on_its_one_segment_serves_texts_with_two():
    config, params = load_encoder(GOLDEN, num_classes=3)
    texts = (STORED["tokens"], STORED["mask"], np.ones_like(STORED["tokens"]))
    rules = [("embeddings/type/embedding", LoraSpec(1))]
    frozen, trainable = adapt(Encoder(config), params, texts, lora=rules, key=jax.random.key(0))
    logits = apply(Encoder(config), frozen, trainable, *texts)
    np.testing.assert_allclose(logits, STORED["logits"], atol=1e-4)


def test_saving_gives_the_same_tensors_and_config_back(tmp_path):
    config, params = load_encoder(GOLDEN, num_classes=3)
    save_encoder(tmp_path, config, params)
    ours, theirs = dict(ModelFolder(tmp_path)), dict(ModelFolder(GOLDEN))
    assert (
        set(ours)
        == set(theirs)
        == {name.parameter for name in encoder_names(config, scan=False).values()}
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert load_encoder(tmp_path, num_classes=3)[0] == config


def test_a_pretrained_file_without_pooler_but_with_its_language_head_gets_a_new_head(tmp_path):
    tensors = {
        name: np.array(tensor)
        for name, tensor in ModelFolder(GOLDEN).items()
        if not name.startswith("classifier.")
    }
    tensors["lm_head.dense.weight"] = np.zeros((16, 16), np.float32)
    safetensors.write(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text())
    config, params = load_encoder(tmp_path, num_classes=2, key=jax.random.key(0))
    assert (
        params["classifier"]["kernel"].shape == (16, 2)
        and np.abs(params["pooler"]["kernel"]).max() > 0
    )
    with pytest.raises(ValueError, match="2 missing"):
        load_encoder(tmp_path)
    broken = json.loads((GOLDEN / "config.json").read_text()) | {"pad_token_id": 3}
    (tmp_path / "config.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="pad_token_id 3 of a 'roberta' is not supported"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "targets"), [("classification", "all-linear"), ("qa", "query+value")]
)
def test_it_trains_with_its_tanh_layer_as_part_of_the_new_head(recipe, targets, tmp_path):
    from tiny_encoder import WORDS
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    config, params = load_encoder(GOLDEN, num_classes=3)
    plain = {name: leaf for name, leaf in params.items() if name != "classifier"}
    save_encoder(tmp_path / "model", dataclasses.replace(config, num_classes=None), plain)
    backend = Tokenizer(
        models.WordLevel(
            {word: n for n, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])},
            unk_token="<unk>",
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    backend.save(str(tmp_path / "model" / "tokenizer.json"))
    run = from_config_dict(
        {
            "model": {"name": str(tmp_path / "model"), "scan": False},
            "data": {
                "name": str(write_task(tmp_path / "a.jsonl", recipe)),
                "recipe": recipe,
                "max_length": 20,
            },
            "lora": {"rank": 2, "targets": targets},
            "train": {"total_steps": 3, "batch_size": 8, "eval_batch_size": 16},
        }
    )
    classes = 2
    result = train(run, tmp_path / "run", quiet=True)
    factors = {
        "all-linear": 2 * (4 * 2 * (16 + 16) + 2 * 2 * (16 + 24)),
        "query+value": 2 * 2 * 2 * (16 + 16),
    }[targets]
    head = 16 * classes + classes + (0 if recipe == "qa" else 16 * 16 + 16)
    assert result.trainable_parameters == factors + head
