"""Programs in a process that keeps freed memory: they give back what would otherwise pile up."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from lora_jax.core.heap import release_freed_memory
from lora_jax.training.allocator import (
    keeps_freed_memory,
    make_room,
    release_above,
    resident_bytes,
)
from lora_jax.training.compile import Program

# Steps of a new shape until buffers are freed and taken in one order.
SETTLING = 6
# Bytes of temporaries from which on it matters where they lie.
_LARGE = 2**28
# How far the process may be above what its largest step needs before memory is given back.
_SPARE = 1.25

# Whose buffers the freed memory has the sizes of. Memory is the process's, and so is this.
_last: Callable[[], Program | None] = lambda: None


def program_for(step: Callable[..., Any], *, donate: tuple[int, ...] = ()) -> Program:
    """The step as a program: a `KeptProgram` if this process keeps freed memory."""
    return (KeptProgram if keeps_freed_memory() else Program)(step, donate=donate)


class KeptProgram(Program):
    """A program that gives freed memory back where kept memory would grow.

    Kept memory is one heap. What another program, loading or the compiler freed is of other sizes
    than this program's buffers, so all of it goes back before the first step that follows; in the
    first steps of a new shape, what was freed may still lie between what is kept. After that
    nothing is given back, and no page faulted in again, unless the process holds a quarter more
    than before its steps and its largest step needs, or would pass the budget.
    """

    def __init__(self, step: Callable[..., Any], *, donate: tuple[int, ...] = ()) -> None:
        super().__init__(step, donate=donate)
        self._unsettled = 0
        self._before = 0

    def __call__(self, *args: Any) -> Any:
        """The step's result."""
        self._enter()
        compilations = self.compilations
        memory = self.memory(*args)

        if self.compilations > compilations:
            release_freed_memory()  # What the compiler used, in pieces too small for a step.
            self._before = resident_bytes()
            self._unsettled = SETTLING if memory is not None and memory.temporaries > _LARGE else 0
        elif self._unsettled > 0:
            release_freed_memory()
            self._unsettled -= 1

        if memory is None:
            return super().__call__(*args)
        make_room(memory.new_results + memory.temporaries)
        result = super().__call__(*args)
        largest = self.largest()
        release_above(self._before + int(_SPARE * (largest.new_results + largest.temporaries)))
        return result

    def _enter(self) -> None:
        global _last
        if _last() is not self:
            _last = weakref.ref(self)
            release_freed_memory()
            self._before = resident_bytes()
