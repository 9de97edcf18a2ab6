"""A run that goes on from another run's adapter, as LoRA's MRPC, RTE and STS-B do from MNLI's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.core.trainable import Trainables, array_fields, given_fields
from lora_jax.io.adapter import load_adapter

# What is a new run's own, or follows from its base, of an adapter that it starts from.
_OWN = ("dropout", "base_square")
_HOW = ("rounded",)  # and what says how it is trained, not what it computes


def start_from(
    made: Trainables, folder: Path | str, *, base: str, is_head: Callable[[str], bool]
) -> dict[str, Any]:
    """`made` with the arrays of the adapter in `folder`; a head, and rates of dropout, stay new.

    Args:
        made: what a run of this config would train from.
        folder: `adapter/` of a run.
        base: the fingerprint of this run's base.
        is_head: whether a path is of the head.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: it is of another base, or its sites, shapes or scales are not those of `made`;
            they are named.
    """
    try:
        given, _ = load_adapter(folder, base=base)
    except FileNotFoundError as absent:
        raise FileNotFoundError(
            f"config.lora.init_from names the folder adapter/ of a finished run, and {folder} is "
            "none. Train the run to start from, or set it to None for a new adapter."
        ) from absent

    body = {path: leaf for path, leaf in given.items() if not is_head(path)}
    wanted = {path for path in made if not is_head(path)}
    if odd := sorted(wanted ^ body.keys()):
        sides = [f"{path} ({'here' if path in wanted else 'there'} alone)" for path in odd[:3]]
        raise ValueError(
            f"A run starts from an adapter of its own sites, and those of {folder} differ at "
            f"{len(odd)}: {', '.join(sides)}. Take the lora.targets that it was trained with."
        )
    return {
        path: _taken(path, leaf, body[path]) if path in body else leaf
        for path, leaf in made.items()
    }


def _taken(path: str, new: Any, old: Any) -> Any:
    """`new` with the arrays of `old`.

    Raises:
        ValueError: one of the two has other arrays, or another scale.
    """
    ours, theirs = ({name: getattr(x, name) for name in given_fields(x)} for x in (new, old))
    here, there = (
        {name: value.shape for name, value in side.items() if name not in _OWN}
        for side in (ours, theirs)
    )
    if type(new) is not type(old) or here != there:
        raise ValueError(
            f"A run starts from an adapter of its own shapes: at {path} it has {here}, and the "
            f"adapter {there}. Take the settings of config.lora that it was trained with."
        )
    for name in array_fields(new, static=True):
        if name not in _HOW and getattr(new, name) != getattr(old, name):
            raise ValueError(
                f"A run starts from an adapter of its own kind: at {path} its {name} is "
                f"{getattr(new, name)!r}, and the adapter's {getattr(old, name)!r}. Take the "
                "config.lora that it was trained with."
            )
    for name in ("scale", "parts", "index"):  # data, not trained: the settings say them
        if name in here and not np.array_equal(ours[name], theirs[name]):
            raise ValueError(
                f"A run starts from an adapter with its own {name}: at {path} it is "
                f"{np.unique(ours[name])}, and of the adapter {np.unique(theirs[name])}. Take the "
                "lora.alpha, scaling and layers that it was trained with."
            )
    return new.replace(**{name: theirs[name] for name in here})
