"""What a run tells in the model card of its adapter."""

from __future__ import annotations

from collections.abc import Mapping

from lora_jax.config import Config, describe
from lora_jax.io.card import Card, ScoreLine, base_id_of, licence_of
from lora_jax.metrics.score import Score
from lora_jax.tasks.custom import CustomTask
from lora_jax.tasks.task import Task

_KINDS = {"class": "text-classification", "score": "text-classification", "token": "token-classification", "span": "question-answering", "choice": "multiple-choice"}  # fmt: skip


def card_of(config: Config, task: Task, scores: Mapping[str, Mapping[str, Score]]) -> Card:
    """The card of a run whose scores are these, by split and name."""
    changed = [(key, value) for key, value, differs in describe(config) if differs]
    said = [
        ScoreLine(split, name, score.label, score.value, score.text(score.value))
        for split, named in scores.items()
        for name, score in named.items()
    ]
    if isinstance(task, CustomTask):  # Its model and data are no config's.
        own = [one for one in changed if not one[0].startswith(("model.", "data."))]
        return Card(settings=_lines(own), scores=said)
    head = task.recipe.head if task.recipe else ""
    return Card(
        data=config.data.title,
        task="text-generation" if task.generator else _KINDS.get(head, "text-classification"),
        settings=_lines(changed),
        scores=said,
        base_id=base_id_of(config.model.name),
        base_licence=licence_of(config.model.name),
    )


def _lines(settings: list[tuple[str, object]]) -> list[str]:
    return [f"{key} = {value!r}" for key, value in settings]
