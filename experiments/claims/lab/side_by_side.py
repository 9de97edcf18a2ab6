"""Runs that are trained side by side, and adapters that are served from one batch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab.setting import trace_of
from lora_jax.adapters.apply import apply
from lora_jax.adapters.many import apply_many, make_bank
from lora_jax.config import Config
from lora_jax.tasks.language_loss import hidden_inputs
from lora_jax.training.loop import fit
from lora_jax.training.run import Run as Training
from lora_jax.training.saved import SavedRun


def traces_together(
    configs: Sequence[Config], task_of: Callable[[Config], Any]
) -> list[list[tuple[int, float]]]:
    """(step, training loss) of each run, all trained in one program.

    Raises:
        Exception: what a run failed with.
    """
    outcomes: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        runs = [Training(config, Path(folder) / str(n)) for n, config in enumerate(configs)]
        fit(
            runs,
            lambda run, outcome: outcomes.append(outcome),
            task_of=task_of,
            wide=configs[0],
            slots=len(runs),
            score_test=False,
            quiet=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return [trace_of(run.folder) for run in runs]


def mixed_difference(saved: Sequence[SavedRun]) -> float:
    """The largest difference of last hidden states, over the largest state, between one batch whose
    examples take turns with the runs' adapters and the same batch with each adapter alone.
    """
    task, frozen = saved[0].task, saved[0].frozen
    inputs = hidden_inputs(task.batches("test", 4 * len(saved), shuffle=False, epochs=1)[0])
    ids = jnp.arange(len(inputs[0])) % len(saved)
    bank = make_bank([one.trainable for one in saved])
    states = lambda found: np.asarray(jax.device_get(found[0]))
    together = states(apply_many(task.model, frozen, bank, ids, *inputs, method="hidden"))
    off = 0.0
    for n, one in enumerate(saved):
        alone = states(apply(task.model, frozen, one.trainable, *inputs, method="hidden"))
        apart = np.abs(together - alone)[np.asarray(ids) == n]
        off = max(off, float(apart.max() / np.abs(alone).max()))
    return off
