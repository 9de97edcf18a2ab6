"""PEFT's adapter folders (`adapter_config.json`, `adapter_model.safetensors`), read and written:
every key accounted for, nothing dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.core.json_files import read_json, save_json
from lora_jax.core.trainable import Trainable, Trainables
from lora_jax.io import safetensors
from lora_jax.io.card import Card, write_card
from lora_jax.io.config_json import in_file
from lora_jax.io.names import Names
from lora_jax.io.peft_export import PeftAdapter, to_peft
from lora_jax.io.peft_import import from_peft

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_peft(
    folder: Path | str,
    trainable: Trainables,
    names: Names,
    *,
    base_model: str | None = None,
    task_type: str | None = None,
    base: str = "",
    dropout: float | None = None,
    adapter: str = "default",
    card: Card | None = None,
) -> PeftAdapter:
    """Writes an adapter as PEFT 0.21.2 does, so that it loads there with no missing or unexpected
    key, with a model card, README.md, and returns what was written.

    Equal adapters give equal bytes. Another `adapter` than 'default' goes into a sub-folder of that
    name, as in PEFT.

    Args:
        names: PEFT's names of all of the model's weights, such as `encoder_names(config)`.
        base_model: the name or folder that `adapter_config.json` gives for the base.
        task_type: PEFT's, such as 'SEQ_CLS' or 'CAUSAL_LM'.
        base: fingerprint of the base, kept in the file's metadata with the effective scale of every
            module.
        dropout: the one rate that PEFT's file has room for, where the sites have several.
        card: what the model card says besides.

    Raises:
        KeyError: `names` lacks a path of the adapter.
        ValueError: something in the adapter cannot be said in PEFT's format (see `to_peft`), or
            holds a NaN.
        OSError: the folder cannot be written.
    """
    made = to_peft(
        trainable, names, base_model=base_model, task_type=task_type, base=base, dropout=dropout
    )
    folder = Path(folder) if adapter == "default" else Path(folder) / adapter
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / WEIGHTS, made.tensors, made.metadata)
    save_json(folder / CONFIG, made.config, sort_keys=True)
    write_card(folder, trainable, model=base_model or "", base=base, card=card, library="peft")
    return made


def load_peft(
    folder: Path | str,
    names: Names,
    *,
    adapter: str = "default",
    base: str | None = None,
    frozen: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Trainable], PeftAdapter]:
    """The adapter in a folder that PEFT saved, in our paths and layout, and what the file said.

    Args:
        names: PEFT's names of all of the model's weights, such as `encoder_names(config)`.
        adapter: the sub-folder's name, for adapters that were not saved under the name 'default'.
        base: the fingerprint of the base that it will be used on, compared with the file's if it
            has one (ours have).
        frozen: the base's weights; needed where the file carries a copy of an adapted embedding, to
            see that it is the base's.

    Raises:
        FileNotFoundError: a file is missing, or the weights are pickled.
        ValueError: the file is damaged, is for another model or base, or says what cannot be
            represented here (see `from_peft`).
    """
    folder = _folder(Path(folder), adapter)
    config = read_json(folder / CONFIG)
    if not (folder / WEIGHTS).is_file() and (
        pickled := [*folder.glob("*.bin"), *folder.glob("*.pt")]
    ):
        raise FileNotFoundError(
            f"{folder} has {pickled[0].name} and no {WEIGHTS}. Pickled weights are not read, since "
            "loading them can run code. Convert them where you trust them: in PEFT, load the "
            "adapter and call save_pretrained(folder, safe_serialization=True)."
        )

    found = PeftAdapter(
        config, safetensors.read(folder / WEIGHTS), safetensors.read_metadata(folder / WEIGHTS), ()
    )
    with in_file(folder):
        trained_on = found.recorded.get("base", "")
    if base is not None and trained_on and trained_on != base:
        raise ValueError(
            f"{folder} was trained on the base with fingerprint {trained_on}, and this base is "
            f"{base}. Load the base that it was trained on."
        )
    with in_file(folder):
        return from_peft(found, names, frozen=frozen), found


def _folder(folder: Path, adapter: str) -> Path:
    if adapter != "default":
        folder = folder / adapter
    if (folder / CONFIG).is_file():
        return folder
    if inside := sorted(entry.parent.name for entry in folder.glob(f"*/{CONFIG}")):
        raise FileNotFoundError(
            f"{folder} has no {CONFIG}, but adapters in sub-folders: {', '.join(inside)}. Give one "
            "as adapter=..."
        )
    there = (
        ", ".join(sorted(entry.name for entry in folder.iterdir())[:8])
        if folder.is_dir()
        else "no such folder"
    )
    raise FileNotFoundError(
        f"{folder} needs {CONFIG} and {WEIGHTS}, but holds {there or 'nothing'}. Give the folder "
        "of a PEFT adapter."
    )


def is_peft(folder: Path | str) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (Path(folder) / CONFIG).is_file()


__all__ = ["PeftAdapter", "from_peft", "is_peft", "load_peft", "save_peft", "to_peft"]
