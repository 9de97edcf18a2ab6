"""Where a run's metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lora_jax.core.extras import needs

PROJECT = "lora-jax"  # in Weights & Biases and MLflow, unless their own variables say another


@dataclass(frozen=True)
class About:
    """What a sink is told of a run: its name, its settings by dotted key, and words to find it."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """One run in one place. Made when the run gets a slot, opened when its first step is known.

    `remembers` is whether rows that come again after a restart have to be kept from it.
    """

    remembers: bool

    def __init__(self, folder: Path, about: About) -> None: ...

    def open(self, step: int, id: str | None) -> str | None:
        """Opens the sink for rows after `step`; what `id` is to be when the run goes on."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One row."""

    def close(self, *, done: bool) -> None:
        """Closes the sink; `done` is whether the run has its last scores."""


class TensorBoard:
    """Events in the run's folder; what comes again after a restart takes the place of the first."""

    remembers = False

    def __init__(self, folder: Path, about: About) -> None:
        with needs("training"):
            from tensorboardX import SummaryWriter

        self._events, self._type = folder / "tensorboard", SummaryWriter

    def open(self, step: int, id: str | None) -> None:
        """Opens a new file of events."""
        self._writer = self._type(str(self._events), purge_step=step + 1 if step else None)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A point of each value's curve."""
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self, *, done: bool) -> None:
        """Closes the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project $WANDB_PROJECT or 'lora-jax', in the group of its store.

    With WANDB_MODE=offline its files lie in the run's folder, for `wandb sync`. Rows have the step
    as a value: W&B's own counter drops what comes after a larger one.
    """

    remembers = True

    def __init__(self, folder: Path, about: About) -> None:
        with needs("wandb"):
            import wandb

        self._wandb, self._folder, self._about = wandb, folder, about

    def open(self, step: int, id: str | None) -> str:
        """Opens the run, or goes on with it."""
        id = id or secrets.token_hex(8)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self._folder.parent.name,
            id=id,
            name=self._about.name,
            config=dict(self._about.settings),
            tags=[tag[-64:] for tag in dict.fromkeys(self._about.tags.values())],  # its limit
            dir=str(self._folder),
            resume="allow",
            # Runs side by side are all open at once.
            reinit="create_new",
            settings=self._wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return id

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A row of the run's history."""
        self._run.log({"step": step, **{f"{split}/{name}": x for name, x in values.items()}})

    def close(self, *, done: bool) -> None:
        """Ends the run, for now if it is not done."""
        self._run.finish(exit_code=0 if done else 1)


class MLflow:
    """A run of the experiment $MLFLOW_EXPERIMENT_NAME or 'lora-jax', where $MLFLOW_TRACKING_URI
    says: a server, or a local file such as sqlite:///mlflow.db.
    """

    remembers = True

    def __init__(self, folder: Path, about: About) -> None:
        with needs("mlflow"):
            from mlflow import MlflowClient, entities

        self._entities, self._about = entities, about
        self._store, self._client = folder.parent.name, MlflowClient()

    def open(self, step: int, id: str | None) -> str:
        """Opens the run, or goes on with it."""
        if id is not None:
            self._client.set_terminated(id, "RUNNING")
            self._id = id
            return id
        tags = {**self._about.tags, "store": self._store}
        run = self._client.create_run(self._experiment(), run_name=self._about.name, tags=tags)
        self._id = run.info.run_id
        settings = [
            # A longer value is refused.
            self._entities.Param(key, str(value)[:6000])
            for key, value in self._about.settings.items()
        ]
        for first in range(0, len(settings), 100):
            self._client.log_batch(self._id, params=settings[first : first + 100])
        return self._id

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A point of each value's curve."""
        now = int(time.time() * 1000)
        points = [
            self._entities.Metric(f"{split}/{name}", x, now, step) for name, x in values.items()
        ]
        self._client.log_batch(self._id, metrics=points)

    def close(self, *, done: bool) -> None:
        """Says how the run ended; one that is not done is 'killed' until it goes on."""
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)


SINKS: dict[str, type[Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
