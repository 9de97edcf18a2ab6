"""What runs gave on each test example, where training or `lora-jax evaluate` kept it beside their
results.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lora_jax.sweeps.files import read_lines
from lora_jax.sweeps.records import RunRecord


class Answers(NamedTuple):
    """What a run gave on each test example: its loss and what it has right, both summed over the
    units (1 a record, or its tokens).
    """

    ids: tuple[str, ...]
    loss: np.ndarray
    correct: np.ndarray
    units: np.ndarray


def answers_of(run: RunRecord) -> Answers | None:
    """What the run gave on its test examples, where that was kept; None where it was not."""
    path = run.folder / "predictions" / "test.jsonl"
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else None


@functools.lru_cache(maxsize=20_000)
def _read(path: Path, changed: int) -> Answers | None:
    """The answers in a file; `changed` is when it was written, so that a new one is read anew."""
    names = ("loss", "correct", "units")
    rows = [
        row
        for row in read_lines(path)[0]
        if "id" in row and all(isinstance(row.get(name), (int, float)) for name in names)
    ]
    if not rows:
        return None
    columns = (np.array([row[name] for row in rows], float) for name in names)
    return Answers(_same_ids(tuple(str(row["id"]) for row in rows)), *columns)


@functools.lru_cache(maxsize=16)
def _same_ids(ids: tuple[str, ...]) -> tuple[str, ...]:
    """Equal ids as one object: runs on one test set hold them once, and compare by a look."""
    return ids
