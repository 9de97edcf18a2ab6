"""Small models that hold every kind of site, in loop, scan, scan + remat and nn.jit form."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


class Kinds(nn.Module):
    """One site of each kind that has a rule, a tied embedding, and a kernel that is read as a raw
    parameter.
    """

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8, name="embed")
        x = embed(tokens)
        x = x + nn.Dense(8, name="dense")(nn.gelu(x))
        heads = nn.DenseGeneral((2, 4), name="heads")(x)
        x = x + nn.DenseGeneral(8, axis=(-2, -1), name="merge")(jnp.tanh(heads))
        x = x + nn.Einsum((8, 2, 4), "btd,dhk->bthk", name="einsum")(x).reshape(x.shape)
        x = x + nn.Conv(8, (3,), name="conv")(jnp.tanh(x))
        raw = self.param("raw", nn.initializers.lecun_normal(), (8, 8))
        x = x + jnp.tanh(x) @ raw
        return embed.attend(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        h = nn.Dense(16, name="up")(nn.LayerNorm(name="norm")(x))
        return x + nn.Dense(8, name="down")(jnp.tanh(h)), None


class Deep(nn.Module):
    """Three equal blocks; `form` says how they are repeated."""

    form: str = "loop"

    @nn.compact
    def __call__(self, x):
        if self.form.startswith("scan"):
            block = nn.remat(Block, prevent_cse=False) if self.form == "scan_remat" else Block
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=3,
            )
            x, _ = stack(name="layers")(x, None)
        else:
            block = nn.jit(Block) if self.form == "jit" else Block
            for index in range(3):
                x, _ = block(name=f"layers_{index}")(x, None)
        return nn.Dense(3, name="head")(x)


FORMS = ("loop", "scan", "scan_remat", "jit")


@functools.cache
def kinds():
    """The model of all kinds, its params and its inputs."""
    tokens = jax.random.randint(jax.random.key(1), (2, 5), 0, 11)
    model = Kinds()
    return model, _noisy(jax.jit(model.init)(jax.random.key(0), tokens)["params"]), (tokens,)


@functools.cache
def deep(form):
    """The deep model in one form, its params and its inputs."""
    x = jax.random.normal(jax.random.key(1), (4, 8))
    model = Deep(form)
    return model, _noisy(jax.jit(model.init)(jax.random.key(0), x)["params"]), (x,)


def moved(trainable, size=0.3, seed=7):
    """The adapter with noise on all that is trained, so that nothing is 0."""
    out = {}
    for index, (path, leaf) in enumerate(sorted(trainable.items())):
        names = leaf.trained_fields()
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), index), len(names))
        noise = {
            n: getattr(leaf, n) + size * jax.random.normal(k, getattr(leaf, n).shape)
            for n, k in zip(names, keys, strict=True)
        }
        out[path] = leaf.replace(**noise)
    return out


def _noisy(params):
    # Biases start at 0 in Linen, and a bug that scales or drops a bias would not show.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )
