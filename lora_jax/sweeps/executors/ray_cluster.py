"""Workers as Ray tasks: on a running cluster, or on one that is started here.

Options: address (of a cluster; none = start one here), cpus and gpus of each worker (1 and 0). All
machines must see the store's folder under one path. A task whose process dies is started again by
Ray.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from lora_jax.core.extras import needs
from lora_jax.sweeps.executors.work import Launch, last_words, parse_options, work

_OPTIONS = ("address", "cpus", "gpus")
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
        ModuleNotFoundError: Ray is not installed.
        ValueError: an option that there is not.
    """
    chosen = parse_options(options, _OPTIONS, "ray")
    with needs("ray"):
        import ray

    ours = not ray.is_initialized()
    cpus, gpus = int(chosen.get("cpus", 1)), int(chosen.get("gpus", 0))
    variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if ours:
        address = chosen.get("address")
        size = (
            {}
            if address
            else {"num_cpus": max(launch.workers * cpus, 1), "include_dashboard": False}
        )
        ray.init(address=address, log_to_driver=True, runtime_env={"env_vars": variables}, **size)

    died = 0
    try:
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3, max_calls=1)(_work)
        waiting = {task.remote(launch, number): number for number in range(launch.workers)}
        while waiting:
            ended, _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(ended[0])
            try:
                say(f"worker {number}: {ray.get(ended[0])} runs finished")
            except ray.exceptions.RayError as error:
                died += 1
                say(f"worker {number} ended with: {last_words(error)}")
    finally:
        if ours:
            ray.shutdown()
    return died


def _work(launch: Launch, number: int) -> int:
    return work(launch, number, lambda text: print(f"worker {number}: {text}", flush=True))
