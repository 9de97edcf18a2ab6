"""Early stopping across a sweep: asynchronous successive halving (ASHA, Li et al. 2020, arXiv
1810.05934, algorithm 2).

At each rung a run is compared with all that have been there before it, by validation loss; it goes
on if it is among the best 1 / factor of them, or within `margin` of these, and is stopped
otherwise. Nobody waits. So early, losses within a margin are as good as equal, and without one the
first to come are stopped for another that is better by a hair. What is decided is kept in
halving.json of the store, so that a sweep that is stopped and started again decides the same, and
runs that were stopped are not started again. Losses on other data, of another model or after
another training would be no measure: a sweep that has such is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.config import Config, HalvingConfig, canonical
from lora_jax.core.json_files import read_json
from lora_jax.io.contents import contents
from lora_jax.sweeps.axes import read_axes
from lora_jax.sweeps.settings import INCOMPARABLE
from lora_jax.sweeps.store import StoreError, write_json

FILE = "halving.json"


def ground(config: Config) -> dict[str, Any]:
    """{dotted setting: value} of the data, the model and the training of a sweep whose runs are
    compared, but for its axes; and what the names of data and model stand for.
    """
    axes = {key for axis in read_axes(config.sweep.axes) for key in axis.keys}
    shared = {
        key: value
        for key, value in canonical(config).items()
        if key.startswith(("data.", "model.", "train.")) and key not in {*axes, "train.seed"}
    }
    if config.sweep.halving.rungs and (unlike := sorted(axes & INCOMPARABLE.keys())):
        raise ValueError(
            f"config.sweep.halving compares losses, and those of runs that differ in {unlike[0]!r} "
            "do not compare. Make a sweep of each, or set config.sweep.halving.rungs='()'."
        )
    named = contents(config.names, config.model.revision)
    return shared | _of_contents(named)


def _of_contents(named: Mapping[str, str]) -> dict[str, str]:
    return {f"the content of {name}": content for name, content in named.items()}


class Halving:
    """The rungs of a sweep: scores by step and run, and which runs were stopped where.

    `under` is the sweep's `ground`: another than the rungs were climbed under is a ValueError.
    """

    def __init__(
        self, root: Path, config: HalvingConfig, under: Mapping[str, Any] | None = None
    ) -> None:
        self.config = config
        self._under = dict(under or {})
        self._path = Path(root) / FILE
        self._settings: dict[str, Any] = {"factor": config.factor, "rungs": list(config.rungs)}
        if config.margin:  # older files have none
            self._settings["margin"] = config.margin
        self._scores: dict[int, dict[str, float]] = {}
        self.stopped: dict[str, int] = {}
        # Without rungs nothing is judged, and what was stopped goes on.
        if self.on and self._path.is_file():
            self._read()

    @property
    def on(self) -> bool:
        """Whether there are rungs."""
        return bool(self.config.rungs)

    def keep(self, run_id: str, step: int, loss: float) -> bool:
        """Whether the run goes on from this rung; a run that comes again is told the same as the
        first time.

        A loss that is not finite counts as the worst.
        """
        rung = self._scores.setdefault(step, {})
        if run_id not in rung:
            rung[run_id] = loss if math.isfinite(loss) else math.inf
            before = list(rung.values())
            best = sorted(before)[: max(1, math.ceil(len(before) / self.config.factor))]
            if rung[run_id] > best[-1] + self.config.margin:
                self.stopped[run_id] = step
            self._write()
        return self.stopped.get(run_id) != step

    def check_contents(self, made_of: Mapping[str, str]) -> None:
        """Nothing if the runs that come are of the same contents as those before, which are known
        once they are read (`LastTask.made_of`).

        Raises:
            ValueError: something changed; it is named.
        """
        if self.on:
            self._go_on_under(_of_contents(made_of))

    def _go_on_under(self, now: Mapping[str, Any]) -> None:
        before = self._under
        if changed := [key for key, x in now.items() if before.get(key, x) != x]:
            shown = ", ".join(
                f"{key} was {before[key]!r} and is {now[key]!r}" for key in changed[:4]
            )
            raise ValueError(
                f"The losses in {self._path} were measured under other settings, and no run is to "
                f"be stopped by them: {shown}. Use the same, another folder (--config.out), or "
                f"delete {self._path} to judge all runs again."
            )
        self._under = {**before, **now}

    def last(self, run_id: str) -> float | None:
        """The validation loss of the run at the last rung where it was, None if it was at none."""
        losses = (self._scores[step].get(run_id) for step in sorted(self._scores, reverse=True))
        return next((loss for loss in losses if loss is not None), None)

    def _write(self) -> None:
        scores = {
            str(step): {name: loss if math.isfinite(loss) else None for name, loss in rung.items()}
            for step, rung in self._scores.items()
        }
        write_json(
            self._path,
            {
                "settings": self._settings,
                "under": self._under,
                "scores": scores,
                "stopped": self.stopped,
            },
        )

    def _read(self) -> None:
        try:
            values: dict[str, Any] = read_json(self._path)
            settings, scores, stopped = values["settings"], values["scores"], values["stopped"]
            before = dict(values.get("under") or {})  # older files do not say it
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"{self._path} cannot be read ({error}). Delete it: the rungs are then climbed "
                "again from the checkpoints."
            ) from error
        if settings != self._settings:
            raise ValueError(
                f"The sweep in {self._path.parent} was halved with {settings}, and now "
                f"config.sweep.halving says {self._settings}. Use the same, another folder "
                f"(--config.out), or delete {self._path} to judge all runs again."
            )

        self._under, now = before, self._under
        self._go_on_under(now)
        self._scores = {
            int(step): {name: math.inf if loss is None else loss for name, loss in rung.items()}
            for step, rung in scores.items()
        }
        self.stopped = {name: int(step) for name, step in stopped.items()}
