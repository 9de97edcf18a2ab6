"""Workers as Ray tasks: on a running cluster, or on one that is started here.

Options: address (of a cluster; none = start one here), cpus and gpus of each worker (1 and 0), nodes
of each (1; of several, each gives so many cpus and gpus, and a run's mesh has the devices of all). All
machines must see the store's folder under one path. A task whose process dies is started again by
Ray. A launcher that is asked to stop cancels its tasks, which write checkpoints; in the seconds in
which Ray starts, it is Ray that answers SIGTERM.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_jax.core.extras import needs
from lora_jax.sweeps.executors.worker import Part, begin
from lora_jax.training.interrupted import keeping_answers, stop_signals

if TYPE_CHECKING:
    from lora_jax.sweeps.executors.work import Launch

_OPTIONS = ("address", "cpus", "gpus", "nodes")
_ROOM_WITHIN = 60.0  # seconds in which a worker of several nodes has to find them
_PATIENCE = 30.0  # seconds in which cancelled tasks may write their checkpoints
_PASSED_ON = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "PYTHONPATH",
)


def start(launch: Launch, options: dict[str, str], say: Callable[[str], None]) -> int:
    """Runs the workers until all have ended; how many ended with an error.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the workers have stopped with checkpoints.
        ModuleNotFoundError: Ray is not installed.
        ValueError: an option that there is not.
    """
    # In the launcher alone: a worker can be asked to stop once this module is there.
    from lora_jax.sweeps.executors.work import last_words, parse_options

    chosen = parse_options(options, _OPTIONS, "ray")
    with needs("ray"):
        import ray

    cpus, gpus = int(chosen.get("cpus", 1)), int(chosen.get("gpus", 0))
    ours, died = not ray.is_initialized(), 0
    # An exception out of a handler would come up in the midst of Ray's own code, and crash it.
    with stop_signals() as stopped:
        if ours:
            _open(ray, chosen.get("address"), max(launch.workers * cpus, 1))
        try:
            waiting = _started(ray, launch, cpus, gpus, int(chosen.get("nodes", 1)))
            while waiting and not stopped.is_set():
                ended, _ = ray.wait(list(waiting), num_returns=1, timeout=0.2)
                for one in ended:
                    number, is_first = waiting.pop(one)
                    try:
                        finished = ray.get(one)
                        if is_first:
                            say(f"worker {number}: {finished} runs finished")
                    except ray.exceptions.RayError as error:
                        if not is_first:  # The first of its processes ends with it.
                            continue
                        died += 1
                        say(f"worker {number} ended with: {last_words(error)}")
            if stopped.is_set():
                for one in waiting:
                    ray.cancel(one)
                ray.wait(list(waiting), num_returns=len(waiting), timeout=_PATIENCE)
        finally:
            if ours:
                ray.shutdown()
        if stopped.is_set():
            raise KeyboardInterrupt
    return died


def _started(
    ray: Any, launch: Launch, cpus: int, gpus: int, nodes: int
) -> dict[Any, tuple[int, bool]]:
    """The tasks of all workers, with the worker's number and whether it is its first."""
    order, room = launch.order(), dict(num_cpus=cpus, num_gpus=gpus, max_calls=1)
    if nodes == 1:
        task = ray.remote(max_retries=3, **room)(_work)
        return {task.remote(order, number): (number, True) for number in range(launch.workers)}
    with needs("ray"):
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    # A task that Ray starts again would not find the others.
    task = ray.remote(max_retries=0, **room)(_work)
    found = {}
    for number in range(launch.workers):
        group = placement_group([{"CPU": cpus, "GPU": gpus}] * nodes, strategy="STRICT_SPREAD")
        if not group.wait(_ROOM_WITHIN):
            raise RuntimeError(
                f"A worker needs {nodes} nodes with {cpus} cpus and {gpus} gpus free on each, and "
                f"the cluster did not have them within {_ROOM_WITHIN:.0f} s."
            )
        name = f"ray-{secrets.token_hex(8)}"
        for place in range(nodes):
            there = PlacementGroupSchedulingStrategy(group, place)
            chosen = task.options(scheduling_strategy=there)
            one = chosen.remote(order, number, (place, nodes, name))
            found[one] = (number, place == 0)
    return found


def _open(ray: Any, address: str | None, cpus: int) -> None:
    """Joins a cluster, or starts one of its own on this machine."""
    variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    size = {} if address else {"num_cpus": cpus, "include_dashboard": False}
    with keeping_answers():  # Ray's own answer to SIGTERM ends the process.
        ray.init(address=address, log_to_driver=True, runtime_env={"env_vars": variables}, **size)


def _work(order: Mapping[str, Any], number: int, part: tuple[int, int, str] | None = None) -> int:
    seat = None
    if part is not None:
        with needs("ray"):
            import ray
        seat = Part(*part, ray.util.get_node_ip_address())
    return begin(order, number, partial(print, f"worker {number}:", flush=True), seat)
