"""Measured second moments and gradients, in every form of repeated block, against plain
recomputation.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lora_jax.adapters.apply import apply
from lora_jax.adapters.calibration import eva_ranks, input_moments, limit_ranks, weight_gradients
from lora_jax.adapters.sites import find_sites
from lora_jax.adapters.surgery import adapt
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.quantize import QuantSpec

spec = importlib.util.spec_from_file_location("zoo", Path(__file__).parent / "zoo.py")
zoo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zoo)


def setup(form):
    """The deep model with a squared loss over real rows."""
    model, params, (x,) = zoo.deep(form)
    batches = [
        {"x": x, "weight": jnp.asarray([1.0, 1.0, 1.0, 0.0])},
        {"x": 2 * x, "weight": jnp.ones(4)},
    ]

    def loss(frozen, trainable, batch, key):
        total = (
            jnp.square(apply(model, frozen, trainable, batch["x"])).sum(-1) * batch["weight"]
        ).sum()
        return total, None

    sites = {
        path: site
        for path, site in find_sites(model, x).items()
        if path.endswith("up/kernel") or path.endswith("down/kernel")
    }
    return model, params, batches, loss, sites


def inputs_of_down(params, x):
    """What the first block's `down` reads, by hand."""
    block = params.get("layers_0") or jax.tree.map(lambda p: p[0], params["layers"])
    h = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    h = h * block["norm"]["scale"] + block["norm"]["bias"]
    return np.tanh(h @ block["up"]["kernel"] + block["up"]["bias"])


@pytest.mark.parametrize("form", ["loop", "scan_remat"])
def test_second_moments_are_those_of_the_inputs_with_filler_rows_left_out(form):
    _, params, batches, loss, sites = setup(form)
    found = input_moments(loss, params, batches, list(sites.values()))
    rows = np.concatenate(
        [
            np.float64(inputs_of_down(params, np.float64(b["x"])))[np.asarray(b["weight"]) > 0]
            for b in batches
        ]
    )
    ours = found["layers/down/kernel"][0] if form != "loop" else found["layers_0/down/kernel"]
    # Sums over seven real rows; the second moment's own scale is left to the initialisers, which do
    # not use it.
    wanted = rows.T @ rows
    np.testing.assert_allclose(ours / np.trace(ours), wanted / np.trace(wanted), atol=1e-5)
    assert found["layers/up/kernel" if form != "loop" else "layers_2/up/kernel"].shape[-2:] == (
        8,
        8,
    )


def test_moments_are_means_over_the_tokens_that_are_real_in_rows_that_are():
    """The third row is filler whose mask is that of the row that it repeats."""
    model, x = nn.Dense(3, use_bias=False), jax.random.normal(jax.random.key(1), (3, 4, 5))
    params = model.init(jax.random.key(0), x)["params"]
    mask = jnp.asarray([[1.0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    weight = jnp.asarray([1.0, 1.0, 0.0])

    def loss(frozen, trainable, batch, key):
        each = jnp.square(apply(model, frozen, trainable, batch["x"])).sum(-1)
        return (each * batch["mask"] * batch["weight"][:, None]).sum(), None

    sites = list(find_sites(model, x).values())
    found = input_moments(loss, params, [{"x": x, "mask": mask, "weight": weight}], sites)
    real = np.concatenate([x[0, :3], x[1, :2]])
    np.testing.assert_allclose(found["kernel"], real.T @ real / 5, rtol=1e-5)


def test_gradients_are_those_of_the_mean_loss_and_work_on_a_quantised_base():
    model, params, batches, loss, sites = setup("scan")
    found = weight_gradients(loss, params, batches, list(sites.values()))

    def mean(kernel):
        tree = {
            **params,
            "layers": {**params["layers"], "up": {**params["layers"]["up"], "kernel": kernel}},
        }
        rows = [
            jnp.square(model.apply({"params": tree}, b["x"])).sum(-1) * b["weight"] for b in batches
        ]
        return jnp.concatenate(rows).sum() / 7

    wanted = jax.grad(mean)(params["layers"]["up"]["kernel"])
    np.testing.assert_allclose(
        found["layers/up/kernel"], wanted, rtol=1e-4, atol=1e-4 * float(jnp.abs(wanted).max())
    )
    frozen, _ = adapt(
        model, params, (batches[0]["x"],), lora=[("layers/up/kernel", LoraSpec(rank=2))], quant=[("layers/.*kernel", QuantSpec("int8", 4, False))],
        key=jax.random.key(0),
    )  # fmt: skip
    near = weight_gradients(loss, frozen, batches, list(sites.values()))["layers/up/kernel"]
    assert 0 < float(jnp.linalg.norm(near - wanted)) < 0.2 * float(jnp.linalg.norm(wanted))


def test_starts_that_make_up_for_rounding_are_added_to_the_codes_and_need_some():
    model, x = nn.Dense(8, use_bias=False), jax.random.normal(jax.random.key(1), (30, 16))
    params = {"kernel": jax.random.normal(jax.random.key(0), (16, 8))}

    codes = [("kernel", QuantSpec("int3", 4, False))]

    def made(quant=codes, **settings):
        return adapt(
            model,
            params,
            (x,),
            lora=[("kernel", LoraSpec(**{"rank": 2, "init": "cloq"} | settings))],
            quant=quant,
            key=jax.random.key(0),
            statistics={"kernel": x.T @ x},
        )

    frozen, trainable = made()
    x, off = np.float64(x), np.float64(params["kernel"]) - np.float64(frozen["kernel"].unbox())
    left = off - np.float64(trainable["kernel"].delta())
    least = np.sqrt((np.linalg.svd(x @ off)[1][2:] ** 2).sum())
    np.testing.assert_allclose(np.linalg.norm(x @ left), least, rtol=1e-4)
    with pytest.raises(ValueError, match="makes up for the rounding of a quantised base"):
        jax.eval_shape(lambda: made(quant=()))
    with pytest.raises(ValueError, match="nothing of that start would be left"):
        jax.eval_shape(lambda: made(merge_aware=True))


@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga", "lora_one"])
def test_data_driven_initialisers_start_at_the_base(init):
    model, params, batches, loss, sites = setup("scan")
    measure = weight_gradients if init.startswith("lora_") else input_moments
    found = measure(loss, params, batches, list(sites.values()))
    run = lambda stats: adapt(
        model,
        params,
        (batches[0]["x"],),
        lora=[("layers/.*kernel", LoraSpec(rank=2, init=init))],
        key=jax.random.key(0),
        statistics=stats,
    )
    frozen, trainable = run(found)
    np.testing.assert_array_equal(
        apply(model, frozen, trainable, batches[0]["x"]), apply(model, frozen, {}, batches[0]["x"])
    )
    assert float(jnp.abs(trainable["layers/up/kernel"].a).max()) > 0.01
    with pytest.raises(ValueError, match="needs measurements"):
        run(None)


def test_sites_without_a_factored_product_are_refused():
    model, params, inputs = zoo.kinds()
    sites = find_sites(model, *inputs)
    for path in ("raw", "conv/kernel"):
        with pytest.raises(ValueError, match=f"{path}: inputs can be measured"):
            input_moments(lambda *_: None, params, [{}], [sites[path]])


def test_eva_gives_columns_to_matrices_whose_inputs_have_few_directions():
    few, many = np.diag([8.0, 4.0, 0.1, 0.1, 0.1, 0.1]), np.eye(6)
    ranks = eva_ranks(
        {"few": jnp.asarray(few, jnp.float32), "many": jnp.asarray(many, jnp.float32)},
        rank=2,
        rho=2.0,
    )
    # Ratios .65, .32 of the first and .17 of the second's: four columns in all, equal ratios at the
    # edge are all kept.
    assert int(ranks["few"]) == 2 and int(ranks["many"]) == 4
    _, trainable = adapt(*_one(), lora=[("kernel", LoraSpec(rank=4))], key=jax.random.key(0))
    limited = limit_ranks(trainable, {"kernel": ranks["few"]})["kernel"]
    assert limited.active_parameters() == 2 * (12 + 20) and limited.trim().rank == 2


def _one():
    from flax import linen as nn

    model, x = nn.Dense(20), jnp.ones((1, 12))
    return model, model.init(jax.random.key(0), x)["params"], (x,)
