"""Cross-entropy under a frozen output head that is read once, in blocks, and keeps no logits.

The gradient of a hidden state is `sum_v p_v * W_v - W_label`: attention over the vocabulary, with
the words as keys and as values. So it is formed as FlashAttention forms it (Dao et al. 2022, arXiv
2205.14135): sums over the blocks so far, relative to the largest logit so far and scaled anew when
a larger one comes. One exponential a logit, where the softmax of stored logits takes two.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from lora_jax.core.mesh import BATCH, MODEL, Cut, dividing
from lora_jax.core.platform import platform
from lora_jax.kernels.counted import cotangent_of_sum, in_passes
from lora_jax.kernels.half import floats, to_cut

# Tokens that pass the vocabulary together, and as many for what is left over: a pass costs more a
# token, the fewer they are.
PASSES = (512, 128)


class Head(NamedTuple):
    """How words become logits: the axis of the words that counts the vocabulary (0 or 1), and the
    softcap, `cap * tanh(logit / cap)`.
    """

    axis: int
    softcap: float | None = None


class WordLosses(NamedTuple):
    """Of each token: the label's loss (nats), whether it is the likeliest, the loss's gradient."""

    loss: Float[Array, " tokens"]
    right: Bool[Array, " tokens"]
    gradient: Float[Array, "tokens hidden"] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def head_loss(
    hidden: Float[Array, "tokens hidden"],
    words: Float[Array, "_ _"],
    labels: Int[Array, " tokens"],
    weight: Float[Array, " tokens"],
    head: Head,
    cut: Cut | None = None,
) -> tuple[Float[Array, ""], Float[Array, " tokens"], Float[Array, " tokens"]]:
    """The sum of weighted losses (nats), and each token's weighted loss and its weight if right.

    A token whose label is not the likeliest word has 0 there. Gradients are of `hidden` alone,
    formed in the same pass, and flow from the sum only. Tokens whose weight is 0 are gathered away
    first and cost nothing. Products are of hidden's dtype, sums in float32.

    Args:
        cut: how the words lie on a mesh. Each of its devices has its own tokens and, where `model`
            divides the vocabulary, its own words.
    """
    return _losses(hidden, words, labels, weight, head, cut, gradient=False)[:3]


def _forward(
    hidden: Any, words: Any, labels: Any, weight: Any, head: Head, cut: Cut | None
) -> tuple[Any, Array]:
    arrays = (one.value for one in (hidden, words, labels, weight))
    *out, gradient = _losses(*arrays, head, cut, gradient=True)
    return tuple(out), gradient


def _backward(
    head: Head, cut: Cut | None, gradient: Array, g: tuple[Any, ...]
) -> tuple[Array, None, None, None]:
    return gradient * cotangent_of_sum(g).astype(gradient.dtype), None, None, None


head_loss.defvjp(_forward, _backward, symbolic_zeros=True)


Passed = tuple[Array, Array, Array, Array]


def _losses(
    hidden: Array,
    words: Array,
    labels: Array,
    weight: Array,
    head: Head,
    cut: Cut | None,
    *,
    gradient: bool,
) -> Passed:
    """What `head_loss` gives, and the gradient of `hidden`, or a 0."""
    if cut is None:
        return _passes(hidden, words, labels, weight, head, gradient=gradient)
    mesh, tokens = cut.mesh, labels.shape[0]
    over = dividing(words.shape[head.axis], mesh, (cut.rows, cut.columns)[head.axis])
    over = MODEL if over == MODEL else None
    # Where every device has all words, those of `model` divide the tokens.
    axes = BATCH if over else (*BATCH, MODEL)
    own = PartitionSpec(axes)
    filler = -tokens % math.prod(mesh.shape[axis] for axis in axes)

    def local(*arrays: Array) -> Passed:
        total, *each, d_hidden = _passes(*arrays, head, gradient=gradient, over=over)
        return jax.lax.psum(total, axes), *each, d_hidden

    total, *each = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(own, PartitionSpec(*[None] * head.axis, over), own, own),
        out_specs=(PartitionSpec(), own, own, own if gradient else PartitionSpec()),
        check_vma=False,  # It does not see that what was joined over `model` is the same there.
    )(_filled(hidden, filler), words, _filled(labels, filler), _filled(weight, filler))
    return total, *(one[:tokens] if one.ndim else one for one in each)


def _filled(x: Array, rows: int) -> Array:
    return jnp.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1)) if rows else x


def _passes(
    hidden: Array,
    words: Array,
    labels: Array,
    weight: Array,
    head: Head,
    *,
    gradient: bool,
    over: str | None = None,
) -> Passed:
    def each(d_hidden: Array, rows: Array, w: Array, h: Array, label: Array) -> Any:
        found = word_losses(h, words, label, head, gradient=gradient, over=over)
        if found.gradient is not None:
            d_rows = (found.gradient * w[:, None]).astype(hidden.dtype)
            d_hidden = d_hidden.at[rows].set(d_rows, mode="drop")
        return found.loss, found.right, d_hidden

    d_hidden = jnp.zeros_like(hidden) if gradient else jnp.zeros(())
    return in_passes(PASSES, weight, (hidden, labels), each, d_hidden)


def word_losses(
    hidden: Float[Array, "tokens hidden"],
    words: Float[Array, "_ _"],
    labels: Int[Array, " tokens"],
    head: Head,
    *,
    gradient: bool = False,
    over: str | None = None,
) -> WordLosses:
    """The loss of each label after its hidden state, and if asked for that state's gradient.

    Args:
        words: (vocab, hidden) or (hidden, vocab), as `head.axis` says.
        over: under shard_map the mesh axis whose devices have a part of the words each; the tokens
            are the same on all of them.
    """
    if over is not None:
        labels = labels - jax.lax.axis_index(over) * words.shape[head.axis]
    tokens, width = hidden.shape
    vocab = words.shape[head.axis]
    size = min(_block(), vocab)
    columns = jnp.arange(size, dtype=jnp.int32)
    stored = to_cut(words)
    State = tuple[Array, Array, Array, Array]

    def block(n: Array, state: State) -> State:
        largest, likeliest, total, summed = state
        start = jnp.minimum(n * size, vocab - size)
        part = jax.lax.dynamic_slice_in_dim(stored, start, size, head.axis)
        part = floats(part, words.dtype).astype(hidden.dtype)
        logits, slope = _capped(_product(hidden, part, 1 - head.axis), head.softcap)
        if vocab % size:  # The last block begins in the one before it, whose words count there.
            logits = jnp.where(start + columns < n * size, -jnp.inf, logits)

        here = logits.max(-1)
        new = jnp.maximum(largest, here)
        first = jnp.where(logits == here[:, None], columns, size).min(-1)
        shrink, share = jnp.exp(largest - new), jnp.exp(logits - new[:, None])
        if gradient:
            weights = share if slope is None else share * slope
            values = _product(weights.astype(hidden.dtype), part, head.axis)
            summed = summed * shrink[:, None] + values
        likeliest = jnp.where(here > largest, start + first, likeliest)
        return new, likeliest, total * shrink + share.sum(-1), summed

    none = jnp.zeros(tokens, jnp.float32)
    state = (
        jnp.full(tokens, -jnp.inf, jnp.float32),
        jnp.zeros(tokens, jnp.int32),
        none,
        jnp.zeros((tokens, width)) if gradient else none,
    )
    largest, likeliest, total, summed = jax.lax.fori_loop(0, -(-vocab // size), block, state)

    own = jnp.moveaxis(jnp.take(stored, labels, axis=head.axis, mode="clip"), head.axis, 0)
    own = floats(own, words.dtype).astype(hidden.dtype).astype(jnp.float32)
    picked, slope = _capped((hidden.astype(jnp.float32) * own).sum(-1), head.softcap)
    own = own if slope is None else own * slope[:, None]
    if over is not None:
        mine = (labels >= 0) & (labels < vocab)
        picked, own = jnp.where(mine, picked, 0.0), jnp.where(mine[:, None], own, 0.0)
        sums = _Sums(largest, likeliest, total, picked, summed, own)
        return _joined(sums, labels, over, vocab, gradient=gradient)
    d_hidden = summed / total[:, None] - own if gradient else None
    return WordLosses(largest + jnp.log(total) - picked, likeliest == labels, d_hidden)


class _Sums(NamedTuple):
    """What a part of the words gives of each token, relative to the largest logit among them."""

    largest: Array
    likeliest: Array
    total: Array
    picked: Array
    summed: Array
    own: Array


def _joined(sums: _Sums, labels: Array, over: str, part: int, *, gradient: bool) -> WordLosses:
    """The losses of tokens from the sums of all parts of the words; labels count from this part's
    first word.
    """
    largest = jax.lax.pmax(sums.largest, over)
    shrink = jnp.exp(sums.largest - largest)
    total, picked = jax.lax.psum((sums.total * shrink, sums.picked), over)

    # Of equal logits the first word's, as in one part.
    none = jnp.iinfo(jnp.int32).max
    first = jax.lax.axis_index(over) * part
    likeliest = jnp.where(sums.largest == largest, first + sums.likeliest, none)
    right = jax.lax.pmin(likeliest, over) == labels + first

    d_hidden = None
    if gradient:
        mine = sums.summed * (shrink / total)[:, None] - sums.own
        d_hidden = jax.lax.psum(mine, over)
    return WordLosses(largest + jnp.log(total) - picked, right, d_hidden)


def _product(x: Array, y: Array, axis: int) -> Array:
    return jax.lax.dot_general(
        x, y, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32
    )


def _capped(x: Array, cap: float | None) -> tuple[Array, Array | None]:
    """Logits, and their derivative where it is not 1."""
    if cap is None:
        return x, None
    y = jnp.tanh(x / cap)
    return cap * y, 1 - y * y


def _block() -> int:
    """Words at a time: a block fits a CPU's second cache; long steps keep other devices busy."""
    return 1024 if platform() == "cpu" else 16_384
