"""A sweep while it runs, seen from outside: any number of launchers may be at work on the store."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lora_jax.core.escapes import in_terminal, one_line
from lora_jax.sweeps.files import last_line, number
from lora_jax.sweeps.grid import duration
from lora_jax.sweeps.lock import Lock
from lora_jax.sweeps.records import RunRecord, with_curves
from lora_jax.sweeps.store import RunStore
from lora_jax.sweeps.tuned import read_curves

MOST_ROWS = 12


@dataclass(frozen=True)
class Progress:
    """Where a running run stands. `steps` is None where the config counts epochs."""

    record: RunRecord
    step: int
    steps: int | None
    loss: float | None
    silent_seconds: float | None
    owner: str

    @property
    def share(self) -> float:
        """Done share of its steps, 0 where it is not known."""
        return min(self.step / self.steps, 1.0) if self.steps else 0.0


@dataclass(frozen=True)
class Snapshot:
    """A store at one moment. `seconds_left` is None as long as no run was finished, or if nobody is
    at work. While it is `tuning`, more runs follow from those that have ended.
    """

    root: Path
    counts: Mapping[str, int]
    planned: int
    running: Sequence[Progress]
    failed: Sequence[RunRecord]
    best: RunRecord | None
    seconds_left: float | None
    tuning: bool = False


def look(root: str | Path, now: float | None = None) -> Snapshot:
    """The store as it is now; `now` is in seconds since 1970.

    Raises:
        FileNotFoundError: there is no such store.
        StoreVersionError: it has another layout.
    """
    root, now = Path(root), time.time() if now is None else now
    if not root.is_dir():
        raise FileNotFoundError(
            f"There is no store {root} to watch. A store is the folder config.out of a sweep, such "
            "as runs/default."
        )

    store = RunStore(root)
    curves = read_curves(root)
    records = with_curves(store.runs(), curves)
    pending = set(store.planned()) - {record.run_id for record in records}
    counts = Counter(record.status for record in records)
    counts["pending"] = len(pending)
    done = [record for record in records if record.status == "done"]
    running = [_progress(record, now) for record in records if record.status == "running"]
    return Snapshot(
        root=root,
        counts=counts,
        planned=len(records) + len(pending),
        running=running,
        failed=sorted(
            (record for record in records if record.status == "failed"),
            key=lambda record: -(record.updated or 0),
        ),
        best=_best([record for record in done if record.is_scored]),
        seconds_left=_seconds_left(done, running, len(pending) + counts["interrupted"]),
        tuning=any(not curve.is_over for curve in curves.values()),
    )


def frame(seen: Snapshot) -> RenderableType:
    """What `lora-jax watch` shows."""
    counts = seen.counts
    ended = counts.get("done", 0) + counts.get("failed", 0)
    words = [
        f"{counts.get(name, 0)} {name}"
        for name in ("done", "running", "failed", "interrupted", "pending")
        if counts.get(name, 0)
    ]

    parts: list[RenderableType] = [
        Text(
            f"{one_line(seen.root)}: {', '.join(words) or 'no runs yet'}; {ended} of {seen.planned} ended",
            style="bold",
        ),
        ProgressBar(total=max(seen.planned, 1), completed=ended, width=60),
        Text(f"time left: {_left(seen)}"),
    ]
    if seen.best is not None:
        score = seen.best.result.score("test")
        parts.append(
            Text(
                f"best so far: {score.text(score.value)} test {score.label}, {one_line(seen.best.run_id)}"
            )
        )

    if seen.running:
        table = Table(title="running", title_justify="left", header_style="bold")
        for heading in ("run", "step", "loss", "last sign", "process"):
            table.add_column(
                heading,
                justify="right" if heading in ("step", "loss", "last sign") else "left",
                no_wrap=heading == "run",
            )
        for one in seen.running[:MOST_ROWS]:
            step = f"{one.step}/{one.steps}" if one.steps else str(one.step)
            loss = "" if one.loss is None else f"{one.loss:.4f}"
            silent = "" if one.silent_seconds is None else f"{duration(one.silent_seconds)} ago"
            table.add_row(*map(in_terminal, (one.record.run_id, step, loss, silent, one.owner)))
        parts += [table, *_more(len(seen.running))]

    if seen.failed:
        table = Table(title="failed", title_justify="left", header_style="bold")
        table.add_column("run", no_wrap=True)
        table.add_column("error")
        for record in seen.failed[:MOST_ROWS]:
            error = " ".join(str(record.error).split())[:200]
            table.add_row(*map(in_terminal, (record.run_id, error)))
        parts += [table, *_more(len(seen.failed))]
    return Group(*parts)


def is_over(seen: Snapshot) -> bool:
    """Whether every planned run has ended, so that nothing will change."""
    ended = seen.counts.get("done", 0) + seen.counts.get("failed", 0)
    return seen.planned > 0 and ended == seen.planned and not seen.tuning


def _progress(record: RunRecord, now: float) -> Progress:
    row: Mapping[str, Any] = last_line(record.folder / "metrics.jsonl") or {}
    owner = Lock(record.folder / "lock").owner()
    seen = number(row.get("time")) or record.updated
    return Progress(
        record=record,
        step=int(number(row.get("step")) or 0),
        steps=(record.config.get("train") or {}).get("total_steps"),
        loss=number(row.get("loss")),
        silent_seconds=None if seen is None else max(now - seen, 0.0),
        owner=f"{owner.get('pid')} on {owner.get('host')}" if owner else "",
    )


def _best(done: Sequence[RunRecord]) -> RunRecord | None:
    """The best run by the primary metric that most runs name; scores of other metrics are not
    compared with it.
    """
    scores = [(record.result.score("test"), record) for record in done]
    names = Counter(score.name for score, _ in scores)
    known = [
        (score.value if score.higher_is_better else -score.value, record)
        for score, record in scores
        if score.is_finite and score.name == names.most_common(1)[0][0]
    ]
    return max(known, key=lambda one: one[0], default=(0.0, None))[1]


def _seconds_left(
    done: Sequence[RunRecord], running: Sequence[Progress], waiting: int
) -> float | None:
    """The runs to come, each as long as the median of those before, shared by as many launchers as
    there are running runs.
    """
    seconds = [record.result.seconds for record in done if record.result.seconds]
    if not seconds or not running:
        return None
    left = waiting + sum(1 - one.share for one in running)
    return statistics.median(seconds) * left / len(running)


def _left(seen: Snapshot) -> str:
    if is_over(seen):
        return "none, every run has ended"
    if not seen.running:
        return "nobody is at work; the command that started the sweep goes on with it"
    if seen.seconds_left is None:
        return "not known until a run is done"
    return f"about {duration(seen.seconds_left)}"


def _more(count: int) -> list[Text]:
    return [Text(f"and {count - MOST_ROWS} more")] if count > MOST_ROWS else []
