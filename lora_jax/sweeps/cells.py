"""Runs gathered into cells, one cell for every seed of one setting, and what differs between cells:
the axes of a sweep, whatever made them.
"""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_jax.config import ADAPTERS, NO_FORMAT, resolve_targets, split_name
from lora_jax.core.escapes import one_line
from lora_jax.io.contents import changed_contents
from lora_jax.metrics.score import Score
from lora_jax.sweeps.grid import DENSE, names_of_targets, shown_format
from lora_jax.sweeps.records import RunRecord, is_run, read_run, with_curves
from lora_jax.sweeps.settings import (
    INCOMPARABLE,
    NAMED,
    differing,
    names_of,
    settings_of,
    variants,
)
from lora_jax.sweeps.store import RunStore
from lora_jax.sweeps.tuned import Curve, read_curves

_FORMAT_ORDER = (*DENSE.values(), "int8", "fp4", "nf4", "int4")
_LARGEST = 1e100  # of a score: squares of them are added up
_PARTS = re.compile(r"(\d+\.?\d*(?:e-?\d+)?)|([^\d]+)")


@dataclass(frozen=True)
class Cell:
    """Finished runs that differ in their seed alone. Baselines have no rank and no targets.

    `variant` names the settings that tell this cell from the others of a report, but for method,
    format, targets and rank; it is empty in a plain grid.
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
        adapter = f"{self.format} r{self.rank} {self.targets}"
        return f"{self.method if self.rank is None else adapter} {self.variant}".strip()

    @property
    def seeds(self) -> int:
        """How many seeds the cell has."""
        return len(self.runs)

    @property
    def curve(self) -> Curve | None:
        """What tuning found of the cell, where it was tuned."""
        return self.runs[0].curve

    @property
    def score(self) -> Score:
        """The test score of the first seed by the metric that its result names."""
        return self.runs[0].result.score("test")

    def by_seed(self, metric: str | None = None) -> dict[int, float]:
        """{seed: test score} by a metric, by default the primary one."""
        if metric not in self._by_seed:
            self._by_seed[metric] = {
                seed_of(run): run.result.value("test", metric) for run in self.runs
            }
        return self._by_seed[metric]

    @functools.cached_property
    def _by_seed(self) -> dict[str | None, dict[int, float]]:
        return {}

    def mean(self, key: str) -> float | None:
        """Mean over seeds of a field of `RunResult.row`; None if a seed lacks it."""
        values = [row.get(key) for row in self._rows]
        return None if None in values else statistics.fmean(values)

    @functools.cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return [run.result.row() for run in self.runs]

    @functools.cached_property
    def value(self) -> float:
        """Mean test score over seeds, by the primary metric."""
        return statistics.fmean(self.by_seed().values())

    @property
    def median(self) -> float:
        """Median test score over seeds, as LoRA's paper has GLUE."""
        return statistics.median(self.by_seed().values())

    @property
    def merit(self) -> float:
        """Larger for the better of two cells, whichever way the metric goes."""
        return self.value if self.score.higher_is_better else -self.value

    @functools.cached_property
    def standard_error(self) -> float:
        """Of the mean test score over seeds; with one seed, the binomial one of the test set,
        sqrt(p (1 - p) / n), if the score is a share of right answers, and NaN if it is not.
        """
        if self.seeds > 1:
            spread = sum((value - self.value) ** 2 for value in self.by_seed().values())
            return math.sqrt(spread / (self.seeds - 1) / self.seeds)
        if not self.score.share or not self.score.count:
            return math.nan
        return math.sqrt(self.value * (1 - self.value) / self.score.count)

    @property
    def error_kind(self) -> str:
        """'seeds', 'binomial' or 'unknown': what `standard_error` is of."""
        if self.seeds > 1:
            return "seeds"
        return "unknown" if math.isnan(self.standard_error) else "binomial"

    @property
    def stored_bytes(self) -> float | None:
        """Bytes of base and adapter together: what has to be kept to use the cell."""
        base = self.mean("base_bytes")
        return None if base is None else base + (self.mean("adapter_bytes") or 0)


def gather(roots: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """(every run in the folders, ids that are planned and not started); a run found twice counts
    once, if done as done.

    Runs of one id whose data or model had other contents are two runs, the second called by its
    folder. A run of tuning has the curve of its cell, and no cell counts it; of a cell that two
    roots have tuned to unlike values, those at the first one count. A run counts as failed, with an
    error that says so, if it is of another folder with the id of one before and other settings, if
    its score is no number, or if it names another metric than most runs do.

    A root is a store of runs, or the folder of a single run.

    Raises:
        FileNotFoundError: a root does not exist.
        ValueError: no root holds a run; what is there is listed.
    """
    records: dict[str, RunRecord] = {}
    planned: list[str] = []
    curves: dict[str, Curve] = {}
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(
                f"A report needs the folder of a sweep (config.out), but there is no folder {root}."
            )

        found = [read_run(root)]
        if not is_run(root):
            own = curves_beside(curves, read_curves(root))
            curves = own | curves
            found = with_curves(RunStore(root).runs(), own)
            planned += RunStore(root).planned()
        for record in found:
            before = records.get(record.run_id)
            if before is None:
                records[record.run_id] = record
            elif _differ(before, record):
                records[str(record.folder)] = _left_out(
                    record, f"{before.folder} holds a run of this id with other settings"
                )
            elif changed_contents(_contents(before), _contents(record)):
                records[str(record.folder)] = replace(record, run_id=str(record.folder))
            elif record.status == "done":
                records[record.run_id] = record

    if not records:
        there = sorted(path.name for root in roots for path in root.iterdir())[:8]
        raise ValueError(
            f"A report needs runs, but {', '.join(map(str, roots))} holds none. "
            f"In it: {', '.join(there) or 'nothing'}. Start some with: lora-jax sweep --config "
            "configs/default.py."
        )
    waiting = [name for name in dict.fromkeys(planned) if name not in records]
    return _comparable(_with_names(_with_contents(list(records.values())))), waiting


def curves_beside(before: Mapping[str, Curve], curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """These curves, without scored runs of cells that `before` has at another value."""
    return {
        cell: replace(curve, scored=())
        if cell in before and before[cell].best != curve.best
        else curve
        for cell, curve in curves.items()
    }


def _comparable(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The records; those that cannot be compared with most others are failed ones that say why."""
    metrics = Counter(
        (score.name, score.unit) for score in (_score(record) for record in records) if score
    )
    chosen = metrics.most_common(1)[0][0] if metrics else None
    return [_checked(record, chosen) for record in records]


def _checked(record: RunRecord, chosen: tuple[str, str] | None) -> RunRecord:
    score = _score(record)
    if score is None:
        return record
    groups = {key: record.config.get(key) or {} for key in ("train", "lora", "quant")}
    needed = {"method": record.config, "train.seed": groups["train"]}
    if record.config.get("method") in ADAPTERS:
        needed |= {"lora.rank": groups["lora"], "lora.targets": groups["lora"]}
        needed |= {"quant.format": groups["quant"]}
    missing = [key for key, group in needed.items() if group.get(key.rpartition(".")[2]) is None]
    if missing:
        return _left_out(record, f"its config.json holds no {missing[0]}")
    if not score.is_finite or abs(score.value) > _LARGEST:
        return _left_out(record, f"its test {score.label} is no number")
    if (score.name, score.unit) != chosen:
        return _left_out(
            record,
            f"it is to be judged by its test {score.label}, most runs here by another metric",
        )
    return record


def _score(record: RunRecord) -> Score | None:
    result = record.result
    return result.score("test") if result is not None and result.is_tested else None


def _left_out(record: RunRecord, why: str) -> RunRecord:
    return replace(record, status="failed", error=f"{why}: this one is left out", result=None)


def _differ(one: RunRecord, other: RunRecord) -> bool:
    """Whether two runs of one id are runs of other settings."""
    keys = [settings_of(replace(run, environment={}))[0] for run in (one, other)]
    return bool(one.config and other.config) and keys[0] != keys[1]


def _contents(record: RunRecord) -> Mapping[str, str]:
    return record.environment.get("contents") or {}


def _with_contents(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The records; one for which a name's content was not recorded is taken to be of the content
    that it has in all the others, if that is one.
    """
    seen: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, content in _contents(record).items():
            seen[name].add(str(content))
    agreed = {name: content for name, (content, *others) in seen.items() if not others}

    def completed(record: RunRecord) -> RunRecord:
        names = {name for group in names_of(record.config).values() for name in group}
        known = {name: agreed[name] for name in names if name in agreed} | _contents(record)
        if known == _contents(record):
            return record
        return replace(record, environment={**record.environment, "contents": known})

    return [completed(record) for record in records]


def _with_names(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The records, in which a set of quantised weights has one name, whichever run gave it; two sets
    of one name have none.
    """
    stored = [
        (record.config.get("quant") or {}).get("targets")
        if record.config.get("method") == "qlora"
        else None
        for record in records
    ]
    try:
        names = names_of_targets(targets for targets in stored if targets is not None)
    except (TypeError, ValueError):  # Written by another version: as it stands there.
        return list(records)

    named = []
    for record, targets in zip(records, stored, strict=True):
        if targets is not None:
            regex = resolve_targets(targets)
            text = f"{names[regex]}={regex}"
            own = text if split_name(text)[0] == names[regex] else regex
            quant = {**record.config["quant"], "targets": own}
            record = replace(record, config={**record.config, "quant": quant})
        named.append(record)
    return named


def cells_of(records: Iterable[RunRecord]) -> list[Cell]:
    """One cell for each setting that has a finished run: baselines first, then by targets, format
    and rank. Every setting in which they differ is in their names.
    """
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    settings: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if record.status == "done" and record.is_scored:
            key, settings[key] = settings_of(record)
            groups[key].append(record)

    keys = list(groups)
    names = target_names(run for runs in groups.values() for run in runs)
    cells = [_cell(groups[key], names) for key in keys]
    kinds = [cell.method if cell.rank is None else "" for cell in cells]
    quantised = [cell.format not in DENSE.values() for cell in cells]
    words = variants(kinds, [settings[key] for key in keys], quantised)
    named = [replace(cell, variant=said) for cell, said in zip(cells, words, strict=True)]
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
        # Numbers by size: 0.001 before 0.01, 8 before 64.
        [(float(number or 0), word) for number, word in _PARTS.findall(cell.variant)],
    )


def measure(cells: Sequence[Cell]) -> Score:
    """A score of the metric of these cells, which says how its values are written.

    Raises:
        ValueError: there is no cell, or they are of several metrics.
    """
    found = {(score.name, score.unit): score for score in (cell.score for cell in cells)}
    if len(found) != 1:
        named = ", ".join(score.label for score in found.values()) or "no score"
        raise ValueError(
            f"Runs are compared by one metric, got {named}. Make a report of each by itself."
        )
    return next(iter(found.values()))


def front(cells: Iterable[Cell], cost: Callable[[Cell], float | None]) -> list[Cell]:
    """The cells that no other beats in cost without being worse, from cheap to dear; those whose
    cost is not known are left out.
    """
    found: list[Cell] = []
    known = [cell for cell in cells if cost(cell) is not None]
    for cell in sorted(known, key=lambda cell: (cost(cell), -cell.merit)):
        if not found or cell.merit > found[-1].merit:
            found.append(cell)
    return found


def pareto(cells: Iterable[Cell]) -> list[Cell]:
    """The `front` of stored bytes."""
    return front(cells, lambda cell: cell.stored_bytes)


def seed_of(run: RunRecord) -> int:
    """The seed that the run was trained with."""
    return run.config["train"]["seed"]


def target_names(records: Iterable[RunRecord]) -> dict[str, str]:
    """{regex: what a report of these runs calls it} of their targets."""
    adapters = (record.config for record in records if record.config["method"] in ADAPTERS)
    return names_of_targets(config["lora"]["targets"] for config in adapters)


def _cell(runs: Sequence[RunRecord], names: Mapping[str, str]) -> Cell:
    config = runs[0].config
    baseline = config["method"] not in ADAPTERS
    # Older runs do not say it.
    dtype = config["model"].get("base_dtype", "float32")
    return Cell(
        method=config["method"],
        format=shown_format(NO_FORMAT if baseline else config["quant"]["format"], dtype),
        rank=None if baseline else config["lora"]["rank"],
        targets=None if baseline else names[resolve_targets(config["lora"]["targets"])],
        runs=tuple(sorted(runs, key=seed_of)),
    )


# Settings that a cell itself carries, with the words of a report.
_OWN = ("rank", "format", "targets")
_WORDS = {key: one for key, (one, _) in INCOMPARABLE.items()} | {
    "optim.learning_rate": "learning rate", "quant.block_size": "block size", "lora.init": "initialisation",
    "lora.alpha": "alpha", "quant.double": "double quantisation", "lora.variant": "variant",
    "quant.targets": "quantised targets",
}  # fmt: skip
# Axes over whose levels a mean says nothing, and what to call several of them.
UNLIKE = dict(INCOMPARABLE.values())


def axes(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """{axis: its level in each cell} of all settings in which these cells differ: rank, format and
    targets first, in this order.
    """
    own = {name: [getattr(cell, name) for cell in cells] for name in _OWN}
    settings = [settings_of(cell.runs[0])[1] for cell in cells]
    varied = differing(settings, [cell.format not in DENSE.values() for cell in cells])
    others = {key: column for key, column in varied.items() if key not in NAMED}
    found = {name: column for name, column in own.items() if len(set(column)) > 1}
    return found | {_word(key, others): column for key, column in others.items()}


def facets(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells by what they are of, where they are of several data sets or models: only those of
    one are compared with each other. {'data=imdb': its cells}; {'': all} where they are of one.
    """
    columns = {name: column for name, column in axes(cells).items() if name in UNLIKE}
    found: dict[str, list[Cell]] = defaultdict(list)
    for place, cell in enumerate(cells):
        words = (f"{name}={shown(column[place])}" for name, column in columns.items())
        found[" ".join(words)].append(cell)
    return found


def levels(column: Sequence[Any]) -> list[Any]:
    """The different levels: numbers by size, the rest in the order of their first cell."""
    different = list(dict.fromkeys(column))
    numbers = [
        level
        for level in different
        if isinstance(level, (int, float)) and not isinstance(level, bool)
    ]
    return sorted(numbers) + [level for level in different if level not in numbers]


def shown(level: Any) -> str:
    """A level as people write it."""
    return f"{level:g}" if isinstance(level, float) else one_line(level)


def word_of(key: str) -> str:
    """A setting as people call it."""
    return _WORDS.get(key, key.rpartition(".")[2].replace("_", " "))


def _word(key: str, others: Mapping[str, Any]) -> str:
    leaf = key.rpartition(".")[2].replace("_", " ")
    alone = sum(other.rpartition(".")[2] == key.rpartition(".")[2] for other in others) == 1
    return _WORDS.get(key, leaf if alone else key)
