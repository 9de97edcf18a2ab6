"""Tasks for decoders and encoder-decoders: a language model and prompts with completions, encoded
once.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.adapters.sites import find_sites
from lora_jax.adapters.surgery import adapt
from lora_jax.config import ADAPTERS, Config, DataConfig, MixturePart, ModelConfig
from lora_jax.core.fingerprint import fingerprint
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.paths import Rules
from lora_jax.data.completions import (
    Completions,
    EncodedCompletions,
    encode_completions,
    read_completions,
    split_completions,
)
from lora_jax.data.examples import TaskData, load_examples, to_completions
from lora_jax.data.mixture import join_completions
from lora_jax.data.pairs import encode_pairs
from lora_jax.data.records import SPLITS, cut_note
from lora_jax.data.tasks import Recipe, recipe_named
from lora_jax.data.text_tokenizers import TextTokenizer
from lora_jax.io.gguf_tokenizer import load_text_tokenizer
from lora_jax.io.hub import WHEELS, resolve
from lora_jax.io.weights import is_t5, load_decoder, load_t5
from lora_jax.metrics.table import metric
from lora_jax.models.decoder import Decoder
from lora_jax.models.t5 import T5
from lora_jax.tasks.task import (
    Task,
    build_options,
    check_sizes,
    lora_spec,
    quant_spec,
    targets_of,
)


@functools.lru_cache(maxsize=1)
def load_language_task(model_config: ModelConfig, data: DataConfig) -> Task:
    """The task of a language model: `data.text` is the column of the prompt, `data.label` that of
    the completion.

    A decoder continues the prompt. An encoder-decoder (T5) reads it as its source and writes the
    completion as its target.

    Raises:
        ValueError: the tokenizer does not fit the model, or the texts are longer than its window.
    """
    folder = resolve(model_config.name, revision=model_config.revision)
    records = completions_of(data)
    tokenizer = load_text_tokenizer(folder)
    options = build_options(model_config)
    if is_t5(folder):
        settings, params = load_t5(folder, scan=model_config.scan)
        model: Decoder | T5 = T5(settings, **options)
        inputs = (jax.ShapeDtypeStruct((1, 8), jnp.int32),) * 4
    else:
        settings, params = load_decoder(folder, scan=model_config.scan)
        model = Decoder(settings, **options)
        inputs = (jax.ShapeDtypeStruct((1, 8), jnp.int32),)
    check_sizes(folder, tokenizer.vocab_size, settings, model_config, data)
    splits = {name: encode_for(model, split, tokenizer, data) for name, split in records.items()}
    return Task(
        model=model,
        params=params,
        sites=find_sites(model, *inputs),
        splits=splits,
        buckets=(),
        label_names=(),
        note=" ".join(filter(None, (records["train"].note, cut_note(splits, data.max_length)))),
        base=fingerprint(params),
        records=records,
        recipe=None if data.recipe is None else recipe_of(data),
        tokenizer=tokenizer,
    )


def encode_for(
    model: Decoder | T5, records: Completions, tokenizer: TextTokenizer, data: DataConfig
) -> EncodedCompletions:
    """Prompts and completions as the model reads them: one text, or for an encoder-decoder source
    and target (`EncodedPairs`).
    """
    if isinstance(model, T5):
        options: dict[str, Any] = dict(
            start_id=model.config.start_id, temperature=data.mixture_temperature
        )
        return encode_pairs(records, tokenizer, data.max_length, **options)
    return encode_completions(
        records, tokenizer, data.max_length, temperature=data.mixture_temperature
    )


def completions_of(data: DataConfig) -> dict[str, Completions]:
    """The prompts and completions of every split: a recipe's, or those of a file with both."""
    if data.mixture:
        parts = {part.name: completions_of(_data_of(part, data)) for part in data.mixture}
        return {
            split: join_completions({name: part[split] for name, part in parts.items()})
            for split in SPLITS
        }
    if data.recipe is not None:
        return to_completions(examples_of(data), prompt=data.prompt, completion=data.completion)
    records = split_completions(
        read_completions(data_file(data.name), prompt=data.text, completion=data.label)
    )
    cap = data.train_examples
    records["train"] = Completions(
        records["train"].prompts[:cap], records["train"].completions[:cap], records["train"].note
    )
    return records


def _data_of(part: MixturePart, data: DataConfig) -> DataConfig:
    """The data settings of one task of a mixture."""
    own = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return dataclasses.replace(data, **own, mixture=(), metrics=None)


def examples_of(data: DataConfig) -> TaskData:
    """The checked examples of a recipe's data set."""
    known = data.name.partition("/")[0] in WHEELS
    return load_examples(
        str(data_file(data.name)) if known else data.name,
        recipe_of(data),
        columns={
            role: column
            for role, column in dataclasses.asdict(data.fields).items()
            if column is not None
        },
        on_error=data.on_error,
        label_names=data.label_names,
        limit=data.train_examples,
    )


def recipe_of(data: DataConfig) -> Recipe:
    """The recipe that a config names, with the metrics and the decoding that it sets itself.

    Raises:
        ValueError: a metric is unknown, or scores another kind of answer than the task has.
    """
    recipe = recipe_named(data.recipe)
    decoding = {
        name: value
        for name, value in dataclasses.asdict(data.decoding).items()
        if value is not None
    }
    recipe = dataclasses.replace(recipe, decoding=dataclasses.replace(recipe.decoding, **decoding))
    if data.metrics is None:
        return recipe
    texts = data.task == "completion" or recipe.head == "span"
    kind = "texts" if texts else "numbers" if recipe.head == "score" else "classes"
    for name in data.metrics:
        if (found := metric(name).kind) != kind:
            raise ValueError(
                f"config.data.metrics: {name!r} scores {found}, and the answers of this task are "
                f"{kind}."
            )
    return dataclasses.replace(
        recipe, **{"text_metrics" if data.task == "completion" else "metrics": data.metrics}
    )


def data_file(name: str) -> Path:
    """The file or folder of a data name: a path, a name that the hub knows, or such a name with a
    file in it ('evals-sql/spider_sql.jsonl').
    """
    known, _, file = name.partition("/")
    return resolve(known) / file if known in WHEELS else Path(name).expanduser()


def select_language(
    config: Config, task: Task, key: jax.Array, *, lora: Rules[LoraSpec] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The frozen and the trained weights of a language model's run: full, or factors at the targets
    of lora and qlora.

    Raises:
        ValueError: another method: they are for classifiers.
    """
    if config.method == "full":
        return adapt(task.model, task.params, (), whole=[".*"], key=key, sites=task.sites)
    if config.method not in ADAPTERS:
        raise ValueError(
            f"config.method {config.method!r} is for classifiers. For a language model use 'lora', "
            "'qlora' or 'full'."
        )
    quant = []
    if config.method == "qlora":
        quant = [(targets_of(task, config.quant.targets), quant_spec(config))]
    rules = [(targets_of(task, config.lora.targets), lora_spec(config))] if lora is None else lora
    return adapt(
        task.model,
        task.params,
        (),
        lora=rules,
        quant=quant,
        key=key,
        sites=task.sites,
        bias=config.lora.bias,
    )
