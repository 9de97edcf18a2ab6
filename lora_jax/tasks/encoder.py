"""Tasks of encoders: a class, a score, tags of words, an answer in a context, or a choice."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.adapters.sites import find_sites
from lora_jax.adapters.surgery import adapt
from lora_jax.config import ADAPTERS, Config, DataConfig, ModelConfig
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.paths import Rules
from lora_jax.data import Batches, choose_buckets, encode
from lora_jax.data.balance import balanced_rows, balanced_weights
from lora_jax.data.encoding import cut_note
from lora_jax.io.encoder_tokenizer import load_tokenizer
from lora_jax.io.hub import resolve
from lora_jax.io.weights import open_model
from lora_jax.metrics.table import Primary
from lora_jax.models.encoder import Encoder
from lora_jax.models.kinds import example_inputs
from lora_jax.tasks.baseline import with_baseline
from lora_jax.tasks.building import build_options, check_sizes, params_of
from lora_jax.tasks.heads import HeadLosses
from lora_jax.tasks.reading import examples_of
from lora_jax.tasks.task import Task, Trees

_HEAD = r"classifier/.*"
# of RoBERTa and DeBERTa, whose pretraining trained no pooler: that layer is part of the new head
_WIDE_HEAD = r"(classifier|pooler)/.*"
_WORDS = "embeddings/word/embedding"
_HEAD_SCALE = 0.02  # standard deviation of a new head, as in BERT


@dataclass(eq=False)
class EncoderTask(Task):
    """An encoder with the head that its task needs. Methods are those of `Task`.

    full: everything is trained; head: the classifier; lora, qlora: factors at the targets, and the
    classifier whole; the other methods: the classifier and what `lora_jax.adapters.baselines` says.
    Data-driven initialisers measure training batches.
    """

    buckets: tuple[int, ...] = ()  # padded lengths
    balance: str = "none"  # of classes in training: `DataConfig.balance`

    @property
    def head(self) -> str:
        """class, score, token, span or choice."""
        return self.model.config.head

    @property
    def per_example(self) -> HeadLosses:
        """See `Task`."""
        return HeadLosses(self.model, self.head, self.label_smoothing, self._by_class)

    @functools.cached_property
    def _by_class(self) -> tuple[float, ...] | None:
        """What a label counts in training, if not all count alike."""
        if self.balance != "weights":
            return None
        return balanced_weights(self.splits["train"].labels, len(self.label_names))

    @functools.cached_property
    def _drawn(self) -> np.ndarray:
        """Places of the texts of a training epoch, where rarer classes come again."""
        return balanced_rows(np.asarray(self.splits["train"].labels))

    @property
    def epoch(self) -> int:
        """See `Task.epoch`."""
        if self.balance != "sampling":
            return super().epoch
        return len(self._drawn)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What scores the predictions, the one to report first in front."""
        return (() if self.recipe is None else self.recipe.metrics) or ("accuracy",)

    @property
    def primary(self) -> Primary:
        """See `Task`."""
        return Primary(self.metrics[0], "words" if self.head == "token" else "records")

    def answer(self, split: str, example: int, said: Any) -> tuple[Any, Any]:
        """See `Task.answer`."""
        encoded = self.splits[split]
        label = encoded.labels[example]
        if self.head == "score":
            return float(said), float(label)
        if self.head == "token":
            names = [[self.label_names[int(n)] for n in ids] for ids in (said[: len(label)], label)]
            there = np.flatnonzero(label >= 0)
            return tuple([tags[n] for n in there] for tags in names)
        if self.head == "span":
            values, places = self.records[split][example].values, encoded.offsets[example]
            first, last = (int(n) for n in said)
            inside = last < len(places) and places[first, 0] >= 0 and places[last, 1] >= 0
            answer = values["context"][places[first, 0] : places[last, 1]] if inside else ""
            return answer, [right["text"] for right in values["answers"]]
        return int(said), int(label)

    def is_new(self, path: str) -> bool:
        """See `Task.is_new`."""
        return path.startswith("pooler/") and self._head_has_pooler(self.params)

    def is_head(self, path: str) -> bool:
        """See `Task.is_head`."""
        return re.fullmatch(_HEAD, path) is not None or self.is_new(path)

    def _head_has_pooler(self, params: Mapping[str, Any]) -> bool:
        return getattr(self.model.config, "pooler_in_head", False) and "pooler" in params

    def _batches(
        self, encoded: Any, batch_size: int, rows: Mapping[str, Any], **order: Any
    ) -> Batches:
        if self.balance == "sampling" and encoded is self.splits.get("train") and order["shuffle"]:
            encoded = encoded.taken(self._drawn)
        # Texts are padded to one of the buckets, and none share a row.
        return Batches(encoded, self.buckets, batch_size, **order)

    def _select(
        self, config: Config, params: Any, key: jax.Array, rules: Rules[LoraSpec] | None = None
    ) -> Trees:
        head_key, lora_key = jax.random.split(key)
        params = {**params, "classifier": _new_head(params["classifier"], head_key)}
        head, apart = _HEAD, []
        if self._head_has_pooler(params):
            head, apart = _WIDE_HEAD, [("pooler/.*", None)]
            params["pooler"] = _new_head(params["pooler"], jax.random.fold_in(head_key, 1))

        if config.method in ADAPTERS:
            words = config.lora.embedding_rows
            rows = {} if words is None else {_WORDS: words}
            return self._adapted(
                config, params, lora_key, rules, apart=apart, whole=[head], rows=rows
            )
        full = [head, self.targets(config.baseline.full_targets)]
        whole = {"full": full, "bitfit": [r".*/bias", head]}.get(config.method, [head])
        trees = adapt(self.model, params, (), whole=whole, key=lora_key, sites=self.sites)
        return with_baseline(config, self.model.config, self.sites, params, trees, lora_key)


def open_encoder(model_config: ModelConfig, data: DataConfig) -> EncoderTask:
    """The task of an encoder with the head of its recipe.

    Raises:
        ValueError: the recipe needs a decoder, or the data or the tokenizer do not fit the model.
    """
    folder = resolve(model_config.name, revision=model_config.revision)
    tokenizer = load_tokenizer(folder)
    examples = examples_of(data)
    splits = encode(examples, tokenizer, data.max_length)
    labels, head = examples.label_names, examples.recipe.head

    outputs = {"class": len(labels), "token": len(labels), "span": 2}.get(head, 1)
    stored = open_model(
        folder,
        num_classes=outputs,
        key=jax.random.key(0),
        scan=model_config.scan,
        kind="encoder",
    ).fingerprinted()
    rates = {
        name: getattr(model_config, name)
        for name in ("dropout", "attention_dropout", "head_dropout")
    }
    settings = dataclasses.replace(stored.config, head=head, **rates)
    params = params_of(stored, model_config)
    if settings.reads_every_token:
        params.pop("pooler", None)
    check_sizes(folder, tokenizer.vocab_size, settings, model_config, data)

    model = Encoder(settings, **build_options(model_config))
    cut = cut_note(splits, data.max_length)
    lengths = [split.lengths for split in splits.values()]
    return EncoderTask(
        model=model,
        params=params,
        sites=find_sites(model, *example_inputs(settings)),
        splits=splits,
        buckets=data.buckets or choose_buckets(np.concatenate(lengths)),
        label_names=labels,
        note=" ".join(filter(None, (examples.note, examples.left_out, cut))),
        fingerprint=stored.fingerprint,
        records=examples.splits,
        recipe=examples.recipe,
        tokenizer=tokenizer,
        data=examples.fingerprint,
        label_smoothing=data.label_smoothing,
        balance=data.balance,
    )


def _new_head(head: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    kernel = _HEAD_SCALE * jax.random.normal(key, head["kernel"].shape, jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(head["bias"].shape, jnp.float32)}
