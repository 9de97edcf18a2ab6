"""A claim on a run that two launchers, on one machine or several, or a launcher and the corpse of
another, share safely.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from lora_jax.core.json_files import parse_json
from lora_jax.sweeps.files import turns

HEARTBEAT_SECONDS = 20.0
# A machine that does not answer this long is taken for dead by the others. Far above what a shared
# file system caches.
LEASE_SECONDS = 300.0


class RunLocked(RuntimeError):
    """A live process holds the lock."""


class Lock:
    """A file made with O_EXCL that names its owner: machine, process id and the process's start
    time.

    Whether an owner on this machine lives, its kernel says: the lock of a dead process is taken
    over at once. An owner on another machine touches its lock every HEARTBEAT_SECONDS; it is given
    up for dead after LEASE_SECONDS without that, by the clock of the file system. A lock that
    promises no heartbeat, from another machine, is never taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> None:
        """Takes the lock for this process.

        Raises:
            RunLocked: a live process, or one on another machine that may live, holds it.
            OSError: the file cannot be written.
        """
        # Between judging a lock dead and replacing it, another launcher may have replaced it
        # already.
        with turns(self.path.with_name(".lock_turn")):
            if self.is_held():
                owner = self.owner()
                raise RunLocked(
                    f"A run needs its folder for itself, but {self.path.parent} is held by process "
                    f"{owner.get('pid')} on {owner.get('host')}. Wait for it; if that process is "
                    f"surely dead, delete {self.path}."
                )
            self.path.unlink(missing_ok=True)
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            with os.fdopen(descriptor, "w") as file:
                json.dump(_identity(os.getpid()) | {"heartbeat": HEARTBEAT_SECONDS}, file)
        _HEART.add(self)

    def release(self) -> None:
        """Gives the lock back; nothing happens if it is another's by now."""
        _HEART.discard(self)
        if self.is_mine():
            self.path.unlink(missing_ok=True)

    def is_mine(self) -> bool:
        """Whether this process holds it: another machine may have taken it if this one slept
        through its lease.
        """
        return _same(self.owner(), _identity(os.getpid()))

    def is_held(self) -> bool:
        """Whether the owner may be alive. A lock file that is cut off was left by a process that
        died writing it.
        """
        owner = self.owner()
        if not owner:
            return False
        here = _identity(os.getpid())
        is_here = owner.get("host") == here["host"]
        if is_here and owner.get("machine", here["machine"]) == here["machine"]:
            return _same(owner, _identity(owner.get("pid", -1)))
        return "heartbeat" not in owner or self._age() < LEASE_SECONDS

    def owner(self) -> dict[str, Any]:
        """{"host", "pid", ...} of the process that wrote the lock; empty where there is none."""
        try:
            owner = parse_json(self.path.read_bytes(), self.path)
        except (OSError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def beat(self) -> None:
        """Says that the owner lives."""
        if self.is_mine():
            os.utime(self.path)

    def _age(self) -> float:
        # The file system's clock judges, not ours: machines disagree about the time. A file written
        # now shows it.
        probe = self.path.with_name(f".clock.{os.getpid()}.{threading.get_ident()}")
        try:
            probe.write_text("")
            now = probe.stat().st_mtime
        except OSError:  # a store that can only be read
            now = time.time()
        finally:
            probe.unlink(missing_ok=True)
        try:
            return now - self.path.stat().st_mtime
        except OSError:
            return float("inf")


class _Heart:
    """One thread that touches every lock of this process; it starts with the first and ends with
    the process.
    """

    def __init__(self) -> None:
        self._locks: weakref.WeakSet[Lock] = weakref.WeakSet()
        self._guard = threading.Lock()
        self._pid: int | None = None

    def add(self, lock: Lock) -> None:
        with self._guard:
            self._locks.add(lock)
            if self._pid != os.getpid():  # a fork has the set, not the thread
                self._pid = os.getpid()
                threading.Thread(target=self._run, name="lora-jax-heartbeat", daemon=True).start()

    def discard(self, lock: Lock) -> None:
        with self._guard:
            self._locks.discard(lock)

    def _run(self) -> None:
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            with self._guard:
                held = list(self._locks)
            for lock in held:
                # Deleted under us, or the disk is away for a moment: the next beat tries again.
                with contextlib.suppress(OSError):
                    lock.beat()


_HEART = _Heart()


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one) and all(one.get(key) == other.get(key) for key in ("host", "pid", "started"))


def _identity(pid: int) -> dict[str, Any]:
    """Host, machine, pid and start time of a live process; a pid of None stands for one that is
    dead.

    The start time (clock ticks since boot) tells a process from a later one that was given the same
    pid: common in containers, where a restarted launcher has the pid of the killed one.
    """
    here = {"host": socket.gethostname(), "machine": _machine()}
    stat = Path(f"/proc/{pid}/stat")
    started: str | None = None
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return here | {"pid": None}
        if fields[0] in "ZX":  # a zombie runs nothing
            return here | {"pid": None}
        started = fields[19]
    elif not _exists(pid):
        return here | {"pid": None}
    return here | {"pid": pid, "started": started}


def _machine() -> str | None:
    """What tells machines of one name apart: the boot of the kernel, and the container whose
    process ids these are.

    None where the kernel does not say.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
