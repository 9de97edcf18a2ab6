"""The task of a config."""

from __future__ import annotations

from lora_jax.config import Config
from lora_jax.io.contents import changed_contents, contents
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

    `made_of` is what its names stood for when it was read (`lora_jax.io.contents.contents`).
    """

    def __init__(self) -> None:
        self._key: object = None
        self._task: EncoderTask | DecoderTask | None = None
        self.made_of: dict[str, str] = {}

    def of(self, config: Config) -> EncoderTask | DecoderTask:
        """The config's task, opened again if its files have changed since; see `open_task`.

        Raises:
            ValueError: also if a file changes while it is read.
        """
        key, before = (config.model, config.data), contents(config.names, config.model.revision)
        known = self._task is not None and self._key == key
        if known and not changed_contents(self.made_of, before):
            return self._task
        for _ in range(2):  # What is fetched may be newer than what was there.
            self._task = None  # Two bases are never in memory at once.
            self._task, self._key = open_task(config), key
            self.made_of = contents(config.names, config.model.revision)
            changed = changed_contents(before, self.made_of)
            if not changed:
                return self._task
            before = self.made_of
        self._task = None
        raise ValueError(
            f"{', '.join(changed)} changed while it was read. Start again when it is written."
        )
