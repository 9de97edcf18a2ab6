"""The task of a config."""

from __future__ import annotations

from lora_jax.config import Config
from lora_jax.tasks.encoder import EncoderTask, open_encoder
from lora_jax.tasks.language import DecoderTask, open_language


def open_task(config: Config) -> EncoderTask | DecoderTask:
    """The task of a run: its model, base and data, read from their files.

    Nothing is kept here: who calls holds the task, gives it to the runs that share it, and lets it
    go.

    Raises:
        ValueError: the data, the tokenizer or the recipe do not fit the model.
    """
    opened = open_language if config.data.task == "completion" else open_encoder
    return opened(config.model, config.data)


class LastTask:
    """The task of the config that was asked for last: runs that come one after another and agree in
    model and data share it, and it is let go of before the next one is opened.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._task: EncoderTask | DecoderTask | None = None

    def of(self, config: Config) -> EncoderTask | DecoderTask:
        """The config's task; see `open_task`."""
        key = (config.model, config.data)
        if self._task is None or self._key != key:
            self._task = None  # Two bases are never in memory at once.
            self._task, self._key = open_task(config), key
        return self._task
