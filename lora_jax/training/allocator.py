"""Keeping freed memory: Linux else takes large buffers back after each step, and faults them in."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from lora_jax.core.heap import glibc, release_freed_memory

_budget: int | None = None
_kept = False
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Whether the C library now keeps freed memory for the next step; False where it is not glibc.

    A training step of MiniLM (batch 32 x 24) on two CPU cores used 598 ms of processor time before
    and 494 ms after: the rest was 63,000 page faults a step. The process holds its peak until it
    ends or calls `release_freed_memory`; this is for programs that train, not for libraries, and
    for their start: before JAX computes anything. Programs then see to it that what is kept does
    not pile up (`training/compile.py`).

    Programs then run in the thread that calls them, whose heap grows without a limit: the C library
    gives other threads arenas of 64 MB and maps anew what is larger. (One arena for all threads
    would do as well, but they wait for each other in it: compiling took 1.4 times as long.) Nothing
    is lost, as steps on a CPU do not wait in line (`training/loop.py`).
    """
    mallopt = glibc("mallopt")
    if mallopt is None:
        return False
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    global _kept
    _kept = all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])
    return _kept


def keeps_freed_memory() -> bool:
    """Whether `keep_freed_memory` was called, and could."""
    return _kept


def release_above(limit: int) -> None:
    """Gives freed memory back if the process holds more than `limit` bytes.

    Kept memory is one heap. A small array that stays where a large one was freed splits the room,
    and the next large one goes behind everything: with buffers of gigabytes the heap can grow to
    several times of what is in use.
    """
    if resident_bytes() > limit:
        release_freed_memory()


def set_budget(budget: int | None) -> None:
    """From now on `make_room` sees to it that the process stays below so many bytes, as far as
    giving freed memory back does that.
    """
    global _budget
    _budget = budget


def make_room(needed: int) -> None:
    """Gives freed memory back if the process would pass the budget, if there is one, with `needed`
    bytes more.
    """
    if _budget is not None:
        release_above(_budget - needed)


def resident_bytes() -> int:
    """What the process holds of the machine's memory now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most that this program has held. (`ru_maxrss` is inherited: it may be that of the process
    which started this one.)
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
