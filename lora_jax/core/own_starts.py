"""First values of variants that have their own, as arrays of one matrix by the name of their field.

Each is a function (W, key, spec) -> arrays, where W is a `jax.ShapeDtypeStruct` (in, out) unless the
variant reads the weight. The update starts at 0, and nothing is taken out of the base.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Arrays = dict[str, Array]
DRAW = 777  # the seed of entries that are the same everywhere: PEFT's default of FourierFT
LARGEST_DRAW = (2**32 - 1) // 20  # beyond it torch shuffles in another way


def lora_xs(w: Float[Array, "in out"], key: jax.Array, spec: Any) -> Arrays:
    """The `rank` largest singular triplets, which stay: a = U_r S_r and b = V_r^T (section 3).

    The trained matrix between them starts at 0, where the paper draws it with deviation 1e-5.
    """
    u, s, vt = jnp.linalg.svd(w.astype(jnp.float32), full_matrices=False)
    r = spec.rank
    return {"a": u[:, :r] * s[:r], "b": vt[:r], "mix": jnp.zeros((r, r), jnp.float32)}


def miss(w: Any, key: jax.Array, spec: Any) -> Arrays:
    """`a` sums every `rank`-th input, and stays; `b` is 0 (PEFT's default of MiSS)."""
    rows, out = w.shape
    return {"a": jnp.asarray(tiled(rows, spec.rank)), "b": jnp.zeros((spec.rank, out), jnp.float32)}


def loha(w: Any, key: jax.Array, spec: Any) -> Arrays:
    """Kaiming uniform as in PEFT, and one of the four 0: `a2`."""
    rows, out = w.shape
    a_key, b_key, b2_key = jax.random.split(key, 3)
    return {
        "a": _kaiming(a_key, rows, rows, spec.rank),
        "b": _kaiming(b_key, spec.rank, spec.rank, out),
        "a2": jnp.zeros((rows, spec.rank), jnp.float32),
        "b2": _kaiming(b2_key, spec.rank, spec.rank, out),
    }


def lokr(w: Any, key: jax.Array, spec: Any) -> Arrays:
    """Kaiming uniform as in PEFT, and the outer matrix 0.

    Inputs and outputs are cut into two factors each, as near to each other as can be; the smaller
    ones are the outer matrix's sides.

    Raises:
        ValueError: the rank is not below half the inner matrix's larger side. PEFT trains that
            matrix whole then.
    """
    (m, inner), (n, outer) = map(nearest_factors, w.shape)
    if spec.rank >= max(inner, outer) / 2:
        raise ValueError(
            f"variant 'lokr' has a {m} x {n} matrix for blocks of {inner} x {outer} here, and "
            f"factors of those need a rank below {max(inner, outer) / 2:g}, got {spec.rank}."
        )
    a_key, b_key = jax.random.split(key)
    return {
        "a": _kaiming(a_key, inner, inner, spec.rank),
        "b": _kaiming(b_key, spec.rank, spec.rank, outer),
        "outer": jnp.zeros((m, n), jnp.float32),
    }


def gralora(w: Any, key: jax.Array, spec: Any) -> Arrays:
    """`a` Kaiming uniform for the inputs of a block, `b` 0.

    Raises:
        ValueError: the number of blocks along a side does not divide both sides and the rank.
    """
    (rows, out), count = w.shape, spec.blocks
    if rows % count or out % count or spec.rank % count:
        raise ValueError(
            f"variant 'gralora' cuts the weight into blocks x blocks: blocks={count} must divide "
            f"its {rows} inputs, its {out} outputs and the rank {spec.rank}."
        )
    a = _kaiming(key, rows // count, rows, spec.rank)
    return {"a": a, "b": jnp.zeros((spec.rank, out), jnp.float32)}


def oft(w: Any, key: jax.Array, spec: Any) -> Arrays:
    """No rotation: 0 for each pair of inputs of a block of `rank`.

    Raises:
        ValueError: the blocks do not divide the inputs, or are of one input.
    """
    rows, size = w.shape[0], spec.rank
    if rows % size or size < 2:
        raise ValueError(
            f"variant 'oft' rotates blocks of `rank` inputs: rank={size} must be at least 2 and "
            f"divide the weight's {rows} inputs."
        )
    return {"value": jnp.zeros(rows * (size - 1) // 2, jnp.float32)}


def fourierft(w: Any, key: jax.Array, spec: Any) -> Arrays:
    """0 at entries of the spectrum that are the same in all weights of a shape, as in the paper."""
    return _entries(w, spec)


def shira(w: Any, key: jax.Array, spec: Any) -> Arrays:
    """0 at entries of the weight that are the same in all weights of a shape, as PEFT draws them
    ('random'), in the order that they have in its files.
    """
    return _entries(w, spec, ordered=True)


def _entries(w: Any, spec: Any, ordered: bool = False) -> Arrays:
    """As many numbers as LoRA of the rank has."""
    count, size = spec.rank * sum(w.shape), math.prod(w.shape)
    if count > size:
        raise ValueError(
            f"variant {spec.variant!r} trains rank x (inputs + outputs) = {count} entries of a "
            f"{w.shape[0]} x {w.shape[1]} weight: they must be at most its {size}. Lower the rank, "
            "or leave the site alone."
        )
    where = drawn_by_torch(*w.shape, count, ordered=ordered)
    return {"value": jnp.zeros(count, jnp.float32), "where": jnp.asarray(where)}


@functools.lru_cache(maxsize=32)
def drawn_by_torch(
    rows: int, columns: int, count: int, seed: int = DRAW, ordered: bool = False
) -> np.ndarray:
    """Entries of a matrix (rows, columns), counted row by row: the first `count` of the random
    order that torch's generator gives those of the transposed matrix, which is how PEFT draws them;
    `ordered` as they lie in that.

    Raises:
        ValueError: the matrix is so large that torch shuffles in another way.
    """
    size = rows * columns
    if size > LARGEST_DRAW:
        raise ValueError(
            f"Entries of a {rows} x {columns} weight are not drawn: it may have at most "
            f"{LARGEST_DRAW} of them. Leave the site alone, or take another variant."
        )
    # Only the beginning of a Fisher-Yates shuffle: what it has moved is kept by place.
    raw = np.random.RandomState(seed & 0xFFFFFFFF).bytes(4 * count)
    moved: dict[int, int] = {}
    found = np.empty(count, np.int64)
    for i, number in enumerate(np.frombuffer(raw, "<u4").tolist()):
        other = i + number % (size - i)
        found[i] = moved.get(other, other)
        moved[other] = moved.get(i, i)
    out, inner = np.divmod(np.sort(found) if ordered else found, rows)
    return (inner * columns + out).astype(np.int32)


def tiled(rows: int, rank: int) -> np.ndarray:
    """MiSS's fixed factor (rows, rank): 1 where an input is the column's, counted round."""
    return (np.arange(rows)[:, None] % rank == np.arange(rank)).astype(np.float32)


def nearest_factors(size: int) -> tuple[int, int]:
    """Two numbers whose product is `size`, the smaller first, as near to each other as can be."""
    small = next(m for m in range(math.isqrt(size), 0, -1) if size % m == 0)
    return small, size // small


def _kaiming(key: jax.Array, fan_in: int, *shape: int) -> Array:
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
