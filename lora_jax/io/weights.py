"""Models in files: Hugging Face folders and GGUF files, into the trees of `lora_jax.models` and
back. Every tensor is used exactly once.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.core.json_files import read_json, save_json
from lora_jax.core.paths import Rules, flatten
from lora_jax.core.quantize import QuantSpec
from lora_jax.io import safetensors
from lora_jax.io.config_json import named_errors
from lora_jax.io.described import an, described, gguf_file
from lora_jax.io.differences import differences
from lora_jax.io.families import FAMILIES
from lora_jax.io.family import Family
from lora_jax.io.gguf import GgufFile
from lora_jax.io.gguf_decoder import IGNORED, gguf_config
from lora_jax.io.gguf_tables import ExpertsApart
from lora_jax.io.gguf_write import gguf_names
from lora_jax.io.named_weights import (
    check_claimed,
    check_named,
    named_tensors,
)
from lora_jax.io.names import Name, Names, in_layout, unrolled
from lora_jax.io.quantized_folder import as_linear, tensors_of
from lora_jax.io.stored_model import StoredModel
from lora_jax.io.tensors import Tensors
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.encoder_parts import EncoderConfig
from lora_jax.models.kinds import ModelConfig
from lora_jax.models.t5 import T5Config

# Written out: readers would take the family's defaults instead, which need not be in the
# vocabulary.
_NO_IDS = types.MappingProxyType({"bos_token_id": None, "eos_token_id": None, "pad_token_id": None})
SHARD_BYTES = 5_000_000_000  # of a file, unless told otherwise
_HEAD_SCALE = 0.02  # standard deviation of a new head, as in BERT


def open_model(
    path: Path | str,
    *,
    num_classes: int | None = None,
    key: jax.Array | None = None,
    dtype: Any = np.float32,
    scan: bool = True,
    kind: str | None = None,
) -> StoredModel:
    """A model in its files, every tensor accounted for and none read.

    Args:
        path: a folder with config.json and safetensors, a .gguf file, or a folder that holds one.
        num_classes: adds a classifier of that size to an encoder: the file's own if it has one,
            else a new one from `key`.
        dtype: of the matrices; norms and biases stay float32.
        scan: whether the layers are stacked, as the models' `scan` wants them.
        kind: 'encoder', 'decoder' or 'encoder-decoder' refuses the others.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, the architecture is not supported, or tensors are missing,
            left over or of a wrong shape; all of them are listed.
    """
    folder = Path(path)
    if (file := gguf_file(folder)) is not None:
        return _open_gguf(file, kind, dtype, scan)
    family, config = described(folder, kind)
    tensors = tensors_of(folder)
    if config.num_layers > len(tensors):  # Before anything is made for each of them.
        raise ValueError(
            f"{folder / 'config.json'} claims {config.num_layers:,} layers, and the files have "
            f"{len(tensors)} tensors. Give the config.json that belongs to the weights."
        )
    with named_errors(folder / "config.json", f"a {family.name} model"):
        if num_classes is not None:
            config = dataclasses.replace(config, num_classes=num_classes)
        config = family.settled(config, tensors)
        names = family.names(config)
        what = f"{family.name} model in {folder}"
        check_claimed(names, len(tensors), what)
    names = _as_stored(folder, family, names, tensors)
    # Layers apart may be stored each in a way of its own.
    names = as_linear(names if scan else unrolled(names), tensors)

    head = _head_of(config, names)
    unread = _unread(family, config, names, tensors)
    new: dict[str, np.ndarray] = {}
    if head and not any(
        parameter in tensors
        for path in head
        if path.startswith("classifier/")
        for _, parameter in names[path].layers()
    ):
        new = _new_head(folder, {path: names.pop(path) for path in head}, key)
    check_named(names, tensors, what=what, ignored=unread)
    stored = StoredModel(folder, config, names, tensors, new, dtype)
    _ = stored.boxes  # What cannot be read is said here.
    return stored


def load_model(
    path: Path | str, *, quant: Rules[QuantSpec] = (), **options: Any
) -> tuple[Any, dict[str, Any]]:
    """The configuration and the weights of a model in its files.

    Matrices are host arrays of `dtype`, or quantised where a rule of `quant` matches their path,
    norms and biases float32; they are made one by one, so the peak is the result plus one matrix.
    Of a folder whose config.json has a `quantization_config` (`io.layouts.METHODS`), quantised
    matrices are boxes of the codes that are stored, in the dtype that its own tool gives them.
    Host arrays are closed to writing, so that jax on a CPU can share them: copy one to change it.

    Args:
        quant: rules as `lora_jax.adapt` takes them; paths are those of the model
            (`layers/attn/q/kernel`).
        options: as `open_model`.

    Raises:
        FileNotFoundError, ValueError: as `open_model`; or a quantisation rule matches nothing.
    """
    stored = open_model(path, **options)
    return stored.config, stored.read(quant)


def load_encoder(
    folder: Path | str,
    *,
    num_classes: int | None = None,
    key: jax.Array | None = None,
    scan: bool = True,
    quant: Rules[QuantSpec] = (),
) -> tuple[EncoderConfig, dict[str, Any]]:
    """`load_model` of an encoder."""
    options: dict[str, Any] = dict(num_classes=num_classes, key=key, scan=scan, kind="encoder")
    return load_model(folder, quant=quant, **options)


def load_decoder(
    path: Path | str, *, dtype: Any = np.float32, quant: Rules[QuantSpec] = (), scan: bool = True
) -> tuple[DecoderConfig, dict[str, Any]]:
    """`load_model` of a decoder."""
    return load_model(path, quant=quant, dtype=dtype, scan=scan, kind="decoder")


def load_t5(
    folder: Path | str, *, dtype: Any = np.float32, quant: Rules[QuantSpec] = (), scan: bool = True
) -> tuple[T5Config, dict[str, Any]]:
    """`load_model` of an encoder-decoder."""
    return load_model(folder, quant=quant, dtype=dtype, scan=scan, kind="encoder-decoder")


def save_model(
    folder: Path | str,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    dtype: Any = np.float32,
    shard_bytes: int = SHARD_BYTES,
    special_ids: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    """Writes the folder that `load_model`, and transformers, read: config.json and safetensors.

    Args:
        params: plain weights, layers stacked or apart; boxes are an error, merge first.
        dtype: of all tensors in the file.
        shard_bytes: the file is cut into shards of at most about this size, with an index.
        special_ids: bos_token_id, eos_token_id and pad_token_id for config.json.

    Raises:
        ValueError: the params are not this model's, hold a box or a NaN, or config.json has no
            words for this configuration.
        OSError: the folder cannot be written.
    """
    folder, family = Path(folder), FAMILIES[family_name(config)]
    raw, flat = family.to_json(config), flatten(params)
    # A head is no part of config.json, beyond its size.
    odd = differences(config, family.from_json(raw), ignored=["num_classes", "head"])
    if odd:
        raise ValueError(
            f"The config.json of a {family.name!r} cannot say what this model is: "
            f"{'; '.join(odd)}. Choose another family, or change the configuration."
        )
    tensors = named_tensors(in_layout(family.names(config), flat), flat, dtype=dtype)
    shards = _shards(tensors, shard_bytes)
    raw |= {"dtype": np.dtype(dtype).name}
    folder.mkdir(parents=True, exist_ok=True)
    save_json(folder / "config.json", raw | dict(special_ids))
    safetensors.write_folder(folder, shards)


save_encoder = save_t5 = save_model


def save_decoder(
    folder: Path | str,
    config: DecoderConfig,
    params: Mapping[str, Any],
    *,
    special_ids: Mapping[str, Any] = _NO_IDS,
    **options: Any,
) -> None:
    """`save_model` of a decoder; without `special_ids` config.json says that there are none."""
    save_model(folder, config, params, special_ids=special_ids, **options)


def names_of(config: ModelConfig, *, scan: bool = True) -> dict[str, Name]:
    """How transformers names every weight of a model, by our path.

    Of an encoder `BertModel`'s, `RobertaModel`'s or `DebertaV2Model`'s names, or with a classifier
    those of its `...ForSequenceClassification`; of others those of its `...ForCausalLM` or
    `...ForConditionalGeneration`.
    """
    names = FAMILIES[family_name(config)].names(config)
    return names if scan else unrolled(names)


def adapter_names(config: ModelConfig, *, scan: bool = True) -> dict[str, Name]:
    """`names_of` a model as `lora_jax.save_peft` and `load_peft` take them.

    Left out are experts and their routers: transformers keeps them as bare parameters of several
    matrices, which an adapter in PEFT's layout cannot name.
    """
    return {
        path: name
        for path, name in names_of(config, scan=scan).items()
        if "/experts/" not in path and "/router/" not in path
    }


encoder_names = t5_names = decoder_names = adapter_names


def family_name(config: ModelConfig) -> str:
    """The family whose files a configuration is kept in, as config.json says it."""
    return getattr(config, "family", "t5")


def classes_of(folder: Path | str) -> int | None:
    """Outputs of the classifier that an encoder's files hold; None if they hold none."""
    stored = tensors_of(Path(folder))
    heads = ("classifier.weight", "classifier.out_proj.weight")
    return next((stored.shape(name)[0] for name in heads if name in stored), None)


def kind_of(path: Path | str) -> str | None:
    """'encoder', 'decoder' or 'encoder-decoder', by what a folder's config.json says; None if it is
    no model that is known. A GGUF file holds a decoder.
    """
    try:
        if gguf_file(Path(path)) is not None:
            return "decoder"
        raw = read_json(Path(path) / "config.json")
    except (FileNotFoundError, ValueError):
        return None
    name = raw.get("model_type", "bert")
    return FAMILIES[name].kind if isinstance(name, str) and name in FAMILIES else None


def _open_gguf(file: Path, kind: str | None, dtype: Any, scan: bool) -> StoredModel:
    if kind not in (None, "decoder"):
        raise ValueError(f"{file} holds a decoder, and needed here is {an(str(kind))}.")
    whole = GgufFile(file)
    config = gguf_config(whole)
    names, tensors = gguf_names(config), ExpertsApart(whole)
    what = f"{config.family} decoder in {file}"
    check_named(names, tensors, what=what, ignored=IGNORED, by="its metadata")
    return StoredModel(file, config, names if scan else unrolled(names), tensors, {}, dtype)


def _as_stored(
    folder: Path, family: Family, names: dict[str, Name], tensors: Tensors
) -> dict[str, Name]:
    """The names as this file spells them: with or without the family's prefix, in its older
    words.
    """
    prefix = family.prefix
    twice = sorted(
        name
        for name in tensors
        if prefix and name.startswith(prefix) and name.removeprefix(prefix) in tensors
    )
    if twice:
        raise ValueError(
            f"{folder} holds {len(twice)} tensors both with and without the prefix {prefix!r}, "
            f"such as {twice[0]!r}: which is meant is not known. Remove one of them."
        )
    wanted = any(name.parameter.startswith(prefix) for name in names.values())
    stored = any(name.startswith(prefix) for name in tensors)
    older = [pair for pair in family.older if any(name.endswith(pair[1]) for name in tensors)]

    def spelled(parameter: str) -> str:
        if wanted != stored:
            parameter = parameter.removeprefix(prefix) if wanted else prefix + parameter
        for ending, old in older:
            if parameter.endswith(ending):
                parameter = parameter.removesuffix(ending) + old
        return parameter

    return {
        path: dataclasses.replace(name, parameter=spelled(name.parameter))
        for path, name in names.items()
    }


def _unread(family: Family, config: Any, names: Names, tensors: Tensors) -> list[str]:
    """The tensors of a file that nothing reads, and that change nothing."""
    patterns = [re.compile(pattern) for pattern in family.unread(config)]
    # Heads of the pretraining task stand beside a model whose own names have the prefix.
    beside = any(name.startswith(family.prefix) for name in tensors)
    pretraining = family.pretraining if beside else ()
    wanted = {parameter for name in names.values() for _, parameter in name.layers()}
    embedding = names.get("embed/embedding")

    def is_copy(name: str) -> bool:
        return (
            name in family.copies
            and name not in wanted
            and embedding is not None
            and embedding.parameter in tensors
            and np.array_equal(tensors[name], tensors[embedding.parameter])
        )

    return [
        name
        for name in tensors
        if any(pattern.fullmatch(name.removeprefix(family.prefix)) for pattern in patterns)
        or name.removeprefix(family.prefix).startswith(pretraining)
        or is_copy(name)
    ]


def _head_of(config: Any, names: Names) -> list[str]:
    """The paths of an encoder's head; of a family whose pretraining has no pooler, with it."""
    if getattr(config, "num_classes", None) is None:
        return []
    modules = ("classifier/", "pooler/") if config.pooler_in_head else ("classifier/",)
    return [path for path in names if path.startswith(modules)]


def _new_head(folder: Path, names: Names, key: jax.Array | None) -> dict[str, np.ndarray]:
    if key is None:
        raise ValueError(
            f"{folder} has no classifier, and a new one needs a random key: pass "
            "key=jax.random.key(seed)."
        )
    out = {path: np.zeros(name.shape, np.float32) for path, name in names.items()}
    keys = {"classifier/kernel": key, "pooler/kernel": jax.random.fold_in(key, 1)}
    for path in keys.keys() & out.keys():
        weight = jax.random.normal(keys[path], out[path].shape)
        out[path] = _HEAD_SCALE * np.asarray(weight, np.float32)
    return out


def _shards(
    tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> list[dict[str, np.ndarray]]:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors:
        if size + tensor.nbytes > shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards
