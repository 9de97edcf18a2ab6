"""Trained adapters on disk: adapter.safetensors has all that using them needs, nothing of the base."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.core.aux_modules import Bottleneck, Gain, Prefix
from lora_jax.core.lowrank import LowRank
from lora_jax.core.rows import Rows
from lora_jax.core.trainable import array_fields
from lora_jax.core.trained_weight import TrainedWeight
from lora_jax.io import safetensors

FILE = "adapter.safetensors"
_FORMAT = "lora_jax-adapter-1"
_KINDS: dict[str, type] = {kind.kind: kind for kind in (Rows, Bottleneck, Gain, Prefix)}
_DERIVED = ("base_square",)  # follows from the base: recomputed, not stored


def save_adapter(
    folder: Path | str,
    trainable: Mapping[str, Any],
    *,
    base: str,
    model: str,
    label_names: tuple[str, ...] = (),
) -> Path:
    """Writes the factors and the weights trained whole, as `<path>#a`, `#b`, `#scale` and
    `<path>#whole`, and a variant's other arrays.

    The effective scale is part of the file. `base` is the fingerprint of the pretrained weights
    that it was trained on.

    Raises:
        ValueError: a weight holds a NaN or an infinity.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in trainable.items():
        parts = (
            {"whole": leaf.value}
            if leaf.replaces
            else {name: getattr(leaf, name) for name in array_fields(leaf) if name not in _DERIVED}
        )
        tensors |= {
            f"{path}#{name}": np.asarray(value)
            for name, value in parts.items()
            if value is not None
        }
    if wrong := _not_finite(tensors):
        raise ValueError(f"{wrong} holds a NaN or an infinity; the adapter was not saved.")

    axes = {path: leaf.in_axes for path, leaf in trainable.items() if leaf.rank}
    metadata = {
        "format": _FORMAT,
        "base": base,
        "model": model,
        "labels": json.dumps(label_names),
        "in_axes": json.dumps(axes),
    }
    if variants := {path: static for path, leaf in trainable.items() if (static := _static(leaf))}:
        metadata["variants"] = json.dumps(variants)
    safetensors.write(folder / FILE, tensors, metadata)
    return folder / FILE


def load_adapter(
    folder: Path | str, *, base: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The adapter and its metadata.

    Args:
        base: the fingerprint of the base that it will be used on.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: it is no adapter, it was trained on another base, it has missing, unknown or no
            parts, or a NaN or an infinity.
    """
    path = Path(folder) / FILE
    tensors, metadata = safetensors.read(path), safetensors.read_metadata(path)
    _check(path, tensors, metadata, base)

    parts: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        site, _, part = name.rpartition("#")
        parts.setdefault(site, {})[part] = jnp.asarray(value)
    axes = json.loads(metadata["in_axes"])
    variants = json.loads(metadata.get("variants", "{}"))
    trainable: dict[str, Any] = {}
    for site, values in parts.items():
        static = dict(variants.get(site, {}))
        kind = _KINDS.get(static.pop("kind", ""))
        if set(values) == {"whole"}:
            trainable[site] = TrainedWeight(value=values["whole"])
        elif kind is not None and set(values) <= set(array_fields(kind)):
            trainable[site] = kind(**values, **static)
        elif {"a", "b", "scale"} <= set(values) <= set(array_fields(LowRank)) and site in axes:
            # JSON has lists where fields are tuples.
            static = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in static.items()
            }
            trainable[site] = LowRank(**values, in_axes=tuple(axes[site]), **static)
        else:
            raise ValueError(
                f"{path}: {site!r} has the parts {sorted(values)}; needed a, b and scale, or "
                "whole. The file is incomplete."
            )

    if missing := sorted((set(axes) | set(variants)) - set(trainable)):
        raise ValueError(
            f"{path} lacks the factors of {len(missing)} sites that its metadata names, such as "
            f"{missing[0]!r}."
        )
    if not trainable:
        raise ValueError(f"{path} holds no adapter: it has no tensors.")
    return trainable, metadata


def _check(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], base: str | None
) -> None:
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is not an adapter of this library (format {metadata.get('format')!r}, needed "
            f"{_FORMAT!r})."
        )
    if absent := [name for name in ("base", "model", "in_axes") if name not in metadata]:
        raise ValueError(f"{path} lacks the metadata {absent[0]!r}. The file is incomplete.")
    if base is not None and metadata["base"] != base:
        raise ValueError(
            f"{path} was trained on base {metadata['base']} ({metadata['model']}), and this base "
            f"is {base}. Load the base that it was trained on."
        )
    if wrong := _not_finite(tensors):
        raise ValueError(
            f"{path}: {wrong} holds a NaN or an infinity. Train it again from a sound checkpoint."
        )


def _not_finite(tensors: Mapping[str, np.ndarray]) -> str | None:
    return next((name for name, value in tensors.items() if not np.isfinite(value).all()), None)


def _static(leaf: Any) -> dict[str, Any]:
    """What a leaf says besides its arrays: its kind, and fields that differ from their defaults."""
    kind = {"kind": leaf.kind} if leaf.kind in _KINDS else {}
    arrays = {*array_fields(leaf), "in_axes"}
    fields = [field for field in dataclasses.fields(leaf) if field.name not in arrays]
    return kind | {
        field.name: getattr(leaf, field.name)
        for field in fields
        if getattr(leaf, field.name) != field.default
    }
