"""Labelled texts, token ids and padded batches; numpy only, without TensorFlow."""

from .batches import Batch, Batches, BatchIterator, make_batch
from .buckets import (
    PlannedBatch,
    choose_buckets,
    padding_fraction,
    plan_epoch,
    steps_per_epoch,
    total_steps,
)
from .datasets import default_data_dir, load
from .records import TextRecords, split_of, subset
from .tokenizers import Encoded, Tokenizer, encode, load_tokenizer, tokenizer_fingerprint

__all__ = [
    "Batch",
    "BatchIterator",
    "Batches",
    "Encoded",
    "PlannedBatch",
    "TextRecords",
    "Tokenizer",
    "choose_buckets",
    "default_data_dir",
    "encode",
    "load",
    "load_tokenizer",
    "make_batch",
    "padding_fraction",
    "plan_epoch",
    "split_of",
    "steps_per_epoch",
    "subset",
    "tokenizer_fingerprint",
    "total_steps",
]
