"""Compilation, in one place: steps become programs that know what they cost, and that give memory
back in a process that keeps what was freed.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lora_jax.core.heap import release_freed_memory
from lora_jax.core.platform import platform
from lora_jax.training.allocator import (
    keeps_freed_memory,
    make_room,
    release_above,
    resident_bytes,
)


class Memory(NamedTuple):
    """Bytes of a compiled step: its arguments, results that reuse no argument, and temporaries."""

    arguments: int
    new_results: int
    temporaries: int


class Program:
    """A step, compiled once for every shape that it meets, with its compile time and peak memory.

    The peak is the compiler's own account: arguments, results that reuse no argument, and
    temporaries.
    """

    def __init__(self, step: Callable[..., Any], *, donate: tuple[int, ...] = ()) -> None:
        self._jitted = jax.jit(step, donate_argnums=donate)
        # By signature of the arguments: the executable and its bytes.
        self._shapes: dict[Any, tuple[Any, Memory | None]] = {}
        self.compile_seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        """The step's result."""
        return self.compile(*args)(*args)

    def compile(self, *args: Any) -> Any:
        """The executable for these arguments (arrays or jax.ShapeDtypeStruct), made if there is
        none yet.
        """
        return self._shape(*args)[0]

    def knows(self, *args: Any) -> bool:
        """Whether there is an executable for arguments of these shapes."""
        return _signature(args) in self._shapes

    def memory(self, *args: Any) -> Memory | None:
        """The bytes of the step by compiled memory analysis; None where the backend does not
        say.
        """
        return self._shape(*args)[1]

    def largest(self) -> Memory | None:
        """The bytes of the shapes compiled so far at their largest; None where the backend does not
        say, or nothing is compiled.
        """
        known = (memory for _, memory in self._shapes.values() if memory is not None)
        return max(known, key=sum, default=None)

    def peak_bytes(self, *args: Any) -> int | None:
        """Peak device memory of the step in bytes, by compiled memory analysis; None where the
        backend does not say.
        """
        memory = self.memory(*args)
        return None if memory is None else sum(memory)

    @property
    def compilations(self) -> int:
        """How many shapes have been compiled."""
        return len(self._shapes)

    def _shape(self, *args: Any) -> tuple[Any, Memory | None]:
        signature = _signature(args)
        if signature not in self._shapes:
            start = time.perf_counter()
            compiled = self._jitted.lower(*args).compile()
            self._shapes[signature] = compiled, _memory_of(compiled)
            self.compile_seconds += time.perf_counter() - start
        return self._shapes[signature]


def _signature(args: Any) -> Any:
    leaves, structure = jax.tree.flatten(args)
    arrays = tuple((leaf.shape, leaf.dtype, _layout(leaf)) for leaf in leaves)
    return platform(), structure, arrays


def _layout(leaf: Any) -> Any:
    """Where an array lies on a mesh, or that it is in the host's memory: an executable takes no
    other layout. None in the memory of one device.
    """
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        kind = getattr(sharding, "memory_kind", None)
        return kind if kind == "pinned_host" else None
    spec = list(sharding.spec)
    while spec and spec[-1] is None:
        spec.pop()
    return sharding.mesh, tuple(spec), sharding.memory_kind


def _memory_of(compiled: Any) -> Memory | None:
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return Memory(
        arguments=int(analysis.argument_size_in_bytes),
        new_results=int(analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
        temporaries=int(analysis.temp_size_in_bytes),
    )


def wait_on_cpu(results: Any) -> None:
    """Waits for a step on a CPU, before the next is started: those that wait in line would hold
    their temporaries already. An accelerator's steps wait in line, so that it is never idle.
    """
    if platform() == "cpu":
        jax.block_until_ready(results)


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
