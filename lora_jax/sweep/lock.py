"""A lock file that two launchers, or a launcher and the corpse of another, can share safely."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: O_EXCL alone still decides who gets a free lock
    fcntl = None


class RunLocked(RuntimeError):
    """A live process holds the lock."""


class Lock:
    """A file made with O_EXCL that names its owner by host, process id and the process's start time.

    The lock of a dead process on this host is taken over; that of another host never is, because nobody here can tell
    whether its owner lives.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> None:
        """Takes the lock for this process.

        Raises:
            RunLocked: a live process, or one on another host, holds it.
            OSError: the file cannot be written.
        """
        with self._taking_turns():
            if self.is_held():
                owner = self._owner()
                raise RunLocked(
                    f"A run needs its folder for itself, but {self.path.parent} is held by process {owner.get('pid')} "
                    f"on {owner.get('host')}. Wait for it; if that process is surely dead, delete {self.path}."
                )
            self.path.unlink(missing_ok=True)
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            with os.fdopen(descriptor, "w") as file:
                json.dump(_identity(os.getpid()), file)

    def release(self) -> None:
        """Gives the lock back; nothing happens if it is another's by now."""
        if self._owner() == _identity(os.getpid()):
            self.path.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Whether the owner may be alive. A lock file that is cut off was left by a process that died writing it."""
        owner = self._owner()
        if not owner:
            return False
        return owner.get("host") != socket.gethostname() or owner == _identity(owner.get("pid", -1))

    def _owner(self) -> dict[str, Any]:
        try:
            owner = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}

    @contextmanager
    def _taking_turns(self) -> Iterator[None]:
        # Between judging a lock dead and replacing it, another launcher may have replaced it already. The kernel drops
        # this second lock when its holder dies, so it never goes stale itself.
        with open(self.path.with_name(".lock_turn"), "w") as turn:
            if fcntl is not None:
                fcntl.flock(turn, fcntl.LOCK_EX)
            yield


def _identity(pid: int) -> dict[str, Any]:
    """Host, pid and start time of a live process; a pid of None stands for one that is dead.

    The start time (clock ticks since boot) tells a process from a later one that was given the same pid: common in
    containers, where a restarted launcher has the pid of the killed one.
    """
    stat = Path(f"/proc/{pid}/stat")
    started: str | None = None
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return {"host": socket.gethostname(), "pid": None}
        if fields[0] in "ZX":  # a zombie runs nothing
            return {"host": socket.gethostname(), "pid": None}
        started = fields[19]
    elif not _exists(pid):
        return {"host": socket.gethostname(), "pid": None}
    return {"host": socket.gethostname(), "pid": pid, "started": started}


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
