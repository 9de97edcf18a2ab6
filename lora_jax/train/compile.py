"""Compilation, in one place: steps become programs that know what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


class Program:
    """A step, compiled once for every shape that it meets, with its compile time and peak memory.

    The peak is the compiler's own account: arguments, results that reuse no argument, and temporaries.
    """

    def __init__(self, step: Callable[..., Any], *, donate: tuple[int, ...] = ()) -> None:
        self._jitted = jax.jit(step, donate_argnums=donate)
        self._compiled: dict[Any, Any] = {}
        self.compile_seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        """The step's result."""
        return self.compile(*args)(*args)

    def compile(self, *args: Any) -> Any:
        """The executable for these arguments (arrays or jax.ShapeDtypeStruct), made if there is none yet."""
        leaves, structure = jax.tree.flatten(args)
        signature = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if signature not in self._compiled:
            start = time.perf_counter()
            self._compiled[signature] = self._jitted.lower(*args).compile()
            self.compile_seconds += time.perf_counter() - start
        return self._compiled[signature]

    def peak_bytes(self, *args: Any) -> int | None:
        """Peak device memory of the step in bytes, by compiled memory analysis; None where the backend does not say."""
        analysis = self.compile(*args).memory_analysis()
        if analysis is None:
            return None
        new_outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        return int(analysis.argument_size_in_bytes + new_outputs + analysis.temp_size_in_bytes)

    @property
    def compilations(self) -> int:
        """How many shapes have been compiled."""
        return len(self._compiled)
