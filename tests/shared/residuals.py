"""What a backward pass keeps: the arrays that a differentiated function saves, told apart from what
it was given.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import numpy as np


def saved_arrays(function: Callable[..., Any], variable: Any, *fixed: Any) -> list[Any]:
    """Shapes and dtypes of what `function(variable, *fixed)` keeps for the gradient of `variable`,
    its own arguments excepted.

    The forward pass is traced with all arguments as inputs, and what its pullback closes over as
    outputs. An output that is an input (a frozen weight, a factor) costs no memory and does not
    count.
    """

    def forward(variable: Any, *fixed: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(lambda tree: function(tree, *fixed), variable)[1])

    jaxpr = jax.make_jaxpr(forward)(variable, *fixed).jaxpr
    given = {*jaxpr.invars, *jaxpr.constvars}
    return [
        var.aval
        for var in jaxpr.outvars
        if isinstance(var, jax.extend.core.Literal) or var not in given
    ]


def floats_of_shapes(arrays: list[Any], shapes: set[tuple[int, ...]]) -> list[Any]:
    """Those of the arrays that are floating and have one of the shapes, whatever leading axes of
    size 1 they have.
    """
    core = lambda shape: tuple(n for n in shape if n != 1)
    wanted = {core(shape) for shape in shapes}
    return [a for a in arrays if np.issubdtype(a.dtype, np.floating) and core(a.shape) in wanted]


def weight_shapes(frozen: Any, paths: Any) -> set[tuple[int, ...]]:
    """Shapes, as kernels and as matrices with and without their stack axis, of frozen weights."""
    from lora_jax.core.paths import flatten

    flat, shapes = flatten(frozen), set()
    for path in paths:
        full = tuple(flat[path].shape)
        for shape in (full, full[1:] if len(full) > 2 else full):
            shapes |= {shape, (*shape[:-2], shape[-1], shape[-2])}
    return shapes
