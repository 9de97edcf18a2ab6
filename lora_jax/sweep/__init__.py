"""Many runs: the grid, the result store and the report."""

from lora_jax.sweep.grid import expand, run_id
from lora_jax.sweep.report import summary_table, write_report
from lora_jax.sweep.store import RunLocked, RunStore, StoreError, environment

__all__ = [
    "RunLocked",
    "RunStore",
    "StoreError",
    "environment",
    "expand",
    "run_id",
    "summary_table",
    "write_report",
]
