"""Orbax checkpoints of everything that training changes, and of what it must be resumed on."""

from __future__ import annotations

import errno
import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_flatten_with_path

from lora_jax.adapters.stacking import used_columns
from lora_jax.core import hosts
from lora_jax.core.extras import needs
from lora_jax.core.lowrank import RANK_AXIS
from lora_jax.training.offload import like_placed
from lora_jax.training.step import TrainState

with needs("training"):
    import orbax.checkpoint as ocp


_BESIDE_ARRAYS = 32_768  # bytes of a checkpoint's own files
# What a damaged checkpoint lacks; and what the storage says where a sound one cannot be opened.
_OF_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, None)
_OF_SYSTEM = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED")


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be read."""


class Checkpoints:
    """The checkpoints of one run: adapter, optimiser, random key and step in `state`, the data
    iterator's position in `data`.

    Padding is no part of them: columns and sites that the run does not use are left out, and are
    zeros again in what is restored. So a run may go on in a sweep that pads it otherwise, or beside
    other runs. A checkpoint appears under its final name only when it is complete, so a run that is
    killed at any moment resumes from a sound one. `base` (the fingerprint of the frozen weights)
    and `run` (the id of the configuration) are stored with it.
    """

    def __init__(self, folder: Path, *, base: str, run: str, keep: int = 2) -> None:
        self._identity = {"base": base, "run": run}
        self._folder = Path(folder).absolute()
        # A checkpoint's own metadata is read when it is restored: here a damaged one would keep
        # the manager from the sound ones.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=False,
            lightweight_initialize=True,
        )
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise OSError(
                f"Cannot make checkpoints in {folder}: {error.strerror or error}. Give a folder "
                "that can be written (--config.out)."
            ) from error
        except ValueError as error:
            raise ValueError(
                f"The checkpoints in {folder} cannot be listed: {error}. One of them is damaged: "
                "move the newest away, or delete the run's folder to start it again."
            ) from error

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, data: dict[str, Any]) -> None:
        """Writes a checkpoint at the state's step; nothing is done if there is one already.

        Raises:
            OSError: it does not fit on the disk.
        """
        step = int(state.step)
        if step in self.steps():
            return
        named = _named(state)
        # Orbax finds out in the midst of it, in threads that print a traceback for each array.
        needed = sum(array.nbytes for array in named.values()) + _BESIDE_ARRAYS
        if (free := min(hosts.meet("free", shutil.disk_usage(self._folder).free))) < needed:
            raise OSError(
                errno.ENOSPC,
                f"No space left on device: a checkpoint of {needed:,} bytes is to be written into "
                f"{self._folder}, where {free:,} are free. Free some space, or choose another "
                "folder with --config.out",
            )
        meta = {"identity": self._identity, "data": data, "arrays": _described(named)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(named), meta=ocp.args.JsonSave(meta))
        # Without force a step below the newest would be left out without a word: runs that were
        # interrupted together go on from the newest that all of them have.
        self._manager.save(step, args=items, force=True)
        self._manager.wait_until_finished()

    def restore(
        self, like: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state and the data iterator's position at `step`, or the newest.

        Args:
            like: the run's state before its first step, padded as the restored one is to be.

        Raises:
            DamagedCheckpoint: it cannot be read; `pass_over` takes it out of the way.
            ValueError: it was trained on another base or by another configuration, or its arrays
                have other shapes.
        """
        step = self._manager.latest_step() if step is None else step
        meta = self._read(step, meta=ocp.args.JsonRestore()).meta
        try:
            identity, data, arrays = meta["identity"], meta["data"], meta["arrays"]
            differs = [what for what in self._identity if identity[what] != self._identity[what]]
        except (KeyError, TypeError) as error:
            raise self._damaged(step, error) from error
        for what in differs:
            raise ValueError(
                f"{self._folder}: the checkpoint at step {step} belongs to {what} "
                f"{identity[what]}, and this run has {what} {self._identity[what]}. Train in "
                "another folder (--config.out), or delete the run's folder to start again."
            )

        # Orbax itself would cut or fill arrays of other shapes without a word.
        template = _named(like)
        if arrays != _described(template):
            raise ValueError(
                f"{self._folder}: the checkpoint at step {step} holds other arrays than this run "
                "trains: it was written by another version. Delete the run's folder to start it "
                "again."
            )
        abstract = {name: _abstract(array) for name, array in template.items()}
        named = self._read(step, state=ocp.args.StandardRestore(abstract)).state
        return _unnamed(named, like), data

    def pass_over(self, damaged: int) -> Path:
        """Moves a checkpoint that cannot be read out of the way of the older ones, and of a new one
        at its step; the folder that it is in then.
        """
        aside = self._folder.with_name(f"{self._folder.name}_damaged")
        places = (aside / f"{damaged}{'_' * n}" for n in itertools.count())
        place = next(place for place in places if not place.exists())
        with hosts.agreeing("pass over"):
            if hosts.is_leader():
                aside.mkdir(exist_ok=True)
                (self._folder / str(damaged)).rename(place)
        self._manager.reload()
        return place

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except MemoryError:
            raise
        except Exception as error:  # Orbax and its storage raise many kinds for damaged files.
            of_system = isinstance(error, OSError) and error.errno not in _OF_DAMAGE
            if of_system or any(word in str(error) for word in _OF_SYSTEM):
                raise OSError(
                    f"The checkpoint in {self._folder / str(step)} cannot be read: "
                    f"{_first_line(error)}. It may be sound: see to its permissions and to the "
                    "number of open files, and start again."
                ) from error
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"The checkpoint in {self._folder / str(step)} is damaged: {_first_line(error)}"
        )

    def close(self) -> None:
        """Releases the manager's threads."""
        self._manager.close()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _named(state: TrainState) -> dict[str, Any]:
    """Arrays by path, without padding. Boxes, optax states and keys become plain arrays, which any
    Orbax version reads.
    """
    used = used_columns(state.trainable)
    named = {}
    for path, leaf in _leaves(state)[0]:
        columns, axes = _padding(path, used)
        if columns is not None and not columns.size:
            continue
        array = leaf if hosts.spans(leaf) else np.asarray(leaf)
        for axis in axes:
            if columns.size < array.shape[axis]:
                array = _columns(array, columns, axis)
        named[keystr(path)] = array
    return named


def _columns(array: Any, columns: np.ndarray, axis: int) -> Any:
    """Some columns of an array; of one that spans processes on every device."""
    if not hosts.spans(array):
        return np.take(array, columns, axis)
    everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
    # One after another: on a CPU, programs that wait for other processes may wait for each other.
    taken = jax.block_until_ready(jnp.take(array, columns, axis))
    return jax.block_until_ready(jax.device_put(taken, everywhere))


def _abstract(array: Any) -> jax.ShapeDtypeStruct:
    """What Orbax reads: each process the parts that lie on its own devices."""
    sharding = array.sharding if hosts.spans(array) else None
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _described(named: dict[str, Any]) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in named.items()}


def _unnamed(named: dict[str, Any], like: TrainState) -> TrainState:
    leaves, structure = _leaves(like)
    used = used_columns(like.trainable)

    def padded(path: Any, wide: Any) -> Any:
        columns, axes = _padding(path, used)
        if columns is None:
            return named[keystr(path)]
        if columns.size and all(columns.size == wide.shape[axis] for axis in axes):
            return named[keystr(path)]
        array = np.zeros(wide.shape, wide.dtype)
        if columns.size:
            narrow, to = np.asarray(named[keystr(path)]), tuple(range(len(axes)))
            np.moveaxis(array, axes, to)[np.ix_(*[columns] * len(axes))] = np.moveaxis(
                narrow, axes, to
            )
        return array

    def copied(path: Any, leaf: Any) -> jax.Array:
        # Owned by JAX: the step donates its state, and a donated buffer must not be the reader's.
        restored = padded(path, leaf)
        if hosts.spans(leaf):
            return jnp.copy(hosts.spread(restored, leaf.sharding))
        return like_placed(jnp.array(restored, copy=True), leaf)

    state = jax.tree.unflatten(structure, [copied(path, leaf) for path, leaf in leaves])
    key = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(like.key))
    return state.replace(key=key)


def _leaves(state: TrainState) -> tuple[list[tuple[Any, Any]], Any]:
    return tree_flatten_with_path(state.replace(key=jax.random.key_data(state.key)))


# Second moments of an optimiser between the columns of a factor.
_SQUARES = {"a_square": (-2, -1), "b_square": (-2, -1)}
_AXES = {name: (axis,) for name, axis in RANK_AXIS.items()} | {"mix": (-2, -1)} | _SQUARES
_AXES |= {"value": (-1,), "where": (-1,)}  # of changes that are no factors


def _padding(path: Any, used: dict[str, np.ndarray]) -> tuple[np.ndarray | None, tuple[int, ...]]:
    """The columns in use at the site that an array belongs to (None if to no site), and the array's
    axes that count them.
    """
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    for site, field in itertools.pairwise(names):
        if isinstance(site, str) and site in used:
            return used[site], _AXES.get(field, ())
    return None, ()
