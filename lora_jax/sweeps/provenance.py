"""What a result was made with: versions, device, commit and command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = (
    "lora_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "grain",
    "tokenizers",
)


def environment() -> dict[str, Any]:
    """Versions, device, processor count, git commit (with whether files differ from it) and command
    line, as JSON.
    """
    import jax  # reading a report or printing a plan must not start a device

    device = jax.devices()[0]
    return {
        "versions": {name: version(name) for name in _PACKAGES},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": cpu_count(),
        "git": git_state(Path(__file__).resolve().parent),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def cpu_count() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def version(package: str = "lora_jax") -> str | None:
    """The version of an installed package, by default of this library; None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any]:
    """{"commit", "dirty"} of the repository that tracks `folder`; both None where there is none, or
    no git.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    # A package installed into a virtual environment inside some other repository is not that
    # repository's code.
    if not commit or not _git(folder, "ls-files"):
        return {"commit": None, "dirty": None}
    return {
        "commit": commit,
        "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
    }


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
