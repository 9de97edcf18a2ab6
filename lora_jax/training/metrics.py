"""Metrics of one run, to metrics.jsonl and to TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from lora_jax.core.extras import needs
from lora_jax.core.json_files import parse_json
from lora_jax.core.replacing import replacing


class MetricsLog:
    """Appends one JSON row a step and split, `{"step", "split", ..., "time"}`, and the same figures
    as TensorBoard events.
    """

    def __init__(self, folder: Path) -> None:
        with needs("training"):
            from tensorboardX import SummaryWriter

        self.path = Path(folder) / "metrics.jsonl"
        self._events = Path(folder) / "tensorboard"
        self._writer_type = SummaryWriter
        self._file = None
        self._writer = None

    def resume(self, step: int, total_steps: int) -> None:
        """Opens the log after `step`: what comes again is dropped, which is rows of later steps and
        the final scores.
        """
        self.close()
        kept = self._rows_up_to(step, total_steps) if step else []
        with replacing(self.path) as new:
            new.write_text("".join(kept))
        self._file = self.path.open("a")
        self._writer = self._writer_type(str(self._events), purge_step=step + 1 if step else None)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One row; it is on its way to the disk when this returns."""
        row = {"step": step, "split": split, **values, "time": round(time.time(), 3)}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def _rows_up_to(self, step: int, total_steps: int) -> list[str]:
        """The lines that stay. A run that was killed may have left half of one, a disk worse."""
        if not self.path.exists():
            return []
        kept = []
        for line in self.path.read_text(errors="replace").split("\n"):
            try:
                row = parse_json(line, self.path)
                is_final = row["split"] != "train" and row["step"] >= total_steps
                stays = row["step"] <= step and not is_final
            except (ValueError, TypeError, KeyError):
                continue
            if stays:
                kept.append(line + "\n")
        return kept
