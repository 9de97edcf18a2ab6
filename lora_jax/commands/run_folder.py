"""A run's folder as `inspect` shows it: state, settings that differ from the defaults, scores, files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lora_jax.commands.shared import settings_lines
from lora_jax.core.escapes import in_terminal, one_line

if TYPE_CHECKING:
    from lora_jax.training.result import RunResult

_PARTS = ("adapter", "checkpoints", "best", "predictions", "tensorboard")


def described(folder: Path) -> list[Table | str]:
    """Lines and, of a finished run, its table of scores. A run whose files are damaged says so."""
    from lora_jax.config import from_config_dict
    from lora_jax.sweeps.records import read_run

    record = read_run(folder)
    out: list[Table | str] = [one_line(f"run {record.run_id}: {_state(record.status, record)}")]
    if record.error:
        out.append(f"error: {one_line(' '.join(record.error.split()))}")
    if record.environment:
        out.append(one_line(f"by: {_made_by(record.environment)}"))
    try:
        settings = settings_lines(from_config_dict(record.config))
    except (KeyError, TypeError, ValueError) as unreadable:
        settings = [f"  cannot be read by this version: {unreadable}"]
    out += ["settings that differ from the defaults:", *map(one_line, settings)]
    if record.result is not None:
        out += [_scores(record.result), _figures(record.result)]
    there = [name for name in _PARTS if (folder / name).is_dir() and any((folder / name).iterdir())]
    out.append(f"in it: {', '.join(there) or 'neither an adapter nor checkpoints'}")
    return out


def _state(status: str, record: Any) -> str:
    since = ""
    if record.updated is not None:
        since = time.strftime(", %Y-%m-%d %H:%M", time.localtime(record.updated))
    return f"{status}{since}"


def _made_by(environment: Mapping[str, Any]) -> str:
    versions, git = environment.get("versions", {}), environment.get("git", {})
    device = environment.get("device", {})
    parts = [f"lora_jax {versions.get('lora_jax', 'of unknown version')}"]
    if commit := git.get("commit"):
        parts.append(f"commit {commit[:10]}")
    if device.get("kind"):
        parts.append(f"on {device['kind']}")
    return ", ".join(parts)


def _scores(result: RunResult) -> Table:
    table = Table(title="scores; * is the one to report")
    for name in ("split", "score", "value", "examples"):
        table.add_column(name, justify="left" if name in ("split", "score") else "right")
    for split, named in result.scores.items():
        for name, score in named.items():
            mark = " *" if name == result.primary else ""
            table.add_row(
                split, in_terminal(score.label) + mark, score.text(score.value),
                f"{score.count:,} {score.unit}",
            )  # fmt: skip
        table.add_section()
    return table


def _figures(result: RunResult) -> str:
    figures = {
        "steps": result.steps,
        "trained numbers": result.trainable_parameters,
        "bytes of the base": result.base_bytes,
        "bytes of the adapter": result.adapter_bytes,
    }
    known = [f"{name} {value:,}" for name, value in figures.items() if value is not None]
    if result.seconds is not None:
        known.append(f"{result.seconds:.0f} s")
    return "; ".join(known) or "no sizes are recorded"
