"""Weights of a model whose `Name`s are known, out of another tool's tensors and back: every tensor
is used exactly once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from lora_jax.core.host import filled
from lora_jax.core.paths import nearest
from lora_jax.io.names import Names

Tensors = Mapping[str, np.ndarray]


def read_named(
    names: Names, tensors: Tensors, *, what: str, ignored: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Host arrays in float32 by our path, made one by one; stack axes are joined.

    Args:
        what: of what the tensors should be, for the error: 'T5 model in FOLDER'.
        ignored: tensors that nothing reads.

    Raises:
        ValueError: tensors are missing, left over or of another shape; all of them are listed.
    """
    wanted = {
        parameter: name.their_shape() for name in names.values() for _, parameter in name.layers()
    }
    stored = set(tensors) - set(ignored)
    missing, extra = sorted(set(wanted) - stored), sorted(stored - set(wanted))
    wrong = [
        name for name in sorted(wanted) if name in stored and _shape(tensors, name) != wanted[name]
    ]
    if missing or extra or wrong:
        lines = [f"  missing    {name}{_near(name, extra)}" for name in missing] + [
            f"  left over  {name}" for name in extra
        ]
        lines += [
            f"  shape      {name}: {_shape(tensors, name)}, config.json says {wanted[name]}"
            for name in wrong
        ]
        raise ValueError(
            f"The tensors are not those of the {what}: {len(missing)} missing, {len(extra)} left "
            f"over, {len(wrong)} of another shape. Every "
            "tensor must be used exactly once. Check that config.json belongs to the file.\n"
            + "\n".join(lines[:60])
        )
    out = {}
    for path, name in names.items():
        read = lambda parameter, name=name: name.from_theirs(
            np.asarray(tensors[parameter], np.float32)
        )
        parts = ((index, read(parameter)) for index, parameter in name.layers())
        out[path] = filled((*name.stack, *name.shape), np.float32, parts)
    return out


def named_tensors(names: Names, flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors by the other tool's names, in float32.

    Raises:
        ValueError: the paths are not those of `names`, a leaf is a box, or one holds a NaN.
    """
    if set(names) != set(flat):
        odd = sorted(set(names) ^ set(flat))
        raise ValueError(
            f"The params are not this model's: {len(odd)} paths differ, such as "
            f"{', '.join(odd[:4])}."
        )
    out = {}
    for path, name in names.items():
        if (
            not hasattr(flat[path], "__array__")
            or not np.isfinite(whole := np.asarray(flat[path], np.float32)).all()
        ):
            raise ValueError(
                f"{path} is a {type(flat[path]).__name__} or holds a NaN: files hold plain "
                "weights. Merge adapters first."
            )
        for index, parameter in name.layers():
            out[parameter] = name.to_theirs(whole[index])
    return out


def stacked_names(
    make: Callable[[str, tuple[int, ...]], Names], layers: Mapping[str, int], *, scan: bool
) -> dict[str, Any]:
    """Names of the blocks under each prefix ('', 'encoder/'): one with a stack axis, or without
    scan one for each block.

    Args:
        make: (prefix, stack) to the names of one block, their paths without `layers/`; parameters
            hold one '{}'.
    """
    out = {}
    for prefix, count in layers.items():
        for path, name in make(prefix, (count,)).items():
            if scan:
                out[f"{prefix}layers/{path}"] = name
                continue
            for n in range(count):
                out[f"{prefix}layers_{n}/{path}"] = dataclasses.replace(
                    name, parameter=name.parameter.format(n), stack=()
                )
    return out


def _shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    shape = getattr(
        tensors, "shape", None
    )  # Known before the tensor is read, where the file can say.
    return tuple(shape(name) if callable(shape) else tensors[name].shape)


def _near(name: str, extra: list[str]) -> str:
    close = nearest(name, extra, 1) if extra else []
    return f"  (perhaps {close[0]!r})" if close else ""
