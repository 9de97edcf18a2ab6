"""What a backward pass keeps: the arrays that a differentiated function saves, told apart from what
it was given.
"""

from typing import Any

import numpy as np

from lora_jax.analysis.footprint import saved_arrays as saved_arrays


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
