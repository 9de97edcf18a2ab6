"""Devices that are not here, for programs that are compiled and not run."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax

_FLAG = "--xla_force_host_platform_device_count"
_CHILD = "from lora_jax.core.fake_devices import _answer; _answer()"


def with_devices(count: int, function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` gives where jax sees at least `count` devices: here if it does, else in
    a process of its own whose CPU is so many. Programs are compiled there without optimising their
    machine code, which changes no byte of their memory; they are not to be run.

    Args:
        function: of a module, known by its name there; it and what it takes and gives are pickled.

    Raises:
        RuntimeError: the process died. An error of `function` is raised as it is.
    """
    if count <= jax.device_count():
        return function(*args)
    flags = re.sub(rf"{_FLAG}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    flags = f"{flags} {_FLAG}={count} --xla_backend_optimization_level=0"
    paths = os.pathsep.join(path for path in sys.path if path)
    surroundings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    # What a launcher says of several processes is of this one.
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("JAX_COORDINATOR", "JAX_NUM_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=pickle.dumps((function, args)),
        stdout=subprocess.PIPE,
        env=kept | surroundings,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"A process with {count} devices of a CPU was to compile what is planned, and ended with "
            f"status {done.returncode}: what it said stands above."
        )
    given, error = pickle.loads(done.stdout)
    if error is not None:
        raise error
    return given


def _answer() -> None:
    """The process: reads a call from its input, and writes what came of it."""
    # What is printed besides must not come between.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    function, args = pickle.load(sys.stdin.buffer)
    given, error = None, None
    try:
        given = function(*args)
    except Exception as raised:
        error = raised
    pickle.dump((given, error), answers)
    answers.close()
