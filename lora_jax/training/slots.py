"""The states of runs side by side, stepped and scored by one program."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.core.mesh import bytes_on_device
from lora_jax.training.compile import Memory, wait_on_cpu
from lora_jax.training.evaluation import means, results_of
from lora_jax.training.programs import Programs, lanes_for
from lora_jax.training.step import There, TrainState


class Evaluated(NamedTuple):
    """What a run gave on a split: loss, accuracy and their number of examples, and the
    `Losses.rows` of each batch.
    """

    means: dict[str, float]
    rows: list[dict[str, Any]]


class Slots:
    """Training states on one frozen base, each in a slot of its own.

    Every array of the state has a leading axis of slots. A slot is filled by a run, and by the next
    one when that has left: nothing is compiled again. One slot has no axis: its state and its
    programs are those of a run alone.
    """

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self.frozen: Mapping[str, Any] | None = None
        self._state: TrainState | None = None
        self._last_metrics: Any = None
        self._batches: tuple[Any, ...] = ()  # of the next step
        self._largest: Memory | None = None  # of the steps so far
        self._there: set[int] = set()  # the slots that have a run, as far as is known

    def __len__(self) -> int:
        return self.programs.slots

    def put(self, states: Mapping[int, TrainState]) -> None:
        """Puts states into slots. They are the slots' from now on: a step reuses their memory."""
        self._there |= states.keys()
        if len(self) == 1:
            (self._state,) = states.values()
        elif self._state is None:
            # A slot without a run does what the first one does, and nobody looks.
            anyone = next(iter(states.values()))
            every = [states.get(slot, anyone) for slot in range(len(self))]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
            self._state = self.programs.laid(stacked)
        else:
            for slot, state in states.items():
                self._state = self.programs.laid(_put(self._state, slot, state))

    def take(self, slot: int) -> TrainState:
        """The state in a slot, until the next step."""
        return self._state if len(self) == 1 else _take(self._state, slot)

    def load(self, batches: Mapping[int, Any], *, alike: bool) -> bool:
        """Hands the slots the batches of their next step; whether that is the first of its shapes,
        for which a program is compiled and finds its memory.

        Args:
            batches: by slot, of all slots that have a run.
            alike: whether all are the same batch, which is then read once.
        """
        self._there = set(batches)
        if len(self) == 1:
            self._batches = tuple(map(self.programs.placed, batches.values()))
        elif alike:
            self._batches = (dict(next(iter(batches.values()))), {}, *there(len(self), batches))
        else:
            own = _side_by_side(batches, len(self))
            self._batches = ({}, own, *there(len(self), batches))
        return not self.programs.train.knows(self._state, self.frozen, *self._batches)

    def step(self) -> Any:
        """One training step of all slots on the batches that they were handed; its metrics, still
        on the device, for `of`.
        """
        arguments, self._batches = self._batches, ()
        needs = self.programs.train.memory(self._state, self.frozen, *arguments)
        self._largest = max(filter(None, (self._largest, needs)), key=sum, default=None)
        wait_on_cpu(self._last_metrics)
        self._state, metrics = self.programs.train(self._state, self.frozen, *arguments)
        self._last_metrics = metrics
        return metrics

    def wait(self) -> None:
        """Waits until the steps so far are done."""
        jax.block_until_ready(self._last_metrics)

    def of(self, values: Any, slot: int) -> Any:
        """The slot's part of what a step or an evaluation gave."""
        return values if len(self) == 1 else jax.tree.map(lambda x: x[slot], values)

    def evaluate(self, batches: Iterable[Any]) -> list[Evaluated]:
        """What every slot gives on the same batches; one without a run, what another gives."""
        slots = there(len(self), self._there)
        programs = self.programs
        score = lambda frozen, trained, batch: programs.evaluate(
            frozen, trained, programs.placed(batch), *slots
        )
        found = results_of(score, self.frozen, self._state.trainable, batches)
        anyone = min(self._there)
        seen = [slot if slot in self._there else anyone for slot in range(len(self))]
        every = ([self.of(one, slot) for one in found] for slot in seen)
        return [
            Evaluated(means([sums for sums, _ in own]), [rows for _, rows in own]) for own in every
        ]

    def peak_bytes(self) -> int | None:
        """What a run alone takes at the peak of its largest step so far: the base, its own state,
        and the temporaries of one adapter, on each device. None where the compiler does not say, or no step was
        taken.
        """
        memory, base = self._largest, bytes_on_device(self.frozen)
        if memory is None:
            return None
        own = (memory.arguments - base + memory.new_results) // len(self)
        return base + own + memory.temporaries // lanes_for(len(self))


def there(slots: int, taken: Collection[int]) -> tuple[There, ...]:
    """What a program of so many slots is told besides of those that have a run: nothing where all
    go through it at once.
    """
    if lanes_for(slots) >= slots:
        return ()
    order = sorted(range(slots), key=lambda slot: slot not in taken)
    return (There(np.array(order, np.int32), np.int32(len(taken))),)


def _side_by_side(batches: Mapping[int, Any], slots: int) -> dict[str, np.ndarray]:
    """The slots' batches as one with a leading axis; short ones are padded to the longest."""
    anyone = next(iter(batches.values()))
    every = [batches.get(slot, anyone) for slot in range(slots)]
    found = {}
    for name in anyone:
        arrays = [np.asarray(batch[name]) for batch in every]
        shape = np.max([array.shape for array in arrays], 0)
        room = [[(0, to - has) for to, has in zip(shape, array.shape)] for array in arrays]
        found[name] = np.stack(list(map(np.pad, arrays, room)))
    return found


@functools.partial(jax.jit, donate_argnums=0)
def _put(state: TrainState, slot: Any, one: TrainState) -> TrainState:
    return jax.tree.map(lambda every, new: every.at[slot].set(new), state, one)


@jax.jit
def _take(state: TrainState, slot: Any) -> TrainState:
    return jax.tree.map(lambda every: every[slot], state)
