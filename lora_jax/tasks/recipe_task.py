"""Tasks of encoders by recipe: classes, scores, tags of words, answers in a context, or a choice,
with the head that each needs.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from lora_jax.adapters.sites import find_sites
from lora_jax.config import DataConfig, ModelConfig
from lora_jax.core.fingerprint import fingerprint
from lora_jax.data import choose_buckets
from lora_jax.data.heads import encode_task
from lora_jax.data.records import cut_note
from lora_jax.io.encoder_tokenizer import load_tokenizer
from lora_jax.io.hub import resolve
from lora_jax.io.weights import load_encoder
from lora_jax.models.encoder import Encoder
from lora_jax.tasks.language_task import examples_of
from lora_jax.tasks.task import Task, build_options, check_sizes, example_inputs


@functools.lru_cache(maxsize=1)
def load_recipe_task(model_config: ModelConfig, data: DataConfig) -> Task:
    """The task of an encoder with the head of its recipe.

    Raises:
        ValueError: the recipe needs a decoder, or the data or the tokenizer do not fit.
    """
    folder = resolve(model_config.name, revision=model_config.revision)
    examples = examples_of(data)
    tokenizer = load_tokenizer(folder)
    splits = encode_task(examples, tokenizer, data.max_length)
    outputs = {
        "class": len(examples.label_names),
        "token": len(examples.label_names),
        "span": 2,
    }.get(examples.recipe.head, 1)
    settings, params = load_encoder(
        folder, num_classes=outputs, key=jax.random.key(0), scan=model_config.scan
    )
    settings = dataclasses.replace(settings, head=examples.recipe.head)
    base = fingerprint({name: leaf for name, leaf in params.items() if name != "classifier"})
    if settings.reads_every_token:
        params = {name: leaf for name, leaf in params.items() if name != "pooler"}
    check_sizes(folder, tokenizer.vocab_size, settings, model_config, data)
    model = Encoder(settings, **build_options(model_config))
    return Task(
        model=model,
        params=params,
        sites=find_sites(model, *example_inputs()),
        splits=splits,
        buckets=data.buckets
        or choose_buckets(np.concatenate([split.lengths for split in splits.values()])),
        label_names=examples.label_names,
        note=" ".join(
            filter(None, (examples.note, examples.left_out, cut_note(splits, data.max_length)))
        ),
        base=base,
        records=examples.splits,
        recipe=examples.recipe,
        tokenizer=tokenizer,
    )
