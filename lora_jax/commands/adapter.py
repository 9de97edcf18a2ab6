"""Adapters on disk, of ours or of PEFT's: read either, and describe what one covers. Used by
`inspect`, `convert` and `export`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe(folder: Path | str, model: str | None = None) -> str:
    """The coverage table of a saved adapter, with its size and its base.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: it is damaged, or is PEFT's and no model is given.
    """
    from lora_jax.adapters.checks import coverage, without_effect
    from lora_jax.adapters.surgery import trainable_parameters

    trainable, base = read_any(folder, model)
    silent = without_effect(trainable)
    lines = [
        str(coverage(trainable)),
        "",
        (
            f"{len(trainable)} sites, {trainable_parameters(trainable):,} trained numbers; base "
            f"{base or 'not recorded'}"
        ),
        f"sites that change nothing: {', '.join(silent) or 'none'}",
    ]
    return "\n".join(lines)


def new_folder(out: str) -> Path:
    """The path of a folder that is to be written.

    Raises:
        ValueError: it is there, and not empty.
    """
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} must be a new or empty folder: it holds {len(list(folder.iterdir()))} files. "
            "Choose another."
        )
    return folder


def read_any(folder: Path | str, model: str | None) -> tuple[Mapping[str, Any], str]:
    """The adapter in a folder of ours or of PEFT's, and the fingerprint of its base ('' if there is
    none).

    Raises:
        FileNotFoundError, ValueError: as `load_adapter` and `load_peft`; a PEFT adapter needs a
            model.
    """
    from lora_jax.io.adapter import load_adapter
    from lora_jax.io.peft import is_peft, load_peft
    from lora_jax.io.weights import adapter_names

    if not is_peft(folder):
        trainable, metadata = load_adapter(folder)
        return trainable, metadata["base"]
    if model is None:
        raise ValueError(
            f"{folder} is an adapter of PEFT's, whose names belong to a model: give it with "
            "--model."
        )
    base = open_base(model, folder)
    names = adapter_names(base.config)
    trainable, found = load_peft(folder, names, frozen=base.read())
    return trainable, found.recorded.get("base", "")


def open_base(model: str, adapter: Path | str, *, scan: bool = True) -> Any:
    """A `StoredModel`, with a classifier if the adapter or the model has one."""
    import jax

    from lora_jax.io.hub import resolve
    from lora_jax.io.safetensors import read
    from lora_jax.io.weights import classes_of, kind_of, open_model

    folder = Path(model) if Path(model).is_file() else resolve(model)
    head: dict[str, Any] = {}
    if kind_of(folder) == "encoder":
        trained = classes_in(read(next(Path(adapter).glob("*.safetensors"))))
        classes = trained or classes_of(folder)
        head = dict(num_classes=classes, key=jax.random.key(0))
    return open_model(folder, scan=scan, **head)


def is_stacked(folder: Path | str) -> bool:
    """Whether the layers of an adapter of ours are stacked (`layers/...`), as a model with
    scan=True has them, and not `layers_0/...`.

    Only the file's header is read.
    """
    from lora_jax.io.adapter import FILE
    from lora_jax.io.tensor_files import SafetensorsFile

    return not any(
        re.match(r"((en|de)coder/)?layers_\d+/", name)
        for name in SafetensorsFile(Path(folder) / FILE)
    )


def classes_in(tensors: Mapping[str, Any]) -> int | None:
    """Number of classes of the head in an adapter's file; None if it has none."""
    theirs = "base_model.model.classifier"
    for name, axis in (
        ("classifier/kernel#whole", -1),
        (f"{theirs}.weight", 0),
        (f"{theirs}.out_proj.weight", 0),
    ):
        if name in tensors:
            return tensors[name].shape[axis]
    return None
