"""The training loop for a model, a loss and arrays of one's own, without a config and a task."""

from __future__ import annotations

import hashlib
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lora_jax.config import from_config_dict
from lora_jax.core.fingerprint import fingerprint
from lora_jax.core.json_files import read_json, save_json
from lora_jax.core.model_variable import give_variables
from lora_jax.core.trainable import Trainables, given_fields
from lora_jax.io.adapter import load_adapter
from lora_jax.metrics.table import Primary
from lora_jax.tasks.custom import Arrays
from lora_jax.tasks.given import GivenTask
from lora_jax.training import loop
from lora_jax.training.result import RunResult


class Fitted(NamedTuple):
    """What `fit` gives: the adapters of the last or the best epoch, and what was measured."""

    trainable: dict[str, Any]
    result: RunResult


def fit(
    model: Any,
    frozen: Mapping[str, Any],
    trainable: Trainables,
    data: Mapping[str, Mapping[str, Any]],
    *,
    loss: Callable[..., Any],
    folder: Path | str,
    train: Mapping[str, Any] | None = None,
    optim: Mapping[str, Any] | None = None,
    collections: Mapping[str, Any] | None = None,
    metric: Literal["loss", "accuracy"] = "loss",
    quiet: bool = False,
) -> Fitted:
    """Trains adapters of any model by the loop of the commands, and gives the trained ones.

    >>> def loss(model, batch):  # doctest: +SKIP
    ...     logits = model(batch["x"], train=model.training)
    ...     each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    ...     return each, logits.argmax(-1) == batch["y"]

    The folder gets metrics.jsonl, checkpoints and the adapter. The same call goes on from the
    newest checkpoint, bit for bit, and gives what there is if the training is done. What makes it
    the same is in fit.json: the model's settings, the loss's source, the base, the start and the
    data. What a loss takes from outside of itself is not compared.

    Args:
        frozen, trainable: as `adapt` gives them; neither is changed.
        data: by split, arrays by name whose first axis counts examples (numpy.memmap, too):
            'train', 'validation' and, if there is one, 'test'.
        loss: `(model, batch)` to the loss of every row or to their mean; in a tuple with it, if it
            likes, whether each row is right. `model(...)` runs the model with its adapters;
            `model.training` is whether this is a step of training, and `model.key` a random key for
            what is random in the loss itself (`lora_jax.tasks.custom.Running`).
        folder: one of its own for each training.
        train, optim: settings of `config.train` and `config.optim`: epochs, batch_size, accumulate,
            checkpoint_every, select, patience, seed; learning_rate, schedule, warmup_fraction,
            clip_norm, weight_decay and so on.
        collections: a Linen model's other variables, such as batch statistics: training moves them,
            and they are among what is given (`lora_jax.core.take_variables`).
        metric: what the best epoch is best in.

    Raises:
        Diverged: the loss is NaN or infinite; the message says since which step.
        Interrupted: SIGTERM or SIGINT came; there is a checkpoint.
        ValueError: a split is missing, a setting does not fit, or the folder is another training's.
    """
    if missing := [name for name in ("train", "validation") if name not in data]:
        raise ValueError(
            f"fit needs the splits train and validation; {missing[0]} is missing of "
            f"{', '.join(data) or 'none'}. Give some examples of another split, if there are none."
        )
    name, base = type(model).__name__, fingerprint(frozen)
    settings = {"eval_batch_size": (train or {}).get("batch_size", 64), **(train or {})}
    config = from_config_dict(
        {"model": {"name": name}, "train": settings, "optim": dict(optim or {})}
    )
    task = GivenTask(
        model=model,
        params=frozen,
        trained={**trainable, **give_variables(collections or {})},
        sites={},
        splits={split: Arrays(arrays) for split, arrays in data.items()},
        note=f"trained by lora_jax.training.fit: {name}",
        fingerprint=lambda: base,
        loss=loss,
    )
    task.primary = Primary(metric, "records")
    batch = task.batches("train", config.train.batch_size)[0]
    seen = jax.eval_shape(task.per_example, frozen, task.trained, batch, jax.random.key(0))
    if metric == "accuracy" and seen.correct is None:
        raise ValueError(
            "metric='accuracy' needs a loss that gives, in a tuple, the loss and whether each row "
            "is right; this one gives the loss alone."
        )
    _check_same(
        Path(folder),
        {
            "model": re.sub(r" at 0x[0-9a-f]+", "", repr(model)),
            "loss": _source(loss),
            "metric": metric,
            "the adapters to start from": _digest(task.trained),
            **{f"data[{split!r}]": arrays.fingerprint for split, arrays in task.splits.items()},
        },
    )
    result = loop.train(config, Path(folder), task=task, score_test="test" in data, quiet=quiet)
    return Fitted(load_adapter(Path(folder) / "adapter", base=base)[0], result)


_SAME = "fit.json"


def _check_same(folder: Path, said: Mapping[str, str]) -> None:
    """Raises ValueError if the folder is of a training that differs in what `said` says; writes it
    down in a new one.
    """
    said = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in said.items()}
    if not (folder / _SAME).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_json(folder / _SAME, said)
        return
    before = read_json(folder / _SAME)
    if odd := sorted(name for name in {*said, *before} if said.get(name) != before.get(name)):
        raise ValueError(
            f"{folder} is another training's: these differ: {', '.join(odd)}. Give each training a "
            "folder of its own, or remove this one to begin anew."
        )


def _digest(trainable: Trainables) -> str:
    """Of all arrays of an adapter, by path and field."""
    return fingerprint(
        {
            f"{path}/{name}": np.asarray(getattr(leaf, name))
            for path, leaf in trainable.items()
            for name in given_fields(leaf)
        }
    )


def _source(function: Callable[..., Any]) -> str:
    """A function's source, or its code where there is none; of another callable, its class."""
    if not hasattr(function, "__code__"):
        return repr(type(function))
    try:
        return textwrap.dedent(inspect.getsource(function))
    except OSError:
        return repr(_instructions(function.__code__))


def _instructions(code: CodeType) -> tuple[Any, ...]:
    inner = (_instructions(x) if isinstance(x, CodeType) else repr(x) for x in code.co_consts)
    return (code.co_code, code.co_names, *inner)
