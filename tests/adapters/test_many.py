"""A batch in which every example names its adapter gives each what that adapter alone gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax
from lora_jax.adapters.many import apply_many, make_bank, replace_adapter
from lora_jax.adapters.surgery import adapt
from tests.adapters.zoo import deep, kinds, moved

# The same sums in other shapes. The bound is what users are promised; outputs are around 5.
CLOSE = 1e-5


def adapters_of(model, params, inputs, rules, **more):
    return [
        moved(
            adapt(model, params, inputs, lora=lora, key=jax.random.key(i), **more)[1], 0.2, seed=i
        )
        for i, lora in enumerate(rules)
    ]


def three(build=lambda: deep("scan"), **more):
    """A model and adapters of rank 1, 2 and 4 that differ in scale and sites."""
    model, params, inputs = build()
    rules = [
        [(r"(layers/.*|head)/kernel", lora_jax.LoraSpec(rank=1, alpha=1.0))],
        [
            (
                r"layers/up/kernel",
                lora_jax.LoraSpec(rank=2, alpha=3.0, scaling="rslora", layers=(0, 2)),
            )
        ],
        [
            (r"layers/down/kernel", lora_jax.LoraSpec(rank=4, alpha=2.0, dropout=0.1)),
            ("head/kernel", lora_jax.LoraSpec(rank=2)),
        ],
    ]
    return model, params, inputs, adapters_of(model, params, inputs, rules, **more)


def together(model, frozen, bank, ids, x):
    return jax.jit(lambda frozen, bank, ids, x: apply_many(model, frozen, bank, ids, x))(
        frozen, bank, jnp.array(ids), x
    )


def alone(model, frozen, trainable, x, row):
    return lora_jax.apply(model, frozen, trainable, x[row : row + 1])[0]


@pytest.mark.parametrize("quantized", [False, True])
def test_each_example_gets_what_its_own_adapter_alone_gives_or_the_base(quantized: bool) -> None:
    model, params, (x,), adapters = three()
    frozen = params
    if quantized:
        frozen, _ = adapt(model, params, (x,), lora=[("head/kernel", lora_jax.LoraSpec(rank=1))], quant=[("layers/.*/kernel", lora_jax.QuantSpec("nf4", 8, False))], key=jax.random.key(0))  # fmt: skip
    x = jax.random.normal(jax.random.key(3), (7, 8))
    ids = [2, -1, 0, 1, 1, -1, 0]
    out = together(model, frozen, make_bank(adapters), ids, x)
    outputs = []
    for row, own in enumerate(ids):
        expected = alone(model, frozen, {} if own < 0 else adapters[own], x, row)
        np.testing.assert_allclose(out[row], expected, atol=CLOSE)
        outputs.append(
            [
                float(jnp.abs(out[row] - alone(model, frozen, other, x, row)).max())
                for i, other in enumerate(adapters)
                if i != own
            ]
        )
    assert min(map(min, outputs)) > 0.01  # Another adapter would have been seen.


@pytest.mark.parametrize(
    "spec",
    [dict(), dict(dora=True), dict(variant="vera"), dict(variant="adalora"), dict(init="pissa")],
    ids=str,
)
def test_every_kind_of_site_and_variant_works(spec: dict) -> None:
    model, params, inputs = kinds()
    matrices = r"(embed/embedding|raw|(dense|heads|merge|einsum|conv)/kernel)"
    adapters = adapters_of(
        model,
        params,
        inputs,
        [[(matrices, lora_jax.LoraSpec(rank=rank, **spec))] for rank in (1, 3)],
    )
    tokens = jax.random.randint(jax.random.key(5), (4, 5), 0, 11)
    out = together(model, params, make_bank(adapters), [1, 0, -1, 1], tokens)
    for row, own in enumerate([1, 0, None, 1]):
        np.testing.assert_allclose(
            out[row],
            alone(model, params, {} if own is None else adapters[own], tokens, row),
            atol=CLOSE * 5,
        )


def test_weights_trained_whole_are_each_adapters_own_and_the_bases_without_one() -> None:
    model, params, (x,) = deep("scan")
    first = adapt(
        model,
        params,
        (x,),
        lora=[("layers/up/kernel", lora_jax.LoraSpec(rank=2))],
        whole=["head/.*"],
        key=jax.random.key(0),
    )
    second = adapters_of(model, params, (x,), [[("layers/up/kernel", lora_jax.LoraSpec(rank=1))]])[
        0
    ]
    frozen, trainable = first[0], moved(first[1])
    with pytest.raises(ValueError, match="trained whole by an adapter.*Pass base="):
        make_bank([trainable, second])
    out = together(model, frozen, make_bank([trainable, second], base=params), [0, 1, -1, 0], x)
    for row, own in enumerate([trainable, second, {}, trainable]):
        np.testing.assert_allclose(out[row], alone(model, params, own, x, row), atol=CLOSE)


def test_exchanging_an_adapter_recompiles_nothing() -> None:
    model, params, (x,), adapters = three()
    traces = []

    @jax.jit
    def step(frozen, bank, ids, x):
        traces.append(1)
        return apply_many(model, frozen, bank, ids, x)

    bank = make_bank(adapters, rank=4)
    ids = jnp.array([0, 1, 2, -1])
    before = step(params, bank, ids, x)
    swapped = replace_adapter(bank, 1, adapters[2])
    was, after = step(params, bank, ids[::-1], x), step(params, swapped, ids[::-1], x)
    assert len(traces) == 1
    np.testing.assert_allclose(after[2], alone(model, params, adapters[2], x, 2), atol=CLOSE)
    assert float(jnp.abs(after[2] - was[2]).max()) > 0.01
    np.testing.assert_allclose(
        step(params, swapped, ids, x)[0], before[0], atol=CLOSE
    )  # The others are as they were.


def test_frozen_weights_are_multiplied_once_for_the_whole_batch() -> None:
    model, params, (x,), adapters = three()
    count = lambda function, *args: str(jax.make_jaxpr(function)(*args)).count("dot_general[")
    bank = make_bank(adapters)
    jaxpr = jax.make_jaxpr(lambda bank, ids, x: apply_many(model, params, bank, ids, x))(
        bank, jnp.array([0, 1, 2, -1]), x
    )
    text = str(jaxpr)
    # Frozen kernels keep their own two axes: no copy a example is made of them, stacked or not.
    for shape in ("f32[4,8,16]", "f32[4,16,8]", "f32[3,4,8,16]", "f32[3,4,16,8]"):
        assert shape not in text
    assert count(
        lambda x: apply_many(model, params, bank, jnp.array([0, 1, 2, -1]), x), x
    ) == count(lambda x: lora_jax.apply(model, params, {**adapters[0]}, x), x)


def test_ids_out_of_range_are_refused_and_poison_the_output_under_jit() -> None:
    model, params, (x,), adapters = three()
    bank = make_bank(adapters)
    for wrong in (3, -2):
        ids = jnp.array([0, wrong, 1, -1])
        with pytest.raises(ValueError, match=rf"must be 0 to 2, or -1 for none; got \[{wrong}\]"):
            apply_many(model, params, bank, ids, x)
        out = jax.jit(lambda ids: apply_many(model, params, bank, ids, x))(ids)
        assert np.isnan(out[1]).all() and np.isfinite(out[jnp.array([0, 2, 3])]).all()


def test_what_does_not_fit_in_a_bank_is_refused() -> None:
    model, params, (x,), adapters = three()
    bank = make_bank(adapters[:2])
    with pytest.raises(IndexError, match="adapters 0 to 1"):
        replace_adapter(bank, 2, adapters[0])
    with pytest.raises(ValueError, match="rank 4|smaller"):
        replace_adapter(bank, 0, adapters[2])
    dora = adapters_of(
        model, params, (x,), [[("head/kernel", lora_jax.LoraSpec(rank=1, dora=True))]]
    )[0]
    with pytest.raises(ValueError, match="'head/kernel' is .*LoRA.* in one adapter and .*DoRA"):
        make_bank([adapters[0], dora])
    with pytest.raises(ValueError, match="other arrays|rank"):
        replace_adapter(bank, 0, dora)


def test_an_empty_bank_has_room_for_adapters_like_one_that_come_and_go() -> None:
    model, params, (x,), adapters = three()
    like = {**adapters[0], **adapters[1], **adapters[2]}
    bank = make_bank(like=like, places=2, rank=4)
    full = replace_adapter(replace_adapter(bank, 0, adapters[2]), 1, adapters[0])
    out = together(model, params, full, [1, 0, -1, 0], x)
    for row, own in enumerate([adapters[0], adapters[2], {}, adapters[2]]):
        np.testing.assert_allclose(out[row], alone(model, params, own, x, row), atol=CLOSE)
    emptied = replace_adapter(full, 0, {})
    jax.tree.map(np.testing.assert_array_equal, replace_adapter(emptied, 1, {}), bank)
    with pytest.raises(ValueError, match="came 3 adapters for 2 places"):
        make_bank(adapters, places=2)
    with pytest.raises(ValueError, match="or one that it is `like`"):
        make_bank(places=2)
