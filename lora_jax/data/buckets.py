"""Which padded lengths to compile, and which examples go into which batch: pure functions of
lengths and seeds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# In `PlannedBatch.indices`: a row that only fills the batch up.
FILLER = -1


class PlannedBatch(NamedTuple):
    """One batch: its padded length in tokens, and `batch_size` example indices, the last of which
    may be FILLER.
    """

    length: int
    indices: Int[np.ndarray, " batch"]


def choose_buckets(
    lengths: Sequence[int] | Int[np.ndarray, " examples"],
    max_shapes: int = 6,
    *,
    multiple: int = 8,
    batch_size: int = 1,
) -> tuple[int, ...]:
    """At most `max_shapes` padded lengths, ascending, with which `plan_epoch` pads these examples
    least.

    Buckets are multiples of `multiple`, and the last one holds the longest example: where one set
    of buckets serves all splits, give the lengths of all. `batch_size` lets the choice count what
    moves up to fill batches. The choice is exact (dynamic programming over candidate lengths:
    O(max_shapes * (longest / multiple)^2)); of equally good choices, the one with fewer shapes is
    taken.

    Raises:
        ValueError: no lengths, a length below 1, or another argument below 1.

    >>> choose_buckets([5, 6, 7, 30, 31], max_shapes=2)
    (8, 32)
    """
    sizes = np.asarray(lengths, np.int64)
    if not sizes.size or sizes.min() < 1 or min(max_shapes, multiple, batch_size) < 1:
        least = f" from {sizes.min()}" if sizes.size else ""
        raise ValueError(
            "Buckets need at least one length of 1 or more, and max_shapes, multiple and "
            f"batch_size of 1 or more, but {sizes.size} lengths{least}, max_shapes={max_shapes}, "
            f"multiple={multiple} and batch_size={batch_size} came. Correct them."
        )

    steps = -(-int(sizes.max()) // multiple)
    # longer[j]: the batches that hold an example of more than j * multiple tokens, as `plan_epoch`
    # fills them. The bucket over (i, j] then costs j * (longer[i] - longer[j]).
    fitting = np.searchsorted(np.sort(sizes), np.arange(steps + 1) * multiple, side="right")
    longer = -(-(sizes.size - fitting) // batch_size)

    # cost[s, j]: the least padded tokens of examples up to j * multiple in s buckets, the last of
    # which ends at j; cut[s, j]: where it begins.
    shapes = min(max_shapes, steps)
    cost = np.full((shapes + 1, steps + 1), np.inf)
    cut = np.zeros((shapes + 1, steps + 1), np.int64)
    cost[0, 0] = 0
    for used in range(1, shapes + 1):
        for j in range(1, steps + 1):
            through = cost[used - 1, :j] + j * (longer[:j] - longer[j])
            cut[used, j] = np.argmin(through)
            cost[used, j] = through[cut[used, j]]

    used, j, edges = int(np.argmin(cost[:, steps])), steps, []
    while j > 0:
        edges.append(j * multiple)
        j, used = int(cut[used, j]), used - 1
    return tuple(reversed(edges))


def plan_epoch(
    lengths: Int[np.ndarray, " examples"],
    buckets: Sequence[int],
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
) -> list[PlannedBatch]:
    """The batches of one epoch: every example exactly once, in the smallest bucket that holds it
    wherever possible.

    Batches are filled from the longest bucket down, and examples of the next shorter bucket fill up
    a bucket's last batch. So an epoch has ceil(examples / batch_size) batches whatever the lengths,
    and only one of them, of the shortest examples, holds fillers. With `shuffle`, (seed, epoch)
    alone fixes which examples meet in a batch and the order of batches across buckets; without,
    both follow the examples' order, longest bucket first.

    Raises:
        ValueError: a length exceeds the last bucket, buckets do not ascend, `batch_size` is below
            1, a seed is negative, or there are no examples.
    """
    lengths, edges = np.asarray(lengths), np.asarray(buckets, np.int64)
    _require_plan(lengths, edges, batch_size, seed, epoch)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    bucket_of = np.searchsorted(edges, lengths[order], side="left")
    longest_first = np.argsort(-bucket_of, kind="stable")
    missing = -len(order) % batch_size
    filled = np.concatenate([order[longest_first], np.full(missing, FILLER)])
    rows = filled.astype(np.int32).reshape(-1, batch_size)
    # A batch is as long as the bucket of its first example, the longest.
    padded = edges[bucket_of[longest_first][::batch_size]]
    plan = [PlannedBatch(int(length), row) for length, row in zip(padded, rows, strict=True)]
    return [plan[i] for i in rng.permutation(len(plan))] if shuffle else plan


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """The number of batches of `plan_epoch`: ceil(examples / batch_size)."""
    return -(-examples // batch_size)


def total_steps(examples: int, batch_size: int, epochs: float | int) -> int:
    """The number of batches of `epochs` epochs, which need not be whole; rounded up.

    Raises:
        ValueError: `epochs` is not above 0.
    """
    if not epochs > 0:
        raise ValueError(
            f"Training needs a number of epochs above 0, but {epochs} came. Set train.epochs, or "
            "train.total_steps."
        )
    # Rounded first: 0.07 * 100 is 7.000000000000001, which is seven steps, not eight.
    return int(np.ceil(round(epochs * steps_per_epoch(examples, batch_size), 9)))


def padding_fraction(plan: Sequence[PlannedBatch], lengths: Int[np.ndarray, " examples"]) -> float:
    """The part of all token slots of the batches, filler rows included, that holds no real token: 0
    to 1.
    """
    slots = sum(batch.length * len(batch.indices) for batch in plan)
    real = sum(
        int(np.asarray(lengths)[batch.indices[batch.indices != FILLER]].sum()) for batch in plan
    )
    return 1.0 - real / slots if slots else 0.0


def _require_plan(
    lengths: np.ndarray, edges: np.ndarray, batch_size: int, seed: int, epoch: int
) -> None:
    if not len(lengths):
        raise ValueError(
            "A batch plan needs at least one example, but none came. Check the split and its cap."
        )
    if not len(edges) or edges[0] < 1 or np.any(np.diff(edges) <= 0):
        raise ValueError(
            f"Buckets need to be ascending lengths of 1 or more, but {edges.tolist()} came. Sort "
            "them, or let choose_buckets choose."
        )

    if lengths.max() > edges[-1]:
        longest = int(np.argmax(lengths))
        raise ValueError(
            f"The last bucket needs to hold the longest example, but example {longest} has "
            f"{lengths[longest]} tokens and the buckets are {edges.tolist()}. Lower "
            f"data.max_length to {edges[-1]}, or add a larger bucket."
        )
    if batch_size < 1 or seed < 0 or epoch < 0:
        raise ValueError(
            "A batch plan needs batch_size >= 1, seed >= 0 and epoch >= 0, but "
            f"batch_size={batch_size}, seed={seed}, epoch={epoch} came. Correct them."
        )
