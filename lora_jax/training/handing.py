"""What process 0 of several decides for a `fit` of all: which runs, what a judge says, when to stop.
Of a process alone, nothing is changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_jax.config import Config, from_config_dict, to_dict
from lora_jax.core import hosts
from lora_jax.io.contents import contents
from lora_jax.tasks.task import Task
from lora_jax.training.run import Run, steps_of

Judge = Callable[[Run, int, dict[str, float]], bool]


def handed(
    runs: Iterator[Run], judge: Judge | None, **settings: Any
) -> tuple[Iterator[Run], Judge | None]:
    """The runs and the judge of process 0, from which the others get them by `taken`.

    Args:
        settings: the arguments of `fit` that are plain, or a Config.
    """
    if hosts.count() == 1 or not hosts.is_leader():
        return runs, judge
    wide = settings.pop("wide")
    hosts.tell(
        {**settings, "wide": None if wide is None else to_dict(wide), "judged": judge is not None}
    )

    def each_told() -> Iterator[Run]:
        for run in runs:
            hosts.tell([to_dict(run.config), str(run.folder.absolute()), list(run.rungs)])
            yield run
        hosts.tell(None)

    agreed = lambda *asked: hosts.leaders("judge", judge(*asked))
    return each_told(), None if judge is None else agreed


def taken(order: dict[str, Any]) -> tuple[Iterator[Run], Judge | None, dict[str, Any]]:
    """In another process, what `handed` told: the runs, the judge, and the plain arguments."""

    def runs() -> Iterator[Run]:
        while (told := hosts.hear()) is not None:
            config, folder, rungs = told
            yield Run(from_config_dict(config), Path(folder), tuple(rungs))

    judged, wide = order.pop("judged"), order.pop("wide")
    settings = {**order, "wide": None if wide is None else from_config_dict(wide)}
    return runs(), (lambda *_: hosts.leaders("judge")) if judged else None, settings


class Asked:
    """Whether some process was asked to stop: all hear of it at the same step."""

    def __init__(self, own: threading.Event) -> None:
        self._own, self._agreed = own, False

    def is_set(self) -> bool:
        """Whether to stop; all processes ask together."""
        if hosts.count() == 1:
            return self._own.is_set()
        if not self._agreed and any(hosts.meet("stop", self._own.is_set())):
            self._agreed = True
            self._own.set()
        return self._agreed


def check_same_data(config: Config, task: Task) -> None:
    """Raises ValueError, in all processes, if they have read other weights or other examples."""
    if hosts.count() == 1:
        return
    read: dict[str, Any] = {
        "weights": task.base,
        "steps": steps_of(config, task),
        **contents(config.names, config.model.revision),
        **{f"examples of {split}": len(encoded) for split, encoded in task.splits.items()},
    }
    every = hosts.meet("data", read)
    apart = [
        f"{name} ({read_here} and {theirs.get(name)})"
        for name, read_here in every[0].items()
        if (theirs := next((one for one in every if one.get(name) != read_here), None)) is not None
    ]
    if apart:
        raise ValueError(
            f"The processes of a run have to read the same files, and they differ in "
            f"{', '.join(apart)}. Give all machines the same model and data."
        )
