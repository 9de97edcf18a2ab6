"""Compilation, in one place: steps become programs that know what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lora_jax.training.allocator import make_room, release_freed_memory

_SETTLING = 6  # steps after a compilation until buffers are freed and taken in one order
_LARGE = 2**28  # bytes of temporaries from which on it matters where they lie


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
        self._shapes: dict[
            Any, tuple[Any, Memory | None]
        ] = {}  # by signature: the executable and its bytes
        self._running: jax.Array | None = None
        self._unsettled = 0
        self.compile_seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        """The step's result. On a CPU the step before is waited for: steps that wait in line would
        hold their temporaries already.
        """
        compiled, memory = self._shape(*args)
        if self._running is not None and not self._running.is_deleted():
            self._running.block_until_ready()
            if (
                self._unsettled > 0
            ):  # The heap's shape is not that of the steps to come yet: what was freed may lie between what is kept.
                release_freed_memory()
                self._unsettled -= 1
        if memory is not None:
            make_room(memory.new_results + memory.temporaries)
        result = compiled(*args)
        if jax.default_backend() == "cpu":
            # All results of a step are there at once; the smallest is kept, as it holds no memory.
            self._running = min(
                (leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)),
                key=lambda leaf: leaf.size,
            )
        return result

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
        return max(
            (memory for _, memory in self._shapes.values() if memory is not None),
            key=sum,
            default=None,
        )

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
            release_freed_memory()  # What the compiler used, in pieces too small for a step.
            memory = _memory_of(compiled)
            self._shapes[signature] = compiled, memory
            self._unsettled = _SETTLING if memory is not None and memory.temporaries > _LARGE else 0
            self.compile_seconds += time.perf_counter() - start
        return self._shapes[signature]


def _memory_of(compiled: Any) -> Memory | None:
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    new_results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(
        int(analysis.argument_size_in_bytes), int(new_results), int(analysis.temp_size_in_bytes)
    )


def lanes_for(slots: int) -> int:
    """How many adapters go through the model at once: all on an accelerator, one on a CPU.

    At once, every product with the frozen base is one product of the flattened batch, and the base
    is dequantised once: what an accelerator needs to be busy. A CPU is busy with one adapter, whose
    activations stay in its caches: four at once took 1.4 times the processor time of four alone
    (MiniLM, rank 8, 32 x 24 tokens), 1.3 times with the thin products one by one. One after another
    inside the program they took 0.95 times: what is the same for all (the dequantised base,
    embeddings, the first layer's frozen products of a common batch) is still computed once.
    """
    return 1 if jax.default_backend() == "cpu" else slots
