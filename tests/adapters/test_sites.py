"""find_sites: every weight that a model reads, under every Linen transformation, and what it
refuses.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from user_models import LAYERS, MEMBERS, Block, build

from lora_jax import find_sites
from lora_jax.adapters.sites import Site

# path: module kind, shape that the module sees, input axes, whether there is a factored product.
BLOCK = {
    "attn/key/bias": ("DenseGeneral", (2, 4), (), False),
    "attn/key/kernel": ("DenseGeneral", (8, 2, 4), (0,), True),
    "attn/out/bias": ("DenseGeneral", (8,), (), False),
    "attn/out/kernel": ("DenseGeneral", (2, 4, 8), (0, 1), True),
    "attn/query/bias": ("DenseGeneral", (2, 4), (), False),
    "attn/query/kernel": ("DenseGeneral", (8, 2, 4), (0,), True),
    "attn/value/bias": ("DenseGeneral", (2, 4), (), False),
    "attn/value/kernel": ("DenseGeneral", (8, 2, 4), (0,), True),
    "conv/bias": ("Conv", (8,), (), False),
    "conv/kernel": ("Conv", (3, 8, 8), (0, 1), True),
    "down/bias": ("Dense", (8,), (), False),
    "down/kernel": ("Dense", (12, 8), (0,), True),
    "gate": ("Block", (8, 8), (0,), False),
    "grid/bias": ("DenseGeneral", (2, 4), (), False),
    "grid/kernel": ("DenseGeneral", (8, 2, 4), (0,), True),
    "heads/bias": ("Einsum", (2, 4), (), False),
    "heads/kernel": ("Einsum", (8, 2, 4), (0,), True),
    "norm/bias": ("LayerNorm", (8,), (), False),
    "norm/scale": ("LayerNorm", (8,), (), False),
    "ungrid/kernel": ("DenseGeneral", (2, 4, 8), (0, 1), True),
    "unheads/kernel": ("Einsum", (2, 4, 8), (0, 1), True),
    "up/bias": ("Dense", (12,), (), False),
    "up/kernel": ("Dense", (8, 12), (0,), True),
}
OUTSIDE = {
    "norm/bias": ("LayerNorm", (8,), (), False),
    "norm/scale": ("LayerNorm", (8,), (), False),
    "words/embedding": ("Embed", (20, 8), (0,), True),
}


def table(prefixes: list[str], stack: tuple[int, ...]) -> dict[str, Site]:
    rows = {f"{prefix}/{path}": (row, stack) for prefix in prefixes for path, row in BLOCK.items()}
    rows |= {path: (row, ()) for path, row in OUTSIDE.items()}
    return {
        path: Site(path, kind, shape, lead, in_axes, has_rule, jnp.dtype("float32"))
        for path, ((kind, shape, in_axes, has_rule), lead) in rows.items()
    }


@pytest.mark.parametrize(
    ("wrap", "prefixes", "stack"),
    [(wrap, [f"block_{i}" for i in range(LAYERS)], ()) for wrap in ("loop", "remat", "jit")]
    + [
        ("scan", ["blocks"], (LAYERS,)),
        ("scan_remat", ["blocks"], (LAYERS,)),
        ("vmap", ["blocks"], (MEMBERS,)),
    ],
)
def test_every_weight_of_a_user_model_is_found_under_every_transformation(
    wrap: str, prefixes: list[str], stack: tuple[int, ...]
) -> None:
    built = build(wrap)
    assert find_sites(built.model, *built.inputs) == table(prefixes, stack)


def test_sites_need_shapes_only() -> None:
    built = build("scan")
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in built.inputs]
    assert find_sites(built.model, *shapes) == find_sites(built.model, *built.inputs)


def test_rows_and_columns_are_those_of_the_matrix() -> None:
    built = build("loop")
    sites = find_sites(built.model, *built.inputs)
    sizes = {
        path: (sites[path].rows, sites[path].columns)
        for path in ("block_0/conv/kernel", "block_0/attn/out/kernel", "words/embedding")
    }
    assert sizes == {
        "block_0/conv/kernel": (24, 8),
        "block_0/attn/out/kernel": (8, 8),
        "words/embedding": (20, 8),
    }


def test_a_collection_beside_params_does_not_disturb() -> None:
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x))

    assert set(find_sites(Normed(), jnp.ones((4, 5)))) == {
        "BatchNorm_0/scale",
        "BatchNorm_0/bias",
        "Dense_0/kernel",
        "Dense_0/bias",
    }


def test_another_method_has_its_own_sites() -> None:
    class Two(nn.Module):
        def setup(self) -> None:
            self.left, self.right = nn.Dense(3), nn.Dense(4)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.left(x) + self.right(x).sum()

        def only_left(self, x: jax.Array) -> jax.Array:
            return self.left(x)

    assert set(find_sites(Two(), jnp.ones((1, 5)), method="only_left")) == {
        "left/kernel",
        "left/bias",
    }


class PastTheBox(nn.Module):
    way: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(4, name="fine")(x)
        if self.way == "unbox":
            return (
                x
                @ jax.tree.leaves(self.param("hidden", nn.initializers.ones, (4, 4), unbox=False))[
                    0
                ]
            )
        if self.is_initializing():
            self.param("hidden", nn.initializers.ones, (4, 4))
        raw = (
            self.variables["params"]["hidden"]
            if self.way == "variables"
            else self.get_variable("params", "hidden")
        )
        return x @ jax.tree.leaves(raw)[0]


@pytest.mark.parametrize("way", ["variables", "get_variable", "unbox"])
def test_a_module_that_reads_past_the_box_is_reported(way: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"(?s)1 of 3 weights are not read through self.param.*hidden.*past the boxes",
    ):
        find_sites(PastTheBox(way), jnp.ones((2, 3)))


def test_a_weight_that_these_inputs_do_not_reach_is_reported() -> None:
    class Branch(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            side = nn.Dense(2, name="side")
            return side(x) if self.is_initializing() else x

    with pytest.raises(
        ValueError, match="2 of 2 weights are not read.*side/bias, side/kernel.*pass those inputs"
    ):
        find_sites(Branch(), jnp.ones((2, 3)))


def test_a_block_is_an_ordinary_module() -> None:
    assert set(find_sites(Block(), jnp.ones((1, 3, 8)))) == set(BLOCK)
