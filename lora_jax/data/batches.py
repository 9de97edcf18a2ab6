"""Padded batches of encoded texts, served by Grain, with a position that can be saved and
restored.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int

from lora_jax.core.extras import needs

from .buckets import FILLER, PlannedBatch, padding_fraction, plan_epoch
from .encoding import Encoded

# Grain's sources have a length; as good as endless.
_ENDLESS_EPOCHS = 2**31


class Batch(TypedDict):
    """One padded batch of numpy arrays.

    `mask` is True on real tokens; `types` are segment ids. A filler row (`weight` 0) repeats the
    batch's first example, so that it has real tokens to attend to; its weight keeps it out of
    losses, gradients and metrics. `labels` are class ids or scores; the batches of other heads (see
    encoded.py) have labels of tokens or spans, or an axis of choices before time.
    """

    tokens: Int[np.ndarray, "batch *choices time"]
    mask: Bool[np.ndarray, "batch *choices time"]
    types: Int[np.ndarray, "batch *choices time"]
    labels: Int[np.ndarray, "batch ..."] | Float[np.ndarray, " batch"]
    weight: Float[np.ndarray, " batch"]


def make_batch(encoded: Encoded, planned: PlannedBatch) -> Batch:
    """The examples of a planned batch, padded to its length with the tokenizer's padding id."""
    real = planned.indices != FILLER
    rows = np.where(real, planned.indices, planned.indices[0])
    return Batch(**encoded.arrays(rows, planned.length), weight=real.astype(np.float32))


class EpochBatches:
    """The batches of an encoded split, epoch after epoch.

    Batch k is a pure function of the examples, the settings and k. This is a random-access source
    in Grain's sense (`len`, `[k]`). Iterating gives a `BatchIterator` at batch 0, whose threads
    make batches ahead of time. `epochs` is a whole number, or None for as many as are asked for. A
    subclass says what an epoch's batches are made of, and how one is made.
    """

    def __init__(
        self,
        encoded: Any,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        threads: int = 1,
        prefetch: int = 8,
    ) -> None:
        if epochs is not None and epochs < 1:
            raise ValueError(
                f"Batches need epochs of 1 or more, or None for endless ones, but {epochs} came. "
                "Correct it."
            )
        if threads < 0 or prefetch < 1:
            raise ValueError(
                f"Batches need threads >= 0 and prefetch >= 1, but threads={threads}, "
                f"prefetch={prefetch} came. Correct them."
            )
        self.encoded = encoded
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.threads = threads
        self.prefetch = prefetch
        # Threads straddle the end of an epoch: the plans of two epochs are alive at once.
        self.plan = lru_cache(maxsize=2)(self._plan)
        # Made now: wrong lengths, buckets or seeds should stop here, not in a thread.
        self.steps_per_epoch = len(self.plan(0))
        self._steps = self.steps_per_epoch * (_ENDLESS_EPOCHS if epochs is None else epochs)

    def _plan(self, epoch: int) -> list[Any]:
        """The planned batches of one epoch (as `plan`, which remembers two epochs)."""
        raise NotImplementedError

    def _make(self, planned: Any) -> Any:
        """The arrays of a planned batch."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """The sha256 (hex) of all that decides which batch comes at which step."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Any:
        epoch, position = divmod(int(step), self.steps_per_epoch)
        return self._make(self.plan(epoch)[position])

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(self)


class Batches(EpochBatches):
    """The batches of an encoder's texts, each padded to one of `buckets`; see `EpochBatches`."""

    def __init__(
        self, encoded: Encoded, buckets: Sequence[int], batch_size: int, **options: Any
    ) -> None:
        self.buckets = tuple(int(bucket) for bucket in buckets)
        super().__init__(encoded, batch_size, **options)

    def _plan(self, epoch: int) -> list[PlannedBatch]:
        return plan_epoch(
            self.encoded.lengths,
            self.buckets,
            self.batch_size,
            seed=self.seed,
            epoch=epoch,
            shuffle=self.shuffle,
        )

    def _make(self, planned: PlannedBatch) -> Batch:
        return make_batch(self.encoded, planned)

    @property
    def padding_fraction(self) -> float:
        """The part of the first epoch's token slots that holds no real token."""
        return padding_fraction(self.plan(0), self.encoded.lengths)

    def fingerprint(self) -> str:
        """See `EpochBatches.fingerprint`."""
        settings = (
            self.encoded.fingerprint,
            self.encoded.max_length,
            self.buckets,
            self.batch_size,
            self.seed,
            self.shuffle,
        )
        digest = hashlib.sha256(repr(settings).encode())
        digest.update(np.ascontiguousarray(self.encoded.lengths, np.int32).tobytes())
        digest.update(self.encoded.label_bytes())
        for part in self.encoded.tokens:
            digest.update(np.ascontiguousarray(part, np.int32).tobytes())
        return digest.hexdigest()


class BatchIterator(Iterator[Batch]):
    """Batches in order, made ahead of time by Grain's threads.

    The state is a small dict that json can write: {"grain": Grain's position, "batches":
    `Batches.fingerprint()`}. It counts the batches that `next` has returned; those only made ahead
    are not in it. An iterator that restores it goes on with exactly the batches that would have
    come, in this process or another.
    """

    def __init__(self, batches: EpochBatches) -> None:
        with needs("data"):
            import grain

        self._fingerprint = batches.fingerprint()
        # Batches are made in this thread when threads is 0, which suits debuggers.
        prefetch = batches.prefetch if batches.threads else 0
        options = grain.ReadOptions(num_threads=batches.threads, prefetch_buffer_size=prefetch)
        self._iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch returned."""
        return {"grain": self._iterator.get_state(), "batches": self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a saved position.

        Raises:
            ValueError: the state is of another kind, or was saved over other data, buckets, batch
                size or seed.
        """
        if not isinstance(state, dict) or set(state) != {"grain", "batches"}:
            raise ValueError(
                "A batch iterator needs a state with the keys 'grain' and 'batches', but "
                f"{state!r} came. Give what get_state returned."
            )
        if state["batches"] != self._fingerprint:
            raise ValueError(
                "A batch iterator needs a state saved over the same examples, buckets, batch size "
                f"and seed (fingerprint {self._fingerprint[:12]}), but this one was saved over "
                f"others ({str(state['batches'])[:12]}). Restore the run's own configuration and "
                "data, or start a new run."
            )
        self._iterator.set_state(state["grain"])
