"""The papers' baselines on our encoder: the function they define, the start, what is trained, and
what is refused.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lora_jax.adapters import baselines
from lora_jax.adapters.apply import apply, join, split
from lora_jax.adapters.merge import merge
from lora_jax.adapters.sites import find_sites
from lora_jax.adapters.surgery import adapt, trainable_parameters
from lora_jax.core.aux_modules import Bottleneck, Gain, Prefix
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.quantize import QuantSpec
from lora_jax.core.rows import rows_of
from lora_jax.core.trainable import combine, partition
from lora_jax.core.trained_weight import TrainedWeight
from lora_jax.io.adapter import load_adapter, save_adapter
from lora_jax.models.encoder import Encoder, EncoderConfig

SIZES = EncoderConfig(
    vocab_size=30,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=16,
    max_positions=32,
    num_classes=3,
)
TOKENS = jax.random.randint(jax.random.key(1), (2, 6), 0, 30)
MASK = jnp.asarray([[1] * 6, [1] * 4 + [0] * 2], bool)


@functools.cache
def encoder(scan):
    """The model, its params and its sites; without scan the params are the same numbers, layer by
    layer.
    """
    model = Encoder(SIZES, scan=True)
    params = jax.jit(model.init)(jax.random.key(0), TOKENS, MASK)["params"]
    keys = iter(jax.random.split(jax.random.key(3), 100))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)
    if not scan:
        model = Encoder(SIZES, scan=False)
        blocks = {
            f"layers_{n}": jax.tree.map(lambda x, n=n: x[n], params["layers"]) for n in range(2)
        }
        params = {**{name: leaf for name, leaf in params.items() if name != "layers"}, **blocks}
    return model, params, find_sites(model, TOKENS, MASK)


def unscanned(pieces):
    """The same pieces with one entry a layer."""
    out = {}
    for path, piece in pieces.items():
        if not path.startswith("layers/"):
            out[path] = piece
            continue
        for n in range(2):
            out[path.replace("layers/", f"layers_{n}/")] = jax.tree.map(lambda x, n=n: x[n], piece)
    return out


def noisy(pieces):
    """The pieces with noise on all that is trained."""
    keys = iter(jax.random.split(jax.random.key(5), 100))

    def change(x):
        return x + 0.3 * jax.random.normal(next(keys), x.shape)

    return {
        path: leaf.replace(**{name: change(getattr(leaf, name)) for name in leaf.trained_fields()})
        for path, leaf in pieces.items()
    }


MAKE = {
    "houlsby": lambda sites: baselines.bottlenecks(sites, "houlsby", 3, key=jax.random.key(0)),
    "lin": lambda sites: baselines.bottlenecks(sites, "lin", 3, key=jax.random.key(0)),
    "pfeiffer": lambda sites: baselines.bottlenecks(sites, "pfeiffer", 3, key=jax.random.key(0)),
    "dropped": lambda sites: baselines.bottlenecks(
        sites, "houlsby", 3, dropped=1, key=jax.random.key(0)
    ),
    "ia3": baselines.ia3,
    "prefix_layers": lambda sites: baselines.prefix_layers(sites, 2, 1, key=jax.random.key(0)),
}


@pytest.mark.parametrize("name", [name for name in MAKE if name != "pfeiffer"])
def test_pieces_ride_through_a_scan_as_through_a_loop_and_start_at_the_base(name):
    model, params, sites = encoder(True)
    pieces = MAKE[name](sites)
    run = jax.jit(lambda pieces: apply(model, params, pieces, TOKENS, MASK))
    if name != "prefix_layers":
        # Pieces of zeros add nothing, but another program rounds otherwise.
        np.testing.assert_allclose(run(pieces), run({}), rtol=0, atol=5e-7)
    pieces = noisy(pieces)
    loop, loop_params, _ = encoder(False)
    one_by_one = jax.jit(lambda pieces: apply(loop, loop_params, pieces, TOKENS, MASK))(
        unscanned(pieces)
    )
    np.testing.assert_allclose(run(pieces), one_by_one, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(run(pieces) - run({})).max()) > 1e-3


@pytest.mark.parametrize("name", ["dropped", "lin", "prefix_layers"])
def test_every_counted_entry_of_a_piece_gets_a_gradient_and_no_other(name):
    model, params, sites = encoder(True)
    trained, fixed = partition(noisy(MAKE[name](sites)))
    loss = lambda tree: jnp.square(apply(model, params, combine(tree, fixed), TOKENS, MASK)).sum()
    grads = jax.jit(jax.grad(loss))(trained)
    for path, leaf in grads.items():
        for part in leaf.trained_fields():
            grad, on = getattr(leaf, part), getattr(fixed[path], "on", None)
            alive = (
                [float(jnp.abs(grad[n]).max()) > 0 for n in range(2)]
                if path.startswith("layers/")
                else [float(jnp.abs(grad).max()) > 0]
            )
            assert alive == (
                [bool(n) for n in on] if on is not None and on.ndim else [True] * len(alive)
            ), (path, part)


def test_a_bottleneck_is_its_definition():
    model, x = nn.Dense(6), jax.random.normal(jax.random.key(0), (4, 5))
    params = model.init(jax.random.key(1), x)["params"]
    ones = lambda *shape, key=0: jax.random.normal(jax.random.key(key), shape)
    piece = Bottleneck(
        down=ones(6, 3, key=2),
        down_bias=ones(3),
        up=ones(3, 6, key=3),
        up_bias=ones(6),
        norm_scale=ones(6, key=4),
        norm_bias=ones(6),
    )
    y = np.float64(model.apply({"params": params}, x))
    normed = (y - y.mean(-1, keepdims=True)) / np.sqrt(
        y.var(-1, keepdims=True) + 1e-6
    ) * np.float64(piece.norm_scale) + np.float64(piece.norm_bias)
    wanted = (
        y
        + np.maximum(normed @ np.float64(piece.down) + np.float64(piece.down_bias), 0)
        @ np.float64(piece.up)
        + np.float64(piece.up_bias)
    )
    np.testing.assert_allclose(
        apply(model, params, {"kernel#bottleneck": piece}, x), wanted, rtol=1e-5, atol=1e-5
    )
    gain = ones(6, key=5)
    np.testing.assert_allclose(
        apply(model, params, {"kernel#gain": Gain(value=gain)}, x), y * np.float64(gain), rtol=1e-5
    )
    into = ones(5, key=6)
    scaled = model.apply({"params": params}, x * into)
    np.testing.assert_allclose(
        apply(model, params, {"kernel#gain": Gain(value=into, where="input")}, x), scaled, rtol=1e-6
    )


@pytest.mark.parametrize("quantized", [False, True])
def test_a_piece_and_factors_on_one_weight_add_up(quantized):
    model, params, sites = encoder(True)
    quant = [("layers/.*/kernel", QuantSpec("int8", 8, False))] if quantized else []
    frozen, trainable = adapt(
        model,
        params,
        (),
        lora=[("layers/attn/o/kernel", LoraSpec(rank=2, dora=True))],
        quant=quant,
        key=jax.random.key(0),
        sites=sites,
    )
    pieces = noisy(trainable | MAKE["houlsby"](sites))
    plain, _ = merge(frozen, {path: leaf for path, leaf in pieces.items() if "#" not in path})
    only = {path: leaf for path, leaf in pieces.items() if "#" in path}
    np.testing.assert_allclose(
        apply(model, frozen, pieces, TOKENS, MASK),
        apply(model, plain, only, TOKENS, MASK),
        rtol=1e-4,
        atol=1e-5,
    )
    again_frozen, again = split(join(frozen, pieces))
    assert set(again) == set(pieces) and jax.tree.structure(again_frozen) == jax.tree.structure(
        frozen
    )


def test_prefix_embeddings_equal_a_longer_vocabulary_with_the_new_words_inserted():
    model, params, sites = encoder(True)
    pieces = noisy(baselines.prefix_embedding(sites, 2, 1, key=jax.random.key(0)))
    value = pieces["embeddings/word/embedding#prefix"].value
    words = jnp.concatenate([params["embeddings"]["word"]["embedding"], value])
    longer = Encoder(EncoderConfig(**{**SIZES.__dict__, "vocab_size": 33}), scan=True)
    tree = {**params, "embeddings": {**params["embeddings"], "word": {"embedding": words}}}
    at = lambda n: jnp.full((2, 1), n, TOKENS.dtype)
    tokens = jnp.concatenate([TOKENS[:, :1], at(30), at(31), TOKENS[:, 1:], at(32)], 1)
    true = jnp.ones((2, 1), bool)
    mask = jnp.concatenate([MASK[:, :1], true, true, MASK[:, 1:], true], 1)
    np.testing.assert_allclose(
        apply(model, params, pieces, TOKENS, MASK),
        longer.apply({"params": tree}, tokens, mask),
        rtol=1e-5,
        atol=1e-6,
    )


def test_prefix_layers_make_later_states_independent_of_earlier_ones_at_their_positions():
    piece = Prefix(value=jnp.arange(6.0).reshape(3, 2), prefix=2, infix=1)
    y = piece.after(jnp.full((1, 7, 2), -1.0))[0]
    np.testing.assert_array_equal(
        y, [[-1, -1], [0, 1], [2, 3], [-1, -1], [-1, -1], [-1, -1], [4, 5]]
    )
    tokens, mask, types = piece.insert((TOKENS, MASK, None))
    assert (
        tokens.shape == (2, 9)
        and mask[1].tolist() == [True] * 6 + [False] * 2 + [True]
        and types is None
    )


@pytest.mark.parametrize("scan", [True, False])
def test_top_layers_are_the_last_blocks_and_no_other(scan):
    model, params, sites = encoder(scan)
    frozen, trained = adapt(
        model, params, (), whole=["classifier/.*"], key=jax.random.key(0), sites=sites
    )
    top = baselines.top_layers(sites, params, 1)
    every = trained | top
    np.testing.assert_array_equal(
        apply(model, params, every, TOKENS, MASK), model.apply({"params": params}, TOKENS, MASK)
    )
    block = sum(x.size for x in jax.tree.leaves(params["layers" if scan else "layers_1"])) // (
        2 if scan else 1
    )
    assert trainable_parameters(top) == block
    moved = noisy(top)
    weights = join(params, moved)
    unboxed = jax.tree.map(
        lambda b: b.unbox() if isinstance(b, TrainedWeight) else b,
        weights,
        is_leaf=lambda b: isinstance(b, TrainedWeight),
    )
    if scan:
        old, new = params["layers"]["mlp"]["up"]["kernel"], unboxed["layers"]["mlp"]["up"]["kernel"]
        np.testing.assert_array_equal(old[0], new[0])
        assert float(jnp.abs(old[1] - new[1]).max()) > 0.1
    else:
        assert all(path.startswith("layers_1/") for path in top)


def test_chosen_words_are_trained_and_a_tied_output_follows():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = nn.Embed(9, 4, name="embed")
            return embed.attend(jnp.tanh(embed(ids)))

    model, ids = Tied(), jnp.asarray([[1, 3, 5, 3]])
    params = model.init(jax.random.key(0), ids)["params"]
    frozen, trainable = adapt(
        model, params, (ids,), rows={"embed/embedding": [3, 7]}, key=jax.random.key(0)
    )
    # The trained words' logits are a product of their own.
    np.testing.assert_allclose(
        apply(model, frozen, trainable, ids), model.apply({"params": params}, ids), rtol=1e-6
    )
    assert trainable_parameters(trainable) == 2 * 4
    moved = noisy(trainable)
    dense = params["embed"]["embedding"].at[jnp.asarray([3, 7])].set(moved["embed/embedding"].value)
    wanted = model.apply({"params": {"embed": {"embedding": dense}}}, ids)
    np.testing.assert_allclose(apply(model, frozen, moved, ids), wanted, rtol=1e-6)
    np.testing.assert_allclose(model.apply({"params": join(frozen, moved)}, ids), wanted, rtol=1e-6)
    trained, fixed = partition(moved)
    grad = jax.grad(lambda tree: jnp.square(apply(model, frozen, combine(tree, fixed), ids)).sum())(
        trained
    )["embed/embedding"].value
    full = jax.grad(
        lambda w: jnp.square(model.apply({"params": {"embed": {"embedding": w}}}, ids)).sum()
    )(dense)
    np.testing.assert_allclose(grad, full[jnp.asarray([3, 7])], rtol=1e-5)
    for bad in ([], [3, 3], [9]):
        with pytest.raises(ValueError, match="Rows must be some of 0 to 8"):
            rows_of(params["embed"]["embedding"], bad)
    with pytest.raises(ValueError, match="no weight 'embed/embeding'"):
        adapt(model, params, (ids,), rows={"embed/embeding": [1]}, key=jax.random.key(0))


def test_weights_that_carry_a_piece_are_neither_merged_nor_read_in_silence():
    model, params, sites = encoder(True)
    pieces = MAKE["houlsby"](sites)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge(params, pieces)
    with pytest.raises(ValueError, match="carries a trained bottleneck"):
        model.apply({"params": join(params, pieces)}, TOKENS, MASK)


def test_adapter_files_hold_pieces_rows_and_variants(tmp_path):
    model, params, sites = encoder(True)
    specs = (
        dict(dora=True, rank=2, init="pissa"),
        dict(rank=2, variant="vera"),
        dict(rank=2, variant="qa_lora", group_size=4),
    )
    rules = [
        (f"layers/attn/{name}/kernel", LoraSpec(**spec))
        for name, spec in zip("qkv", specs, strict=True)
    ]
    frozen, trainable = adapt(
        model,
        params,
        (),
        lora=rules,
        rows={"embeddings/word/embedding": [4, 2]},
        key=jax.random.key(0),
        sites=sites,
    )
    pieces = noisy(trainable | MAKE["houlsby"](sites) | MAKE["prefix_layers"](sites))
    pieces.pop("embeddings/word/embedding#prefix")
    save_adapter(tmp_path, pieces, base="b", model="m")
    again, _ = load_adapter(tmp_path, base="b")
    assert set(again) == set(pieces)
    assert {path: leaf.trained_fields() for path, leaf in again.items()} == {
        path: leaf.trained_fields() for path, leaf in pieces.items()
    }
    np.testing.assert_allclose(
        apply(model, frozen, again, TOKENS, MASK),
        apply(model, frozen, pieces, TOKENS, MASK),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda sites, params: baselines.bottlenecks(sites, "houlsby", 0, key=jax.random.key(0)),
            "size of at least 1",
        ),
        (
            lambda sites, params: baselines.bottlenecks(
                sites, "houlsby", 3, dropped=2, key=jax.random.key(0)
            ),
            "leaves none",
        ),
        (
            lambda sites, params: baselines.prefix_embedding(sites, 0, 0, key=jax.random.key(0)),
            "at least one token",
        ),
        (lambda sites, params: baselines.top_layers(sites, params, 3), "must be 1 to 2"),
    ],
)
def test_impossible_sizes_are_refused(make, says):
    _, params, sites = encoder(True)
    with pytest.raises(ValueError, match=says):
        make(sites, params)
