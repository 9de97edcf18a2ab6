"""Tasks of language models: a decoder continues prompts, an encoder-decoder writes targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lora_jax.adapters.sites import find_sites
from lora_jax.adapters.surgery import adapt
from lora_jax.config import ADAPTERS, TARGETS, Config, DataConfig, ModelConfig
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.paths import Rules
from lora_jax.data.completions import (
    Completions,
    EncodedCompletions,
    encode_completions,
    fingerprint_of,
)
from lora_jax.data.encoding import cut_note
from lora_jax.data.pairs import PairBatches, encode_pairs
from lora_jax.data.text_tokenizers import TextTokenizer
from lora_jax.data.token_packing import PackedBatches
from lora_jax.generation.engine import Generator
from lora_jax.generation.seq2seq import PairGenerator
from lora_jax.io.gguf_tokenizer import load_text_tokenizer
from lora_jax.io.hub import resolve
from lora_jax.io.weights import kind_of, open_model
from lora_jax.metrics.score import Score
from lora_jax.metrics.table import Primary
from lora_jax.models.decoder import Decoder
from lora_jax.models.t5 import T5
from lora_jax.tasks.base import params_of
from lora_jax.tasks.building import build_options, check_sizes
from lora_jax.tasks.generated import generate_predictions
from lora_jax.tasks.language_loss import TokenLosses
from lora_jax.tasks.opened import Opened
from lora_jax.tasks.predictions import predict, scores_of
from lora_jax.tasks.reading import completions_of, recipe_of
from lora_jax.tasks.specs import lora_spec, quant_spec
from lora_jax.tasks.task import Trees

# The names of TARGETS in a model of two stacks: attention across them beside that within each.
_STACK_TARGETS = {
    "query+value": r"(encoder|decoder)/layers(_\d+)?/(attn|cross)/(q|v)/kernel",
    "attention": r"(encoder|decoder)/layers(_\d+)?/(attn|cross)/(q|k|v|o)/kernel",
    "mlp": r"(encoder|decoder)/layers(_\d+)?/mlp/(gate|up|down)/kernel",
    "all-linear": r"(encoder|decoder)/layers(_\d+)?/.*/kernel",
}


@dataclass(eq=False)
class DecoderTask(Opened):
    """A decoder that continues prompts. Methods are those of `Task`."""

    generator: ClassVar[type[Generator] | None] = Generator
    beams: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ()
    primary: ClassVar[Primary] = Primary("loss", False, "tokens")

    @property
    def per_example(self) -> TokenLosses:
        """See `Task`."""
        return TokenLosses(self.model)

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
    ) -> PackedBatches:
        """See `Task.batches`. Short examples share a row; `batch_size` counts examples."""
        encoded = self.split(split)
        options: dict[str, Any] = dict(seed=seed, shuffle=shuffle, epochs=epochs, packed=packed)
        return PackedBatches(
            encoded, batch_size, length=encoded.max_length, row_multiple=accumulate, **options
        )

    def examples_of(self, planned: Any) -> list[int]:
        """See `Task.examples_of`."""
        return [row[0] for row in planned.rows]

    def answer(self, split: str, example: int, said: Any) -> tuple[Any, Any]:
        """A language model's texts are generated: see `generate_predictions`."""
        raise NotImplementedError("A language model's answers are generated, not read off a batch.")

    def scores(
        self,
        frozen: Mapping[str, Any],
        trainable: Mapping[str, Any],
        split: str,
        *,
        generate: bool = False,
        **options: Any,
    ) -> list[Score]:
        """See `Task.scores`."""
        scored = predict(self, frozen, trainable, split, **options)
        if generate:
            made = generate_predictions(self, frozen, trainable, split, scored=scored, **options)
            scored = replace(scored, metrics=made.metrics, rows=made.rows)
        return scores_of(scored, self.primary)

    def encode(self, records: Completions, data: DataConfig) -> EncodedCompletions:
        """Prompts and completions as the model reads them: one text."""
        temperature = data.mixture_temperature
        return encode_completions(records, self.tokenizer, data.max_length, temperature=temperature)

    def _select(
        self, config: Config, params: Any, key: jax.Array, rules: Rules[LoraSpec] | None = None
    ) -> Trees:
        options: dict[str, Any] = dict(key=key, sites=self.sites)
        if config.method == "full":
            return adapt(self.model, params, (), whole=[".*"], **options)
        if config.method not in ADAPTERS:
            raise ValueError(
                f"config.method {config.method!r} is for classifiers. For a language model use "
                "'lora', 'qlora' or 'full'."
            )
        quant = []
        if config.method == "qlora":
            quant = [(self.targets(config.quant.targets), quant_spec(config))]
        if rules is None:
            rules = [(self.targets(config.lora.targets), lora_spec(config))]
        return adapt(
            self.model,
            params,
            (),
            lora=rules,
            quant=quant,
            bias=config.lora.bias,
            statistics=self._measured(config, params, rules),
            **options,
        )


@dataclass(eq=False)
class Seq2SeqTask(DecoderTask):
    """An encoder-decoder (T5) that reads the prompt as its source and writes the completion as its
    target.
    """

    generator: ClassVar[type[Generator] | None] = PairGenerator
    beams: ClassVar[bool] = False

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
    ) -> PairBatches:
        """See `Task.batches`. Short pairs share a row; `batch_size` counts pairs."""
        options: dict[str, Any] = dict(seed=seed, shuffle=shuffle, epochs=epochs, packed=packed)
        return PairBatches(self.split(split), batch_size, row_multiple=accumulate, **options)

    def encode(self, records: Completions, data: DataConfig) -> EncodedCompletions:
        """Prompts and completions as the model reads them: source and target (`EncodedPairs`)."""
        options: dict[str, Any] = dict(
            start_id=self.model.config.start_id, temperature=data.mixture_temperature
        )
        return encode_pairs(records, self.tokenizer, data.max_length, **options)

    def targets(self, name: str) -> str:
        """See `Opened.targets`: the names take in both stacks."""
        pattern = super().targets(name)
        for kind, known in TARGETS.items():
            pattern = pattern.replace(known, _STACK_TARGETS[kind])
        return pattern


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
    return task


def _opened(folder: Path, model_config: ModelConfig, tokenizer: TextTokenizer) -> DecoderTask:
    """The task without its data."""
    options, scan = build_options(model_config), model_config.scan
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    pairs = kind_of(folder) == "encoder-decoder"
    stored = open_model(folder, scan=scan, kind="encoder-decoder" if pairs else "decoder")
    model: Any = (T5 if pairs else Decoder)(stored.config, **options)
    kind: type[DecoderTask] = Seq2SeqTask if pairs else DecoderTask
    return kind(
        model=model,
        params=params_of(stored),
        sites=find_sites(model, *[tokens] * (4 if pairs else 1)),
        splits={},
        buckets=(),
        label_names=(),
        note="",
        base=stored.fingerprint(),
        tokenizer=tokenizer,
    )
