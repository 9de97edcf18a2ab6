"""The examples that a config's data settings name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lora_jax.config import DataConfig, MixturePart
from lora_jax.data.completions import Completions, read_completions, split_completions
from lora_jax.data.examples import TaskData, load_examples, to_completions
from lora_jax.data.mixture import join_completions
from lora_jax.data.records import SPLITS
from lora_jax.data.tasks import Recipe, recipe_named
from lora_jax.io.hub import WHEELS, resolve
from lora_jax.metrics.table import metric


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
        columns=data.fields,
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
