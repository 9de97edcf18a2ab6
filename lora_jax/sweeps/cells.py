"""Runs gathered into cells: one cell is every seed of one setting."""

from __future__ import annotations

import functools
import json
import marshal
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_jax.config import ADAPTERS, NO_FORMAT, canonical, from_config_dict
from lora_jax.sweeps.grid import shown_format, shown_targets
from lora_jax.sweeps.store import RunRecord, RunStore, is_run, read_run

_FORMAT_ORDER = ("fp32", "int8", "fp4", "nf4", "int4")


@dataclass(frozen=True)
class Cell:
    """Finished runs that differ in their seed alone. Baselines have no rank and no targets.

    `variant` names the settings that tell this cell from others of the same method, format, targets
    and rank; it is empty in a plain grid.
    """

    method: str
    format: str  # as shown: fp32, int8, nf4, ...
    rank: int | None
    targets: str | None
    runs: tuple[RunRecord, ...]
    variant: str = ""

    @property
    def name(self) -> str:
        """Short label, such as 'nf4 r4 all-linear' or 'full'."""
        parts = (
            [self.method]
            if self.rank is None
            else [self.format, f"r{self.rank}", str(self.targets)]
        )
        return " ".join([*parts, self.variant]).strip()

    @property
    def seeds(self) -> int:
        """How many seeds the cell has."""
        return len(self.runs)

    def mean(self, key: str) -> float | None:
        """Mean over seeds of a field of result.json; None if a seed lacks it."""
        if key not in self._means:
            values = [run.result.row().get(key) for run in self.runs]
            self._means[key] = (
                None if any(value is None for value in values) else statistics.fmean(values)
            )
        return self._means[key]

    @functools.cached_property
    def _means(self) -> dict[str, float | None]:
        return {}

    @functools.cached_property
    def accuracy(self) -> float:
        """Mean test accuracy, from 0 to 1."""
        return self.mean("test_accuracy")

    @functools.cached_property
    def standard_error(self) -> float:
        """Of the mean test accuracy over seeds; with one seed, the binomial one of the test set:
        sqrt(p (1 - p) / n).
        """
        if self.seeds > 1:
            spread = sum(
                (run.result.value("test", "accuracy") - self.accuracy) ** 2 for run in self.runs
            ) / (self.seeds - 1)
            return math.sqrt(spread / self.seeds)
        examples = self.runs[0].result.examples["test"]
        return math.sqrt(self.accuracy * (1 - self.accuracy) / examples)

    @property
    def stored_bytes(self) -> float | None:
        """Bytes of base and adapter together: what has to be kept to use the cell."""
        base = self.mean("base_bytes")
        return None if base is None else base + (self.mean("adapter_bytes") or 0)


def gather(roots: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """(every run in the folders, ids that are planned and not started); a run found twice counts
    once, if done as done.

    A run of another folder with the id of one before and other settings counts as failed, with an
    error that says so.

    A root is a store of runs, or the folder of a single run.

    Raises:
        FileNotFoundError: a root does not exist.
        ValueError: no root holds a run; what is there is listed.
    """
    records: dict[str, RunRecord] = {}
    planned: list[str] = []
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(
                f"A report needs the folder of a sweep (config.out), but there is no folder {root}."
            )
        found = [read_run(root)] if is_run(root) else RunStore(root).runs()
        planned += [] if is_run(root) else RunStore(root).planned()
        for record in found:
            if record.run_id in records and _differ(records[record.run_id], record):
                error = f"{records[record.run_id].folder} holds a run of this id with other settings: this one is left out"
                records[str(record.folder)] = replace(
                    record, status="failed", error=error, result=None
                )
            elif record.run_id not in records or record.status == "done":
                records[record.run_id] = record
    if not records:
        there = sorted(path.name for root in roots for path in root.iterdir())[:8]
        raise ValueError(
            f"A report needs runs, but {', '.join(map(str, roots))} holds none. "
            f"In it: {', '.join(there) or 'nothing'}. Start some with: lora-jax sweep --config "
            "configs/default.py."
        )
    return list(records.values()), [name for name in dict.fromkeys(planned) if name not in records]


def _differ(one: RunRecord, other: RunRecord) -> bool:
    """Whether two runs of one id are different runs."""
    return (
        bool(one.config and other.config)
        and settings_of(one.config)[0] != settings_of(other.config)[0]
    )


def cells_of(records: Iterable[RunRecord]) -> list[Cell]:
    """One cell for each setting that has a finished run: baselines first, then by targets, format
    and rank.
    """
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    settings: dict[str, dict[str, Any]] = {}
    for record in records:
        if record.status == "done":
            key, settings_of_key = settings_of(record.config)
            groups[key].append(record)
            settings[key] = settings_of_key
    cells = {key: _cell(runs) for key, runs in groups.items()}
    same: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for key, cell in cells.items():
        same[cell.method, cell.format, cell.rank, cell.targets].append(key)
    named = [
        replace(cells[key], variant=_variant(settings[key], [settings[other] for other in keys]))
        for keys in same.values()
        for key in keys
    ]
    return sorted(named, key=order)


def order(cell: Cell) -> tuple[Any, ...]:
    """Where the cell stands in tables and legends."""
    known = cell.format in _FORMAT_ORDER
    format = _FORMAT_ORDER.index(cell.format) if known else len(_FORMAT_ORDER)
    return (
        cell.rank is not None,
        cell.method if cell.rank is None else "",
        cell.targets or "",
        format,
        cell.rank or 0,
    )


def pareto(cells: Iterable[Cell]) -> list[Cell]:
    """The cells that no other beats in bytes without losing accuracy, from small to large."""
    front: list[Cell] = []
    sized = [cell for cell in cells if cell.stored_bytes is not None]
    for cell in sorted(sized, key=lambda cell: (cell.stored_bytes, -cell.accuracy)):
        if not front or cell.accuracy > front[-1].accuracy:
            front.append(cell)
    return front


def _cell(runs: Sequence[RunRecord]) -> Cell:
    config = runs[0].config
    baseline = config["method"] not in ADAPTERS
    return Cell(
        method=config["method"],
        format=shown_format(NO_FORMAT if baseline else config["quant"]["format"]),
        rank=None if baseline else config["lora"]["rank"],
        targets=None if baseline else shown_targets(config["lora"]["targets"]),
        runs=tuple(sorted(runs, key=seed_of)),
    )


def seed_of(run: RunRecord) -> int:
    """The seed that the run was trained with."""
    return run.config["train"]["seed"]


def settings_of(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(a key, {dotted setting: value}) of what decides a run but for its seed; the key is equal for
    runs of one cell.
    """
    train = {key: value for key, value in config.get("train", {}).items() if key != "seed"}
    # marshal writes ten times as fast as json, and a report asks this of every run; its version 2
    # writes equal values to equal bytes.
    return _settings(marshal.dumps({**config, "train": train, "out": "", "sweep": {}}, 2))


@functools.lru_cache(maxsize=100_000)
def _settings(config: bytes) -> tuple[str, Mapping[str, Any]]:
    values = marshal.loads(config)
    # The seed that stands in for all; the keys that were emptied keep their defaults.
    setting = _without_seed(
        {key: value for key, value in values.items() if key not in ("out", "sweep")}
    )
    return json.dumps(setting, sort_keys=True), setting


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        setting = canonical(from_config_dict(config))
    except (KeyError, TypeError, ValueError):
        # Written by another version: its own keys still tell its runs apart.
        setting = _flat({key: config[key] for key in config if key not in ("out", "sweep")})
    return {key: value for key, value in setting.items() if key != "train.seed"}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(
            _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return flat


def _variant(setting: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """The settings in which the cells of one name differ, such as 'learning_rate=0.001'."""
    differ = [key for key in setting if any(other.get(key) != setting[key] for other in others)]
    # A head learning rate of None follows the learning rate: it says nothing new.
    if "optim.learning_rate" in differ:
        differ = [key for key in differ if key != "optim.head_learning_rate"]
    return " ".join(f"{key.rpartition('.')[2]}={setting[key]}" for key in differ)
