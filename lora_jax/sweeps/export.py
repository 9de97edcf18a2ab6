"""A store as flat tables: a row a run, or a row a logged step, for pandas, spreadsheets and R."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_jax.core.extras import needs
from lora_jax.core.replacing import replacing
from lora_jax.sweeps.files import disk, read_lines, write_csv
from lora_jax.sweeps.records import RunRecord
from lora_jax.sweeps.settings import flat
from lora_jax.sweeps.store import RunStore

SUFFIXES = (".csv", ".parquet")


def export_runs(root: str | Path, out: str | Path, *, steps: bool = False) -> int:
    """The number of rows written to `out`, a .csv or .parquet file: `run_rows` of the store, or
    with `steps`, `step_rows`.

    Raises:
        FileNotFoundError: there is no such store.
        ValueError: another ending, or nothing to write.
        ModuleNotFoundError: Parquet without pyarrow, which `lora-jax[parquet]` installs.
        StoreError: `out` cannot be written.
    """
    root, out = Path(root), Path(out)
    if out.suffix not in SUFFIXES:
        raise ValueError(
            f"An export is a file that ends in {' or '.join(SUFFIXES)}, got {str(out)!r}."
        )
    if not root.is_dir():
        raise FileNotFoundError(
            f"An export needs the folder of a sweep (config.out), but there is no folder {root}."
        )
    records = RunStore(root).runs()
    rows = list(step_rows(records) if steps else run_rows(records))
    if not rows:
        silent = " that logged no step" if records else ""
        raise ValueError(f"There is nothing to export: {root} holds {len(records)} runs{silent}.")
    if out.suffix == ".csv":
        write_csv(out, rows)
    else:
        _write_parquet(rows, out)
    return len(rows)


def run_rows(records: Iterable[RunRecord]) -> Iterable[dict[str, Any]]:
    """A flat dict a run: run_id, status, error, updated, result.*, config.*, environment.*; nested
    keys joined by points, lists as JSON.
    """
    for record in records:
        yield {
            "run_id": record.run_id,
            "status": record.status,
            "error": record.error,
            "updated": record.updated,
            **flat({} if record.result is None else record.result.row(), "result."),
            **flat(record.config, "config."),
            **flat(record.environment, "environment."),
        }


def step_rows(records: Iterable[RunRecord]) -> Iterable[dict[str, Any]]:
    """A dict a row of metrics.jsonl, with its run's id in front: join it with `run_rows` on
    run_id.
    """
    for record in records:
        for row in read_lines(record.folder / "metrics.jsonl")[0]:
            yield {"run_id": record.run_id, **row}


def _write_parquet(rows: list[dict[str, Any]], out: Path) -> None:
    with needs("parquet"):
        import pyarrow
        from pyarrow import parquet
    columns = dict.fromkeys(key for row in rows for key in row)
    table = pyarrow.table(
        {name: pyarrow.array(_one_kind([row.get(name) for row in rows])) for name in columns}
    )
    with disk(out), replacing(out) as new:
        parquet.write_table(table, new)


def _one_kind(values: list[Any]) -> list[Any]:
    """A column has one type: whole numbers beside broken ones become floats, anything else that
    mixes becomes text.
    """
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2:
        return values
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values]
