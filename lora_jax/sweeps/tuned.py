"""What tuning found of each cell of a sweep: its losses over the tuned setting, the best value, and
which of its runs count. Kept in tuning.json of the store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_jax.config import read_value
from lora_jax.core.json_files import read_json
from lora_jax.sweeps.files import StoreError, disk, turns, write_json

FILE = "tuning.json"


@dataclass(frozen=True)
class Curve:
    """The losses of one cell (`cell_id`) by the value of `setting`: means of the validation loss
    over `seeds`, None where a run diverged or failed.

    `tried` are the ids of its runs, at every value and of every seed that was ever run; `scored`
    those at the best value under seeds that were not tuned on.
    """

    setting: str
    seeds: tuple[int, ...] = ()
    losses: Mapping[float, float | None] = field(default_factory=dict)
    tried: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()
    cell: str = ""

    @property
    def values(self) -> list[float]:
        """What was tried, ascending."""
        return sorted(self.losses)

    @property
    def best(self) -> float | None:
        """The value with the lowest loss, of equal ones the smallest; None if every one failed."""
        known = {value: loss for value, loss in self.losses.items() if loss is not None}
        return min(known, key=lambda value: (known[value], value), default=None)

    @property
    def is_over(self) -> bool:
        """Whether the best is known, and is being scored; or there is none."""
        return bool(self.scored) or (bool(self.losses) and self.best is None)

    @property
    def edge(self) -> str:
        """'lowest' or 'highest' where the best is at an end of what was tried, else nothing. A
        neighbour that diverged is a neighbour.
        """
        if self.best is None:
            return ""
        return {self.values[0]: "lowest", self.values[-1]: "highest"}.get(self.best, "")

    @property
    def beyond(self) -> float | None:
        """The value to try next: past the edge at which the best is, by the ratio of the two values
        there. None where it is at none, or the setting may not be that.
        """
        if not self.edge or len(self.losses) < 2:
            return None
        end, inner = self.values[:2] if self.edge == "lowest" else self.values[:-3:-1]
        try:
            value = as_value(self.setting, end * end / inner, type(end))
        except ValueError:
            return None
        return None if value in self.losses else value


def as_value(setting: str, number: float, kind: type = float) -> float:
    """The number as a value of the setting, whole if `kind` is int: six digits are enough to tune
    by, and name a run.

    Raises:
        ValueError: the setting may not be that.
    """
    return read_value(setting, str(round(number)) if kind is int else f"{number:.6g}")


def read_curves(root: Path) -> dict[str, Curve]:
    """The curves of the cells that were tuned in a store, by cell; none where none was.

    Raises:
        StoreError: the file cannot be read, so that runs of tuning would pass for results.
    """
    path = root / FILE
    if not path.is_file():
        return {}
    try:
        return {str(cell): _curve(cell, entry) for cell, entry in read_json(path)["cells"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise StoreError(
            f"{path} cannot be read ({type(problem).__name__}: {problem}), and says which runs are "
            "of tuning alone. Delete it and run the same sweep again: finished runs are kept."
        ) from problem


def write_curves(root: Path, curves: Mapping[str, Curve]) -> None:
    """Adds the curves to those of the store. What a cell was tuned by before stays among its
    `tried`.
    """
    with disk(root), turns(root / ".tuning_turn"):
        before = read_curves(root)
        merged = before | {
            cell: _with_tried(curve, before.get(cell)) for cell, curve in curves.items()
        }
        content = {cell: _entry(curve) for cell, curve in sorted(merged.items())}
        write_json(root / FILE, {"cells": content})


def _with_tried(curve: Curve, before: Curve | None) -> Curve:
    old = () if before is None else before.tried
    tried = tuple(dict.fromkeys((*old, *curve.tried, *curve.scored)))
    return replace(curve, tried=tried)


def _entry(curve: Curve) -> dict[str, Any]:
    return {
        "setting": curve.setting,
        "seeds": list(curve.seeds),
        "values": curve.values,
        "losses": [curve.losses[value] for value in curve.values],
        "best": curve.best,
        "edge": curve.edge,
        "tried": list(curve.tried),
        "scored": list(curve.scored),
    }


def _curve(cell: str, entry: Mapping[str, Any]) -> Curve:
    losses = dict(zip(entry["values"], entry["losses"], strict=True))
    for number in (*losses, *(loss for loss in losses.values() if loss is not None)):
        if not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"{number!r} is no number")
    return Curve(
        setting=str(entry["setting"]),
        seeds=tuple(map(int, entry["seeds"])),
        losses=losses,
        tried=tuple(map(str, entry["tried"])),
        scored=tuple(map(str, entry["scored"])),
        cell=str(cell),
    )
