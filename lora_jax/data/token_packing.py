"""Several examples in one row, texts or pairs of source and target, told apart by segment numbers, so
that little of a batch is padding.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int

from .batches import EpochBatches
from .completions import Completions, EncodedCompletions, encoded_fields, mixture_order
from .text_tokenizers import TextTokenizer


class PackedBatch(TypedDict):
    """One batch of rows. `segments` numbers the examples of a row from 1, 0 is padding; `labels`
    are each token's successor.

    `loss_weight` is 1 where the successor is part of a completion. `mask` is True on real tokens,
    `weight` 1 on rows with any.
    """

    tokens: Int[np.ndarray, "rows time"]
    segments: Int[np.ndarray, "rows time"]
    labels: Int[np.ndarray, "rows time"]
    loss_weight: Float[np.ndarray, "rows time"]
    mask: Bool[np.ndarray, "rows time"]
    weight: Float[np.ndarray, " rows"]


class PlannedRows(NamedTuple):
    """The examples of each row of a batch, and the padded sizes. `length` is the number of tokens
    of a row.
    """

    rows: tuple[tuple[int, ...], ...]
    count: int
    length: int


def pack(
    lengths: Sequence[Any] | Int[np.ndarray, " examples *parts"], length: int | Sequence[int]
) -> list[list[int]]:
    """Rows of indices whose lengths add up to at most `length`: the longest first, each into the
    first row with room.

    With several lengths an example, (examples, parts), such as of a source and a target, `length`
    has one for each part, and all must fit.

    >>> pack([5, 3, 2, 4], 7)
    [[0, 2], [3, 1]]
    >>> pack([(5, 1), (3, 4), (2, 3)], (8, 5))
    [[1, 0], [2]]
    """
    whole = np.atleast_1d(length)
    sizes = np.reshape(lengths, (len(lengths), len(whole)))
    rows: list[list[int]] = []
    # Of the rows begun so far: all are looked at in one comparison, not one by one.
    room = np.empty_like(sizes)
    for index in np.argsort(-(sizes / whole).sum(1), kind="stable").tolist():
        own = sizes[index]
        if (own > whole).any():
            raise ValueError(
                f"An example of {' and '.join(map(str, own))} tokens does not fit a row of "
                f"{' and '.join(map(str, whole))}. Lower data.max_length, or make rows longer."
            )
        fits = (room[: len(rows)] >= own).all(1)
        row = int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            room[row] = whole
        rows[row].append(index)
        room[row] -= own
    return rows


class PackedBatches(EpochBatches):
    """The batches of encoded completions, `batch_size` examples each; see `EpochBatches`.

    Rows are `length` tokens long, by default as the longest example, rounded up to
    `length_multiple`. All batches of an epoch have the same number of rows, a multiple of
    `row_multiple`. Without `packed` every example has a row of its own.
    """

    def __init__(
        self,
        encoded: EncodedCompletions,
        batch_size: int,
        *,
        length: int | None = None,
        length_multiple: int = 16,
        row_multiple: int = 1,
        packed: bool = True,
        **options: Any,
    ) -> None:
        if not len(encoded):
            raise ValueError(
                "Batches need at least one example, but none came. Check the split and its cap."
            )
        self.packed = packed
        longest = length or int(encoded.lengths.max())
        self.length = -(-longest // length_multiple) * length_multiple
        self._row_multiple = row_multiple
        super().__init__(encoded, batch_size, **options)

    def _plan(self, epoch: int) -> list[PlannedRows]:
        order = np.arange(len(self.encoded))
        if self.shuffle and self.encoded.groups is not None:
            order = mixture_order(
                self.encoded.groups, self.encoded.temperature, seed=self.seed, epoch=epoch
            )
        elif self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        batches = []
        for start in range(0, len(order), self.batch_size):
            members = order[start : start + self.batch_size]
            rows = self._pack(members) if self.packed else [[n] for n in range(len(members))]
            batches.append(tuple(tuple(int(members[n]) for n in row) for row in rows))
        count = -(-max(map(len, batches)) // self._row_multiple) * self._row_multiple
        return [PlannedRows(rows, count, self.length) for rows in batches]

    def _pack(self, members: Int[np.ndarray, " examples"]) -> list[list[int]]:
        return pack(self.encoded.lengths[members], self.length)

    def _make(self, planned: PlannedRows) -> Any:
        encoded, shape = self.encoded, (planned.count, planned.length)
        tokens, segments = np.full(shape, encoded.pad_id, np.int32), np.zeros(shape, np.int32)
        labels, loss_weight = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for row, members in enumerate(planned.rows):
            start = 0
            for number, index in enumerate(members, 1):
                ids = encoded.tokens[index]
                end = start + len(ids)
                tokens[row, start:end], segments[row, start:end] = ids, number
                labels[row, start : end - 1] = ids[1:]
                loss_weight[row, start + encoded.prompt_lengths[index] - 1 : end - 1] = 1.0
                start = end

        mask = segments > 0
        return PackedBatch(
            tokens=tokens,
            segments=segments,
            labels=labels,
            loss_weight=loss_weight,
            mask=mask,
            weight=mask.any(1).astype(np.float32),
        )

    @property
    def padding_fraction(self) -> float:
        """The part of the first epoch's token slots that holds no real token."""
        plan = self.plan(0)
        slots = sum(planned.count * planned.length for planned in plan)
        # Of a mixture's examples some are drawn often, and some not at all.
        drawn = [index for planned in plan for row in planned.rows for index in row]
        return 1 - int(self.encoded.lengths[drawn].sum()) / slots

    def fingerprint(self) -> str:
        """See `EpochBatches.fingerprint`."""
        settings: tuple[Any, ...] = (
            self.encoded.fingerprint,
            self.length,
            self.batch_size,
            self.seed,
            self.shuffle,
            self._row_multiple,
        )
        return hashlib.sha256(repr((*settings, self.packed)).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPairs(EncodedCompletions):
    """Token ids of a split: the first `prompt_lengths[i]` of `tokens[i]` are the source, the others
    the target.
    """

    start_id: int = 0


class PairBatch(TypedDict):
    """One batch of rows. `segments` and `target_segments` number the examples of a row from 1
    alike, 0 is padding.

    `target` are the decoder's inputs, the start token and all but the last of the target, `labels`
    the target; `loss_weight` is 1 on it. `mask` (rows, source + target) is True on real tokens,
    `weight` 1 on rows with any.
    """

    tokens: Int[np.ndarray, "rows source"]
    segments: Int[np.ndarray, "rows source"]
    target: Int[np.ndarray, "rows target"]
    target_segments: Int[np.ndarray, "rows target"]
    labels: Int[np.ndarray, "rows target"]
    loss_weight: Float[np.ndarray, "rows target"]
    mask: Bool[np.ndarray, "rows both"]
    weight: Float[np.ndarray, " rows"]


def encode_pairs(
    records: Completions,
    tokenizer: TextTokenizer,
    max_length: int,
    *,
    start_id: int = 0,
    temperature: float = 1.0,
) -> EncodedPairs:
    """Token ids of every example: prompt and eos, completion and eos, together at most
    `max_length`.

    An example that is too long loses tokens at the end of its prompt, before eos; then at the end
    of its completion.

    Raises:
        ValueError: the tokenizer has no end token.
    """
    if not tokenizer.eos_ids:
        raise ValueError(
            "An encoder-decoder needs a tokenizer with an end token, and this one has none. Give "
            "the model's own tokenizer."
        )

    eos = list(tokenizer.eos_ids[:1])

    def encode(prompt: str, completion: str) -> tuple[list[int], list[int]]:
        source, target = (
            tokenizer.encode(text.strip(), special=False) + eos for text in (prompt, completion)
        )
        return source, target

    def cut(source: list[int], target: list[int]) -> tuple[list[int], list[int]]:
        source = source[: max(max_length - len(target) - 1, 0)] + eos
        return source, target[: max_length - len(source)]

    fields = encoded_fields(records, tokenizer, max_length, encode, cut)
    return EncodedPairs(**fields, temperature=temperature, start_id=start_id)


class PairBatches(PackedBatches):
    """The batches of encoded pairs; as `PackedBatches`. Rows are as long as the longest source and
    the longest target.
    """

    encoded: EncodedPairs

    def __init__(
        self, encoded: EncodedPairs, batch_size: int, *, length_multiple: int = 16, **options: Any
    ) -> None:
        self._sizes = (encoded.prompt_lengths, encoded.lengths - encoded.prompt_lengths)
        source, target = (
            -(-int(sizes.max(initial=1)) // length_multiple) * length_multiple
            for sizes in self._sizes
        )
        self.lengths = (source, target)
        super().__init__(encoded, batch_size, length=source + target, length_multiple=1, **options)

    def _pack(self, members: Int[np.ndarray, " examples"]) -> list[list[int]]:
        return pack(np.stack([sizes[members] for sizes in self._sizes], axis=1), self.lengths)

    def _make(self, planned: PlannedRows) -> PairBatch:
        encoded, shapes = self.encoded, [(planned.count, length) for length in self.lengths]
        tokens = np.full(shapes[0], encoded.pad_id, np.int32)
        segments, target = np.zeros_like(tokens), np.full(shapes[1], encoded.pad_id, np.int32)
        target_segments, labels = np.zeros(shapes[1], np.int32), np.zeros(shapes[1], np.int32)
        for row, members in enumerate(planned.rows):
            at, to = 0, 0
            for number, index in enumerate(members, 1):
                source, wanted = np.split(encoded.tokens[index], [encoded.prompt_lengths[index]])
                end, until = at + len(source), to + len(wanted)
                tokens[row, at:end], segments[row, at:end] = source, number
                target[row, to:until] = [encoded.start_id, *wanted[:-1]][: len(wanted)]
                target_segments[row, to:until], labels[row, to:until] = number, wanted
                at, to = end, until

        mask = np.concatenate([segments, target_segments], 1) > 0
        counted = (target_segments > 0).astype(np.float32)
        return PairBatch(
            tokens=tokens,
            segments=segments,
            target=target,
            target_segments=target_segments,
            labels=labels,
            loss_weight=counted,
            mask=mask,
            weight=mask.any(1).astype(np.float32),
        )
