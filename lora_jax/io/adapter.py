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
from lora_jax.core.changes import Change
from lora_jax.core.json_files import parse_json
from lora_jax.core.lowrank import LowRank
from lora_jax.core.model_variable import ModelVariable
from lora_jax.core.notice import say_once
from lora_jax.core.rows import Rows
from lora_jax.core.shapes import shape_of
from lora_jax.core.trainable import array_fields, misfit
from lora_jax.core.trained_weight import TrainedWeight
from lora_jax.io import safetensors
from lora_jax.io.card import Card, write_card
from lora_jax.io.config_json import named_errors
from lora_jax.io.tensor_files import SafetensorsFile
from lora_jax.io.tensors import check_finite

FILE = "adapter.safetensors"
_FORMAT = "lora_jax-adapter-2"
_WITHOUT_CHECKSUM = "lora_jax-adapter-1"
_KINDS: dict[str, type] = {
    kind.kind: kind for kind in (Rows, Bottleneck, Gain, Prefix, Change, ModelVariable)
}
_DERIVED = ("base_square",)  # follows from the base: recomputed, not stored


def save_adapter(
    folder: Path | str,
    trainable: Mapping[str, Any],
    *,
    base: str,
    model: str,
    label_names: tuple[str, ...] = (),
    card: Card | None = None,
) -> Path:
    """Writes the factors and the weights trained whole, as `<path>#a`, `#b`, `#scale` and
    `<path>#whole`, and a variant's other arrays; and a model card, README.md, with what `card` adds.

    The effective scale is part of the file, and so are the shapes of all tensors and a checksum.
    `base` is the fingerprint of the pretrained weights that it was trained on.

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
    check_finite(tensors, "; the adapter was not saved.")

    axes = {path: leaf.in_axes for path, leaf in trainable.items() if isinstance(leaf, LowRank)}
    metadata = {
        "format": _FORMAT,
        "base": base,
        "model": model,
        "labels": json.dumps(label_names),
        "in_axes": json.dumps(axes),
    }
    if variants := {path: static for path, leaf in trainable.items() if (static := _static(leaf))}:
        metadata["variants"] = json.dumps(variants)
    metadata["tensors"] = json.dumps({name: shape_of(value) for name, value in tensors.items()})
    metadata["checksum"] = safetensors.checksum(tensors, metadata)
    safetensors.write(folder / FILE, tensors, metadata)
    write_card(folder, trainable, model=model, base=base, card=card)
    return folder / FILE


def load_adapter(
    folder: Path | str, *, base: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The adapter and its metadata.

    Args:
        base: the fingerprint of the base that it will be used on.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: it is no adapter, it was changed since it was saved, it was trained on another
            base, it has missing, unknown or no parts or parts that do not fit together, or a NaN
            or an infinity.
    """
    path = Path(folder) / FILE
    file = SafetensorsFile(path)
    tensors, metadata = {name: np.array(tensor) for name, tensor in file.items()}, file.metadata
    _check(path, tensors, metadata, base)
    with named_errors(path, "an adapter"):
        return _joined(path, tensors, metadata), metadata


def _joined(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> dict[str, Any]:
    parts: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        site, _, part = name.rpartition("#")
        parts.setdefault(site, {})[part] = jnp.asarray(value)
    axes = parse_json(metadata["in_axes"], "in_axes")
    variants = parse_json(metadata.get("variants", "{}"), "variants")
    trainable: dict[str, Any] = {}
    for site, values in parts.items():
        # JSON has lists where fields are tuples.
        static = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in variants.get(site, {}).items()
        }
        kind = _KINDS.get(static.pop("kind", ""))
        if set(values) == {"whole"}:
            trainable[site] = TrainedWeight(value=values["whole"])
        elif kind is not None and set(values) <= set(array_fields(kind)):
            trainable[site] = kind(**values, **static)
        elif {"a", "b", "scale"} <= set(values) <= set(array_fields(LowRank)) and site in axes:
            trainable[site] = LowRank(**values, in_axes=tuple(axes[site]), **static)
        else:
            raise ValueError(
                f"{site!r} has the parts {sorted(values)}; needed a, b and scale, or whole. The "
                "file is incomplete."
            )
        if wrong := _odd_static(trainable[site]) or misfit(trainable[site]):
            raise ValueError(f"{wrong!r} of {site!r} does not fit the rest: {trainable[site]!r}")

    if missing := sorted((set(axes) | set(variants)) - set(trainable)):
        raise ValueError(
            f"it lacks the factors of {len(missing)} sites that its metadata names, such as "
            f"{missing[0]!r}."
        )
    if not trainable:
        raise ValueError("it holds no adapter: it has no tensors.")
    return trainable


def _check(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], base: str | None
) -> None:
    format = metadata.get("format")
    if format not in (_FORMAT, _WITHOUT_CHECKSUM):
        raise ValueError(
            f"{path} is not an adapter of this library (format {format!r}, needed "
            f"{_WITHOUT_CHECKSUM!r} or {_FORMAT!r})."
        )
    if format == _FORMAT:
        _check_unchanged(path, tensors, metadata)
    else:
        say_once(
            f"{path} was written by an older version and has no checksum: that nothing in it has "
            "changed since cannot be seen. Saving it again adds one."
        )

    if absent := [name for name in ("base", "model", "in_axes") if name not in metadata]:
        raise ValueError(f"{path} lacks the metadata {absent[0]!r}. The file is incomplete.")
    if base is not None and metadata["base"] != base:
        raise ValueError(
            f"{path} was trained on base {metadata['base']} ({metadata['model']}), and this base "
            f"is {base}. Load the base that it was trained on."
        )
    check_finite(tensors, ". Train it again from a sound checkpoint.", f"{path}: ")


def _check_unchanged(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    text = {name: value for name, value in metadata.items() if name != "checksum"}
    if metadata.get("checksum") == safetensors.checksum(tensors, text):
        return
    found = {name: shape_of(value) for name, value in tensors.items()}
    try:
        saved = dict(parse_json(metadata.get("tensors", ""), "tensors"))
    except (ValueError, TypeError):
        saved = found
    differ = sorted(name for name in found | saved if found.get(name) != saved.get(name))
    told = [
        f"{name} is {found.get(name, 'missing')}, and was {saved.get(name, 'not there')}"
        for name in differ[:4]
    ]
    raise ValueError(
        f"{path} was changed since it was saved: "
        f"{'; '.join(told) or 'its checksum is not that of what it holds'}. Copy it again, or "
        "train it again."
    )


def _odd_static(leaf: Any) -> str | None:
    """The first field besides the arrays that is of another type than its default."""
    static = array_fields(leaf, static=True)
    fields = [field for field in dataclasses.fields(leaf) if field.name in static]
    return next(
        (
            field.name
            for field in fields
            if type(getattr(leaf, field.name)) is not type(field.default)
        ),
        None,
    )


def _static(leaf: Any) -> dict[str, Any]:
    """What a leaf says besides its arrays: its kind, and fields that differ from their defaults."""
    kind = {"kind": leaf.kind} if leaf.kind in _KINDS else {}
    arrays = {*array_fields(leaf), *(("in_axes",) if isinstance(leaf, LowRank) else ())}
    fields = [field for field in dataclasses.fields(leaf) if field.name not in arrays]
    return kind | {
        field.name: getattr(leaf, field.name)
        for field in fields
        if getattr(leaf, field.name) != field.default
    }
