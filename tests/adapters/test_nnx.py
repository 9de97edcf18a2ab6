"""flax.nnx models: the same trees, sites, losses and errors as Linen's, on the same weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.interpreters import partial_eval

import lora_jax as lj
from lora_jax import adapters
from tests.adapters.zoo import kinds, moved

STEPS = 10


class Kinds(nnx.Module):
    """`zoo.Kinds`, with its names."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.dense = nnx.Linear(8, 8, rngs=rngs)
        self.heads = nnx.LinearGeneral(8, (2, 4), rngs=rngs)
        self.merge = nnx.LinearGeneral((2, 4), 8, axis=(-2, -1), rngs=rngs)
        self.einsum = nnx.Einsum("btd,dhk->bthk", (8, 2, 4), (2, 4), rngs=rngs)
        self.conv = nnx.Conv(8, 8, (3,), rngs=rngs)
        self.raw = nnx.Param(jnp.ones((8, 8)))

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.dense(nnx.gelu(x))
        x = x + self.merge(jnp.tanh(self.heads(x)))
        x = x + self.einsum(x).reshape(x.shape)
        x = x + self.conv(jnp.tanh(x))
        x = x + jnp.tanh(x) @ self.raw
        return self.embed.attend(x)


def trained(model, trees, tokens):
    """The losses of ten steps."""

    def loss(frozen, trainable, batch, key):
        y = lj.apply(model, frozen, trainable, batch, key=key)
        return optax.softmax_cross_entropy_with_integer_labels(y, batch).mean()

    tx = optax.adam(1e-2)
    step = jax.jit(lj.make_train_step(loss, tx))
    state, losses = lj.create_state(trees[1], tx, jax.random.key(1)), []
    for _ in range(STEPS):
        state, metrics = step(state, trees[0], tokens)
        losses.append(float(metrics["loss"]))
    return losses


def test_ten_steps_are_those_of_linen_on_the_same_weights():
    linen, params, (tokens,) = kinds()
    mine = nnx.eval_shape(lambda: Kinds(nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, adapters.params_of(mine)) == jax.tree.map(jnp.shape, params)
    sites = lj.find_sites(mine, tokens)
    # Both name what reads it; a parameter that no module with a rule reads is that of Kinds.
    assert sites == lj.find_sites(linen, tokens)

    # Dropout, a quantised base, and an update that is formed.
    lora = [
        (".*/(kernel|embedding)", lj.LoraSpec(rank=2, alpha=4.0, dropout=0.2)),
        ("raw", lj.LoraSpec(rank=2)),
    ]
    quant = [("dense/kernel|raw", lj.QuantSpec("nf4", 8, double=False))]
    adapt = lambda params, key: lj.adapt(
        mine, params, (tokens,), lora=lora, quant=quant, key=key, sites=sites
    )
    trees = jax.jit(adapt)(params, jax.random.key(0))
    losses = trained(mine, trees, tokens)
    assert losses[-1] < losses[0] - 0.05
    # The same sums; what XLA fuses may differ.
    np.testing.assert_allclose(losses, trained(linen, trees, tokens), atol=1e-6, rtol=0)


class Unlike(nnx.Module):
    """Kernels whose shapes nothing else has."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(17, 6, rngs=rngs)
        self.linear = nnx.Linear(6, 10, rngs=rngs)
        self.general = nnx.LinearGeneral(10, (2, 7), rngs=rngs)
        self.einsum = nnx.Einsum("bthk,hkd->btd", (2, 7, 9), rngs=rngs)
        self.conv = nnx.Conv(9, 12, (3,), rngs=rngs)
        self.raw = nnx.Param(jnp.ones((12, 6)))

    def __call__(self, tokens):
        x = self.conv(self.einsum(self.general(self.linear(self.embed(tokens)))))
        return self.embed.attend(x @ self.raw)


def products_in(jaxpr):
    """The shapes of what products give, in inner programs, too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield from (tuple(out.aval.shape) for out in equation.outvars)
        parts = jax.tree.leaves([*equation.params.values()], is_leaf=lambda x: hasattr(x, "eqns"))
        for inner in parts:
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from products_in(getattr(inner, "jaxpr", inner))


def test_no_update_is_formed_but_where_a_module_reads_its_weight_itself():
    model, tokens = nnx.eval_shape(lambda: Unlike(nnx.Rngs(0))), jnp.arange(8).reshape(2, 4)
    lora = [(".*(kernel|embedding|raw)", lj.LoraSpec(rank=3))]
    sites = lj.find_sites(model, tokens)
    adapt = lambda params: lj.adapt(
        model, params, (tokens,), lora=lora, key=jax.random.key(0), sites=sites
    )
    frozen, trainable = jax.eval_shape(adapt, adapters.params_of(model))
    moving, fixed = lj.partition(trainable)
    loss = lambda moving, fixed, frozen: lj.apply(
        model, frozen, lj.combine(moving, fixed), tokens
    ).sum()
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(moving, fixed, frozen).jaxpr
    # Linen's Embed reads its weight in setup: what nothing uses is not computed under jit.
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    shapes = set(products_in(used))
    matrix = lambda site: {site.shape, (site.rows, site.columns)}
    dense = {name for name in trainable if matrix(sites[name]) & shapes}
    assert dense == {"raw"} == {name for name in trainable if not sites[name].has_rule}


class Block(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(6, 10, rngs=rngs)
        self.down = nnx.Param(jax.random.normal(rngs.params(), (10, 6)))

    @nnx.remat
    def __call__(self, x):
        h = jnp.tanh(self.up(x))
        # The ways in which modules read.
        return x + jnp.dot(h, self.down) + h @ self.down[...] + (self.down.T @ h.T).T + self.down[1]


class Deep(nnx.Module):
    def __init__(self, rngs):
        make = nnx.split_rngs(splits=3)(nnx.vmap(Block, in_axes=0))
        self.layers = make(rngs)
        self.list = nnx.List([Block(rngs)])

    def __call__(self, x):
        run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.list[0](run(x, self.layers))


def test_layers_of_a_scan_have_factors_and_dropout_of_their_own():
    model, x = Deep(nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (4, 6))
    params = adapters.params_of(model)
    sites = lj.find_sites(model, x)
    assert sites["layers/up/kernel"].stack == sites["layers/down"].stack == (3,)
    assert sites["list/0/down"].stack == () and sites["list/0/down"].kind == "Block"
    lora = [
        (".*up/kernel", lj.LoraSpec(rank=2, dropout=0.5)),
        ("layers/down", lj.LoraSpec(rank=2, layers=(0, 2))),
    ]
    quant = [("layers/.*(kernel|down)", lj.QuantSpec("nf4", 2, double=False))]
    adapt = lambda params: lj.adapt(
        model, params, (x,), lora=lora, quant=quant, key=jax.random.key(1), sites=sites
    )
    frozen, trainable = jax.jit(adapt)(params)
    trainable = moved(trainable)
    boxes = lj.join(frozen, trainable)
    shell = adapters.without_params(model)

    @jax.jit
    def run(x, key):
        return [
            lj.apply(shell, frozen, trainable, x, key=key),
            lj.apply(shell, frozen, trainable, x),
            adapters.with_params(model, boxes)(x),
        ]

    key = jax.random.key(2)
    dropped, factored, dense = run(x, key)
    # The same sums in another order.
    np.testing.assert_allclose(factored, dense, rtol=1e-5, atol=1e-5)

    # A layer after the other, on its slices.
    one, y = Block(nnx.Rngs(0)), x
    boxes = lj.join(frozen, trainable, key=key)
    run_one = jax.jit(lambda own, y: lj.apply(one, own, {}, y))
    for index in range(3):
        y = run_one(jax.tree.map(lambda leaf, index=index: leaf[index], boxes["layers"]), y)
    np.testing.assert_allclose(dropped, run_one(boxes["list"]["0"], y), rtol=1e-5, atol=1e-5)


class Stateful(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(self.norm(self.up(x))))

    def features(self, x):
        return self.up(x)


def stateful(**spec):
    model, x = Stateful(nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (8, 4))
    lora = [("up/kernel", lj.LoraSpec(rank=2, **spec))]
    params = adapters.params_of(model)
    trees = lj.adapt(model, params, (x,), lora=lora, whole=["head/.*"], key=jax.random.key(1))
    return model, params, trees, x


def test_a_call_changes_what_the_model_itself_would_and_no_weight():
    model, params, (frozen, trainable), x = stateful()
    twin = nnx.clone(model)
    np.testing.assert_allclose(lj.apply(model, frozen, trainable, x), twin(x), rtol=1e-6, atol=1e-6)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), nnx.state(model), nnx.state(twin))
    assert jax.tree.all(same) and float(jnp.abs(model.norm.mean[...]).max()) > 0
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, params, adapters.params_of(model)))
    features = lj.apply(model, frozen, trainable, x, method="features")
    np.testing.assert_allclose(features, model.up(x), rtol=1e-6, atol=1e-6)

    with pytest.raises(ValueError, match="own variables.*came into a JAX transformation"):
        jax.jit(lambda x: lj.apply(model, frozen, trainable, x))(x)
    model.eval()
    assert jax.jit(lambda x: lj.apply(model, frozen, trainable, x))(x).shape == (8, 3)


def test_nnx_optimizer_moves_what_is_trained_alone_as_optax_does():
    model, _, (frozen, trainable), x = stateful(dropout=0.1)
    trainable = moved(trainable)
    adapted = adapters.AdaptedModel(model, frozen, trainable, rngs=nnx.Rngs(dropout=0))
    tx = optax.adamw(1e-2, weight_decay=0.1)
    optimizer = nnx.Optimizer(adapted, tx, wrt=adapters.Trained)
    wrt = nnx.DiffState(0, adapters.Trained)
    loss = lambda adapted, x: jnp.square(adapted(x) - 1).mean()

    @nnx.jit
    def step(adapted, optimizer, x):
        value, grads = nnx.value_and_grad(loss, argnums=wrt)(adapted, x)
        optimizer.update(adapted, grads)
        return value

    step(adapted, optimizer, x)
    mean = adapted.model.norm.mean[...]
    assert float(jnp.abs(mean).max()) > 0 and int(adapted.rngs.dropout.count[...]) == 1

    # Without what is random or changes, the same step by hand.
    adapted.eval()
    moving, fixed = lj.partition(adapted.trainable)
    plain = lambda moving: jnp.square(
        lj.apply(adapted.model, frozen, lj.combine(moving, fixed), x) - 1
    ).mean()
    value, grads = jax.jit(jax.value_and_grad(plain))(moving)
    updates, _ = tx.update(grads, tx.init(moving), moving)
    expected = lj.combine(optax.apply_updates(moving, updates), fixed)
    again = nnx.Optimizer(adapted, tx, wrt=adapters.Trained)
    assert float(step(adapted, again, x)) == pytest.approx(float(value), abs=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    jax.tree.map(close, adapted.trainable, expected)
    same = lambda a, b: bool((a == b).all())
    assert jax.tree.all(jax.tree.map(same, frozen, adapted.frozen))
    assert (adapted.model.norm.mean[...] == mean).all()
    assert "up/kernel" in repr(adapted)
    assert "Adapted" in repr(adapters.with_params(model, lj.join(frozen, trainable)))


class Project(nnx.Module):
    """A module of a user's own, as libraries have it."""

    def __init__(self, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (4, 2, 3)))

    def __call__(self, x):
        return jnp.einsum("bd,dhk->bhk", x, self.w[...])


def test_a_module_of_ones_own_has_the_product_of_its_twin():
    model, x = Project(nnx.Rngs(0)), jnp.ones((5, 4))
    assert lj.find_sites(model, x)["w"].in_axes == (0, 1)
    adapters.register_twin(
        Project, "w", lambda m: nn.Einsum((4, 2, 3), "bd,dhk->bhk", use_bias=False)
    )
    site = lj.find_sites(model, x)["w"]
    assert (site.kind, site.in_axes, site.has_rule) == ("Einsum", (0,), True)
    lora = [("w", lj.LoraSpec(rank=2, dropout=0.1))]
    frozen, trainable = lj.adapt(
        model, adapters.params_of(model), (x,), lora=lora, key=jax.random.key(0)
    )
    trainable = moved(trainable)
    merged, _ = lj.merge(frozen, trainable, model=model, sample=(x,))
    np.testing.assert_allclose(
        lj.apply(model, frozen, trainable, x), adapters.with_params(model, merged)(x), rtol=1e-5
    )
    with pytest.raises(ValueError, match="has a Linen twin already"):
        adapters.register_twin(Project, "w", lambda m: None)


def test_what_linen_has_no_word_for_is_computed_by_nnx():
    model = nnx.Linear(
        4, 3, dot_general=lambda *a, **k: 2 * jax.lax.dot_general(*a, **k), rngs=nnx.Rngs(0)
    )
    x, params = jnp.ones((2, 4)), adapters.params_of(model)
    assert not lj.find_sites(model, x)["kernel"].has_rule
    quant = [("kernel", lj.QuantSpec("int8", 4, double=False))]
    frozen, trainable = lj.adapt(
        model,
        params,
        (x,),
        lora=[("kernel", lj.LoraSpec(rank=1))],
        quant=quant,
        key=jax.random.key(0),
    )
    expected = 2 * x @ lj.dequantize(frozen["kernel"])
    np.testing.assert_allclose(lj.apply(model, frozen, trainable, x), expected, rtol=1e-6)


class Doubled(nnx.Param):
    def get_value(self, **index):
        return 2 * super().get_value(**index)


def test_a_variable_that_says_how_it_is_read_is_read_so():
    x = jnp.ones((2, 4))
    hooked = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    hooked.bias = Doubled(jnp.ones(3))
    own = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    own.kernel = Doubled(own.kernel.get_value())
    for model in (hooked, own):
        lora = [("kernel", lj.LoraSpec(rank=1))]
        frozen, trainable = lj.adapt(
            model, adapters.params_of(model), (x,), lora=lora, key=jax.random.key(0)
        )
        np.testing.assert_allclose(lj.apply(model, frozen, trainable, x), model(x), rtol=1e-6)


def test_adapters_are_saved_and_loaded(tmp_path):
    model, params, (frozen, trainable), x = stateful()
    model.eval()
    base, trainable = lj.fingerprint(params), moved(trainable)
    lj.save_adapter(tmp_path, trainable, base=base, model="mine")
    loaded, _ = lj.load_adapter(tmp_path, base=base)
    assert (lj.apply(model, frozen, loaded, x) == lj.apply(model, frozen, trainable, x)).all()


MISTAKES = {
    "params of a Linen model": (lambda m, f, t, x: adapters.params_of(nn.Dense(3)), "model.init"),
    "a state for params": (
        lambda m, f, t, x: lj.adapt(m, nnx.state(m), (x,), whole=[".*"], key=jax.random.key(0)),
        "params_of",
    ),
    "a function for a model": (lambda m, f, t, x: lj.find_sites(jnp.tanh, x), "linen or flax.nnx"),
    "a rule": (
        lambda m, f, t, x: adapters.register_rule(Project, "w", lambda *a: x),
        "register_twin",
    ),
    "collections": (lambda m, f, t, x: lj.apply(m, f, t, x, collections={}), "holds its other"),
    "another's weights": (
        lambda m, f, t, x: adapters.with_params(m, {"up": x}),
        "not this model's",
    ),
    "dropout without keys": (lambda m, f, t, x: adapters.AdaptedModel(m, f, t), "rngs=nnx.Rngs"),
    "weights that are not read": (
        lambda m, f, t, x: lj.find_sites(m, x, method="features"),
        "past the boxes",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name):
    model, _, trees, x = stateful(dropout=0.1)
    act, words = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        act(model, *trees, x)
