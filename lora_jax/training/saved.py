"""A finished run, loaded again from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from lora_jax.adapters.checks import check_effect
from lora_jax.config import Config, from_config_dict
from lora_jax.core.init import initializer_named
from lora_jax.core.json_files import parse_json, read_json
from lora_jax.data.completions import Completions, EncodedCompletions, read_completions
from lora_jax.io.adapter import load_adapter
from lora_jax.io.contents import changed_contents, contents
from lora_jax.tasks.losses import Summed
from lora_jax.tasks.opening import LastTask, open_task
from lora_jax.tasks.reading import data_name
from lora_jax.tasks.task import Task
from lora_jax.training.compile import Program
from lora_jax.training.evaluation import evaluate
from lora_jax.training.step import make_eval_step


@dataclass(frozen=True)
class SavedRun:
    """A run's configuration, its task and its weights.

    `apply(task.model, frozen, trainable, ...)` is the trained model.
    """

    config: Config
    task: Task
    frozen: Mapping[str, Any]
    trainable: Mapping[str, Any]
    start: Mapping[str, Any] = field(default_factory=dict)

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Mean loss (nats), accuracy and number of examples of a split.

        Raises:
            ValueError: there is no such split.
        """
        size = self.config.train.eval_batch_size
        batches = self.task.batches(split, size, shuffle=False, epochs=1)
        step = Program(make_eval_step(Summed(self.task.per_example)))
        every = (batches[index] for index in range(len(batches)))
        return evaluate(step, self.frozen, self.trainable, every)

    def without_adapter(self) -> dict[str, Any]:
        """What makes the model before training of the frozen base: nothing, or the factors that an
        initialiser which makes up for its rounding (LoftQ, QPiSSA, CLoQ, EoRA) put beside it.

        Raises:
            ValueError: training changed weights of the base itself, or added a head: there is no
                such model.
        """
        whole = [path for path, leaf in self.trainable.items() if not leaf.rank]
        if whole:
            raise ValueError(
                f"The model before training cannot be scored: {len(whole)} weights were trained "
                f"whole, such as {whole[0]!r} (a new head knows nothing). Compare with another run "
                "instead, for a classifier with one of method 'head'."
            )
        return dict(self.start)

    def encode_other(self, name: str) -> tuple[EncodedCompletions, Completions]:
        """Other prompts and completions, encoded as the run's own: a .jsonl file, or a name that
        the hub knows.

        Raises:
            FileNotFoundError, ValueError: as `read_completions`, with columns prompt and
                completion, or input and ideal.
        """
        path = data_name(name)
        try:
            records = read_completions(path)
        except ValueError:
            records = read_completions(path, columns=dict(prompt="input", completion="ideal"))
        return self.task.encode(records, self.config.data), records


def load_run(folder: Path | str, *, tasks: LastTask | None = None) -> SavedRun:
    """The trained run in a folder of the result store.

    Args:
        tasks: holds the task of the run that was loaded last, which this one shares if it can.

    Raises:
        FileNotFoundError: the folder holds no run, or no adapter yet.
        ValueError: the adapter is damaged or changes nothing, or the base, the data or the names
            of its classes are not those that it was trained on.
    """
    folder = _renamed(Path(folder))
    if not (folder / "config.json").is_file():
        there = sorted(entry.name for entry in folder.iterdir())[:6] if folder.is_dir() else []
        raise FileNotFoundError(
            f"A run is a folder with config.json and adapter/, but {folder} is none. In it: "
            f"{', '.join(there) or 'nothing'}."
        )

    config = from_config_dict(read_json(folder / "config.json"))
    _check_contents(folder, config)
    task = open_task(config) if tasks is None else tasks.of(config)
    trainable, said = load_adapter(folder / "adapter", base=task.base)
    labels = tuple(parse_json(said.get("labels", "[]"), folder / "adapter"))
    if labels and task.label_names and labels != task.label_names:
        raise ValueError(
            f"The run in {folder} was trained on the classes {', '.join(labels)}, in this order, "
            f"and {config.data.title} has {', '.join(task.label_names)} now. Give it the data that "
            "it was trained on."
        )

    check_effect(trainable)
    frozen, first = task.trainable(config, jax.random.split(jax.random.key(config.train.seed))[0])
    makes_up = initializer_named(config.lora.init).makes_up
    return SavedRun(config, task, frozen, trainable, first if makes_up else {})


def _check_contents(folder: Path, config: Config) -> None:
    """Held-out examples of data that was edited since are not those that training left out."""
    environment = folder / "environment.json"
    then = read_json(environment).get("contents") if environment.is_file() else None
    now = contents(config.names, config.model.revision)
    if changed := changed_contents(then or {}, now):
        raise ValueError(
            f"The run in {folder} was trained on other content of {', '.join(changed)} than is "
            "there now. Give it what it was trained on, or train again in another --config.out."
        )


def _renamed(folder: Path) -> Path:
    """The folder, or where a store that was brought up to a newer layout keeps that run now."""
    names = folder.parent / "renamed.json"
    if folder.exists() or not names.is_file():
        return folder
    return folder.with_name(read_json(names).get(folder.name, folder.name))
