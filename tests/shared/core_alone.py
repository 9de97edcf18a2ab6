"""What the core alone can do, with none of the extras: adapt a Linen module, train it with plain
optax, keep and load the adapter, merge. Run as a program it exits with 0 if all of it holds.
"""

import contextlib
import io
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import lora_jax
from lora_jax import LoraSpec, QuantSpec
from lora_jax.cli import main


class Model(nn.Module):
    """Two layers."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="out")(nn.gelu(nn.Dense(64, name="up")(x)))


def use(folder: Path) -> None:
    """Raises where the core does not do what it says."""
    model, x = Model(), jax.random.normal(jax.random.key(0), (16, 32))
    params = model.init(jax.random.key(1), x)["params"]
    frozen, trainable = lora_jax.adapt(
        model,
        params,
        (x,),
        lora=[("up/kernel", LoraSpec(rank=4))],
        quant=[("up/kernel", QuantSpec("nf4"))],
        key=jax.random.key(2),
    )
    trained, fixed = lora_jax.partition(trainable)
    tx = optax.adamw(1e-2)
    state = tx.init(trained)

    def loss_of(trained):
        y = lora_jax.apply(model, frozen, lora_jax.combine(trained, fixed), x)
        return jnp.mean((y - 1) ** 2)

    losses = []
    for _ in range(20):
        loss, gradients = jax.value_and_grad(loss_of)(trained)
        updates, state = tx.update(gradients, state, trained)
        trained = optax.apply_updates(trained, updates)
        losses.append(float(loss))
    assert losses[-1] < losses[0]

    trainable = lora_jax.combine(trained, fixed)
    base = lora_jax.fingerprint(frozen)
    lora_jax.save_adapter(folder / "adapter", trainable, base=base, model="two layers")
    again, _ = lora_jax.load_adapter(folder / "adapter", base=base)
    merged, _ = lora_jax.merge(frozen, again)
    difference = model.apply({"params": merged}, x) - lora_jax.apply(model, frozen, trainable, x)
    assert float(jnp.abs(difference).max()) < 1e-4

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(["train", "--config", __file__])
    assert status == 2 and "pip install 'lora-jax[training]'" in " ".join(said.getvalue().split())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        use(Path(folder))
    print("the core alone works")
