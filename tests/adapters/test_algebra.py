"""Arithmetic of adapters: exact where it says exact, with the stated error elsewhere, and on
updates, never on A and B apart.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax
from lora_jax.adapters.algebra import compress, dare, factorize, ties, weighted_sum

SITES = {"layers/up/kernel": ((3,), 8, 16), "head/kernel": ((), 8, 5)}


def adapter(seed: int, ranks=(2, 3), scale: float = 0.7, sites=SITES, **more) -> dict:
    """Random factors; the second column of layer 1 is padding."""
    rng, out = np.random.default_rng(seed), {}
    for rank, (path, (stack, rows, columns)) in zip(ranks, sites.items()):
        draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
        scales = jnp.full((*stack, rank), scale)
        if stack:
            scales = scales.at[1, 1].set(0.0)
        out[path] = lora_jax.core.LowRank(
            a=draw(*stack, rows, rank), b=draw(*stack, rank, columns), scale=scales, **more
        )
    return out


def dense(trainable) -> dict[str, np.ndarray]:
    return {
        path: np.asarray(leaf.delta(), np.float64)
        for path, leaf in trainable.items()
        if isinstance(leaf, lora_jax.core.LowRank)
    }


def assert_update(trainable, expected, tolerance: float = 2e-6) -> None:
    found = dense(trainable)
    assert found.keys() == expected.keys()
    for path, update in expected.items():
        np.testing.assert_allclose(found[path], update, atol=tolerance * np.abs(update).max())


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b))
    )


VARIANTS = {
    "lora": {},
    "rslora": dict(scaling="rslora"),
    "lora_fa": dict(variant="lora_fa"),
    "vera": dict(variant="vera"),
    "adalora": dict(variant="adalora"),
    "pissa": dict(init="pissa"),
    "olora": dict(init="olora"),
    "parts": dict(parts=(True, False)),
    "dropout": dict(dropout=0.1),
    "dora": dict(dora=True),
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest):
    """(name, a trained adapter of one dense layer) of each variant."""
    import flax.linen as nn

    from lora_jax.adapters.surgery import adapt
    from tests.adapters.zoo import moved

    model, x = nn.Dense(6), jnp.ones((2, 8))
    params = model.init(jax.random.key(0), x)["params"]
    spec = lora_jax.LoraSpec(rank=2, alpha=3.0, **VARIANTS[request.param])
    return request.param, moved(
        adapt(model, params, (x,), lora=[("kernel", spec)], key=jax.random.key(1))[1]
    )


def test_one_adapter_with_weight_1_is_itself_bit_for_bit_in_every_variant(variant) -> None:
    _, trainable = variant
    assert same(weighted_sum([trainable], [1.0]), trainable)


def test_every_variant_is_summed_compressed_and_thinned_as_its_update_or_refused_by_name(
    variant,
) -> None:
    name, trainable = variant
    functions = [
        lambda: weighted_sum([trainable, trainable], [0.25, 0.75]),
        lambda: compress(trainable, rank=6)[0],
        lambda: ties([trainable], density=1.0, rank=6)[0],
        lambda: dare([trainable], density=1.0, rank=6, key=jax.random.key(0))[0],
    ]
    for function in functions:
        if name == "dora":
            with pytest.raises(ValueError, match="'kernel' is DoRA"):
                function()
        else:
            assert_update(function(), dense(trainable))


def test_a_weighted_sum_is_the_sum_of_the_updates_and_its_rank_the_sum_of_the_ranks() -> None:
    one, two = adapter(0), adapter(1, ranks=(3, 1), scale=2.0)
    total = weighted_sum([one, two], [0.5, -1.5])
    assert total["layers/up/kernel"].rank == 5 and total["head/kernel"].rank == 4
    assert_update(total, {path: 0.5 * dense(one)[path] - 1.5 * dense(two)[path] for path in SITES})
    # The mode that acts on A and B apart would be far off.
    a = np.sqrt(0.5) * np.asarray(one["head/kernel"].a[:, :1]) + np.sqrt(1.5) * np.asarray(
        two["head/kernel"].a
    )
    b = np.sqrt(0.5) * np.asarray(one["head/kernel"].b[:1]) - np.sqrt(1.5) * np.asarray(
        two["head/kernel"].b
    )
    assert np.linalg.norm(a @ b - dense(total)["head/kernel"]) > 0.5 * np.linalg.norm(
        dense(total)["head/kernel"]
    )


def test_task_arithmetic_takes_back_what_was_added() -> None:
    one, two = adapter(0), adapter(1)
    back = weighted_sum([weighted_sum([one, two]), two], [1.0, -1.0])
    assert_update(back, dense(one))
    assert compress(back, rank=3)[1].relative["head/kernel"] < 1e-6


def test_a_site_that_one_adapter_leaves_out_counts_as_0_there() -> None:
    one, two = adapter(0), adapter(1)
    del two["head/kernel"]
    assert_update(
        weighted_sum([one, two]),
        {
            **dense(one),
            "layers/up/kernel": dense(one)["layers/up/kernel"] + dense(two)["layers/up/kernel"],
        },
    )


def test_weights_trained_whole_move_by_the_weighted_sum_of_their_moves() -> None:
    base = {"norm": {"scale": jnp.array([1.0, 2.0])}}
    one, two = (
        {**adapter(i), "norm/scale": lora_jax.core.TrainedWeight(value=jnp.array(v))}
        for i, v in enumerate(([2.0, 2.0], [1.0, 5.0]))
    )
    total = weighted_sum([one, two], [0.5, 2.0], base=base)
    np.testing.assert_allclose(total["norm/scale"].value, [1.5, 8.0])
    with pytest.raises(
        ValueError, match="'norm/scale' is trained whole by 2 of the adapters.*Pass base="
    ):
        weighted_sum([one, two])


def test_dropout_is_kept_where_all_agree() -> None:
    sites = {"head/kernel": ((), 8, 5)}
    low, high = (
        adapter(i, ranks=(2,), sites=sites, dropout=jnp.asarray(rate, jnp.float32))
        for i, rate in enumerate((0.1, 0.2))
    )
    assert float(weighted_sum([low, low])["head/kernel"].dropout) == np.float32(0.1)
    assert weighted_sum([low, high])["head/kernel"].dropout is None


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_compression_loses_the_tail_of_the_singular_values_and_no_factors_lose_less(
    rank: int,
) -> None:
    total = weighted_sum([adapter(0), adapter(1)])
    small, lost = compress(total, rank=rank)
    for path, update in dense(total).items():
        s = np.linalg.svd(update, compute_uv=False)
        tail = float(np.sqrt((s[..., rank:] ** 2).sum()))
        assert small[path].rank <= rank
        assert lost.absolute[path] == pytest.approx(tail, rel=1e-5, abs=1e-6)
        assert lost.relative[path] == pytest.approx(
            tail / np.linalg.norm(update), rel=1e-5, abs=1e-6
        )
        assert np.linalg.norm(dense(small)[path] - update) == pytest.approx(
            tail, rel=1e-4, abs=1e-5
        )


def test_a_tolerance_takes_the_smallest_rank_within_it() -> None:
    total = weighted_sum([adapter(0), adapter(1)])
    assert compress(total, tolerance=0.0)[0]["head/kernel"].rank == 5  # All of an update of 8 x 5.
    small, lost = compress(total, tolerance=0.3)
    rank = small["head/kernel"].rank
    assert (
        lost.relative["head/kernel"]
        <= 0.3
        < compress(total, rank=rank - 1)[1].relative["head/kernel"]
    )
    assert (
        np.unique(np.count_nonzero(np.asarray(small["layers/up/kernel"].scale), axis=-1)).size >= 1
    )
    assert "of the update" in str(lost)


def test_compression_forms_no_dense_update() -> None:
    """A site whose update would take 40 GB."""
    wide = {
        "head/kernel": lora_jax.core.LowRank(
            a=jnp.ones((100_000, 2)), b=jnp.ones((2, 100_000)), scale=jnp.ones(2)
        )
    }
    small, lost = compress(wide, rank=1)
    assert lost.relative["head/kernel"] < 1e-6
    assert float(small["head/kernel"].a[0, 0] * small["head/kernel"].b[0, 0]) == pytest.approx(
        2.0, rel=1e-5
    )


def test_a_layer_without_an_update_stays_not_adapted() -> None:
    trainable = adapter(0)
    low = trainable["layers/up/kernel"]
    trainable["layers/up/kernel"] = low.replace(scale=low.scale.at[0].set(0.0))
    small, _ = compress(trainable, rank=2)
    assert not small["layers/up/kernel"].scale[0].any() and small["layers/up/kernel"].scale[2].all()


def test_ties_follows_the_paper_entry_by_entry() -> None:
    one, two, three = adapter(0), adapter(1), adapter(2)
    weights, density = [1.0, 0.5, 2.0], 0.4
    merged, lost = ties([one, two, three], weights, density=density, rank=8)
    updates = [dense(trainable)["head/kernel"] for trainable in (one, two, three)]
    expected = np.zeros((8, 5))
    keep = int(np.ceil(density * 40))
    trimmed = [
        np.where(np.abs(u) >= np.sort(np.abs(u).ravel())[-keep], u, 0.0) * w
        for u, w in zip(updates, weights)
    ]
    for i, j in np.ndindex(8, 5):
        values = [t[i, j] for t in trimmed]
        elected = np.sign(sum(values))
        agreeing = [v for v in values if v != 0 and np.sign(v) == elected]
        expected[i, j] = np.mean(agreeing) if agreeing else 0.0
    np.testing.assert_allclose(dense(merged)["head/kernel"], expected, atol=1e-5)
    assert (
        lost.relative["head/kernel"] < 1e-6
        and ties([one, two], density=density, rank=1)[1].relative["head/kernel"] > 0.1
    )


def test_ties_by_frequency_elects_the_sign_of_the_majority() -> None:
    make = lambda value: {
        "w": lora_jax.core.LowRank(a=jnp.ones((2, 1)), b=jnp.full((1, 2), value), scale=jnp.ones(1))
    }
    adapters = [make(1.0), make(2.0), make(-9.0)]
    np.testing.assert_allclose(
        dense(ties(adapters, density=1.0, rank=1, sign="total")[0])["w"], -9.0, rtol=1e-5
    )
    np.testing.assert_allclose(
        dense(ties(adapters, density=1.0, rank=1, sign="frequency")[0])["w"], 1.5, rtol=1e-5
    )


def test_dare_keeps_the_expected_update_and_follows_its_key() -> None:
    one, two = adapter(0), adapter(1)
    draws = [
        dense(dare([one, two], [1.0, -0.5], density=0.5, rank=8, key=jax.random.key(i))[0])[
            "head/kernel"
        ]
        for i in range(200)
    ]
    exact = dense(weighted_sum([one, two], [1.0, -0.5]))["head/kernel"]
    spread = np.std(draws, axis=0) / np.sqrt(len(draws))
    assert (
        np.abs((np.mean(draws, axis=0) - exact) / spread).max() < 5
    )  # Standard errors, 40 entries.
    again = dense(dare([one, two], [1.0, -0.5], density=0.5, rank=8, key=jax.random.key(0))[0])[
        "head/kernel"
    ]
    assert np.array_equal(draws[0], again) and not np.array_equal(draws[0], draws[1])


def test_a_task_vector_is_the_change_of_the_weights_at_the_rank_asked_for() -> None:
    trainable = adapter(0)
    base = {
        "layers": {"up": {"kernel": jnp.ones((3, 8, 16))}},
        "head": {"kernel": jnp.ones((8, 5))},
    }
    tuned = jax.tree.map(lambda x: x, lora_jax.merge(base, trainable)[0])
    found, lost = factorize(base, tuned, rank=3, like=trainable)
    assert_update(found, dense(trainable), tolerance=1e-5)
    assert max(lost.relative.values()) < 1e-6
    with pytest.raises(KeyError, match="head/kernel"):
        factorize({"layers": base["layers"]}, tuned, rank=3, like=trainable)


def test_what_cannot_be_combined_is_refused() -> None:
    one, other = (
        adapter(0),
        adapter(1, sites={"layers/up/kernel": ((3,), 8, 16), "head/kernel": ((), 8, 6)}),
    )
    cases = [
        (lambda: weighted_sum([]), "Needed adapters"),
        (lambda: weighted_sum([one], [1.0, 2.0]), "one finite weight each"),
        (lambda: weighted_sum([one, one], [1.0, float("nan")]), "finite"),
        (lambda: weighted_sum([one, other]), "'head/kernel' differs between the adapters"),
        (lambda: compress(one), "not both"),
        (lambda: compress(one, rank=1, tolerance=0.1), "not both"),
        (lambda: ties([one], density=0.0, rank=1), "density"),
        (lambda: ties([one], density=0.5, rank=1, sign="most"), "sign"),
        (lambda: dare([one], density=1.5, rank=1, key=jax.random.key(0)), "density"),
    ]
    for function, message in cases:
        with pytest.raises(ValueError, match=message):
            function()


def test_leaves_that_are_no_update_of_a_weight_are_refused_by_their_kind() -> None:
    from lora_jax.adapters import algebra, many
    from lora_jax.core.aux_modules import Gain
    from lora_jax.io.names import Name
    from lora_jax.io.peft import to_peft

    other = {"head/kernel": Gain(value=jnp.ones(3))}
    for function in (
        lambda: algebra.plain_lora("head/kernel", other["head/kernel"]),
        lambda: to_peft(other, {"head/kernel": Name("head.weight", (8, 5))}),
        lambda: many.make_bank([other]),
    ):
        with pytest.raises(ValueError, match="Gain"):
            function()
