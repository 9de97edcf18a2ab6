"""Metrics of one run, to metrics.jsonl and to its sinks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax.core.json_files import parse_json, read_json, save_json
from lora_jax.core.replacing import replacing
from lora_jax.training.sinks import SINKS, About

Row = dict[str, Any]


class MetricsLog:
    """Appends one JSON row a step and split, `{"step", "split", ..., "time"}`, and gives the same
    figures to the sinks.

    metrics.jsonl is what counts; a sink has each row once. What sinks of elsewhere have got is kept
    in sinks.json: rows that come again after a restart are not sent again, and a sink that is named
    later gets the rows so far. A run that begins again at step 0 is a new one to them.
    """

    def __init__(
        self,
        folder: Path,
        sinks: Sequence[str] = ("tensorboard",),
        about: About | None = None,
    ) -> None:
        folder = Path(folder)
        self.path, self._known = folder / "metrics.jsonl", folder / "sinks.json"
        about = about or About(folder.name)
        self._sinks = {name: SINKS[name](folder, about) for name in sinks}
        self._sent: dict[str, dict[str, int]] = {}
        self._open: list[str] = []
        self._file = None
        self._done = False

    def resume(self, step: int, total_steps: int) -> None:
        """Opens the log after `step`: what comes again is dropped, which is rows of later steps and
        the final scores.
        """
        self.close()
        self._done, self._total = False, total_steps
        there = list(self._rows())
        kept = [(line, row) for line, row in there if step and _stays(row, step, total_steps)]
        known = self._note([row for _, row in there]) if step else {}
        with replacing(self.path) as new:
            new.write_text("".join(line + "\n" for line, _ in kept))
        self._file = self.path.open("a")

        for name, sink in self._sinks.items():
            id = sink.open(step, known.get(name, {}).get("id"))
            self._open.append(name)
            if sink.remembers:
                known[name] = {"sent": {}, **known.get(name, {}), "id": id}
                self._sent[name] = dict(known[name]["sent"])
        if known or self._known.exists():
            is_open = [name for name in self._open if self._sinks[name].remembers]
            save_json(self._known, {"sinks": known, "open": is_open})
        for _, row in kept:
            self._send(row, again=True)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One row; it is on its way to the disk when this returns."""
        row = {"step": step, "split": split, **values, "time": round(time.time(), 3)}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._done = self._done or (split == "test" and step >= self._total)
        self._send(row)

    def close(self) -> None:
        """Closes the files and the sinks."""
        if self._file is not None:
            self._file.close()
        while self._open:
            self._sinks[self._open.pop()].close(done=self._done)

    def _send(self, row: Row, *, again: bool = False) -> None:
        """Gives a row to the sinks that have not got it; `again` is whether others wrote it."""
        step, split = row["step"], row["split"]
        values = {name: x for name, x in row.items() if name not in ("step", "split", "time")}
        for name, sink in self._sinks.items():
            if step > self._sent[name].get(split, 0) if sink.remembers else not again:
                sink.write(step, split, values)

    def _note(self, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """What sinks.json says, and that the sinks that were open have got these rows. Of a file
        that cannot be read nothing is known: sinks begin anew.
        """
        try:
            content = read_json(self._known)
            sinks = {name: content["sinks"][name] for name in content["sinks"]}
            for name in content["open"]:
                sent = sinks[name]["sent"]
                for row in rows:
                    sent[row["split"]] = max(sent.get(row["split"], 0), row["step"])
            return sinks
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}

    def _rows(self) -> Iterator[tuple[str, Row]]:
        """The lines that can be read. A run that was killed may have left half of one, a disk
        worse.
        """
        if not self.path.exists():
            return
        for line in self.path.read_text(errors="replace").split("\n"):
            try:
                row = parse_json(line, self.path)
                is_row = isinstance(row["step"], int) and isinstance(row["split"], str)
            except (ValueError, TypeError, KeyError):
                continue
            if is_row:
                yield line, row


class NoLog:
    """The log of a process that writes none: process 0 of the same run does."""

    def __init__(self, folder: Path, *_: Any) -> None:
        self.path = Path(folder) / "metrics.jsonl"

    def resume(self, step: int, total_steps: int) -> None:
        """Nothing."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _stays(row: Row, step: int, total_steps: int) -> bool:
    is_final = row["split"] != "train" and row["step"] >= total_steps
    return row["step"] <= step and not is_final
