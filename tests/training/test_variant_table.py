"""Every variant and initialiser through the same doors: it trains, resumes bit for bit, merges to
what it computes, and serves in a bank.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_task import NET, PLAIN, batch, loss, make
from user_models import same_bits

from lora_jax import LoraSpec, apply, create_state, join, make_optimizer, make_train_step, merge
from lora_jax.adapters.many import apply_many, make_bank
from lora_jax.core import TrainedWeight
from lora_jax.training.checkpoint import Checkpoints

TX = make_optimizer(PLAIN, 100)
# Everything that a specification can say of a variant and needs no data; those that need data start
# as ordinary factors.
SPECS = {
    "lora": {},
    "rslora": dict(scaling="rslora"),
    "lora_fa": dict(variant="lora_fa"),
    "dora": dict(dora=True),
    "vera": dict(variant="vera"),
    "adalora": dict(variant="adalora"),
    "qa_lora": dict(variant="qa_lora", group_size=2),
    "gaussian": dict(init="gaussian"),
    "orthogonal": dict(init="orthogonal"),
    "pissa": dict(init="pissa"),
    "milora": dict(init="milora"),
    "olora": dict(init="olora"),
    "dora_pissa": dict(dora=True, init="pissa"),
    "lora_xs": dict(variant="lora_xs"),
    "miss": dict(variant="miss"),
    "loha": dict(variant="loha"),
    "lokr": dict(variant="lokr", rank=1),
    "gralora": dict(variant="gralora"),
    "hira": dict(variant="hira"),
    "oft": dict(variant="oft"),
    "fourierft": dict(variant="fourierft", alpha=300.0),
    "shira": dict(variant="shira"),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_variant_trains_resumes_merges_and_serves(name: str, tmp_path: Path) -> None:
    frozen, trainable = make(LoraSpec(**{"rank": 2, "alpha": 3.0} | SPECS[name]))
    step = jax.jit(make_train_step(loss, TX))
    start = create_state(trainable, TX, jax.random.key(7))
    np.testing.assert_allclose(
        apply(NET, frozen, trainable, inputs(0)),
        NET.apply({"params": join_base(frozen, trainable)}, inputs(0)),
        atol=1e-6,
    )  # Step 0 is the base.
    middle = step(start, frozen, batch())[0]
    saving = Checkpoints(tmp_path, base="b", run="r")
    saving.save(middle, {})
    again, _ = saving.restore(start)
    saving.close()
    straight, resumed = (step(state, frozen, batch(seed=1))[0] for state in (middle, again))
    assert same_bits(straight, resumed)

    trained = straight.trainable
    x = inputs(2)
    out = apply(NET, frozen, trained, x)
    assert (
        float(jnp.abs(out - apply(NET, frozen, trainable, x)).max()) > 1e-3
    )  # It has learnt something.
    np.testing.assert_allclose(NET.apply({"params": join(frozen, trained)}, x), out, atol=1e-5)
    np.testing.assert_allclose(NET.apply({"params": merge(frozen, trained)[0]}, x), out, atol=1e-5)

    other = step(start, frozen, batch(seed=5))[0].trainable
    rows = apply_many(
        NET,
        frozen,
        make_bank([trained, other], base=join_base(frozen, trainable)),
        jnp.array([0, 1, 0, 1, 1, 0, 0, 1]),
        x,
    )
    alone = [
        apply(NET, frozen, [trained, other][own], x[row : row + 1])[0]
        for row, own in enumerate([0, 1, 0, 1, 1, 0, 0, 1])
    ]
    np.testing.assert_allclose(rows, jnp.stack(alone), atol=1e-5)


def inputs(seed: int) -> jax.Array:
    """A batch's inputs alone."""
    return jnp.asarray(batch(seed=seed)["x"])


def join_base(frozen: dict, trainable: dict) -> dict:
    """The base's weights, with those that are trained whole as they started."""
    return merge(
        frozen, {path: leaf for path, leaf in trainable.items() if isinstance(leaf, TrainedWeight)}
    )[0]
