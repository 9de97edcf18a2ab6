"""Trained adapters on disk: adapter.safetensors with all that is needed to use them, and nothing of the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.core.boxes import Whole
from lora_jax.core.lowrank import LowRank
from lora_jax.io import safetensors

FILE = "adapter.safetensors"
_FORMAT = "lora_jax-adapter-1"


def save_adapter(
    folder: Path | str, lora: Mapping[str, LowRank | Whole], *, base: str, model: str, label_names: tuple[str, ...] = ()
) -> Path:
    """Writes the factors and the weights trained whole, as `<path>#a`, `#b`, `#scale` and `<path>#whole`.

    The effective scale is part of the file. `base` is the fingerprint of the pretrained weights that it was trained on.

    Raises:
        ValueError: a weight holds a NaN or an infinity.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in lora.items():
        parts = (
            {"whole": leaf.value} if isinstance(leaf, Whole) else {"a": leaf.a, "b": leaf.b, "scale": leaf.scale, "dropout": leaf.dropout}
        )
        tensors |= {f"{path}#{name}": np.asarray(value) for name, value in parts.items() if value is not None}
    if wrong := _not_finite(tensors):
        raise ValueError(f"{wrong} holds a NaN or an infinity; the adapter was not saved.")
    axes = {path: leaf.in_axes for path, leaf in lora.items() if isinstance(leaf, LowRank)}
    metadata = {"format": _FORMAT, "base": base, "model": model, "labels": json.dumps(label_names), "in_axes": json.dumps(axes)}
    safetensors.write(folder / FILE, tensors, metadata)
    return folder / FILE


def load_adapter(folder: Path | str, *, base: str | None = None) -> tuple[dict[str, LowRank | Whole], dict[str, str]]:
    """The adapter and its metadata.

    Args:
        base: the fingerprint of the base that it will be used on.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: it is no adapter, it was trained on another base, it has missing, unknown or no parts, or a NaN or an infinity.
    """
    path = Path(folder) / FILE
    tensors, metadata = safetensors.read(path), safetensors.read_metadata(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is not an adapter of this library (format {metadata.get('format')!r}, needed {_FORMAT!r}).")
    if absent := [name for name in ("base", "model", "in_axes") if name not in metadata]:
        raise ValueError(f"{path} lacks the metadata {absent[0]!r}. The file is incomplete.")
    if base is not None and metadata["base"] != base:
        raise ValueError(
            f"{path} was trained on base {metadata['base']} ({metadata['model']}), and this base is {base}. Load the base that it was trained on."
        )
    if wrong := _not_finite(tensors):
        raise ValueError(f"{path}: {wrong} holds a NaN or an infinity. Train it again from a sound checkpoint.")
    parts: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        site, _, part = name.rpartition("#")
        parts.setdefault(site, {})[part] = jnp.asarray(value)
    axes = json.loads(metadata["in_axes"])
    lora: dict[str, LowRank | Whole] = {}
    for site, values in parts.items():
        names = set(values) - {"dropout"}
        if names == {"whole"}:
            lora[site] = Whole(value=values["whole"])
        elif names == {"a", "b", "scale"} and site in axes:
            lora[site] = LowRank(**values, in_axes=tuple(axes[site]))
        else:
            raise ValueError(f"{path}: {site!r} has the parts {sorted(values)}; needed a, b and scale, or whole. The file is incomplete.")
    if missing := sorted(set(axes) - set(lora)):
        raise ValueError(f"{path} lacks the factors of {len(missing)} sites that its metadata names, such as {missing[0]!r}.")
    if not lora:
        raise ValueError(f"{path} holds no adapter: it has no tensors.")
    return lora, metadata


def _not_finite(tensors: Mapping[str, np.ndarray]) -> str | None:
    return next((name for name, value in tensors.items() if not np.isfinite(value).all()), None)
