"""What a task is made of: its model's program and specs by the settings, its base by the files, and
whether data and tokenizer fit.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.config import (
    NO_FORMAT,
    Config,
    DataConfig,
    ModelConfig,
    QuantConfig,
    built,
    read_by_path,
)
from lora_jax.core.host import Place, StoredWeight, can_offload
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.paths import Rules, match, unflatten
from lora_jax.core.quantize import QuantSpec
from lora_jax.io.named_weights import dtype_of
from lora_jax.io.weights import StoredModel


def build_options(config: ModelConfig) -> dict[str, Any]:
    """How a model's program is built, as the arguments of Encoder, Decoder and T5."""
    return dict(
        scan=config.scan,
        remat=config.remat,
        offload=config.offload and can_offload(),
        dtype=jnp.dtype(config.compute_dtype).type,
    )


def check_sizes(
    folder: Path, words: int, settings: Any, model_config: ModelConfig, data: DataConfig
) -> None:
    """Nothing, if a model with these settings has room for the tokenizer's `words` and for
    `data.max_length` tokens.

    Raises:
        ValueError: it has not.
    """
    if words > settings.vocab_size:
        raise ValueError(
            f"The tokenizer in {folder} has {words} words and the model's embedding "
            f"{settings.vocab_size}: they do not belong together. Use the tokenizer that the model "
            "was trained with."
        )
    check_length(settings, model_config, data)


def check_length(settings: Any, model_config: ModelConfig, data: DataConfig) -> None:
    """Nothing, if a model with these settings has positions for `data.max_length` tokens.

    Raises:
        ValueError: it has not.
    """
    if data.max_length > settings.max_positions:
        raise ValueError(
            f"data.max_length is {data.max_length} tokens, and {model_config.name} has positions "
            f"for {settings.max_positions}. Lower it."
        )


def params_of(stored: StoredModel, config: ModelConfig) -> dict[str, Any]:
    """The params as a tree of weights that are read when they are asked for, each to where it is to
    lie; new ones are there.
    """
    dense = dataclasses.replace(stored, dtype=jnp.dtype(config.base_dtype))
    default = stored.place or (lambda path, like: None)

    def load(path: str, spec: QuantSpec | None, place: Place | None) -> Any:
        # A quantised weight comes from the file's own numbers, not from rounded ones.
        return (dense if spec is None else stored).leaf(path, spec, place=place or default)

    flat: dict[str, Any] = {
        path: StoredWeight(
            (*name.stack, *name.shape),
            dtype_of(name, dense.dtype),
            functools.partial(load, path),
            like=stored.boxes.get(path),
        )
        for path, name in stored.names.items()
    }
    return unflatten(flat | dict(stored.new))


def shapes_of(params: Any) -> Any:
    """The tree with the shape and dtype of every weight, or of each array of its box, in its
    place.
    """

    def shape_of(x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):  # which has a method of this name
            return x
        like = getattr(x, "like", None)
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype) if like is None else like

    return jax.tree.map(shape_of, params)


def quant_rules(config: Config, targets: str, paths: Iterable[str]) -> Rules[QuantSpec]:
    """How the configuration stores each weight of the frozen base; `targets` are the regex of
    those that it quantises, of a model with these paths.

    Raises:
        ValueError: the targets, or an exception, match nothing.
    """
    spec = built(QuantSpec, config.quant, without=("kernel",))
    of = lambda format: None if format == NO_FORMAT else dataclasses.replace(spec, format=format)
    exceptions = {name: of(name) for _, name in read_by_path(config.quant.formats)}
    return _rules(targets, spec, paths, config.quant.formats, exceptions, what="quant.formats")


def lora_rules(config: Config, targets: str, paths: Iterable[str]) -> Rules[LoraSpec]:
    """The adapter that the configuration asks for at each of its targets, likewise."""
    spec = built(LoraSpec, config.lora)
    exceptions = {
        rank: dataclasses.replace(spec, rank=int(rank))
        for _, rank in read_by_path(config.lora.ranks)
    }
    return _rules(targets, spec, paths, config.lora.ranks, exceptions, what="lora.ranks")


def _rules(
    targets: str,
    spec: Any,
    paths: Iterable[str],
    exceptions: str,
    specs: Mapping[str, Any],
    *,
    what: str,
) -> Rules[Any]:
    """One rule for all targets; with exceptions, one for each path that the targets match."""
    if not exceptions:
        return [(targets, spec)]
    taken = match([(targets, spec)], paths, what=what.partition(".")[0])
    own = match(read_by_path(exceptions), taken, what=f"config.{what}", among="targets")
    return [(re.escape(path), specs[own[path]] if path in own else spec) for path in taken]


def unquantised(config: Config) -> Config:
    """The same run, its base taken as it is; for methods with adapters."""
    return dataclasses.replace(config, method="lora", quant=QuantConfig())
