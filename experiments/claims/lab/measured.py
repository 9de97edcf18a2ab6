"""The lab that trains and measures what claims ask for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab import small_model
from lab.inside import Matrix, matrices
from lab.protocol import SEEDS, Arms, Change, Losses, Trace
from lab.setting import Run, Setting
from lab.side_by_side import mixed_difference, traces_together
from lab.small_model import SmallModel
from lora_jax.sweeps.grid import run_id
from lora_jax.sweeps.provenance import cpu_count, environment
from lora_jax.sweeps.store import RunStore, is_run, read_run
from lora_jax.tasks.opening import LastTask

CORES = 2  # of the machine that times are told for


def machine_seconds(seconds: float, cores: int) -> float:
    """Seconds of a machine with `CORES` processors, all busy, that a process with `cores` of them
    takes.
    """
    return seconds * min(cores, CORES) / CORES


class Lab(Arms):
    """Trains and measures, and keeps what ran: a run of equal content, of this claim or another, is
    trained once.

    Args:
        root: folder of the runs.
        seeds: of every arm that is scored.
    """

    def __init__(
        self,
        root: Path | str = "runs/claims",
        *,
        seeds: Sequence[int] = SEEDS,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.store = RunStore(root)
        self.seeds = tuple(seeds)
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._task = LastTask()
        self._surroundings: dict[str, Any] | None = None
        self._used: dict[str, tuple[float, float]] = {}

    def new_account(self) -> None:
        """Begins to count anew which runs a claim rests on."""
        self._used = {}

    def account(self) -> dict[str, float]:
        """Machine seconds that each run and each pretraining took which the claim rests on, whenever
        it was trained, by its name.
        """
        return {name: seconds for name, (seconds, _) in self._used.items()}

    def seconds_here(self) -> float:
        """How long those took, waiting included, that were trained since `new_account`."""
        return sum(here for _, here in self._used.values())

    def run(self, setting: Setting, seed: int, rate: float, *, scored: bool = True) -> Run:
        """See `Bench.run`.

        Raises:
            RuntimeError: it failed for another reason than divergence.
        """
        self._pretrain(setting.base_of(seed))
        # Of a language model `answers` measures each example, from the adapter.
        scored = scored and isinstance(setting.base, str)
        config = setting.config(seed, rate)
        name = run_id(config) + ("-rewarded" if setting.rewarded else "")
        folder = self.store.folder(name)
        made = lambda result, error=None: Run(name, setting, seed, rate, folder, result, error)
        record = read_run(folder) if is_run(folder) else None
        if record is not None and record.status == "done":
            result = record.result
            if not scored or result.is_tested:
                cores = record.environment.get("cpu_count", CORES)
                took = machine_seconds(result.seconds or 0.0, cores)
                self._used.setdefault(name, (took, 0.0))
                return made(result)
        diverged = record is not None and (record.error or "").startswith("Diverged")
        if diverged and record.status == "failed":
            return made(None, record.error)
        task_of = self._rewarded if setting.rewarded else self._task.of
        return self._train(config, made, name, folder, task_of, scored=scored)

    def answers(self, run: Run) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Bench.answers`."""
        from lora_jax.metrics.predictions import load_predictions

        if not isinstance(run.setting.base, str):
            return self.losses(run, "B")[0], None
        said = load_predictions(run.folder / "predictions" / "test.jsonl")
        units = said.column("units")
        return said.column("loss") / units, said.column("correct") / units

    def untuned(self, setting: Setting, seed: int) -> Losses:
        """See `Bench.untuned`; kept, as all arms on a base and its texts share it."""
        stored = {
            key: value
            for key, value in setting.changes
            if key.startswith("quant.") or key == "data.name"
        }
        stored |= {} if setting.method != "qlora" else {"method": "qlora"}
        plain = Setting(setting.base, tuple(sorted(stored.items())), setting.bases)
        return self.losses((plain, seed), "B", None)

    def losses(
        self, of: Run | tuple[Setting, int], domain: str, change: Change | None = None
    ) -> Losses:
        """See `Bench.losses`. Kept in a file, unless a change has no name to keep them under.

        Raises:
            ValueError: the run diverged.
        """
        if isinstance(of, Run):
            if of.result is None:
                raise ValueError(f"The run {of.name} diverged ({of.error}): it has no losses.")
            setting, seed, config, folder = of.setting, of.seed, of.config, of.folder
        else:
            setting, seed = of
            # Before training neither rate nor seed of the run counts, but the base's.
            self._pretrain(setting.base_of(seed))
            config = setting.config(seed % setting.bases)
            folder = self.store.root / "untuned" / run_id(config)
        name = "" if change is None else getattr(change, "name", None)
        path = folder / (f"losses_{domain}-{name}.npz" if name else f"losses_{domain}.npz")
        if name is not None and path.is_file():
            with np.load(path) as kept:
                return kept["losses"], kept["weights"]

        found = self._measure(of, config, folder, domain, change)
        if name is not None:
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(path, losses=found[0], weights=found[1])
        return found

    def updates(
        self, run: Run, paths: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    ) -> list[Matrix]:
        """See `Bench.updates`."""
        return list(matrices(run, self._task.of(run.config), paths))

    def trace(self, run: Run) -> list[tuple[int, float]]:
        """See `Bench.trace`."""
        return run.trace()

    def matrices_of(self, model: str) -> dict[str, np.ndarray]:
        """See `Bench.matrices_of`."""
        from lab.weights import minilm_matrices

        return minilm_matrices()

    def together(self, setting: Setting, pairs: Sequence[tuple[int, float]]) -> list[Trace]:
        """See `Bench.together`. Trained anew at every call, and not kept."""
        self._pretrain(setting.base_of(pairs[0][0]))
        configs = [setting.config(seed, rate) for seed, rate in pairs]
        return traces_together(configs, self._task.of)

    def mixed(self, runs: Sequence[Run]) -> float:
        """See `Bench.mixed`."""
        from lora_jax.training.saved import load_run

        return mixed_difference([load_run(run.folder, tasks=self._task) for run in runs])

    def _pretrain(self, base: SmallModel | str) -> None:
        """Counts a pretraining, which is done where it has not been."""
        if isinstance(base, str) or base.name in self._used:
            return
        start = time.perf_counter()
        here = not small_model.is_pretrained(base)
        folder = small_model.pretrained(base)
        said = json.loads((folder / "pretraining.json").read_text())
        waited = time.perf_counter() - start
        took = machine_seconds(said.get("seconds") or waited, said.get("cpu_count", CORES))
        self._used[base.name] = (took, machine_seconds(waited, cpu_count()) if here else 0.0)

    def _rewarded(self, config: Any) -> Any:
        from lab.reward import RewardedTask

        return RewardedTask.of(self._task.of(config))

    def _train(
        self,
        config: Any,
        made: Callable[..., Run],
        name: str,
        folder: Path,
        task_of: Callable[[Any], Any],
        *,
        scored: bool,
    ) -> Run:
        from lora_jax.training.loop import train
        from lora_jax.training.run import Diverged

        start = time.perf_counter()
        self.store.start(name, config, self._environment(), score_test=scored)
        try:
            result = train(config, folder, task=task_of(config), score_test=scored, quiet=True)
        except Diverged as error:
            self.store.fail(name, error)
            self._say(f"  {name}: diverged")
            return made(None, f"{type(error).__name__}: {error}")
        except BaseException:
            self.store.release(name)
            raise
        self.store.finish(name, result)
        took = time.perf_counter() - start
        # What stands in its result, as every other claim that rests on it counts it.
        seconds = (result.seconds or 0.0, took)
        self._used[name] = tuple(machine_seconds(one, cpu_count()) for one in seconds)
        loss = result.value("validation", "loss")
        rate = config.optim.learning_rate
        self._say(f"  {name}: rate {rate:.3g}, validation {loss:.4f}, {took:.0f} s")
        return made(result)

    def _measure(
        self, of: Any, config: Any, folder: Path, domain: str, change: Change | None
    ) -> Losses:
        import jax

        from lab.examples import example_losses
        from lora_jax.training.saved import load_run

        if isinstance(of, Run):
            saved = load_run(folder, tasks=self._task)
            task, frozen, trainable = saved.task, saved.frozen, saved.trainable
        else:
            task = self._task.of(config)
            frozen, trainable = task.trainable(config, jax.random.key(0))
        if change is not None:
            frozen, trainable = change(task, frozen, trainable)
        encoded = task.splits["test"] if domain == "B" else small_model.held_out()
        buckets = getattr(task, "buckets", ())
        return example_losses(task.model, encoded, frozen, trainable, buckets=buckets)

    def _environment(self) -> dict[str, Any]:
        if self._surroundings is None:
            self._surroundings = environment()
        return self._surroundings
