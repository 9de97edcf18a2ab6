"""Several processes that take part in one run, on one machine or many: how they find each other,
agree, and notice that one is gone.

They talk over a link of their own, lines of JSON between process 0 and each other one, before JAX
is told of them: JAX itself would wait for a peer that is missing for minutes, and for one that is
dead inside a collective for ever, and it compares no settings.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lora_jax.core.link import Link, OutOfStep
from lora_jax.core.own_gpus import own_gpus, seen
from lora_jax.core.replacing import replacing

COME_WITHIN = 60.0  # seconds in which all processes have to be there


@dataclass(frozen=True)
class Seat:
    """Process `number` of `count`, which meet at `address`, HOST:PORT, where process 0 listens."""

    address: str
    count: int
    number: int

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        is_port = port.isdigit() and 0 < int(port) < 65536
        if not host or not is_port or self.count < 1 or not 0 <= self.number < self.count:
            raise ValueError(
                "A process among several needs HOST:PORT of process 0, their count and its own "
                f"number from 0 on, got {self.address!r}, {self.count} and {self.number}."
            )


def seat_of(text: str | None, environment: Mapping[str, str] = os.environ) -> Seat | None:
    """The seat that is said: 'HOST:PORT,COUNT,NUMBER', 'slurm' (of a job step, one process a task),
    or without a text what JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say, if
    they are set. None for a process alone.

    Raises:
        ValueError: it is something else, or variables are missing.
    """
    if text == "slurm":
        names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
        job, nodes, count, number = _variables(names, environment, "--hosts=slurm, under srun")
        first = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
        # Jobs that share a node meet at ports of their own.
        port = 61440 + int(job) % 4096
        seat = Seat(f"{first[1]}{first[2] or ''}:{port}", int(count), int(number))
    elif text:
        parts = text.split(",")
        if len(parts) != 3 or not all(part.isdigit() for part in parts[1:]):
            raise ValueError(
                "--hosts reads 'slurm' or HOST:PORT,COUNT,NUMBER such as node1:7000,2,0 (the same "
                f"address in all processes, numbers from 0 on), got {text!r}."
            )
        seat = Seat(parts[0], int(parts[1]), int(parts[2]))
    elif "JAX_COORDINATOR_ADDRESS" in environment:
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        address, count, number = _variables(names, environment, "JAX_COORDINATOR_ADDRESS")
        seat = Seat(address, int(count), int(number))
    else:
        return None
    return seat if seat.count > 1 else None


def seat_at(file: Path, count: int, number: int, host: str | None = None) -> Seat:
    """The seat of a process of which nobody knows the address yet: process 0 chooses a port of its
    machine (`host`, by default its name) and writes it to a file that all see.

    Raises:
        TimeoutError: the file did not come.
    """
    if number == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        address = _free_address(host or socket.gethostname())
        with replacing(file) as new:
            new.write_text(address)
        return Seat(address, count, 0)
    deadline = time.monotonic() + COME_WITHIN
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"Process 0 of {count} was to write its address to {file} within "
                f"{COME_WITHIN:.0f} s, and process {number} sees none: it did not start, or the "
                "machines do not share this folder."
            )
        time.sleep(0.1)
    return Seat(file.read_text(), count, number)


def _variables(names: tuple[str, ...], environment: Mapping[str, str], what: str) -> list[str]:
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise ValueError(f"{what} needs the environment variables {', '.join(missing)} as well.")
    return [environment[name] for name in names]


_link: Link | None = None


def count() -> int:
    """How many processes take part."""
    return 1 if _link is None else _link.count


def number() -> int:
    """This process's number, from 0 on."""
    return 0 if _link is None else _link.number


def is_leader() -> bool:
    """Whether this process writes files, and talks: the first one, or one that is alone."""
    return number() == 0


@contextlib.contextmanager
def joined(
    seat: Seat | None,
    alike: Mapping[str, Any] | None = None,
    *,
    ends: tuple[type[BaseException], ...] = (),
    within: float = COME_WITHIN,
) -> Iterator[None]:
    """Inside, this process is one of several: jax.devices() are those of all. Before any device is
    touched; without a seat nothing is done. Where several see the same GPUs, each has its part.

    A process that dies, or does not answer for `lora_jax.core.link.SILENCE` seconds, ends all
    others with status 1 and a message, wherever they are: no collective could be gone on with.

    Args:
        alike: settings by name that have to be the same in all processes, as plain values.
        ends: exceptions that all processes raise together. Any other one ends all of them.
        within: seconds in which all have to be there.

    Raises:
        TimeoutError: some did not come.
        ValueError: they differ in `alike`; in every process, with the names and both values. Or the
            GPUs of a machine cannot be divided among its processes.
    """
    global _link
    if seat is None:
        yield
        return
    if _link is not None:
        raise RuntimeError(f"This process is number {_link.number} of {_link.count} already.")
    link = Link(seat.address, seat.count, seat.number, {**_surroundings(), **(alike or {})}, within)
    try:
        _start_jax(link)
        _link = link
        try:
            yield
        except ends:
            _leave(link)
            raise
        _leave(link)
    except BaseException as error:
        if not link.ending:
            link.fail(error)
        if jax.distributed.is_initialized():
            atexit.register(_without_jax)
        raise
    finally:
        _link = None


def _without_jax() -> None:
    """The end of a process whose peers are gone: JAX would wait for them, and abort."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(1)


def _leave(link: Link) -> None:
    link.meet("end", None)
    link.ending = True
    jax.distributed.shutdown()
    link.close()


def _surroundings() -> dict[str, Any]:
    """What has to be alike whatever is run."""
    names = ("jax_enable_x64", "jax_default_matmul_precision", "jax_threefry_partitionable")
    python = ".".join(map(str, sys.version_info[:2]))
    return {"python": python, "jax": jax.__version__} | {
        name: str(getattr(jax.config, name)) for name in names
    }


def _start_jax(link: Link) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would answer SIGTERM in place of the training loop, which agrees with the others itself.
    jax.config.update("jax_enable_preemption_service", False)
    address = link.meet("coordinator", _free_address(link.host) if link.number == 0 else None)[0]
    jax.distributed.initialize(
        address,
        link.count,
        link.number,
        own_gpus(link.meet("sees", seen()), link.number),
        initialization_timeout=int(COME_WITHIN),
        # Ours is sooner, and says more.
        heartbeat_timeout_seconds=300,
        shutdown_timeout_seconds=5,
        cluster_detection_method="deactivate",
    )
    jax.devices()  # All together: whoever asks first waits for the others.


def _free_address(host: str) -> str:
    with socket.create_server(("", 0)) as probe:
        return f"{host}:{probe.getsockname()[1]}"


# --- What processes that stand at the same place of the program do together.


def meet(label: str, value: Any = None) -> list[Any]:
    """The plain values that all processes gave at this place, by number; of a process alone, its
    own. `label` names the place, which is checked.
    """
    return [value] if _link is None else _link.meet(label, value)


def leaders(label: str, value: Any = None) -> Any:
    """The plain value of process 0."""
    return meet(label, value if is_leader() else None)[0]


def tell(value: Any) -> None:
    """Hands a plain value to all others, each of which `hear`s it."""
    if _link is not None:
        _link.tell(value)


def hear() -> Any:
    """What process 0 told next."""
    return _link.hear()


class PeerFailed(RuntimeError):
    """Another process could not do what all had to; `kind` is the class of its error."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


@contextlib.contextmanager
def agreeing(label: str) -> Iterator[None]:
    """Stands around what may fail in some processes: then it fails in all of them.

    Raises:
        PeerFailed: it failed in another process and not here.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    if _link is not None:
        said = None if own is None else [type(own).__name__, str(own)]
        try:
            # The others may wait in a collective, or in Orbax, for the one that has failed.
            every = _link.meet(label, said, within=None if own is None else COME_WITHIN)
        except (OutOfStep, TimeoutError) as apart:
            _end_with(own or apart)
        failed = next((n for n, one in enumerate(every) if one is not None), None)
        if own is None and failed is not None:
            kind, text = every[failed]
            raise PeerFailed(f"{_link.name_of(failed)}: {text}", kind)
    if own is not None:
        raise own


def all_failed(error: Exception) -> None:
    """Returns if all processes came to an error here; ends all of them if only some did."""
    if _link is not None:
        try:
            _link.meet("failed", str(error), within=COME_WITHIN)
        except (OutOfStep, TimeoutError):
            _end_with(error)


def _end_with(error: Exception) -> NoReturn:
    """Ends all processes, of which only some came to an error."""
    os.write(2, f"lora-jax: error: {error}\n".encode())
    _link.fail(error)
    os._exit(1)


def spans(x: Any) -> bool:
    """Whether an array lies on devices of several processes."""
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def whole(tree: Any) -> Any:
    """The tree with arrays that span processes as host arrays, which are then whole in each of
    them: all processes call it together. Keys stay as they are.
    """
    leaves, structure = jax.tree.flatten(tree)
    spread = [spans(x) and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    chosen = [x for x, is_spread in zip(leaves, spread) if is_spread]
    if not chosen:
        return tree
    everywhere = NamedSharding(chosen[0].sharding.mesh, PartitionSpec())
    gathered = iter(jax.jit(lambda xs: xs, out_shardings=everywhere)(chosen))
    made = [
        np.asarray(next(gathered).addressable_data(0)) if is_spread else x
        for x, is_spread in zip(leaves, spread)
    ]
    return jax.tree.unflatten(structure, made)


def spread(x: Any, sharding: NamedSharding) -> jax.Array:
    """The array laid so; on devices of several processes each of them, which has it whole, puts its
    own parts.
    """
    if sharding.is_fully_addressable or spans(x):
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = spread(jax.random.key_data(x), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def seen_by_all(folder: os.PathLike[str] | str) -> None:
    """Raises OSError, in all processes, if some do not see what process 0 writes in a folder."""
    if _link is None:
        return
    probe = os.path.join(folder, ".seen_by_all")
    with agreeing("writes"):
        if is_leader():
            with open(probe, "w") as file:
                file.write(f"{time.time()}")
    deadline = time.monotonic() + 10  # file systems of networks need a moment
    while not (there := os.path.exists(probe)) and time.monotonic() < deadline:
        time.sleep(0.1)
    every = meet("sees", there)
    if is_leader():
        os.unlink(probe)
    if not all(every):
        blind = ", ".join(_link.name_of(n) for n, one in enumerate(every) if not one)
        raise FileNotFoundError(
            f"All processes need to see {folder} under this path, and {blind} did not. Give a "
            "folder of a file system that all machines share (--config.out)."
        )
