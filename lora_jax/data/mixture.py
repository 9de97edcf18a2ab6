"""Several tasks in one training set: how often each is drawn, and which example belongs to
which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from .completions import Completions


def mixture_rates(sizes: Sequence[int], temperature: float) -> Float[np.ndarray, " tasks"]:
    """The probability of drawing each task: its size to the power 1 / temperature, normalised
    (Raffel et al. 2020, T5, section 3.5.2).

    1 draws examples alike, whatever their task; infinity draws tasks alike.

    >>> mixture_rates([900, 100], 2.0).round(2).tolist()
    [0.75, 0.25]

    Raises:
        ValueError: a task is empty, or the temperature is below 1.
    """
    if min(sizes, default=0) < 1 or not temperature >= 1:
        raise ValueError(
            "A mixture needs tasks that are not empty and a temperature of 1 or more, got sizes "
            f"{list(sizes)} and {temperature}."
        )
    weights = np.asarray(sizes, float) ** (1 / temperature)
    return weights / weights.sum()


def mixture_order(
    groups: Int[np.ndarray, " examples"], temperature: float, *, seed: int, epoch: int
) -> Int[np.ndarray, " examples"]:
    """The examples of an epoch of a mixture: as many as there are, drawn by `mixture_rates`.

    Within a task every example comes once before any comes again, over epochs too: each pass
    through a task is shuffled by itself.
    """
    count = len(groups)
    sizes = np.bincount(groups)
    rates = mixture_rates(sizes.tolist(), temperature)
    # The draws of earlier epochs are made again: which pass through its task a draw falls into
    # depends on them.
    drawn = [
        np.random.default_rng((seed, n)).choice(len(rates), count, p=rates)
        for n in range(epoch + 1)
    ]
    order = np.empty(count, np.int64)
    for task, size in enumerate(sizes):
        members = np.flatnonzero(groups == task)
        before = sum(int((past == task).sum()) for past in drawn[:-1])
        places = np.flatnonzero(drawn[-1] == task)
        numbers = before + np.arange(len(places))
        for turn in np.unique(numbers // size):
            shuffled = np.random.default_rng((seed, task, int(turn))).permutation(members)
            chosen = numbers // size == turn
            order[places[chosen]] = shuffled[numbers[chosen] % size]
    return order


def join_completions(parts: Mapping[str, Completions]) -> Completions:
    """The examples of all tasks, one task after the other, with the name of each example's task."""
    note = " ".join(
        f"{name}: {part.note}" if part.note else f"{name}: {len(part)} examples."
        for name, part in parts.items()
    )
    return Completions(
        tuple(prompt for part in parts.values() for prompt in part.prompts),
        tuple(completion for part in parts.values() for completion in part.completions),
        note,
        tuple(
            right
            for part in parts.values()
            for right in (part.references or tuple((text,) for text in part.completions))
        ),
        tuple(name for name, part in parts.items() for _ in range(len(part))),
    )
