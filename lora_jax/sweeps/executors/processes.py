"""Workers as processes on this machine: its cores and GPUs are divided among them.

A worker that is killed is started again; one that ends with an error is not. Killing the launcher
with -9 leaves its workers at work.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from lora_jax.core.own_gpus import visible_gpus
from lora_jax.sweeps.executors.work import Launch, parse_options, unfinished
from lora_jax.sweeps.executors.worker import begin
from lora_jax.sweeps.files import write_json
from lora_jax.training.interrupted import Interrupted, stop_signals

_STOPPED = 128 + signal.SIGINT
_ENDED = (0, _STOPPED, 128 + signal.SIGTERM)  # as a worker ends by itself, or where it is asked to


def start(launch: Launch, options: dict[str, str], say: Callable[[str], None]) -> int:
    """Runs the workers until all have ended; how many ended otherwise than they should and left
    runs behind.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the workers have stopped with checkpoints.
    """
    parse_options(options, (), "processes")
    order = Path(launch.config.out) / f".launch.{os.getpid()}.json"
    write_json(order, launch.order())

    crew: dict[int, subprocess.Popen[str]] = {}
    died = 0
    try:
        with stop_signals() as stopped:
            for number in range(launch.workers):
                crew[number] = _spawn(order, number, launch.workers, say)
            told = False
            while crew:
                if stopped.is_set() and not told:
                    told = True
                    for process in crew.values():
                        process.send_signal(signal.SIGTERM)

                for number, process in [(n, p) for n, p in crew.items() if p.poll() is not None]:
                    del crew[number]
                    if process.returncode in _ENDED or stopped.is_set():
                        continue
                    died += 1
                    what = (
                        f"was killed by signal {-process.returncode}"
                        if process.returncode < 0
                        else f"ended with status {process.returncode}"
                    )
                    say(f"worker {number} {what}")
                    if process.returncode < 0 and unfinished(launch):
                        say(f"worker {number} starts again")
                        crew[number] = _spawn(order, number, launch.workers, say)

                time.sleep(0.1)
            if stopped.is_set():
                raise KeyboardInterrupt
    finally:
        for process in crew.values():
            process.kill()
        order.unlink(missing_ok=True)
    return died


def main(order: str, number: str, cores: str) -> int:
    """The worker's own process."""
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    try:
        begin(json.loads(Path(order).read_text()), int(number), partial(print, flush=True))
    except (Interrupted, KeyboardInterrupt):
        return _STOPPED
    return 0


def cores_of(number: int, workers: int, cores: Sequence[int]) -> list[int]:
    """The cores of a worker: an equal part for each; none chosen where there are more workers than
    cores.
    """
    return [] if workers > len(cores) or workers == 1 else list(cores[number::workers])


def device_settings(
    number: int, workers: int, gpus: Sequence[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """Environment variables that give a worker its GPU, and its part of it where several share
    one.
    """
    if not gpus or workers == 1:
        return {}
    together = math.ceil(workers / len(gpus))
    memory = (
        {}
        if together == 1 or "XLA_PYTHON_CLIENT_MEM_FRACTION" in environment
        else {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / together:.2f}"}
    )
    return {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} | memory


def _spawn(
    order: Path, number: int, workers: int, say: Callable[[str], None]
) -> subprocess.Popen[str]:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = cores_of(number, workers, sorted(affinity(0))) if affinity else []
    environment = os.environ | device_settings(number, workers, visible_gpus(), os.environ)
    # Until `main` answers signals itself: an end without a traceback out of an import.
    program = (
        "import os, signal, sys\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, lambda number, _: os._exit(128 + number))\n"
        "from lora_jax.sweeps.executors.processes import main\n"
        "sys.exit(main(*sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(order), str(number), ",".join(map(str, cores))],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        # Its own group: ctrl-C in a terminal reaches the launcher, which asks the workers to stop.
        start_new_session=True,
    )  # fmt: skip
    threading.Thread(target=_pass_on, args=(process, number, say), daemon=True).start()
    return process


def _pass_on(process: subprocess.Popen[str], number: int, say: Callable[[str], None]) -> None:
    with process.stdout as lines:
        for line in lines:
            say(f"worker {number}: {line.rstrip()}")
