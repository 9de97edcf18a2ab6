"""`fit` trains models of one's own by the one loop: images with batch statistics, a vision transformer
on real digits, a denoiser; with what the loop promises.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from sklearn.datasets import load_digits

import lora_jax as lj
from lora_jax.config import from_config_dict
from lora_jax.core import take_variables
from lora_jax.core.model_variable import give_variables
from lora_jax.tasks.custom import Arrays, Running
from lora_jax.tasks.given import GivenTask
from lora_jax.training import Diverged, fit
from lora_jax.training.run import steps_of

NF4 = lj.QuantSpec("nf4", 8, double=False)


class Cnn(nn.Module):
    """Images (batch, 8, 8, 1) to logits."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), strides=2, name="conv")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.5, name="norm")(x))
        return nn.Dense(10, name="head")(x.reshape(x.shape[0], -1))


class Vit(nn.Module):
    """Images (batch, 8, 8, 1) to logits: patches of 4 x 4, one block."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(16, (4, 4), strides=4, name="patches")(x).reshape(x.shape[0], 4, 16)
        x = x + self.param("positions", nn.initializers.normal(), (4, 16))
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadAttention(2, dropout_rate=0.1, deterministic=not train, name="attn")(y)
        x = x + nn.Dense(16, name="mlp")(nn.gelu(nn.LayerNorm()(x)))
        return nn.Dense(10, name="head")(x.mean(1))


class Denoiser(nn.Module):
    """Waves (batch, 16) and times (batch,) to the noise in them."""

    @nn.compact
    def __call__(self, x, t, train=False):
        times = jnp.stack([jnp.sin(t), jnp.cos(t)], -1)
        h = nn.silu(nn.Dense(32, name="wave")(x) + nn.Dense(32, name="time")(times))
        return nn.Dense(16, name="out")(h)


def classified(model, batch):
    logits = model(batch["x"], train=model.training)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return losses, logits.argmax(-1) == batch["y"]


def denoised(model, batch):
    """Denoising diffusion's loss (Ho et al. 2020, equation 14), one level of noise an example."""
    for_noise, for_time = jax.random.split(model.key)
    t = jax.random.uniform(for_time, batch["x"].shape[:1]) * 1.5
    noise = jax.random.normal(for_noise, batch["x"].shape)
    noisy = jnp.cos(t)[:, None] * batch["x"] + jnp.sin(t)[:, None] * noise
    return jnp.square(model(noisy, t, train=model.training) - noise).mean(-1)


def digits(count=96):
    found = load_digits()
    images = (found.images[..., None] / 16).astype(np.float32)
    parts = {"train": slice(0, count), "validation": slice(200, 248), "test": slice(300, 348)}
    return {name: {"x": images[s], "y": found.target[s]} for name, s in parts.items()}


def waves():
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6, (144, 1))
    x = np.sin(phase + np.arange(16) / 2).astype(np.float32)
    return {"train": {"x": x[:96]}, "validation": {"x": x[96:]}}


MODELS = {
    "cnn": (Cnn(), classified, digits, "conv/kernel", ()),
    "vit": (Vit(), classified, digits, ".*(query|value|mlp)/kernel", ("positions",)),
    "denoiser": (Denoiser(), denoised, waves, "(wave|time)/kernel", ()),
}
TRAIN = dict(epochs=4, batch_size=24, log_every=4, checkpoint_every=6, sinks=[])
OPTIM = dict(learning_rate=3e-2, schedule="cosine", warmup_fraction=0.1)


def built(name):
    """The model, its trees on a quantised base, its other variables, its data, and its loss."""
    model, loss, data, targets, whole = MODELS[name]
    splits = data()
    args = (splits["train"]["x"][:2],) + ((jnp.ones(2),) if name == "denoiser" else ())
    variables = jax.jit(model.init)(jax.random.key(0), *args)
    lora = [(targets, lj.LoraSpec(rank=2, alpha=4.0))]
    whole = ["(head|out)/.*", *whole]
    adapt = lambda params: lj.adapt(
        model, params, args, lora=lora, quant=[(targets, NF4)], whole=whole, key=jax.random.key(1)
    )
    frozen, trainable = jax.jit(adapt)(variables["params"])
    others = {key: tree for key, tree in variables.items() if key != "params"}
    return model, frozen, trainable, others, splits, loss


def rows(folder, split):
    log = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, log) if row["split"] == split]


@pytest.mark.parametrize("name", ["vit", "denoiser"])
def test_a_loss_falls_on_a_frozen_base_that_keeps_its_bits(name, tmp_path):
    model, frozen, trainable, others, data, loss = built(name)
    before = jax.tree.map(np.array, (frozen, trainable))
    metric = "loss" if name == "denoiser" else "accuracy"
    train = dict(TRAIN, accumulate=2 if name == "denoiser" else 1, select="best_epoch")
    found = fit(
        model, frozen, trainable, data,
        loss=loss, folder=tmp_path, train=train, optim=OPTIM, collections=others, metric=metric,
        quiet=True,
    )  # fmt: skip
    same = lambda a, b: bool((np.asarray(a) == b).all())
    assert jax.tree.all(jax.tree.map(same, (frozen, trainable), before))
    losses = [row["loss"] for row in rows(tmp_path, "train")]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    assert found.result.steps == 16 and found.result.selected_step
    assert found.result.is_tested == ("test" in data)

    if name == "vit":
        check_scores(model, frozen, found, data["validation"])


def check_scores(model, frozen, found, data):
    """What is given computes what was scored, with the statistics that it was trained with."""
    logits = jax.jit(lambda x: lj.apply(model, frozen, found.trainable, x))(data["x"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data["y"])
    scores = found.result.scores["validation"]
    assert scores["loss"].value == pytest.approx(float(losses.mean()), abs=1e-5)
    right = (logits.argmax(-1) == data["y"]).mean()
    assert scores["accuracy"].value == pytest.approx(float(right))


def test_statistics_are_those_that_linen_alone_would_have(tmp_path):
    model, frozen, trainable, others, data, loss = built("cnn")
    one = dict(TRAIN, total_steps=1, batch_size=96)
    still = {"learning_rate": 1e-9}
    found = fit(
        model, frozen, trainable, data,
        loss=loss, folder=tmp_path, train=one, optim=still, collections=others, quiet=True,
    )  # fmt: skip
    params, _ = lj.merge(frozen, trainable)
    x = data["train"]["x"]  # one batch, in some order
    run = jax.jit(lambda *args: model.apply(*args, train=True, mutable=["batch_stats"]))
    _, expected = run({"params": params, **others}, x)
    _, given = take_variables(found.trainable)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), given, dict(expected))
    with pytest.raises(ValueError, match="take_variables"):
        lj.merge(frozen, found.trainable)


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, monkeypatch):
    model, frozen, trainable, others, data, loss = built("cnn")
    call = lambda folder, **train: fit(
        model, frozen, trainable, data,
        loss=loss, folder=folder, train={**TRAIN, **train}, optim=OPTIM, collections=others,
        quiet=True,
    )  # fmt: skip
    before = jax.tree.map(np.array, (frozen, others))
    whole = call(tmp_path / "whole")
    same = lambda a, b: bool((np.asarray(a) == np.asarray(b)).all())
    assert jax.tree.all(jax.tree.map(same, (frozen, others), before))
    check_scores(model, frozen, whole, data["validation"])

    from lora_jax.training import loop

    save = loop.save

    def killed(group, runs, saved=None):
        save(group, runs, saved)
        if runs:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "stopped")
    monkeypatch.setattr(loop, "save", save)
    again = call(tmp_path / "stopped")
    assert jax.tree.all(jax.tree.map(same, whole.trainable, again.trainable))
    losses = lambda folder: [row["loss"] for row in rows(tmp_path / folder, "train")]
    assert losses("whole") == losses("stopped") and len(losses("whole")) == 16
    assert np.mean(losses("whole")[-4:]) < 0.9 * np.mean(losses("whole")[:4])

    # The folder is of that training alone.
    other = {**data, "validation": {name: x[:8] for name, x in data["validation"].items()}}
    for changed, says in (
        (dict(data=other), r"differ: data\['validation'\]"),
        (dict(loss=lambda model, batch: loss(model, batch)), "differ: loss"),
        (dict(metric="accuracy"), "differ: metric"),
        (dict(trainable=whole.trainable), "adapters to start from"),
    ):
        given = dict(model=model, frozen=frozen, trainable=trainable, data=data, loss=loss)
        given |= dict(folder=tmp_path / "whole", train=TRAIN, optim=OPTIM, quiet=True)
        given |= {} if "trainable" in changed else {"collections": others}
        with pytest.raises(ValueError, match=says):
            fit(**given | changed)


def test_training_ends_when_patience_does(tmp_path):
    model, frozen, trainable, _, data, loss = built("denoiser")
    train = dict(TRAIN, epochs=10, select="best_epoch", patience=2)
    # Nothing is learnt, so no epoch is better than the first.
    call = lambda: fit(
        model, frozen, trainable, data,
        loss=loss, folder=tmp_path, optim={"learning_rate": 1e-12}, train=train, quiet=True,
    )  # fmt: skip
    for found in (call(), call()):
        assert (found.result.selected_step, found.result.steps) == (4, 12)
        assert len(rows(tmp_path, "train")) == 12


def test_calls_of_one_loss_drop_apart_and_statistics_have_no_gradient():
    model, frozen, trainable, others, *_ = built("cnn")
    x, both = jnp.ones((2, 8, 8, 1)), {**trainable, **give_variables(others)}
    drops = {
        path: leaf.replace(dropout=jnp.full_like(leaf.scale[..., 0], 0.5), b=leaf.b + 1.0)
        for path, leaf in trainable.items()
        if leaf.kind == "lora"
    }
    run = Running(model, frozen, both | drops, jax.random.key(0))
    assert np.abs(run(x, train=True) - run(x, train=True)).max() > 1e-3
    whole = lambda tree: lj.apply(model, frozen, tree, x).sum()
    with pytest.raises(TypeError, match=r"value' of 'batch_stats:norm/mean' is not trained"):
        jax.grad(whole)({path: leaf for path, leaf in both.items() if leaf.kind != "lora"})


def test_an_epoch_is_its_whole_batches():
    task = GivenTask(
        model=None,
        params={},
        sites={},
        splits={"train": Arrays({"x": np.ones(30)})},
        fingerprint=str,
    )
    config = lambda **train: from_config_dict({"train": {"total_steps": None, **train}})
    assert steps_of(config(epochs=3.0, batch_size=16), task) == 3
    assert steps_of(config(epochs=3.0, batch_size=8), task) == 9


def test_what_cannot_be_right_is_refused(tmp_path):
    model, frozen, trainable, others, data, loss = built("denoiser")
    settings = dict(loss=loss, folder=tmp_path / "a", train=TRAIN, quiet=True)
    with pytest.raises(ValueError, match="validation is missing"):
        fit(model, frozen, trainable, {"train": data["train"]}, **settings)
    with pytest.raises(ValueError, match="patience counts epochs"):
        fit(model, frozen, trainable, data, **settings | {"train": {"patience": 1}})
    with pytest.raises(KeyError, match=r"batch_sise"):
        fit(model, frozen, trainable, data, **settings | {"train": {"batch_sise": 1}})
    with pytest.raises(ValueError, match="whether each row is right"):
        fit(model, frozen, trainable, data, **settings, metric="accuracy")
    nan = lambda model, batch: denoised(model, batch) * jnp.nan
    with pytest.raises(Diverged, match="diverged"):
        fit(model, frozen, trainable, data, **settings | {"loss": nan})
