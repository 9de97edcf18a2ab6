"""T5 and T5 1.1 compute and generate what transformers does, go back to their files, and load
strictly.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.apply import apply
from lora_jax.adapters.merge import merge
from lora_jax.adapters.stacking import stack
from lora_jax.adapters.surgery import adapt
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.quantize import QuantSpec
from lora_jax.generation.seq2seq import PairGenerator
from lora_jax.io import safetensors
from lora_jax.io.peft import load_peft, save_peft
from lora_jax.io.tensor_files import ModelFolder
from lora_jax.io.weights import kind_of, load_decoder, load_encoder, load_t5, save_t5, t5_names
from lora_jax.models.t5 import T5, T5Config, position_bucket

GOLDEN = Path(__file__).parents[1] / "golden" / "t5"
STORED = np.load(GOLDEN / "golden.npz")
FORMS = ("v1_0", "v1_1")
TARGET = jnp.asarray(STORED["target"])
BATCH = (
    jnp.asarray(STORED["tokens"]),
    jnp.asarray(STORED["mask"]).astype(jnp.int32),
    TARGET,
    jnp.ones_like(TARGET),
)
SOURCES = [row[there].tolist() for row, there in zip(STORED["tokens"], STORED["mask"], strict=True)]


def stored_texts(form: str) -> list[list[int]]:
    """What transformers generated, without what it fills up with after the end token."""
    rows = STORED[f"{form}/generated"].tolist()
    return [row[: row.index(1) + 1] if 1 in row else row for row in rows]


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_logits_equal_transformers(form, scan):
    config, params = load_t5(GOLDEN / form, scan=scan)
    assert (config.tied, config.gated) == {"v1_0": (True, False), "v1_1": (False, True)}[form]
    # fp32; sources of 29, 13 and 4 tokens. Logits are of the order of 10. From float64's, theirs
    # differ by 3.6e-5, ours by 5.4e-5, and by 1.2e-4 as tests compile on a processor without AVX-512.
    np.testing.assert_allclose(
        jax.jit(T5(config, scan=scan).apply)({"params": params}, *BATCH),
        STORED[f"{form}/logits"],
        atol=2e-4,
    )


@pytest.mark.parametrize(("form", "scan"), [("v1_0", True), ("v1_1", False)])
def test_greedy_tokens_equal_transformers(form, scan):
    config, params = load_t5(GOLDEN / form, scan=scan)
    engine = PairGenerator(T5(config, scan=scan), params, eos_ids=(1,), prompt_multiple=4)
    assert engine.generate(SOURCES, max_new=16) == stored_texts(form)
    streamed = list(zip(*engine.stream(SOURCES, max_new=16), strict=True))
    assert [[token for token in row if token is not None] for row in streamed] == stored_texts(form)


def test_distances_share_rows_as_published():
    config = T5Config(
        vocab_size=9,
        hidden_size=8,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        head_dim=4,
        intermediate_size=8,
    )
    for name, causal in (("both", False), ("causal", True)):
        assert np.array_equal(
            position_bucket(config, STORED["distance"], causal=causal), STORED[f"bucket_{name}"]
        )


@pytest.mark.parametrize("form", FORMS)
def test_saving_gives_the_same_tensors_and_config_back(form, tmp_path):
    config, params = load_t5(GOLDEN / form)
    save_t5(tmp_path, config, params)
    ours, theirs = dict(ModelFolder(tmp_path)), dict(ModelFolder(GOLDEN / form))
    assert (
        set(ours)
        == set(theirs)
        == {name.parameter for name in t5_names(config, scan=False).values()}
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert load_t5(tmp_path)[0] == config and kind_of(tmp_path) == "encoder-decoder"


def test_every_tensor_is_used_and_copies_of_the_embedding_are_compared(tmp_path):
    shutil.copy(GOLDEN / "v1_0" / "config.json", tmp_path)
    stored = {name: np.array(tensor) for name, tensor in ModelFolder(GOLDEN / "v1_0").items()}
    copies = dict.fromkeys(
        ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        stored["shared.weight"],
    )
    old = {
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.zeros(
            (8, 2), np.float32
        )
    }
    safetensors.write(
        tmp_path / "model.safetensors",
        stored | {name: np.array(copy) for name, copy in copies.items()} | old,
    )
    assert load_t5(tmp_path)[0].tied
    safetensors.write(
        tmp_path / "model.safetensors",
        stored | {"encoder.embed_tokens.weight": stored["shared.weight"] + 1},
    )
    with pytest.raises(
        ValueError, match=r"0 missing, 1 left over(.|\n)*encoder.embed_tokens.weight"
    ):
        load_t5(tmp_path)
    del stored["encoder.block.1.layer.0.SelfAttention.q.weight"]
    stored["decoder.block.1.layer.2.DenseReluDense.wo.weight"] = np.zeros((16, 23), np.float32)
    safetensors.write(tmp_path / "model.safetensors", stored)
    with pytest.raises(
        ValueError,
        match=r"1 missing, 0 left over, 1 of another shape(.|\n)*\(16, 23\), config.json says \(16, 24\)",
    ):
        load_t5(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"feed_forward_proj": "gated-swiglu"},
            "feed_forward_proj 'gated-swiglu' is not supported",
        ),
        ({"model_type": "mt5"}, "model_type 'mt5' is not supported"),
        ({"d_kv": None}, "d_kv must be a whole number"),
        ({"relative_attention_max_distance": 4}, "max_distance 4 above half"),
        ({"dense_act_fn": "silu"}, "dense_act_fn 'silu' is not supported; needed 'relu'"),
        ({"is_gated_act": True}, "is_gated_act True is not supported; needed False"),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_an_error(changes, message, tmp_path):
    raw = json.loads((GOLDEN / "v1_0" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(ValueError, match=message):
        load_t5(tmp_path)


def test_other_doors_say_which_one_it_is():
    with pytest.raises(ValueError, match="config.data.task to 'completion', or use load_t5"):
        load_encoder(GOLDEN / "v1_0")
    with pytest.raises(
        ValueError, match="needed here is a decoder. Load it with lora_jax.io.load_t5"
    ):
        load_decoder(GOLDEN / "v1_0")


def adapted(form: str, scan: bool = True, seed: int = 0):
    config, params = load_t5(GOLDEN / form, scan=scan)
    model, blocks = T5(config, scan=scan, remat=True), r"(encoder|decoder)/layers(_\d+)?/.*/kernel"
    rules = dict(lora=[(blocks, LoraSpec(2, 4.0))], quant=[(blocks, QuantSpec("nf4", 8, False))])
    frozen, trainable = adapt(model, params, BATCH, key=jax.random.key(seed), **rules)
    return (
        model,
        frozen,
        {path: low.replace(b=low.b + 0.05 + 0.05 * seed) for path, low in trainable.items()},
    )


@pytest.mark.parametrize(
    ("form", "scan"), [("v1_1", True), pytest.param("v1_0", False, marks=pytest.mark.slow)]
)
def test_adapters_on_quantised_weights_compute_alike_factored_merged_and_remade_from_PEFTs_format(
    form, scan, tmp_path
):
    model, frozen, trainable = adapted(form, scan)
    compute = jax.jit(lambda adapter: apply(model, frozen, adapter, *BATCH))
    ours = compute(trainable)
    merged, _ = merge(frozen, trainable, dtype=jnp.float32)
    # fp32; products of one update in two orders, through five blocks, on logits of the order of 10.
    np.testing.assert_allclose(ours, jax.jit(model.apply)({"params": merged}, *BATCH), atol=5e-4)
    names = t5_names(model.config, scan=scan)
    save_peft(tmp_path, trainable, names, task_type="SEQ_2_SEQ_LM")
    keys = {
        key.removeprefix("base_model.model.")
        for key in safetensors.read(tmp_path / "adapter_model.safetensors")
    }
    expected = {
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.1.layer.1.EncDecAttention.v",
        "decoder.block.1.layer.2.DenseReluDense.wo",
    }
    expected |= {
        f"encoder.block.1.layer.1.DenseReluDense.{name}"
        for name in (("wi_0", "wi_1") if form == "v1_1" else ("wi",))
    }
    assert {f"{name}.lora_{factor}.weight" for name in expected for factor in "AB"} <= keys
    assert len(keys) == 2 * sum(
        name.stack[0] if name.stack else 1 for path, name in names.items() if path in trainable
    )
    np.testing.assert_allclose(compute(load_peft(tmp_path, names)[0]), ours, atol=1e-5)


def test_cached_decoding_equals_the_whole_target_at_once_also_with_adapters_side_by_side():
    model, frozen, one = adapted("v1_1")
    _, _, two = adapted("v1_1", seed=1)
    together = PairGenerator(model, frozen, stack([one, two]), eos_ids=(), prompt_multiple=4)
    made = together.generate(SOURCES[:2], max_new=8, adapters=[0, 1])
    tokens = jnp.asarray(STORED["tokens"][:2])
    compute = jax.jit(
        lambda trainable, target: apply(
            model, frozen, trainable, tokens, BATCH[1][:2], target, jnp.ones_like(target)
        )
    )
    for n, trainable in enumerate((one, two)):
        target = jnp.asarray([[0, *text[:-1]] for text in made])
        assert compute(trainable, target)[n].argmax(-1).tolist() == made[n]
    assert made[0] != made[1]
