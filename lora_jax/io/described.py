"""What a model's files say it is, before one of their tensors is looked at."""

from __future__ import annotations

from pathlib import Path

from lora_jax.core.json_files import read_json
from lora_jax.core.paths import nearest
from lora_jax.io.config_json import Raw, named_errors, typed
from lora_jax.io.families import FAMILIES
from lora_jax.io.family import Family
from lora_jax.io.gguf import GgufFile
from lora_jax.io.gguf_decoder import gguf_config
from lora_jax.models.kinds import ModelConfig

_DOORS = {"encoder": "load_encoder", "decoder": "load_decoder", "encoder-decoder": "load_t5"}


def read_config(path: Path | str) -> ModelConfig:
    """The configuration of a model, from its config.json or GGUF metadata alone; weights need not be
    there. What only tensors say (whether a T5 has a head of its own) is as config.json has it.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: the architecture is not supported, or a field is missing or wrong.
    """
    folder = Path(path)
    file = gguf_file(folder)
    return described(folder)[1] if file is None else gguf_config(GgufFile(file))


def described(folder: Path, kind: str | None = None) -> tuple[Family, ModelConfig]:
    """The family and the configuration that a folder's config.json says; `kind` as `open_model`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it describes no model that is supported, or one of another kind.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} needs a config.json next to its weights, and there is none. Give a Hugging "
            "Face model folder."
        )
    raw = read_json(folder / "config.json")
    with named_errors(folder / "config.json", f"a model of kind {kind or 'encoder or decoder'}"):
        family = _family_of(raw, kind)
        config = typed(family.from_json(raw))
    return family, config


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` is or holds; None if it is a folder of another kind.

    Raises:
        FileNotFoundError: there is no such path. ValueError: a folder holds several GGUF files.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no file or folder {path}. Give a Hugging Face model folder or a .gguf file."
        )
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1 and not (path / "config.json").is_file():
        raise ValueError(
            f"{path} holds {len(files)} GGUF files; give one of them: "
            f"{', '.join(file.name for file in files[:6])}."
        )
    return files[0] if files and not (path / "config.json").is_file() else None


def _family_of(raw: Raw, kind: str | None) -> Family:
    """The family of a parsed config.json.

    Raises:
        ValueError: it is unknown, or of another kind.
    """
    name = raw.get("model_type", "bert" if kind in (None, "encoder") else None)
    known = [family.name for family in FAMILIES.values() if kind in (None, family.kind)]
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"model_type {name!r} is not supported. Nearest: {nearest(str(name), known, 2)}; "
            f"known: {', '.join(known)}."
        )

    family = FAMILIES[name]
    if kind == "encoder" and family.kind != kind:
        raise ValueError(
            f"model_type {name!r} ({an(family.kind)}, which writes text: set config.data.task to "
            f"'completion', or use {_DOORS[family.kind]}) is not supported; needed "
            f"{', '.join(map(repr, known))}."
        )

    if kind not in (None, family.kind):
        raise ValueError(
            f"model_type {name!r} is {an(family.kind)}, and needed here is {an(str(kind))}. Load "
            f"it with lora_jax.io.{_DOORS[family.kind]}."
        )
    return family


def an(kind: str) -> str:
    """'an encoder', 'a decoder'."""
    return f"{'an' if kind[0] == 'e' else 'a'} {kind}"
