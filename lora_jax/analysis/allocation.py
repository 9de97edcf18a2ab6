"""Bits and ranks by weight under a budget of bytes: the choice, one for each weight, with the
smallest sum of what they lose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_jax.core.paths import layer_of


@dataclass(frozen=True)
class Choice:
    """What one weight may be: its base's format and its adapter's rank (None where it is not
    quantised or not adapted), the bytes of both, and how much the loss rises with it.
    """

    format: str | None
    rank: int | None
    bytes: int
    rise: float


Allocation = Mapping[str, Choice]

_ANY = re.escape("*")  # where `layer_of` leaves the number of a layer out


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """For each path one of its choices, such that all take at most `budget` bytes and no other such
    selection has a smaller sum of rises: a multiple-choice knapsack problem, solved exactly as an
    integer programme (HiGHS).

    Raises:
        ValueError: there is nothing to choose, or even the smallest choices take more.
    """
    from scipy import optimize, sparse

    flat = [(path, choice) for path, some in choices.items() for choice in some]
    if not flat:
        raise ValueError("There is no weight to choose a format or a rank for.")
    least = sum(min(choice.bytes for choice in some) for some in choices.values())
    if least > budget:
        raise ValueError(
            f"The smallest choices take {least:,} bytes, and the budget is {budget:,}. Raise it, "
            "or allow fewer bits or lower ranks."
        )

    place = {path: number for number, path in enumerate(choices)}
    rows = [place[path] for path, _ in flat]
    one_each = sparse.csr_array((np.ones(len(flat)), (rows, range(len(flat)))))
    size = np.array([[choice.bytes for _, choice in flat]], float)
    # Losses near 0 and bytes by the million: both near 1, as the solver's tolerances are absolute.
    rise = np.array([choice.rise for _, choice in flat])
    solved = optimize.milp(
        rise / (rise.max() or 1.0),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(size / budget, ub=1.0),
        ],
        integrality=np.ones(len(flat)),
        bounds=optimize.Bounds(0, 1),
        options=dict(mip_rel_gap=0),
    )
    if solved.x is None:
        raise ValueError(f"No allocation was found: {solved.message}")
    chosen = {path: choice for (path, choice), x in zip(flat, solved.x) if x > 0.5}
    return {path: chosen[path] for path in choices}


def uniform(
    choices: Mapping[str, Sequence[Choice]], format: str | None, rank: int | None
) -> dict[str, Choice]:
    """Every weight with one format and one rank, as far as it has a choice of them.

    Raises:
        ValueError: a weight has no such choice.
    """
    found = {}
    for path, some in choices.items():
        fits = [
            choice
            for choice in some
            if choice.format in (format, None) and choice.rank in (rank, None)
        ]
        if not fits:
            raise ValueError(f"{path} was not measured in format {format} with rank {rank}.")
        found[path] = fits[0]
    return found


def bytes_of(allocation: Allocation) -> int:
    """Bytes of all that was chosen."""
    return sum(choice.bytes for choice in allocation.values())


def rise_of(allocation: Allocation) -> float:
    """The rise of the loss, if single rises add up."""
    return sum(choice.rise for choice in allocation.values())


def settings_of(allocation: Allocation, name: str) -> dict[str, str | int]:
    """The settings of a run with the allocation: the commonest format and rank, and the others as
    exceptions by path, which are called `name`.
    """
    found: dict[str, str | int] = {}
    for one, several, of in (
        ("quant.format", "quant.formats", lambda choice: choice.format),
        ("lora.rank", "lora.ranks", lambda choice: choice.rank),
    ):
        values = {path: of(choice) for path, choice in allocation.items() if of(choice) is not None}
        if not values:
            continue
        common = Counter(values.values()).most_common(1)[0][0]
        rest = {path: value for path, value in values.items() if value != common}
        found[one] = common
        found[several] = f"{name}={_by_path(rest)}" if rest else ""
    return found


def _by_path(values: Mapping[str, object]) -> str:
    """'layers_(0|3)/mlp/up/kernel: int8, ...': layers that have one value stand together."""
    layers: dict[tuple[str, object], list[int]] = {}
    for path, value in values.items():
        general, layer = layer_of(path)
        layers.setdefault((general, value), []).extend([] if layer is None else [layer])
    return ", ".join(
        f"{re.escape(general).replace(_ANY, _either(numbers))}: {value}"
        for (general, value), numbers in layers.items()
    )


def _either(numbers: Sequence[int]) -> str:
    found = [str(number) for number in sorted(numbers)]
    return found[0] if len(found) == 1 else f"({'|'.join(found)})"
