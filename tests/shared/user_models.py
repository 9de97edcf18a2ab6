"""A model as a user would write it, with every module kind that has a rule and a raw `self.param`,
in every Linen wrapper.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lora_jax import LoraSpec, QuantSpec, adapt
from lora_jax.core import LowRank
from lora_jax.core.paths import flatten, unflatten
from lora_jax.core.trained_weight import TrainedWeight

WIDTH, WORDS, LAYERS, MEMBERS = 8, 20, 2, 3
# One rule for every matrix; the raw parameter and the tied embedding are matrices like the others.
MATRICES = r".*/(kernel|embedding|gate)"


class Block(nn.Module):
    """Attention, Dense, DenseGeneral, Einsum, Conv and a raw parameter, each added to the
    stream.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, dtype=self.dtype, name="attn")(
            nn.LayerNorm(name="norm", dtype=self.dtype)(x)
        )
        x = x + nn.Dense(WIDTH, dtype=self.dtype, name="down")(
            nn.gelu(nn.Dense(12, dtype=self.dtype, name="up")(x))
        )
        grid = nn.DenseGeneral((2, 4), dtype=self.dtype, name="grid")(x)
        x = x + nn.DenseGeneral(
            WIDTH, axis=(-2, -1), use_bias=False, dtype=self.dtype, name="ungrid"
        )(grid)
        heads = nn.Einsum((WIDTH, 2, 4), "btd,dhk->bhtk", dtype=self.dtype, name="heads")(x)
        x = x + nn.Einsum(
            (2, 4, WIDTH), "bhtk,hkd->btd", use_bias=False, dtype=self.dtype, name="unheads"
        )(heads)
        x = x + nn.Conv(WIDTH, (3,), dtype=self.dtype, name="conv")(x)
        gate = self.param("gate", nn.initializers.normal(0.3), (WIDTH, WIDTH))
        return x + jnp.tanh(x @ gate.astype(x.dtype)), None


class Model(nn.Module):
    """Tokens to logits over the words, by a tied embedding. `wrap` is how the blocks are
    repeated.
    """

    wrap: str = "loop"
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        words = nn.Embed(
            WORDS, WIDTH, embedding_init=nn.initializers.normal(0.5), dtype=self.dtype, name="words"
        )
        x = words(tokens)
        block = {"remat": nn.remat, "jit": nn.jit, "scan_remat": nn.remat}.get(
            self.wrap, lambda kind: kind
        )(Block)
        if self.wrap.startswith("scan"):
            x, _ = nn.scan(
                block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
            )(self.dtype, name="blocks")(x)
        elif self.wrap == "vmap":
            members = nn.vmap(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=None,
                out_axes=0,
                axis_size=MEMBERS,
            )
            x = members(self.dtype, name="blocks")(x)[0].mean(0)
        else:
            for index in range(LAYERS):
                x, _ = block(self.dtype, name=f"block_{index}")(x)
        return words.attend(nn.LayerNorm(name="norm", dtype=self.dtype)(x))


class Built(NamedTuple):
    """A model with weights and inputs."""

    model: Model
    params: Any
    inputs: tuple[jax.Array, ...]


@functools.cache
def build(wrap: str, dtype: Any = None) -> Built:
    """The model in a wrapper, all weights random (norms and biases too), made without compiling its
    init.
    """
    model = Model(wrap, dtype)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, WORDS, (2, 5)), jnp.int32)
    shapes = flatten(jax.eval_shape(model.init, jax.random.key(1), tokens)["params"])
    params = {
        path: jnp.asarray(
            (path.endswith("scale") + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)
        )
        for path, x in shapes.items()
    }
    return Built(model, unflatten(params), (tokens,))


WRAPS = ("loop", "scan", "scan_remat", "remat", "jit", "vmap")
QUANTS = {
    "plain": (),
    "nf4": ((MATRICES, QuantSpec("nf4", 4)),),
    "int8": ((MATRICES, QuantSpec("int8", 4)),),
}


def adapted(
    built: Built, quant: Any = (), *, spec: LoraSpec | None = None, trained: bool = True
) -> tuple[Any, dict[str, LowRank | TrainedWeight]]:
    """Frozen weights and factors on every matrix; with `trained`, `b` is away from 0, so that the
    factors matter.
    """
    # The raw gate has no factored product, so it can have no dropout.
    spec = spec or LoraSpec(rank=2, alpha=4.0)
    rules = [(r".*gate", LoraSpec(spec.rank, spec.alpha)), (MATRICES, spec)]
    frozen, trainable = adapt(
        built.model, built.params, built.inputs, lora=rules, quant=quant, key=jax.random.key(3)
    )
    return frozen, with_b(trainable) if trained else trainable


def with_b(trainable: dict[str, Any], size: float = 0.3) -> dict[str, Any]:
    """The same factors with a random `b`."""
    keys = dict(
        zip(sorted(trainable), jax.random.split(jax.random.key(4), len(trainable)), strict=True)
    )
    return {
        path: leaf
        if isinstance(leaf, TrainedWeight)
        else leaf.replace(b=size * jax.random.normal(keys[path], leaf.b.shape))
        for path, leaf in trainable.items()
    }


def error(x: Any, y: Any) -> float:
    """Largest difference over all leaves, relative to the largest value of `y`'s leaf."""

    def one(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(one, x, y)))


def same_bits(x: Any, y: Any) -> bool:
    """Whether two trees have equal structure, dtypes and bytes."""
    return jax.tree.structure(x) == jax.tree.structure(y) and all(
        raw(a).dtype == raw(b).dtype and raw(a).tobytes() == raw(b).tobytes()
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )


def raw(leaf: Any) -> np.ndarray:
    """A leaf as a host array, keys as their data."""
    return np.asarray(
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    )
