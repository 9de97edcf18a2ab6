"""A decoder learns completions: packed equals unpacked, and the training loop lowers the held-out
loss.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_language import write_completions, write_tiny_model

from lora_jax.adapters.surgery import adapt
from lora_jax.config import from_config_dict, to_dict
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray, bytes_of
from lora_jax.core.trainable import combine, partition
from lora_jax.data.completions import encode_completions, read_completions
from lora_jax.data.token_packing import PackedBatches
from lora_jax.io.gguf_tokenizer import load_text_tokenizer
from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder
from lora_jax.tasks.language_loss import language_loss
from lora_jax.tasks.opening import open_task
from lora_jax.training.loop import train
from lora_jax.training.saved import load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_completions(tmp_path_factory.mktemp("data") / "a.jsonl", 64)


@pytest.mark.parametrize("targets", ["layers/.*kernel", "(layers/.*kernel|embed/embedding)"])
def test_packed_equals_unpacked_and_plain(folder, data, targets):
    config, params = load_decoder(folder)
    model = Decoder(config)
    encoded = encode_completions(
        read_completions(str(data), columns=dict(prompt="input", completion="ideal")),
        load_text_tokenizer(folder),
        24,
    )
    batches = [
        PackedBatches(encoded, 16, shuffle=False, length=48, packed=packed)[0]
        for packed in (True, False)
    ]
    assert len(batches[0]["tokens"]) < len(batches[1]["tokens"]) == 16
    inputs = (jax.ShapeDtypeStruct((1, 4), np.int32),)
    frozen, trainable = adapt(
        model, params, inputs, lora=[(targets, LoraSpec(2))], key=jax.random.key(0)
    )
    trainable = {
        path: low.replace(b=low.b + 0.1, a=low.a + 0.05) for path, low in trainable.items()
    }
    trained, fixed = partition(trainable)
    loss = language_loss(model, chunk=5)
    (packed, unpacked) = (
        jax.jit(
            jax.value_and_grad(
                lambda trained, b: loss(frozen, combine(trained, fixed), b, None), has_aux=True
            )
        )(trained, b)
        for b in batches
    )
    assert float(packed[0][1].weight) == float(unpacked[0][1].weight) == 48
    for a, b in zip(jax.tree.leaves(packed[1]), jax.tree.leaves(unpacked[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, np.abs(b).max()))

    def plain(trained):
        from lora_jax.adapters.apply import apply

        trainable = combine(trained, fixed)
        logits = apply(model, frozen, trainable, batches[1]["tokens"], batches[1]["segments"])
        return (
            optax.softmax_cross_entropy_with_integer_labels(logits, batches[1]["labels"])
            * batches[1]["loss_weight"]
        ).sum()

    value, gradient = jax.jit(jax.value_and_grad(plain))(trained)
    np.testing.assert_allclose(value, unpacked[0][0], rtol=1e-5)
    for path in trainable:
        for name in "ab":
            ours, theirs = getattr(unpacked[1][path], name), getattr(gradient[path], name)
            np.testing.assert_allclose(
                ours, theirs, rtol=1e-4, atol=1e-5 * max(1, np.abs(theirs).max()), err_msg=path
            )


def config_of(folder, data, **changes):
    return from_config_dict(
        {
            "model": {"name": str(folder)},
            "data": {
                "name": str(data),
                "task": "completion",
                "text": "input",
                "label": "ideal",
                "max_length": 24,
            },
            "method": "qlora",
            "quant": {"format": "nf4", "block_size": 8, "double": False},
            "lora": {"rank": 4, "alpha": 8.0},
            "optim": {"learning_rate": 0.02},
            "train": {
                "total_steps": 40,
                "batch_size": 16,
                "eval_batch_size": 16,
                "log_every": 20,
                "checkpoint_every": 40,
            },
            **changes,
        }
    )


def test_the_loop_trains_a_quantised_decoder(folder, data, tmp_path):
    config = config_of(folder, data)
    before = train(
        config_of(
            folder, data, train={"total_steps": 1, "batch_size": 16}, optim={"learning_rate": 1e-9}
        ),
        tmp_path / "a",
        quiet=True,
    )
    after = train(config, tmp_path / "b", quiet=True)
    # Chance is log 8 = 2.1 nats for letters that were never learned; 0.5 below the start is far
    # outside noise.
    assert after.value("test", "loss") < before.value("test", "loss") - 0.5
    texts = open_task(config).records["test"].completions
    per_byte, loss = after.score("test", "bits_per_byte"), after.score("test", "loss")
    assert per_byte.unit == "bytes" and per_byte.count == sum(len(x.encode()) for x in texts)
    nats = per_byte.value * per_byte.count * math.log(2)
    assert nats == pytest.approx(loss.value * loss.count)
    assert after.base_bits_per_weight == 8.0  # 4 bits and a 4-byte scale for 8 weights
    (tmp_path / "b" / "config.json").write_text(json.dumps(to_dict(config)))
    assert load_run(tmp_path / "b").evaluate("test")["loss"] == pytest.approx(
        after.value("test", "loss"), rel=1e-5
    )


def test_a_head_is_refused(folder, data, tmp_path):
    with pytest.raises(ValueError, match="is for classifiers. For a language model use"):
        train(config_of(folder, data, method="head", quant={}), tmp_path, quiet=True)


def test_labels_are_smoothed_in_training_alone(folder, data):
    """Of a frozen head, whose logits are then asked for, and only with the key of a step."""
    settings = dict(task="completion", name=str(data), text="input", label="ideal", max_length=24)
    config = dict(model=dict(name=str(folder)), lora=dict(rank=2, targets="query+value"))
    plain, smooth = (
        open_task(from_config_dict(dict(data=settings | dict(label_smoothing=share), **config)))
        for share in (0.0, 0.1)
    )
    run = from_config_dict(dict(data=settings, **config))
    frozen, trainable = plain.trainable(run, jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, plain.batches("train", 8)[0])

    def losses(task, key):
        return jax.jit(task.per_example)(frozen, trainable, batch, key)

    assert float(losses(smooth, None).total) == float(losses(plain, None).total)
    key = jax.random.key(1)  # without dropout it changes nothing else
    hidden, _ = plain.model.apply(
        {"params": frozen}, batch["tokens"], batch["segments"], method="hidden"
    )
    logits = plain.model.apply({"params": frozen}, hidden, method="logits")
    evenly = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
    wanted = 0.9 * losses(plain, key).total + 0.1 * (evenly * batch["loss_weight"]).sum()
    assert float(losses(smooth, key).total) == pytest.approx(float(wanted), rel=1e-5)


def test_a_base_in_16_bits_is_half_as_large_and_quantised_weights_are_as_before(folder, data):
    """Of a file in float32: what stays dense is rounded, codes come from the file's own numbers."""
    settings = dict(task="completion", name=str(data), text="input", label="ideal", max_length=24)
    changes = dict(
        quant={"format": "nf4", "block_size": 8, "double": False, "targets": ".*attn/q.*"}
    )

    def opened(dtype, method, changes):
        named = {"name": str(folder), "base_dtype": dtype}
        config = from_config_dict(
            dict(model=named, data=settings, method=method, lora=dict(rank=2), **changes)
        )
        task = open_task(config)
        return task, *task.trainable(config, jax.random.key(0))

    for method, changed in (("lora", {}), ("qlora", changes)):
        (whole, wide, factors), (half, narrow, same) = (
            opened(dtype, method, changed) for dtype in ("float32", "bfloat16")
        )
        assert whole.base == half.base  # an adapter of one goes with the other
        assert jax.tree.all(jax.tree.map(jnp.array_equal, factors, same))
        for path, leaf in flatten(narrow).items():
            if isinstance(leaf, QuantizedArray):
                assert method == "qlora" and (leaf.codes == flatten(wide)[path].codes).all()
                assert leaf.dtype == flatten(wide)[path].dtype
                continue
            rounded = flatten(wide)[path].astype(
                jnp.bfloat16 if "kernel" in path or "embedding" in path else jnp.float32
            )
            assert leaf.dtype == rounded.dtype and (leaf == rounded).all(), path
        assert bytes_of(narrow) < (0.6 if method == "lora" else 0.8) * bytes_of(wide)
        batch = jax.tree.map(jnp.asarray, half.batches("train", 8)[0])
        loss = [
            float(jax.jit(task.per_example)(frozen, factors, batch, None).total)
            for task, frozen in ((whole, wide), (half, narrow))
        ]
        assert loss[0] != loss[1] and loss[0] == pytest.approx(loss[1], rel=0.02)

    with pytest.raises(
        ValueError, match="of weights that are not trained: small steps would round"
    ):
        opened("bfloat16", "full", {})
