"""Where the arrays of a tree lie on a mesh, and what is refused or said: nothing is compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import lora_jax
from lora_jax.core.mesh import Placed, laid, make_mesh
from lora_jax.core.notice import say_once
from lora_jax.core.sharding import RULES

KERNEL = "layers/mlp/down/kernel"


def struct(*shape: int, dtype: object = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def specs(tree: object) -> dict[str, P]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): leaf.spec for path, leaf in found}


def small_frozen(**spec: object) -> dict[str, object]:
    made = jax.eval_shape(
        lambda w: lora_jax.quantize(w, lora_jax.QuantSpec("nf4", block_size=16, **spec)),
        struct(3, 128, 32),
    )
    return {
        "layers": {"mlp": {"down": {"kernel": made}, "norm": {"scale": struct(3, 32)}}},
        "head": {"kernel": struct(32, 101)},
    }


def small_trainable() -> dict[str, lora_jax.core.LowRank]:
    low = lora_jax.core.LowRank(
        a=struct(3, 128, 4), b=struct(3, 4, 32), scale=struct(3, 4), magnitude=struct(3, 32)
    )
    return {KERNEL: low}


def test_codes_lie_as_their_weight_and_scales_in_as_many_parts() -> None:
    found = specs(lora_jax.shardings(small_frozen(), make_mesh(2, 2, 2)))
    down = "['layers']['mlp']['down']['kernel']"
    assert found == {
        f"{down}.codes": P(None, "model", "fsdp"),
        f"{down}.scale.codes": P(None, ("fsdp", "model")),
        f"{down}.scale.absmax": P(),  # one for 256 scales: there is one
        f"{down}.scale.offset": P(),
        "['layers']['mlp']['norm']['scale']": P(),
        "['head']['kernel']": P("fsdp"),  # 101 words are not divided
    }
    plain = specs(lora_jax.shardings(small_frozen(double=False), make_mesh(2, 2, 2)))
    assert plain[f"{down}.scale"] == P(None, "model", "fsdp")


@pytest.mark.parametrize("optimiser", ["adamw", "adamw8bit", "multi_transform"])
def test_moments_lie_as_what_they_are_moments_of(optimiser: str) -> None:
    if optimiser == "multi_transform":  # its labels stand before the paths
        tx = optax.multi_transform({"a": optax.adam(1e-3)}, lambda tree: "a")
    else:
        tx = lora_jax.make_optimizer(lora_jax.config.OptimConfig(name=optimiser), 10)
    make = lambda trainable: lora_jax.create_state(trainable, tx, jax.random.key(0))
    wide = {KERNEL: small_trainable()[KERNEL].replace(a=struct(3, 1024, 4))}
    state = jax.eval_shape(make, wide)
    found = specs(lora_jax.shardings(state, make_mesh(2, 2, 2)))
    both = ("model", "fsdp")
    factors = {name: spec for name, spec in found.items() if KERNEL in name}
    for name, spec in factors.items():
        if ".a" in name.replace(".absmax", ""):
            assert spec == P(None, both), name
        elif ".b" in name:
            assert spec == P(None, None, "fsdp"), name
    assert len(factors) > 8 and found[".step"] == found[".key"] == P()
    assert all(spec == P() for name, spec in found.items() if name not in factors)


def test_a_placed_weight_is_itself_and_lies_in_parts() -> None:
    mesh = make_mesh(1, 4, 2)
    tree = {"head": {"kernel": np.arange(32 * 16, dtype=np.float32).reshape(32, 16)}}
    placed = lora_jax.shard(tree, mesh)["head"]["kernel"]
    assert isinstance(placed, Placed) and placed.shape == (32, 16) and placed.ndim == 2
    assert {part.data.shape for part in placed.base.addressable_shards} == {(8, 8)}
    np.testing.assert_array_equal(placed.unbox(), tree["head"]["kernel"])
    again = lora_jax.shard({"head": {"kernel": placed}}, make_mesh(2, 1, 1))["head"]["kernel"]
    assert len(again.base.sharding.device_set) == 2 and not isinstance(again.base, Placed)


def test_an_axis_of_one_device_cuts_nothing_and_several_cut_as_far_as_they_divide() -> None:
    mesh = make_mesh(1, 4, 2)
    assert laid((12, 6), mesh, ("data", "fsdp"), "model").spec == P("fsdp", "model")
    assert laid((6, 4), mesh, ("model", "fsdp"), None).spec == P("model")
    assert laid((), mesh).spec == laid((5,), mesh, "fsdp").spec == P()


def test_what_a_mesh_refuses(capfd: pytest.CaptureFixture[str]) -> None:
    frozen, mesh = small_frozen(), make_mesh(2, 2, 2)
    with pytest.raises(
        ValueError, match="data 16 x fsdp 1 x model 1 needs 16 devices, and jax sees"
    ):
        make_mesh(16)
    with pytest.raises(ValueError, match="'decoder/.*' matches none of .* weights"):
        lora_jax.shard(frozen, mesh, [*RULES[3:4], ("decoder/.*", ("fsdp", None))])
    with pytest.raises(ValueError, match=r"one of data, fsdp, model.*got \('rows', None\)"):
        lora_jax.shardings(frozen, mesh, [(".*kernel", ("rows", None))])
    with pytest.raises(ValueError, match="None of 1 weights has a rule"):
        lora_jax.shard({"Dense_0": {"kernel": struct(8, 8)}}, mesh)
    # Rules of a base may say nothing of what is trained.
    lora_jax.shardings(small_trainable(), mesh, [("head/kernel", ("fsdp", None))])
    say_once.cache_clear()  # another test may have had it said
    lora_jax.shard(frozen, mesh)
    said = capfd.readouterr().err
    assert "'head/kernel' is whole along its outputs: 101" in said and KERNEL not in said
