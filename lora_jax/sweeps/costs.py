"""What the columns of memory, time and speed of a report are of."""

from __future__ import annotations

from collections.abc import Sequence

from lora_jax.sweeps.cells import Cell

_COLUMNS = (
    "MB are 10^6 bytes. Base: bytes of the arrays as stored. Peak: arguments, outputs and "
    "temporaries of the compiled training step. Time: the whole run, compilation included. "
    "Tokens/s: real ones, no padding, in steady state: training steps alone, without compilation "
    "and without the first step of each length."
)


def cost_notes(cells: Sequence[Cell]) -> str:
    """What the columns are of, and of which cells a peak is a shared program's."""
    padded = [cell for cell in cells if cell.mean("padded_bytes")]
    beside = [cell for cell in cells if (cell.mean("stacked") or 0) > 1]
    text = _COLUMNS
    if padded:
        most = max(cell.mean("padded_bytes") or 0 for cell in padded)
        text += (
            f" Runs of several ranks or targets share a program, padded to the widest of them: the "
            f"peak of {_of(padded, cells)} is that program's, with adapters up to {most / 1e6:.2f} "
            "MB larger than their own; alone they would take less."
        )
    if beside:
        text += (
            f" Runs of {_of(beside, cells)} stood side by side in one program: their peak is the "
            "base, their share of all adapters' state, and the temporaries of one; their time is "
            "an equal share."
        )
    return text


def _of(some: Sequence[Cell], cells: Sequence[Cell]) -> str:
    return "all cells" if len(some) == len(cells) else f"{len(some)} of {len(cells)} cells"
