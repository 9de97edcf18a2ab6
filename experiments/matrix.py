"""Writes experiments/MATRIX.md: which method goes with which base and which kind of module, alone,
side by side with others, and on a mesh. Each cell is tried, by shapes alone: nothing is computed.

XLA_FLAGS=--xla_force_host_platform_device_count=2 python experiments/matrix.py
"""

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import lora_jax
from lora_jax.adapters.stacking import stack
from lora_jax.core.init import INITIALIZERS
from lora_jax.core.mesh import make_mesh
from lora_jax.core.paths import flatten
from lora_jax.core.sharding import shard
from lora_jax.core.variants import VARIANTS

PAGE = Path(__file__).resolve().parent / "MATRIX.md"
BASES = ("fp32", "bf16", "nf4", "int8")
SIZE = 16


class Model(nn.Module):
    """One module of a kind, 16 x 16 seen as a matrix."""

    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The module's output."""
        return {
            "Dense": lambda: nn.Dense(SIZE, name="m"),
            "Einsum": lambda: nn.Einsum((SIZE, 4, 4), "bd,dhk->bhk", name="m"),
            "Conv": lambda: nn.Conv(SIZE, (2,), name="m"),
            "Embed": lambda: nn.Embed(SIZE, SIZE, name="m"),
        }[self.kind]()(x)


INPUTS = {
    "Dense": jax.ShapeDtypeStruct((2, SIZE), jnp.float32),
    "Einsum": jax.ShapeDtypeStruct((2, SIZE), jnp.float32),
    "Conv": jax.ShapeDtypeStruct((2, 4, 8), jnp.float32),
    "Embed": jax.ShapeDtypeStruct((2,), jnp.int32),
}


@functools.cache
def methods() -> dict[str, lora_jax.LoraSpec | None]:
    """By name every variant, every start that needs no data, and what changes the forward pass; None
    is full fine-tuning.
    """
    base = lora_jax.LoraSpec(rank=2, group_size=4)
    found: dict[str, lora_jax.LoraSpec | None] = {"full": None}
    for name in VARIANTS:
        found[name] = replace(base, variant=name, rank=1 if name == "lokr" else 2)
    found |= {"dora": replace(base, dora=True), "merge-aware": replace(base, merge_aware=True)}
    for name, start in INITIALIZERS.items():
        if not start.measures and name not in ("kaiming", "gaussian"):
            found[name] = replace(base, init=name)
    return found


def refusal(method: lora_jax.LoraSpec | None, base: str, kind: str) -> tuple[str, str]:
    """What is refused ('', 'stacked' or 'sharded' alone), and in which words; two empty texts if
    nothing is.
    """
    model, x, key = Model(kind), INPUTS[kind], jax.random.key(0)
    leaf = "m/embedding" if kind == "Embed" else "m/kernel"
    shapes = jax.eval_shape(lambda: model.init(key, jnp.zeros(x.shape, x.dtype))["params"])
    dtype = jnp.bfloat16 if base == "bf16" else jnp.float32
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    chosen: dict[str, Any] = dict(whole=[leaf]) if method is None else dict(lora=[(leaf, method)])
    if base in ("nf4", "int8"):
        chosen["quant"] = [(leaf, lora_jax.QuantSpec(base, 8, False))]

    def made(params: Any) -> Any:
        return lora_jax.adapt(model, params, (x,), key=key, **chosen)

    def trained(frozen: Any, trainable: Any, x: jax.Array) -> Any:
        moving, fixed = lora_jax.partition(trainable)

        def loss(moving: Any) -> jax.Array:
            joined = lora_jax.combine(moving, fixed)
            return jnp.sum(lora_jax.apply(model, frozen, joined, x).astype(jnp.float32) ** 2)

        merged = model.apply({"params": lora_jax.join(frozen, trainable)}, x)
        return jax.grad(loss)(moving), merged

    def beside(frozen: Any, trainable: Any, x: jax.Array) -> Any:
        both = stack([trainable, trainable])
        return jax.vmap(lambda one: lora_jax.apply(model, frozen, one, x))(both)

    where = ""
    try:
        frozen, trainable = jax.eval_shape(made, shapes)
        jax.eval_shape(trained, frozen, trainable, x)
        where = "stacked"
        jax.eval_shape(beside, frozen, trainable, x)
        where = "sharded"
        rules = [(leaf, ("fsdp", None))]
        mesh = make_mesh(fsdp=2)
        trees = ((frozen, flatten(frozen)), (trainable, trainable))
        laid = (shard(tree, mesh, rules) if leaf in paths else tree for tree, paths in trees)
        jax.eval_shape(trained, *laid, x)
    except (ValueError, TypeError) as error:
        return where, " ".join(str(error).removeprefix(f"{leaf}: ").replace(leaf, "PATH").split())
    return "", ""


@functools.cache
def cell(name: str, base: str, kind: str) -> tuple[str, str]:
    """`refusal` of a method by its name."""
    return refusal(methods()[name], base, kind)


def table(base: str, notes: list[str]) -> Iterator[str]:
    """The lines of one base's table; words that are not in `notes` yet are added to them."""
    yield f"| {base} | {' | '.join(INPUTS)} |"
    yield f"|---|{'---|' * len(INPUTS)}"
    for name in methods():
        cells = []
        for kind in INPUTS:
            where, words = cell(name, base, kind)
            if words and words not in notes:
                notes.append(words)
            number = f"[{notes.index(words) + 1}]" if words else ""
            cells.append(f"yes, {where} {number}" if where else number or "yes")
        yield f"| {name} | {' | '.join(cells)} |"


def page() -> str:
    """The whole page."""
    notes: list[str] = []
    lines = [
        "# Which method goes with what",
        "",
        "Written by `python experiments/matrix.py`, which tries every cell on shapes: the base is made "
        "(and quantised), the adapter, its gradient and the merged weight; then two adapters side by "
        "side in one program, as sweeps train them, and both on a mesh of two devices. `yes` is all "
        "of that; a number is what the library says instead, below. Starts that measure data are not "
        "here.",
    ]
    for base in BASES:
        lines += ["", *table(base, notes)]
    lines += ["", *(f"{n}. {words}" for n, words in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
