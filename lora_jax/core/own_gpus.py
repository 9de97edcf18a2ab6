"""Which GPUs of a machine are whose, where several processes of one run see the same ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder a GPU, named by its place on the bus
_BOOT = Path("/proc/sys/kernel/random/boot_id")

# Set where a launcher, or the user, has given each process its own.
_DIVIDED = ("JAX_LOCAL_DEVICE_IDS", "SLURM_GPUS_PER_TASK")


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(index) for index in range(len(_on_bus()))]


def seen(environment: Mapping[str, str] = os.environ) -> list[Any]:
    """What two processes say alike exactly where they see the same GPUs: the machine, and which of
    its GPUs there are, as plain values. The last one is those that may have to be divided.
    """
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    given = any(environment.get(name) for name in _DIVIDED)
    # It may name processors alone: 'cpu=4', 'cpu=4,gres/gpu:1'.
    given = given or "gpu" in environment.get("SLURM_TRES_PER_TASK", "")
    nothing = given or environment.get("JAX_PLATFORMS") == "cpu"
    return [socket.gethostname(), boot, _on_bus(), [] if nothing else visible_gpus(environment)]


def own_gpus(every: Sequence[Any], number: int) -> list[int] | None:
    """The places, among the GPUs that process `number` sees, of those that are its own: an equal
    part of them, in the order of the processes that see the same ones. None: all that it sees.

    A single GPU that several see is left to them: SLURM shows each task its own under one name.

    Args:
        every: by process, what it has `seen`.

    Raises:
        ValueError: they cannot be divided equally.
    """
    peers = [other for other, one in enumerate(every) if one == every[number]]
    gpus = every[number][-1]
    if len(peers) == 1 or len(gpus) < 2:
        return None
    if len(gpus) % len(peers):
        raise ValueError(
            f"{len(peers)} processes of a run see the same {len(gpus)} GPUs of {every[number][0]} "
            f"({','.join(gpus)}), which cannot be divided among them equally. Start one a GPU, or a "
            "number that divides them; or give each its own (CUDA_VISIBLE_DEVICES, or "
            "srun --gpus-per-task)."
        )
    part = len(gpus) // len(peers)
    first = part * peers.index(number)
    return list(range(first, first + part))


def _on_bus() -> list[str]:
    return sorted(os.listdir(_DRIVER)) if _DRIVER.is_dir() else []
