"""Many runs: the grid, the result store and the report."""

from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.report import summary_table, write_report
from lora_jax.sweeps.store import RunLocked, RunStore, StoreError, environment

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
