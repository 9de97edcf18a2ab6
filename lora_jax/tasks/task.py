"""What a task is: a model, its base, its data and its loss, opened once and held by its caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from flax import linen as nn

from lora_jax.adapters.sites import Site
from lora_jax.config import Config
from lora_jax.data import Recipe
from lora_jax.generation.engine import Generator
from lora_jax.metrics.score import Score
from lora_jax.metrics.table import Primary
from lora_jax.tasks.losses import PerExample

Trees = tuple[dict[str, Any], dict[str, Any]]


@runtime_checkable
class Task(Protocol):
    """A problem to train on. `open_task` makes one of a config; `CustomTask` is one for any module.

    Attributes:
        model: the Linen module.
        sites: its parameters by path, as `find_sites` gives them.
        splits: encoded examples by name: train, validation and test.
        label_names: classes or tags in the order of their ids, () where there are none.
        note: what a reader of results must know about the data; may be ''.
        base: the fingerprint of the pretrained weights, which adapters and checkpoints carry.
        records: what the splits were encoded from, by split.
        recipe: the kind of task, None for a mixture of several.
        data: the fingerprint of the examples of all splits and of the names of their classes.
        generator: the class that writes texts with the model, None where it writes none.
        beams: whether beam search can write them.
    """

    model: nn.Module
    sites: Mapping[str, Site]
    splits: Mapping[str, Any]
    label_names: tuple[str, ...]
    note: str
    base: str
    records: Mapping[str, Any]
    recipe: Recipe | None
    tokenizer: Any
    generator: type[Generator] | None
    beams: bool
    data: str

    @property
    def per_example(self) -> PerExample:
        """The loss of a batch, row by row."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what scores predictions, in `lora_jax.metrics.table.METRICS`."""

    @property
    def primary(self) -> Primary:
        """The metric to report first, whether higher is better, and what losses count."""

    def trainable(
        self, config: Config, key: jax.Array, *, frozen: Mapping[str, Any] | None = None
    ) -> Trees:
        """The frozen weights and what is trained, by the config's method; `key` fixes all that is
        random in them.

        Args:
            frozen: the base of another run that stores it in the same way: it is returned as it is,
                and only what is trained is made.

        Raises:
            ValueError: the method, a rule or a rank does not fit the model.
        """

    def shapes(self, config: Config) -> Trees:
        """`trainable` as jax.ShapeDtypeStructs: nothing is read, quantised or copied."""

    def widest(self, config: Config) -> dict[str, Any]:
        """Shapes of all that a run trains, with ranks cut to what each site can hold: every legal
        run of a group whose widest is `config` fits into them.
        """

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        accumulate: int = 1,
        packed: bool = True,
    ) -> Any:
        """The batches of a split, epoch after epoch: `len`, `[k]`, and iterators with a position
        that can be saved. Batch k follows from the arguments and k alone.

        Args:
            accumulate: rows of a batch are a multiple of it.
            packed: whether several short examples may share a row.

        Raises:
            ValueError: there is no such split.
        """

    def examples_of(self, planned: Any) -> list[int]:
        """The example of each real row of a planned, unpacked batch (`batches.plan(0)[k]`)."""

    def answer(self, split: str, example: int, said: Any) -> tuple[Any, Any]:
        """(predicted, references) of an example as metrics compare them; `said` is its row of
        `Losses.answer`.
        """

    def scores(
        self, frozen: Mapping[str, Any], trainable: Mapping[str, Any], split: str, **options: Any
    ) -> list[Score]:
        """Every score of a split: loss (nats a unit), accuracy a unit where answers are right or
        wrong, and the recipe's metrics; of a language model those of its texts with generate=True.
        """
