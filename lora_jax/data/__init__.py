"""From records to batches, numpy only: `load` reads a data set by a recipe, `encode` makes token ids
of it, `Batches` pads them.
"""

from .batches import Batch, Batches, BatchIterator, make_batch
from .buckets import (
    PlannedBatch,
    choose_buckets,
    padding_fraction,
    plan_epoch,
    steps_per_epoch,
    total_steps,
)
from .encoded import Encoded
from .encoding import encode
from .examples import Dataset, load
from .recipes import RECIPES, Recipe
from .records import Example, Record, split_of
from .tokenizers import Tokenizer, load_tokenizer, tokenizer_fingerprint

__all__ = [
    "RECIPES",
    "Batch",
    "BatchIterator",
    "Batches",
    "Dataset",
    "Encoded",
    "Example",
    "PlannedBatch",
    "Recipe",
    "Record",
    "Tokenizer",
    "choose_buckets",
    "encode",
    "load",
    "load_tokenizer",
    "make_batch",
    "padding_fraction",
    "plan_epoch",
    "split_of",
    "steps_per_epoch",
    "tokenizer_fingerprint",
    "total_steps",
]
