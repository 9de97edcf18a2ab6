"""Classes of unlike sizes count alike in training, by weights or by coming again; scores do not
change.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoder import save_tiny_encoder
from tiny_tasks import write_task

from lora_jax.config import from_config_dict
from lora_jax.data.balance import balanced_rows, balanced_weights
from lora_jax.tasks.opening import open_task
from lora_jax.training.run import steps_of


def test_weights_give_every_class_the_same_sum_and_a_mean_of_1():
    assert balanced_weights([0, 0, 0, 1], 2) == pytest.approx((2 / 3, 2))
    # A class that never comes counts nothing, and takes nothing from the others.
    assert balanced_weights([0, 0, 0, 2], 3) == pytest.approx((2 / 3, 0, 2))
    tags = [np.array([-1, 0, 0]), np.array([1, -1, 0])]
    assert balanced_weights(tags, 2) == pytest.approx((4 / 6, 2))


def test_texts_of_rarer_classes_come_again_until_all_come_as_often():
    labels = np.array([0, 1, 0, 0, 0, 1, 0, 2])
    rows = balanced_rows(labels)
    assert np.bincount(labels[rows]).tolist() == [5, 5, 5]
    assert set(rows) == set(range(8)) and np.bincount(rows).tolist() == [1, 3, 1, 1, 1, 2, 1, 5]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A task of 90 texts of one class and 10 of another, by balance."""
    folder = tmp_path_factory.mktemp("task")
    model, path = save_tiny_encoder(folder / "model"), folder / "a.jsonl"
    rows = [
        {"text": f"{'good' if n % 10 else 'bad'} film {n}", "label": int(n % 10 > 0)}
        for n in range(100)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def open_with(balance, **changes):
        data = dict(name=str(path), max_length=12, balance=balance, **changes)
        config = from_config_dict(
            dict(
                model=dict(name=str(model), scan=False),
                data=data,
                train=dict(batch_size=8, epochs=1.0),
                lora=dict(rank=2),
            )
        )
        return config, open_task(config)

    return open_with


def test_the_loss_of_training_is_weighted_and_that_of_scores_is_not(opened):
    (config, plain), (_, weighted) = opened("none"), opened("weights")
    frozen, trainable = plain.trainable(config, jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, plain.batches("train", 16)[0])
    losses = lambda task, key: jax.jit(task.per_example)(frozen, trainable, batch, key)
    key = jax.random.key(1)  # without dropout it changes nothing else
    assert float(losses(weighted, None).total) == float(losses(plain, None).total)

    counts = np.bincount(plain.splits["train"].labels)
    by_class = counts.sum() / (2 * counts)
    once, twice = losses(plain, key), losses(weighted, key)
    np.testing.assert_allclose(twice.weight, by_class[batch["labels"]], rtol=1e-6)
    np.testing.assert_allclose(twice.loss, once.loss * by_class[batch["labels"]], rtol=1e-6)
    assert weighted.per_example == opened("weights")[1].per_example  # programs are shared by it


def test_an_epoch_has_every_class_as_often_and_evaluation_none_again(opened):
    (config, plain), (sampled_config, sampled) = opened("none"), opened("sampling")
    labels = lambda task, **order: np.concatenate(
        [
            batch["labels"][batch["weight"] > 0]
            for batch in (task.batches("train", 8, epochs=1, **order))
        ]
    )
    drawn = np.bincount(labels(sampled))
    assert drawn[0] == drawn[1] == np.bincount(labels(plain)).max()
    assert (labels(sampled, shuffle=False) == labels(plain, shuffle=False)).all()
    assert steps_of(sampled_config, sampled) == sampled.batches("train", 8).steps_per_epoch
    assert steps_of(config, plain) == plain.batches("train", 8).steps_per_epoch < 15


def test_what_has_no_classes_is_not_balanced(opened, tmp_path):
    for changes in (
        dict(recipe="regression"),
        dict(task="completion"),
        dict(recipe="token_classification"),
    ):
        with pytest.raises(ValueError, match="config.data.balance 'sampling' is of an encoder's"):
            opened("sampling", **changes)
    write_task(tmp_path / "a.jsonl", "token_classification")
    changes = dict(recipe="token_classification", name=str(tmp_path / "a.jsonl"))
    config = from_config_dict(dict(data=dict(balance="weights", **changes)))
    assert config.data.balance == "weights"
