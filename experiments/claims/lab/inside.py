"""What a training run on S did to each matrix: its update's spectrum beside the pretrained weight,
layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lab.contrast import OverSeeds
from lab.setting import Run
from lora_jax.analysis.spectra import Svd, dense_svd, update_svd
from lora_jax.core.lowrank import LowRank
from lora_jax.core.paths import flatten
from lora_jax.io.adapter import load_adapter
from lora_jax.tasks.task import Task


@dataclass(frozen=True)
class Matrix:
    """One matrix of one layer: the pretrained weight (in, out), its update as factors (svd) and,
    for an adapter, `a` (in, r).
    """

    path: str
    layer: int
    weight: np.ndarray
    update: Svd
    a: np.ndarray | None = None
    start: np.ndarray | None = None

    @property
    def tuned(self) -> np.ndarray:
        """Weight plus update."""
        return self.weight + (self.update.u * self.update.s) @ self.update.vt


def matrices(run: Run, task: Task, paths: tuple[str, ...]) -> Iterator[Matrix]:
    """Every adapted (or, under full fine-tuning, every) matrix whose name is among `paths`, by path
    and layer.

    Raises:
        ValueError: the run diverged, or the adapter belongs to another base.
    """
    from lora_jax.training.run import initial_state

    if run.result is None:
        raise ValueError(f"The run {run.name} diverged: there is no update to look at.")
    trainable, _ = load_adapter(run.folder / "adapter", base=task.base)
    before = initial_state(run.config, task, 1)[1].trainable  # made again from the run's seed
    for path, base in flatten(task.params).items():
        name = path.split("/")[-2]
        if path not in trainable or not path.endswith("/kernel") or name not in paths:
            continue
        leaf, base = trainable[path], np.asarray(base, np.float64)
        svd = (
            update_svd(leaf)
            if isinstance(leaf, LowRank)
            else dense_svd(np.asarray(leaf.value, np.float64) - base)
        )
        for layer in range(base.shape[0]):
            a = np.asarray(leaf.a[layer], np.float64) if isinstance(leaf, LowRank) else None
            start = None if a is None else np.asarray(before[path].a[layer], np.float64)
            yield Matrix(path, layer, base[layer], Svd(*(part[layer] for part in svd)), a, start)


def over_pairs(count: int, figure: Callable[[int, int], float]) -> OverSeeds:
    """A figure of two runs of different seeds, by seed its jackknife's pseudo-value: every seed is in
    many pairs, and means over the pairs of one would seem to agree far better than seeds do. Their
    mean is that of all pairs.
    """
    table = np.array(
        [[figure(i, j) if i != j else np.nan for j in range(count)] for i in range(count)]
    )
    without = [np.nanmean(np.delete(np.delete(table, n, 0), n, 1)) for n in range(count)]
    values = count * np.nanmean(table) - (count - 1) * np.array(without)
    return OverSeeds(tuple(values.tolist()))
