"""The methods that LoRA's papers compare with, as trained weights and modules of an encoder: what,
where, and how many parameters.

Full fine-tuning, the head alone and BitFit are `whole` rules of `adapt` ('.*', 'classifier/.*',
'.*/bias'). The others are here; their result is added to what `adapt` returns. Paths are those of
`lora_jax.models.Encoder`, with or without scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lora_jax.adapters.sites import Site
from lora_jax.core.aux_modules import Bottleneck, Gain, Prefix
from lora_jax.core.paths import flatten, key_for, layer_of, match
from lora_jax.core.rows import rows_of
from lora_jax.core.trainable import Trainable
from lora_jax.core.trained_weight import TrainedWeight

_LAYER = r"layers(_\d+)?"
# After which modules a bottleneck stands. Houlsby's stand before the residual sums, the others
# after the block's last norm.
PLACES: dict[str, tuple[str, ...]] = {
    "houlsby": (rf"{_LAYER}/attn/o/kernel", rf"{_LAYER}/mlp/down/kernel"),
    "lin": (rf"{_LAYER}/mlp_norm/scale",),
    "pfeiffer": (rf"{_LAYER}/mlp_norm/scale",),
}
IA3_OUTPUTS = (rf"{_LAYER}/attn/(k|v)/kernel",)
IA3_INPUTS = (rf"{_LAYER}/mlp/down/kernel",)
# standard deviation of a new down-projection (Houlsby et al. 2019, section 3.6: 1e-2 and below are
# alike)
_DOWN_SCALE = 0.01


def bottlenecks(
    sites: Mapping[str, Site],
    kind: Literal["houlsby", "lin", "pfeiffer"],
    size: int,
    *,
    dropped: int = 0,
    key: jax.Array,
) -> dict[str, Bottleneck]:
    """Bottleneck adapters of width `size`: two a block (Houlsby et al. 2019) or one (Lin et al.
    2020; Pfeiffer et al. 2021).

    Lin's have a layer norm of their own. `dropped` leaves the first blocks without any
    (AdapterDrop, Rücklé et al. 2021). They start as the identity. Trained parameters: adapters * (2
    d r + r + d) + 2 d * adapters with a norm.

    Raises:
        ValueError: the width is below 1, or no block would be left.
    """
    if size < 1:
        raise ValueError(f"A bottleneck needs a size of at least 1, got {size}.")
    found: dict[str, Bottleneck] = {}
    for path in match([(pattern, True) for pattern in PLACES[kind]], sites, what="bottleneck"):
        site = sites[path]
        on = _on(path, site, dropped)
        if on is None:
            continue
        d = site.columns if site.is_matrix else site.shape[-1]

        def zeros(*shape: int, stack: tuple[int, ...] = site.stack) -> Array:
            return jnp.zeros((*stack, *shape), jnp.float32)

        found[f"{path}#bottleneck"] = Bottleneck(
            down=_DOWN_SCALE
            * jax.random.normal(key_for(key, path), (*site.stack, d, size), jnp.float32),
            down_bias=zeros(size),
            up=zeros(size, d),
            up_bias=zeros(d),
            norm_scale=zeros(d) + 1 if kind == "lin" else None,
            norm_bias=zeros(d) if kind == "lin" else None,
            on=on,
        )
    if not found:
        raise ValueError(
            f"Dropping the adapters of the first {dropped} blocks leaves none. Drop fewer."
        )
    return found


def ia3(
    sites: Mapping[str, Site],
    outputs: Sequence[str] = IA3_OUTPUTS,
    inputs: Sequence[str] = IA3_INPUTS,
) -> dict[str, Gain]:
    """IA3's gains, all 1: on keys and values, and on the hidden feed-forward activations (Liu et
    al. 2022). L * (2 d + d_ff) of them.
    """
    found = {}
    for where, patterns in (("output", outputs), ("input", inputs)):
        for path in match([(pattern, True) for pattern in patterns], sites, what="ia3"):
            site = sites[path]
            size = site.columns if where == "output" else site.rows
            found[f"{path}#gain"] = Gain(
                value=jnp.ones((*site.stack, size), jnp.float32), where=where
            )
    return found


def prefix_embedding(
    sites: Mapping[str, Site], prefix: int, infix: int, *, key: jax.Array
) -> dict[str, Prefix]:
    """Trained word embeddings of `prefix` tokens after the first token and `infix` at the end: d *
    (prefix + infix) parameters.

    Raises:
        ValueError: there are none.
    """
    if prefix < 0 or infix < 0 or prefix + infix < 1:
        raise ValueError(
            f"A prefix needs at least one token in all, got prefix={prefix} and infix={infix}."
        )
    path = "embeddings/word/embedding"
    value = 0.02 * jax.random.normal(key, (prefix + infix, sites[path].shape[-1]), jnp.float32)
    return {f"{path}#prefix": Prefix(value=value, prefix=prefix, infix=infix, inserts=True)}


def prefix_layers(
    sites: Mapping[str, Site], prefix: int, infix: int, *, key: jax.Array
) -> dict[str, Prefix]:
    """Trained states at the inserted positions of every block's input: L * d * (prefix + infix)
    parameters.

    Those of the first block are embeddings; each later block's replace what the block before it
    computed there. What the last block computes there is not replaced: nothing reads it.

    Raises:
        ValueError: there are none.
    """
    found = prefix_embedding(sites, prefix, infix, key=key)
    paths = match([(rf"{_LAYER}/mlp_norm/scale", True)], sites, what="prefix")
    last = max(map(_index, paths))
    for path in paths:
        site = sites[path]
        if not site.stack and _index(path) == last:
            continue
        shape = (*site.stack, prefix + infix, site.shape[-1])
        value = 0.02 * jax.random.normal(key_for(key, path), shape, jnp.float32)
        on = (
            (jnp.arange(site.stack[0]) < site.stack[0] - 1).astype(jnp.float32)
            if site.stack
            else None
        )
        found[f"{path}#prefix"] = Prefix(value=value, on=on, prefix=prefix, infix=infix)
    return found


def top_layers(
    sites: Mapping[str, Site], params: Mapping[str, Any], count: int
) -> dict[str, Trainable]:
    """The last `count` blocks trained whole.

    Raises:
        ValueError: there are not that many blocks.
    """
    flat, found = flatten(params), {}
    paths = match([(rf"{_LAYER}/.*", True)], sites, what="top layers")
    stacked = {path: sites[path].stack[0] for path in paths if path.startswith("layers/")}
    total = next(iter(stacked.values())) if stacked else 1 + max(map(_index, paths))
    if not 1 <= count <= total:
        raise ValueError(f"The number of top layers must be 1 to {total}, got {count}.")
    for path in paths:
        if path in stacked:
            found[path] = rows_of(jnp.asarray(flat[path]), range(total - count, total), layers=True)
        elif _index(path) >= total - count:
            found[path] = TrainedWeight(value=jnp.array(flat[path], copy=True))
    return found


def _index(path: str) -> int:
    """The number of the path's layer; 0 if all are stacked."""
    return layer_of(path)[1] or 0


def _on(path: str, site: Site, dropped: int) -> Array | None:
    """1 where a layer keeps its adapter; None if this one is dropped."""
    kept = np.asarray(np.arange(site.stack[0]) if site.stack else _index(path)) >= dropped
    return jnp.asarray(kept, jnp.float32) if kept.any() else None
