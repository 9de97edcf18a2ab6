"""A module of one's own trains through the ordinary loop with a loss of one's own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_task import CLASSES, IN, NET

from lora_jax.config import from_config_dict
from lora_jax.core.lowrank import LoraSpec
from lora_jax.tasks.custom import custom_task
from lora_jax.tasks.predictions import predict, scores_of
from lora_jax.training.loop import train


def arrays(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, IN)).astype(np.float32)
    return {"x": x, "y": np.argmax(x[:, :CLASSES], -1).astype(np.int32)}


def each(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])


def mean(model, batch):
    return each(model, batch).mean()


def task(loss, splits=None):
    params = NET.init(jax.random.key(0), jnp.ones((1, IN)))["params"]
    splits = splits or {"train": arrays(40, 0), "validation": arrays(9, 1), "test": arrays(9, 2)}
    rules = [("(up|down)/kernel", LoraSpec(rank=2, alpha=4.0))]
    x = jax.ShapeDtypeStruct((1, IN), jnp.float32)
    return custom_task(NET, params, loss, splits, inputs=(x,), lora=rules, whole=["head/.*"])


CONFIG = from_config_dict(
    {
        "train": {"total_steps": 30, "batch_size": 8, "eval_batch_size": 4, "log_every": 10},
        "optim": {"learning_rate": 3e-2},
    }
)


def test_a_loss_of_rows_and_its_mean_train_alike_and_learn(tmp_path):
    start = task(each)
    trees = start.trainable(CONFIG, jax.random.key(0))
    first = scores_of(predict(start, *trees, "test", batch_size=4), start.primary)[0]
    results = [
        train(CONFIG, tmp_path / loss.__name__, task=task(loss), quiet=True)
        for loss in (each, mean)
    ]
    losses = [result.value("test") for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] < first.value - 0.2
    score = results[0].score("test")
    assert (score.name, score.unit, score.count, score.higher_is_better) == (
        "loss",
        "records",
        9,
        False,
    )
    assert "accuracy" not in results[0].scores["test"]
    log = (tmp_path / "each" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in log]
    assert rows[0]["loss"] > rows[-1]["loss"]


def test_predictions_are_of_single_examples_in_their_order():
    one = task(each)
    frozen, trainable = one.trainable(CONFIG, jax.random.key(0))
    found = predict(one, frozen, trainable, "test", batch_size=4)
    batch = arrays(9, 2)
    expected = optax.softmax_cross_entropy_with_integer_labels(
        NET.apply({"params": one.params}, batch["x"]), batch["y"]
    )
    np.testing.assert_allclose(found.column("loss"), expected, rtol=1e-5)
    assert len({row.id for row in found.rows}) == 9


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="test is missing"):
        task(each, {"train": arrays(8, 0), "validation": arrays(8, 0)})
    with pytest.raises(ValueError, match="one and the same number of examples"):
        task(each, dict.fromkeys(("train", "validation", "test"), {"x": [1, 2], "y": [1]}))
    with pytest.raises(ValueError, match="A batch of 50 examples"):
        task(each).batches("train", 50)
    one = task(lambda model, batch: model(batch["x"]))
    frozen, trainable = one.trainable(CONFIG, jax.random.key(0))
    with pytest.raises(ValueError, match=r"one number a row \(8,\), got \(8, 3\)"):
        one.per_example(frozen, trainable, jax.tree.map(jnp.asarray, one.batches("train", 8)[0]))
