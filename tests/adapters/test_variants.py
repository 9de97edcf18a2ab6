"""Every variant against its definition, on every kind of site and every way of repeating a
block.
"""

import dataclasses
import importlib.util
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.apply import apply, join, split
from lora_jax.adapters.merge import merge
from lora_jax.adapters.surgery import adapt, trainable_parameters
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantSpec
from lora_jax.core.trainable import combine, partition
from lora_jax.core.trained_weight import TrainedWeight

spec = importlib.util.spec_from_file_location("zoo", Path(__file__).parent / "zoo.py")
zoo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zoo)

SPECS = {
    "lora": LoraSpec(rank=2),
    "rslora": LoraSpec(rank=4, scaling="rslora"),
    "lora_fa": LoraSpec(rank=2, variant="lora_fa"),
    "dora": LoraSpec(rank=2, dora=True),
    "vera": LoraSpec(rank=12, variant="vera"),
    "adalora": LoraSpec(rank=2, variant="adalora"),
    "qa_lora": LoraSpec(rank=1, variant="qa_lora", group_size=4),
    "pissa": LoraSpec(rank=2, init="pissa"),
    "dora_pissa": LoraSpec(rank=2, init="pissa", dora=True),
    "olora": LoraSpec(rank=2, init="olora"),
    "dora_vera": LoraSpec(rank=4, variant="vera", dora=True),
    "fused": LoraSpec(rank=2, parts=(True, False)),
    "lora_xs": LoraSpec(rank=3, variant="lora_xs"),
    "miss": LoraSpec(rank=3, variant="miss"),
    "loha": LoraSpec(rank=2, variant="loha"),
    "lokr": LoraSpec(rank=1, variant="lokr"),
    "gralora": LoraSpec(rank=4, variant="gralora"),
    "hira": LoraSpec(rank=2, variant="hira"),
    "oft": LoraSpec(rank=4, variant="oft"),
    "fourierft": LoraSpec(rank=2, variant="fourierft", alpha=64.0),
    "shira": LoraSpec(rank=2, variant="shira"),
    "dora_loha": LoraSpec(rank=2, variant="loha", dora=True),
}
# Columns of the ordinary factors of one column, of weights of 8 x 16 and 16 x 8: those of structured
# ones are more.
WIDER = {"loha": 2, "dora_loha": 2, "gralora": 2, "lokr": {"up": 4, "down": 2}}
# Those whose parts differ from each other: together they cover every branch of every rule.
APART = ("lora", "dora", "vera", "qa_lora", "dora_pissa", "fused", "lokr", "hira", "oft")
CHANGES = ("oft", "fourierft", "shira")
QUANT = QuantSpec("nf4", 4, False)
# Sums of up to 24 terms in another order, through about ten layers; relative to the largest
# activation.
CLOSE = 1e-5


def _matrices(name):
    """Rules for the sites that a variant can adapt: groups of 4 do not divide the vocabulary of
    11, and words are not rotated.
    """
    skip = ("embed/embedding",) if name in ("qa_lora", "oft") else ()
    return [*((path, None) for path in skip), ("(embed/embedding|raw|.*/kernel)", SPECS[name])]


@pytest.mark.parametrize("name", APART)
def test_factored_boxed_and_merged_give_one_function_on_every_kind_of_site(name):
    model, params, inputs = zoo.kinds()
    quant = [("(raw|heads/kernel|conv/kernel|dense/kernel)", QUANT)]
    frozen, trainable = adapt(
        model, params, inputs, lora=_matrices(name), quant=quant, key=jax.random.key(2)
    )
    trainable = zoo.moved(trainable, 0.1)
    run = jax.jit(lambda params: model.apply({"params": params}, *inputs))
    boxed, base, merged = (
        run(join(frozen, trainable)),
        run(join(frozen, {})),
        run(merge(frozen, trainable)[0]),
    )
    size = float(jnp.abs(boxed).max())
    assert float(jnp.abs(boxed - base).max()) > 0.01 * size
    np.testing.assert_allclose(
        jax.jit(lambda: apply(model, frozen, trainable, *inputs))(),
        boxed,
        rtol=0,
        atol=CLOSE * size,
    )
    np.testing.assert_allclose(merged, boxed, rtol=0, atol=CLOSE * size)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "scan_remat") for name in APART),
        *(("dora_pissa", form) for form in zoo.FORMS if form != "scan_remat"),
    ],
)
def test_factored_equals_boxed_however_blocks_are_repeated_and_step_0_is_the_base(name, form):
    model, params, inputs = zoo.deep(form)
    frozen, trainable = adapt(
        model,
        params,
        inputs,
        lora=[("layers.*/kernel", SPECS[name])],
        quant=[("layers.*up/kernel", QUANT)],
        key=jax.random.key(2),
    )
    run = jax.jit(lambda trainable: apply(model, frozen, trainable, *inputs))
    base, start = jax.jit(lambda: apply(model, frozen, {}, *inputs))(), run(trainable)
    # DoRA with a start that is not 0 divides two norms that are computed in one way but compiled
    # twice: a few ulps.
    np.testing.assert_allclose(start, base, rtol=0, atol=2e-6 if name == "dora_pissa" else 0)
    trainable = zoo.moved(trainable, 0.1)
    boxed = jax.jit(lambda trainable: model.apply({"params": join(frozen, trainable)}, *inputs))(
        trainable
    )
    np.testing.assert_allclose(
        run(trainable), boxed, rtol=0, atol=CLOSE * float(jnp.abs(boxed).max())
    )


@pytest.mark.parametrize("name", APART)
def test_gradients_of_the_factored_product_equal_autodiff_of_the_dense_weight(name):
    model, params, inputs = zoo.kinds()
    frozen, trainable = adapt(model, params, inputs, lora=_matrices(name), key=jax.random.key(2))
    trained, fixed = partition(zoo.moved(trainable, 0.1))

    def loss(tree, run):
        return jnp.square(run(combine(tree, fixed))).mean()

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    factored = grad(trained, lambda trainable: apply(model, frozen, trainable, *inputs))
    dense = grad(
        trained, lambda trainable: model.apply({"params": join(frozen, trainable)}, *inputs)
    )
    assert jax.tree.structure(factored) == jax.tree.structure(trained)
    for ours, theirs in zip(jax.tree.leaves(factored), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(
            ours, theirs, rtol=1e-3, atol=2e-5 * float(jnp.abs(theirs).max())
        )


@pytest.mark.parametrize("name", SPECS)
def test_split_inverts_join_and_partition_inverts_combine(name):
    model, params, inputs = zoo.deep("scan")
    frozen, trainable = adapt(
        model, params, inputs, lora=[("layers.*/kernel", SPECS[name])], key=jax.random.key(2)
    )
    again_frozen, again = split(join(frozen, trainable))
    assert jax.tree.structure((again_frozen, again)) == jax.tree.structure((frozen, trainable))
    trained, fixed = partition(trainable)
    assert {n for leaf in trained.values() for n in leaf.trained_fields()} == set(
        trainable["layers/up/kernel"].trained_fields()
    )
    for ours, theirs in zip(
        jax.tree.leaves(combine(trained, fixed)), jax.tree.leaves(trainable), strict=True
    ):
        assert ours is theirs


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ("hira", *CHANGES)])
def test_plain_factors_of_any_variant_compute_the_same_update(name):
    model, params, inputs = zoo.deep("scan")
    _, trainable = adapt(
        model, params, inputs, lora=[("layers.*/kernel", SPECS[name])], key=jax.random.key(2)
    )
    for path, leaf in zoo.moved(trainable).items():
        plain, wider = leaf.plain(), WIDER.get(name, 1)
        wider = wider if isinstance(wider, int) else wider[path.split("/")[1]]
        assert (
            plain.group == 1
            and plain.gain is None
            and plain.out_gain is None
            and plain.a0 is None
            and plain.parts is None
            and plain.mix is None
            and plain.a2 is None
            and plain.outer is None
            and plain.blocks == 1
        )
        update = (np.float64(plain.a) * np.float64(plain.scale)[..., None, :]) @ np.float64(plain.b)
        np.testing.assert_allclose(
            leaf.delta(), update, rtol=1e-5, atol=1e-5 * np.abs(update).max()
        )
        assert plain.rank == leaf.rank * wider * (2 if leaf.a0 is not None else 1)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "oft"])
def test_padding_changes_nothing_and_is_undone_by_trimming(name):
    model, params, inputs = zoo.deep("scan")
    frozen, trainable = adapt(
        model, params, inputs, lora=[("layers.*/kernel", SPECS[name])], key=jax.random.key(2)
    )
    trainable = zoo.moved(trainable, 0.1)
    wide = {path: leaf.with_rank(leaf.rank + 3) for path, leaf in trainable.items()}
    for path in trainable:
        weights = [flatten(join(frozen, one))[path].unbox() for one in (wide, trainable)]
        np.testing.assert_allclose(*weights, rtol=1e-6, atol=1e-6)
    assert trainable_parameters(wide) == trainable_parameters(trainable)
    for path, leaf in wide.items():
        for ours, theirs in zip(
            jax.tree.leaves(leaf.trim()), jax.tree.leaves(trainable[path]), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_layers_that_are_left_out_stay_the_base_and_count_nothing_under_dora():
    model, params, inputs = zoo.deep("scan")
    one = dataclasses.replace(SPECS["dora"], layers=(1,))
    frozen, trainable = adapt(
        model, params, inputs, lora=[("layers.*/kernel", one)], key=jax.random.key(2)
    )
    weight = np.asarray(join(frozen, zoo.moved(trainable))["layers"]["up"]["kernel"].unbox())
    base = np.asarray(frozen["layers"]["up"]["kernel"])
    np.testing.assert_array_equal(weight[[0, 2]], base[[0, 2]])
    assert np.abs(weight[1] - base[1]).max() > 0.1
    assert trainable_parameters(trainable) == 2 * (2 * (8 + 16)) + 16 + 8


def test_counts_of_trained_parameters_follow_the_formulas():
    low = lambda spec: adapt_one(spec, (12, 20))
    assert low(LoraSpec(rank=3)).active_parameters() == 3 * (12 + 20)
    assert low(LoraSpec(rank=3, variant="lora_fa")).active_parameters() == 3 * 20
    assert low(LoraSpec(rank=3, dora=True)).active_parameters() == 3 * (12 + 20) + 20
    assert low(LoraSpec(rank=64, variant="vera")).active_parameters() == 64 + 20
    assert low(LoraSpec(rank=3, variant="adalora")).active_parameters() == 3 * (12 + 20 + 1)
    assert low(LoraSpec(rank=3, variant="qa_lora", group_size=4)).active_parameters() == 3 * (
        12 // 4 + 20
    )
    assert low(LoraSpec(rank=3, parts=(True, False, True, False))).active_parameters() == 2 * 3 * (
        12 + 20 // 4
    )
    assert low(LoraSpec(rank=3, init="pissa")).active_parameters() == 3 * (12 + 20)
    assert low(LoraSpec(rank=3, variant="hira")).active_parameters() == 3 * (12 + 20)
    assert low(LoraSpec(rank=3, variant="lora_xs")).active_parameters() == 3 * 3
    assert low(LoraSpec(rank=3, variant="miss")).active_parameters() == 3 * 20
    assert low(LoraSpec(rank=3, variant="loha")).active_parameters() == 2 * 3 * (12 + 20)
    # 12 = 3 * 4, 20 = 4 * 5.
    assert low(LoraSpec(rank=2, variant="lokr")).active_parameters() == 3 * 4 + 2 * (4 + 5)
    assert low(LoraSpec(rank=4, variant="gralora")).active_parameters() == 4 * (12 + 20)


def test_structured_updates_are_what_their_papers_say():
    x = {
        name: zoo.moved({"k": adapt_one(SPECS[name], (12, 20))})["k"]
        for name in ("lora_xs", "miss", "loha", "lokr", "gralora")
    }
    f = {name: jax.tree.map(np.float64, low) for name, low in x.items()}
    scale = lambda name: SPECS[name].effective_scale
    wanted = {
        "lora_xs": scale("lora_xs") * f["lora_xs"].a @ f["lora_xs"].mix @ f["lora_xs"].b,
        "miss": f["miss"].b[np.arange(12) % 3],
        "loha": scale("loha") * (f["loha"].a @ f["loha"].b) * (f["loha"].a2 @ f["loha"].b2),
        "lokr": scale("lokr") * np.kron(f["lokr"].outer, f["lokr"].a @ f["lokr"].b),
    }
    a, b = f["gralora"].a, f["gralora"].b
    blocks = [
        [a[6 * m : 6 * m + 6, n::2] @ b[m::2, 10 * n : 10 * n + 10] for n in (0, 1)] for m in (0, 1)
    ]
    wanted["gralora"] = scale("gralora") * np.block(blocks)
    hira = zoo.moved({"k": adapt_one(SPECS["hira"], (12, 20))})["k"]
    base = np.float64(base_of((12, 20)))
    np.testing.assert_allclose(
        hira.onto(base_of((12, 20)), "k").unbox(),
        base * (1 + np.float64(hira.a) @ np.float64(hira.b)),
        rtol=1e-5,
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="Merge it into the base"):
        hira.plain()
    for name, low in x.items():
        np.testing.assert_allclose(low.delta(), wanted[name], rtol=1e-4, atol=1e-4, err_msg=name)
    u, s, vt = np.linalg.svd(np.asarray(base_of((12, 20))), full_matrices=False)
    kept = (u[:, :3] * s[:3]) @ vt[:3]
    np.testing.assert_allclose(x["lora_xs"].a @ x["lora_xs"].b, kept, atol=1e-5)


def base_of(shape):
    from flax import linen as nn

    return nn.Dense(shape[1]).init(jax.random.key(0), jnp.ones((1, shape[0])))["params"]["kernel"]


def adapt_one(spec, shape):
    from flax import linen as nn

    model, x = nn.Dense(shape[1]), jnp.ones((1, shape[0]))
    params = {"kernel": base_of(shape), "bias": jnp.zeros(shape[1])}
    _, trainable = adapt(model, params, (x,), lora=[("kernel", spec)], key=jax.random.key(1))
    return trainable["kernel"]


def test_lora_fa_has_no_gradient_and_no_optimiser_state_for_a():
    from lora_jax.config import OptimConfig
    from lora_jax.training.optim import make_optimizer

    low = {"kernel": adapt_one(LoraSpec(rank=3, variant="lora_fa"), (12, 20))}
    trained, fixed = partition(low)
    assert trained["kernel"].a is None and fixed["kernel"].a is not None
    state = make_optimizer(OptimConfig(), 10).init(trained)
    assert not [leaf for leaf in jax.tree.leaves(state) if leaf.shape == low["kernel"].a.shape]
    assert [leaf for leaf in jax.tree.leaves(state) if leaf.shape == low["kernel"].b.shape]


def test_vera_shares_its_random_factors_between_sites_and_layers():
    model, params, inputs = zoo.deep("scan")
    _, trainable = adapt(
        model, params, inputs, lora=[("layers.*/kernel", SPECS["vera"])], key=jax.random.key(2)
    )
    up, down = trainable["layers/up/kernel"], trainable["layers/down/kernel"]  # 8 -> 16 and 16 -> 8
    np.testing.assert_array_equal(up.a[0], up.a[2])
    # Kaiming bounds differ by sqrt of the inputs, the directions do not.
    np.testing.assert_allclose(up.a[0] * np.sqrt(8), down.a[0][:8] * np.sqrt(16), rtol=1e-6)
    np.testing.assert_array_equal(up.b[0][:, :8], down.b[1])
    assert up.trained_fields() == ("gain", "out_gain")


def test_qa_lora_update_is_constant_over_each_group_of_inputs():
    low = zoo.moved(
        {"kernel": adapt_one(LoraSpec(rank=3, variant="qa_lora", group_size=4), (12, 20))}
    )["kernel"]
    delta = np.asarray(low.delta()).reshape(3, 4, 20)
    np.testing.assert_array_equal(delta, np.broadcast_to(delta[:, :1], delta.shape))
    assert np.abs(delta).max() > 0.1


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (dict(variant="dorra"), "Unknown LoRA variant 'dorra'"),
        (dict(variant="vera", init="pissa"), "first values of its own"),
        (dict(variant="qa_lora", init="olora"), "pools its inputs"),
        (dict(parts=(False, False)), "adapts none"),
        (dict(parts=(True, False), init="pissa"), "fused kernel"),
        (dict(group_size=0), "group_size"),
        (dict(variant="lokr", dora=True), "do not go together"),
        (dict(variant="loha", parts=(True, False)), "fused kernel"),
        (dict(variant="hira", dropout=0.1), "no update apart from the base"),
        (dict(variant="hira", merge_aware=True), "no update apart from the base"),
        (dict(variant="hira", dora=True), "do not go together"),
        (dict(blocks=0), "blocks must be at least 1"),
    ],
)
def test_specifications_that_contradict_themselves_are_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        LoraSpec(**bad)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (LoraSpec(rank=2, variant="qa_lora", group_size=5), "group_size must divide"),
        (LoraSpec(rank=2, parts=(True, False, False)), "do not divide"),
        (LoraSpec(rank=2, init="eva"), "needs measurements"),
        (LoraSpec(rank=3, variant="lokr"), "rank below 2.5, got 3"),
        (LoraSpec(rank=3, variant="gralora"), "blocks=2 must divide"),
        (LoraSpec(rank=2, init="loftq"), "quant rule"),
        (LoraSpec(rank=3, init="orthogonal"), "even rank"),
        (LoraSpec(rank=2, init="pisa"), "nearest: 'pissa'"),
    ],
)
def test_sites_that_cannot_have_a_specification_are_refused_by_name(spec, says):
    with pytest.raises(ValueError, match=f"kernel: .*{says}"):
        adapt_one(spec, (12, 20))


def test_bias_modes_train_none_all_or_those_beside_adapted_weights():
    model, params, inputs = zoo.deep("loop")
    run = lambda bias: adapt(
        model,
        params,
        inputs,
        lora=[("layers_1/up/kernel", SPECS["lora"])],
        bias=bias,
        key=jax.random.key(0),
    )
    whole = lambda trainable: sorted(
        path for path, leaf in trainable.items() if isinstance(leaf, TrainedWeight)
    )
    assert whole(run("none")[1]) == []
    assert whole(run("lora_only")[1]) == ["layers_1/up/bias"]
    frozen, trainable = run("all")
    assert len(whole(trainable)) == 3 * 3 + 1 and "bias" not in frozen["head"]
    with pytest.raises(ValueError, match="bias must be"):
        run("some")


def test_experts_of_one_kernel_get_factors_of_their_own():
    from flax import linen as nn

    class Experts(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("w", nn.initializers.lecun_normal(batch_axis=(0,)), (3, 8, 6))
            return nn.Einsum((3, 6, 5), "etd,edo->eto", name="out")(
                jnp.tanh(jnp.einsum("etd,edo->eto", x, w))
            )

    model, x = Experts(), jax.random.normal(jax.random.key(1), (3, 4, 8))
    params = model.init(jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match="no stack of matrices"):
        adapt(
            model,
            params,
            (x,),
            lora=[("out/kernel", LoraSpec(rank=2))],
            experts=["out/bias"],
            key=jax.random.key(3),
        )
    rules = [("w|out/kernel", LoraSpec(rank=2))]
    for quant in ([], [("w", QuantSpec("int8", 4, False))]):
        frozen, trainable = adapt(
            model,
            params,
            (x,),
            lora=rules,
            quant=quant,
            experts=["w|out/kernel"],
            key=jax.random.key(3),
        )
        assert trainable["w"].a.shape == (3, 8, 2) and trainable["out/kernel"].b.shape == (3, 2, 5)
        assert np.abs(np.asarray(trainable["w"].a[0] - trainable["w"].a[1])).max() > 0.01
        trainable = zoo.moved(trainable)
        weights = {
            path: np.float64(
                join(frozen, {})["w"].unbox()
                if path == "w" and quant
                else params["w"]
                if path == "w"
                else params["out"]["kernel"]
            )
            for path in trainable
        }
        for path, low in trainable.items():
            weights[path] += (np.float64(low.a) * np.float64(low.scale)[..., None, :]) @ np.float64(
                low.b
            )
        hidden = np.tanh(np.einsum("etd,edo->eto", np.float64(x), weights["w"]))
        # nn.Einsum's bias is (experts, out): one a made letter and one a shared one.
        wanted = (
            np.einsum("etd,edo->eto", hidden, weights["out/kernel"])
            + np.float64(params["out"]["bias"])[:, None]
        )
        np.testing.assert_allclose(apply(model, frozen, trainable, x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dora", "dora_pissa", "qa_lora"])
def test_dropout_acts_on_the_adapters_input_and_never_on_the_base_term(name):
    from flax import linen as nn

    model, x, key = nn.Dense(10), jax.random.normal(jax.random.key(0), (7, 8)), jax.random.key(4)
    params = model.init(jax.random.key(1), x)["params"]
    rule = dataclasses.replace(SPECS[name], dropout=0.5)
    _, trainable = adapt(model, params, (x,), lora=[("kernel", rule)], key=jax.random.key(2))
    low = zoo.moved(trainable, 0.1)["kernel"]
    keep = jax.random.bernoulli(jax.random.fold_in(key, zlib.crc32(b"kernel")), 0.5, x.shape)
    dropped = np.where(keep, 2 * np.float64(x), 0)
    factors = 1.0
    if low.magnitude is not None:
        factors = np.float64(low.magnitude) / np.linalg.norm(
            np.float64(params["kernel"]) + np.float64(low.delta()), axis=0
        )
    wanted = (
        np.float64(x) @ np.float64(params["kernel"]) + dropped @ np.float64(low.delta())
    ) * factors + np.float64(params["bias"])
    np.testing.assert_allclose(
        apply(model, params, {"kernel": low}, x, key=key), wanted, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["lora", "dora_pissa"])
@pytest.mark.parametrize("equation", ["etd,edo->eto", "td,edo->teo", "etdh,edho->oet"])
def test_experts_of_an_einsum_are_multiplied_without_a_dense_update(name, equation):
    from flax import linen as nn

    sizes = dict(e=3, t=4, d=5, h=2, o=6)
    left, output = equation.split("->")
    given, kernel = left.split(",")
    shape = lambda letters: tuple(sizes[letter] for letter in letters)
    model, x = (
        nn.Einsum(shape(kernel), equation),
        jax.random.normal(jax.random.key(1), shape(given)),
    )
    params = jax.tree.map(lambda p: p + 0.3, model.init(jax.random.key(0), x)["params"])
    if equation != "td,edo->teo":
        frozen, trainable = adapt(
            model,
            params,
            (x,),
            lora=[("kernel", SPECS[name])],
            experts=["kernel"],
            key=jax.random.key(3),
        )
    # Its experts share their input, so the kernel is one matrix (d, e * o) to find_sites, and has
    # one pair of factors.
    else:
        frozen, trainable = adapt(
            model, params, (x,), lora=[("kernel", SPECS[name])], key=jax.random.key(3)
        )
    trainable = zoo.moved(trainable)
    boxed = model.apply({"params": join(frozen, trainable)}, x)
    np.testing.assert_allclose(
        apply(model, frozen, trainable, x),
        boxed,
        rtol=1e-5,
        atol=1e-5 * float(jnp.abs(boxed).max()),
    )
    if equation == "etd,edo->eto":
        jaxpr = str(
            jax.make_jaxpr(lambda low: apply(model, frozen, {"kernel": low}, x))(
                trainable["kernel"].replace(magnitude=None)
            )
        )
        assert "f32[3,5,6] = dot_general" not in jaxpr


def test_no_dense_copy_of_a_quantised_base_is_kept_for_the_backward_pass_under_dora():
    model, params, inputs = zoo.deep("scan")
    rules = [("layers/.*/kernel", SPECS["dora_pissa"])]
    frozen, trainable = adapt(
        model,
        params,
        inputs,
        lora=rules,
        quant=[("layers/.*/kernel", QUANT)],
        key=jax.random.key(2),
    )
    trained, fixed = partition(trainable)
    run = lambda tree: apply(model, frozen, combine(tree, fixed), *inputs)
    _, pullback = jax.vjp(jax.jit(run), trained)
    kept = [
        leaf.shape for leaf in jax.tree.leaves(pullback) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert kept and not {(3, 8, 16), (3, 16, 8), (8, 16), (16, 8)} & set(kept)


def test_fused_kernels_adapt_the_chosen_parts_and_no_other():
    low = adapt_one(LoraSpec(rank=2, alpha=6.0, parts=(True, False, True)), (8, 12))
    low = zoo.moved({"kernel": low})["kernel"]
    delta = np.asarray(low.delta())
    assert np.abs(delta[:, 4:8]).max() == 0
    a, b = np.float64(low.a), np.float64(low.b)
    # loralib's MergedLinear: part i has A_i (in, r) and B_i (r, out / parts) of its own, and alpha
    # / r scales each.
    np.testing.assert_allclose(delta[:, :4], 3 * a[:, :2] @ b[:2, :4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(delta[:, 8:], 3 * a[:, 2:] @ b[2:, 8:], rtol=1e-5, atol=1e-6)


def test_all_trained_arrays_of_all_variants_get_a_gradient():
    x = jax.random.normal(jax.random.key(5), (6, 8))
    target = jax.random.normal(jax.random.key(6), (6, 12))
    for name, spec in SPECS.items():
        low = zoo.moved({"kernel": adapt_one(spec, (8, 12))})
        trained, fixed = partition(low)

        def loss(tree, fixed=fixed):
            joined = join({"kernel": jnp.ones((8, 12))}, combine(tree, fixed))
            return jnp.square(x @ joined["kernel"].unbox() - target).mean()

        grads = jax.grad(loss)(trained)
        for part in low["kernel"].trained_fields():
            assert float(jnp.abs(getattr(grads["kernel"], part)).max()) > 0, (name, part)
