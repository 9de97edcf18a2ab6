"""Tasks of language models: a decoder continues prompts, an encoder-decoder writes targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lora_jax.adapters.sites import find_sites
from lora_jax.config import DataConfig, ModelConfig
from lora_jax.data.completions import (
    Completions,
    EncodedCompletions,
    encode_completions,
    fingerprint_of,
)
from lora_jax.data.encoding import cut_note
from lora_jax.data.text_tokenizers import TextTokenizer
from lora_jax.data.token_packing import PackedBatches, PairBatches, encode_pairs
from lora_jax.generation.engine import Generator
from lora_jax.generation.seq2seq import PairGenerator
from lora_jax.io.gguf_tokenizer import load_text_tokenizer
from lora_jax.io.hub import resolve
from lora_jax.io.weights import kind_of, open_model
from lora_jax.metrics.table import Primary
from lora_jax.models.decoder import Decoder
from lora_jax.models.t5 import T5
from lora_jax.tasks.building import build_options, check_sizes, params_of
from lora_jax.tasks.language_loss import TokenLosses
from lora_jax.tasks.reading import completions_of, recipe_of
from lora_jax.tasks.task import Task


@dataclass(eq=False)
class DecoderTask(Task):
    """A decoder that continues prompts. Methods are those of `Task`."""

    generator: ClassVar[type[Generator] | None] = Generator
    beams: ClassVar[bool] = True
    by_example: ClassVar[bool] = False  # short ones share a row
    primary: ClassVar[Primary] = Primary("loss", "tokens")

    @property
    def per_example(self) -> TokenLosses:
        """See `Task`."""
        return TokenLosses(self.model, smoothing=self.label_smoothing)

    def _batches(
        self, encoded: Any, batch_size: int, rows: Mapping[str, Any], **order: Any
    ) -> PackedBatches:
        # Short examples share a row; `batch_size` counts examples.
        return PackedBatches(encoded, batch_size, length=encoded.max_length, **rows, **order)

    def examples_of(self, planned: Any) -> list[int]:
        """See `Task.examples_of`."""
        return [row[0] for row in planned.rows]

    def text_bytes(self, split: str, examples: int | None = None) -> int | None:
        """See `Task`."""
        records = self.records.get(split)
        if not isinstance(records, Completions) or self.splits[split].truncated:
            return None
        return sum(len(text.encode()) for text in records.completions[:examples])

    def encode(self, records: Completions, data: DataConfig) -> EncodedCompletions:
        """Prompts and completions as the model reads them: one text."""
        return encode_completions(
            records, self.tokenizer, data.max_length, temperature=data.mixture_temperature
        )


@dataclass(eq=False)
class Seq2SeqTask(DecoderTask):
    """An encoder-decoder (T5) that reads the prompt as its source and writes the completion as its
    target.
    """

    generator: ClassVar[type[Generator] | None] = PairGenerator
    beams: ClassVar[bool] = False

    def _batches(
        self, encoded: Any, batch_size: int, rows: Mapping[str, Any], **order: Any
    ) -> PairBatches:
        return PairBatches(encoded, batch_size, **rows, **order)

    def encode(self, records: Completions, data: DataConfig) -> EncodedCompletions:
        """Prompts and completions as the model reads them: source and target (`EncodedPairs`)."""
        return encode_pairs(
            records,
            self.tokenizer,
            data.max_length,
            start_id=self.model.config.start_id,
            temperature=data.mixture_temperature,
        )


def open_language(model_config: ModelConfig, data: DataConfig) -> DecoderTask:
    """The task of a language model: `data.text` is the column of the prompt, `data.label` that of
    the completion.

    Raises:
        ValueError: the tokenizer does not fit the model, or the texts are longer than its window.
    """
    folder = resolve(model_config.name, revision=model_config.revision)
    records, tokenizer = completions_of(data), load_text_tokenizer(folder)
    task = _opened(folder, model_config, tokenizer)
    check_sizes(folder, tokenizer.vocab_size, task.model.config, model_config, data)
    task.records = records
    task.splits = {name: task.encode(part, data) for name, part in records.items()}
    cut = cut_note(task.splits, data.max_length)
    task.note = " ".join(filter(None, (records["train"].note, cut)))
    task.recipe = None if data.mixture and data.recipe is None else recipe_of(data)
    task.data = fingerprint_of(records)
    task.label_smoothing = data.label_smoothing
    return task


def _opened(folder: Path, model_config: ModelConfig, tokenizer: TextTokenizer) -> DecoderTask:
    """The task without its data."""
    options, scan = build_options(model_config), model_config.scan
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    pairs = kind_of(folder) == "encoder-decoder"
    kind_of_model = "encoder-decoder" if pairs else "decoder"
    stored = open_model(folder, scan=scan, kind=kind_of_model).fingerprinted()
    model: Any = (T5 if pairs else Decoder)(stored.config, **options)
    kind: type[DecoderTask] = Seq2SeqTask if pairs else DecoderTask
    return kind(
        model=model,
        params=params_of(stored, model_config),
        sites=find_sites(model, *[tokens] * (4 if pairs else 1)),
        splits={},
        fingerprint=stored.fingerprint,
        tokenizer=tokenizer,
    )
