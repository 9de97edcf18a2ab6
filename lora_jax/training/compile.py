"""Compilation, in one place: steps become programs that know what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


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
        leaves, structure = jax.tree.flatten(args)
        signature = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if signature not in self._shapes:
            start = time.perf_counter()
            compiled = self._jitted.lower(*args).compile()
            self._shapes[signature] = compiled, _memory_of(compiled)
            self.compile_seconds += time.perf_counter() - start
        return self._shapes[signature]


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
    if jax.default_backend() == "cpu":
        jax.block_until_ready(results)
