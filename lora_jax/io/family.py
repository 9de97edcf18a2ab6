"""A family of models: how its files describe a model and name its weights, both ways."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lora_jax.io.config_json import Raw
from lora_jax.io.names import Name
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.encoder_parts import EncoderConfig
from lora_jax.models.kinds import ModelConfig, shapes_of
from lora_jax.models.t5 import T5Config

# The other tool's module of each of ours, `layers/` standing for any layer and '{}' for its number.
# A weight there is called MODULE.weight or MODULE.bias; '*' stands for that word elsewhere. Beside
# it: fields of `Name` that say how theirs differs.
Table = Mapping[str, str | tuple[str, dict[str, Any]]]
KINDS = {"encoder": EncoderConfig, "decoder": DecoderConfig, "encoder-decoder": T5Config}


@dataclass(frozen=True)
class Gguf:
    """How GGUF has a family.

    architecture: GGUF's name.
    table: its modules.
    said: what of a `DecoderConfig` follows from the architecture, or from keys of its own, and from
        the sizes that all files have.
    keys: the metadata that says it.
    experts: whether the weights of a token's experts are divided by their sum, None if there are
        none.
    """

    architecture: str
    table: Callable[[DecoderConfig], Table]
    said: Callable[[Any, Mapping[str, Any]], dict[str, Any]] = lambda keys, sizes: {}
    keys: Callable[[DecoderConfig], dict[str, Any]] = lambda config: {}
    experts: bool | None = None


@dataclass(frozen=True)
class Family:
    """One row of `lora_jax.io.families`: all that is known of the files of a family.

    name: `model_type` in config.json.
    kind: 'encoder', 'decoder' or 'encoder-decoder'.
    from_json, to_json: config.json to our configuration and back.
    table: their modules.
    prefix: what names of the bare model lack.
    copies: tensors that may stand in a file if they equal the embedding.
    unread: patterns of tensors that nothing reads, without the prefix: constants that older files
        carry.
    pretraining: what names of heads of the pretraining task begin with, which stand beside the
        model and are not read.
    older: (ending, how older files spell it).
    settled: the configuration, once it is seen which tensors there are.
    """

    name: str
    kind: str
    from_json: Callable[[Raw], Any]
    to_json: Callable[[Any], dict[str, Any]]
    table: Callable[[Any], Table]
    prefix: str = ""
    copies: tuple[str, ...] = ()
    unread: Callable[[Any], tuple[str, ...]] = lambda config: ()
    pretraining: tuple[str, ...] = ()
    older: tuple[tuple[str, str], ...] = ()
    settled: Callable[[Any, Any], Any] = lambda config, tensors: config
    gguf: Gguf | None = None

    def names(self, config: ModelConfig) -> dict[str, Name]:
        """How transformers names every weight of a model of this family, by path, layers
        stacked.
        """
        return names_by_table(config, self.table(config))


def names_by_table(config: ModelConfig, table: Table) -> dict[str, Name]:
    """The names of every weight of a model, by path, layers stacked.

    Raises:
        ValueError: the model has a module that the table has not.
    """
    names = {}
    for path, shape in shapes_of(config).items():
        module, _, leaf = path.rpartition("/")
        if module not in table:
            raise ValueError(f"There is no tensor for {path!r} in this family's files.")
        entry = table[module]
        theirs, how = (entry, {}) if isinstance(entry, str) else entry

        depth = len({"layers", "experts"} & set(module.split("/")))
        how = {"kind": "linear" if len(shape) - depth < 3 else "conv"} | how
        if leaf == "embedding" or len(shape) - depth == 1:
            how = how | {"kind": "embedding" if leaf == "embedding" else "vector"}

        word = "bias" if leaf == "bias" else "weight"
        names[path] = Name(
            theirs.replace("*", word) if "*" in theirs else f"{theirs}.{word}",
            shape[depth:],
            stack=shape[:depth],
            in_axes=tuple(range(max(len(shape) - depth - 1, 1))),
            tied=path == "embed/embedding" and bool(getattr(config, "tied", False)),
            **how,
        )
    return names


def fused(modules: Collection[str], theirs: str, sizes: tuple[int, ...], **how: Any) -> Table:
    """Rows of a table for several modules of ours that are one of theirs, of so many outputs
    each.
    """
    return {
        module: (theirs, {"part": (index, sizes), **how}) for index, module in enumerate(modules)
    }
