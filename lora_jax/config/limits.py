"""Which values of a setting are legal, and which settings go together."""

from __future__ import annotations

import itertools
import re
import typing
from collections.abc import Callable
from typing import Any

from lora_jax.config.fields import (
    ADAPTERS,
    NO_FORMAT,
    Config,
    Method,
    choose,
    default_of,
    flatten,
    listed,
    resolve_targets,
)
from lora_jax.core.codebooks import FORMATS
from lora_jax.core.init import INITIALIZERS, VARIANTS, initializer_named
from lora_jax.data.tasks import RECIPES

_Limit = tuple[str, Callable[[Any], bool]]
_COUNT: _Limit = ("1 or more", lambda value: value >= 1)
_POSITIVE: _Limit = ("above 0", lambda value: value > 0)
_NOT_NEGATIVE: _Limit = ("0 or more", lambda value: value >= 0)
_SHARE: _Limit = ("at least 0 and below 1", lambda value: 0 <= value < 1)
_LIMITS: dict[str, _Limit] = {
    **dict.fromkeys(("lora.rank", "sweep.rank", "data.buckets", "data.train_examples", "train.total_steps"), _COUNT),
    **dict.fromkeys(("train.batch_size", "train.accumulate", "train.eval_batch_size", "train.eval_examples"), _COUNT),
    **dict.fromkeys(("train.log_every", "train.eval_every", "train.checkpoint_every"), _COUNT),
    **dict.fromkeys(("lora.alpha", "optim.lora_plus_ratio", "optim.eps", "train.epochs"), _POSITIVE),
    **dict.fromkeys(("optim.learning_rate", "optim.head_learning_rate"), _POSITIVE),
    **{f"sweep.learning_rate.{method}": _POSITIVE for method in typing.get_args(Method)},
    **dict.fromkeys(("optim.weight_decay", "optim.clip_norm", "train.seed", "optim.adalora.orthogonality"), _NOT_NEGATIVE),
    **dict.fromkeys(("lora.group_size", "lora.calibration_batches", "optim.adalora.interval"), _COUNT),
    **dict.fromkeys(("baseline.top_layers", "baseline.size"), _COUNT),
    **dict.fromkeys(("baseline.dropped", "baseline.prefix", "baseline.infix", "lora.embedding_rows"), _NOT_NEGATIVE),
    **dict.fromkeys(("optim.adalora.warmup_steps", "optim.adalora.final_steps"), _NOT_NEGATIVE),
    **dict.fromkeys(("optim.adalora.beta1", "optim.adalora.beta2"), _SHARE),
    "optim.adalora.target_rank": _POSITIVE,
    "data.mixture_temperature": ("1 or more", lambda value: value >= 1),
    **dict.fromkeys(("data.decoding.max_new", "data.decoding.beams"), _COUNT),
    "data.decoding.no_repeat_ngram": ("0 or 2 or more", lambda value: value >= 0 and value != 1),
    **dict.fromkeys(("sweep.seeds", "lora.layers", "sweep.stack"), _NOT_NEGATIVE),
    "sweep.memory_budget_gb": _POSITIVE,
    **dict.fromkeys(("sweep.search.trials", "sweep.search.seed"), _NOT_NEGATIVE),
    "sweep.halving.rungs": _COUNT,
    "sweep.halving.factor": ("2 or more", lambda value: value >= 2),
    **dict.fromkeys(("lora.dropout", "optim.beta1", "optim.beta2", "optim.warmup_fraction"), _SHARE),
    "data.max_length": ("3 or more (two of the tokens are special ones)", lambda value: value >= 3),
    "quant.block_size": ("an even number of weights, 2 or more", lambda value: value >= 2 and value % 2 == 0),
    "model.name": ("a name", bool),
    "data.name": ("a name", bool),
    "out": ("a folder", bool),
}  # fmt: skip


def validate(config: Config) -> None:
    """Nothing, if every value is legal and the values go together.

    Raises:
        ValueError: the first one that is not, with what to write instead.
    """
    for key, value in flatten(config).items():
        words, holds = _LIMITS.get(key, ("", lambda value: True))
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and not holds(item):
                raise ValueError(
                    f"config.{key} must be {words}, got {item!r}. The default is "
                    f"{default_of(key)!r}."
                )
    if config.model.offload and not config.model.remat:
        raise ValueError(
            "config.model.offload moves what recomputed blocks keep: it needs "
            "config.model.remat=true."
        )
    if config.data.mixture and config.data.task != "completion":
        raise ValueError(
            "config.data.mixture is for language models: set config.data.task to 'completion', or "
            "leave it empty."
        )
    names = [part.name for part in config.data.mixture]
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(
            "Every task of config.data.mixture needs a name of its own, by which its metrics are "
            f"reported, got {names}."
        )
    if config.data.recipe is not None:
        choose(config.data.recipe, tuple(RECIPES), "data.recipe")
        unread = [
            name
            for name, column in vars(config.data.fields).items()
            if column and name not in RECIPES[config.data.recipe].fields
        ]
        if unread:
            raise ValueError(
                f"config.data.fields.{unread[0]} is not a role of the recipe "
                f"{config.data.recipe!r}; its roles are "
                f"{', '.join(RECIPES[config.data.recipe].fields)}."
            )
    choose(config.lora.variant, tuple(VARIANTS), "lora.variant")
    if not re.fullmatch(r"pissa_niter_\d+", config.lora.init):
        choose(config.lora.init, tuple(INITIALIZERS), "lora.init")
    for key, names in (
        ("quant.format", (config.quant.format,)),
        ("sweep.format", config.sweep.format),
    ):
        for name in names:
            choose(name, (NO_FORMAT, *FORMATS), key)
    for targets in (config.lora.targets, config.quant.targets, *config.sweep.targets):
        resolve_targets(targets)
    if list(config.sweep.halving.rungs) != sorted(set(config.sweep.halving.rungs)):
        raise ValueError(
            "config.sweep.halving.rungs must be steps that increase, got "
            f"{config.sweep.halving.rungs}."
        )
    if config.sweep.search.space and not config.sweep.search.trials:
        raise ValueError(
            "config.sweep.search.space is read by a search only: set config.sweep.search.trials to "
            "the number of trials."
        )
    _check_method(config)
    _check_variant(config)
    _check_sizes(config)


def _check_method(config: Config) -> None:
    """The method goes with the format, and a grid of adapters with a method that has one."""
    method, format = config.method, config.quant.format
    if method == "qlora" and format == NO_FORMAT:
        raise ValueError(
            "config.method 'qlora' needs a quantised base, but config.quant.format is 'none'. "
            f"Set config.quant.format to one of {listed(FORMATS)}, or the method to 'lora'."
        )
    if method != "qlora" and format != NO_FORMAT:
        instead = (
            "'qlora'" if method == "lora" else "'qlora' (only adapters train on a quantised base)"
        )
        raise ValueError(
            f"config.method {method!r} keeps the base as it was loaded, but config.quant.format is "
            f"{format!r}. "
            f"Set config.method to {instead}, or config.quant.format to 'none'."
        )
    if config.quant.double and config.quant.scale_dtype != "float32":
        raise ValueError(
            f"config.quant.scale_dtype {config.quant.scale_dtype!r} is of scales that are stored "
            "as they are: it needs "
            "config.quant.double=false."
        )
    axes = [axis for axis in ("rank", "format", "targets") if getattr(config.sweep, axis)]
    if method not in ADAPTERS and axes:
        raise ValueError(
            f"config.sweep.{axes[0]} needs adapters, but config.method is {method!r}. "
            f"Set config.method to 'lora' and put {method!r} into config.sweep.baselines."
        )


def _check_variant(config: Config) -> None:
    """The adapter's settings go together, and with the optimiser's."""
    lora, optim, baseline = config.lora, config.optim, config.baseline
    if config.method in ADAPTERS:
        VARIANTS[lora.variant].check(lora)
        adalora = lora.variant == "adalora"
        if adalora != (optim.adalora.target_rank is not None):
            needs = (
                "needs a rank to end at: set config.optim.adalora.target_rank"
                if adalora
                else "has no budget: leave it at None"
            )
            raise ValueError(
                f"config.lora.variant {lora.variant!r} {needs} (config.optim.adalora.target_rank "
                f"is {optim.adalora.target_rank})."
            )
        if adalora and optim.adalora.target_rank > lora.rank:
            raise ValueError(
                f"config.optim.adalora.target_rank must be at most config.lora.rank = {lora.rank}, "
                f"got {optim.adalora.target_rank}."
            )
        if optim.precondition_b and lora.variant != "lora_fa":
            raise ValueError(
                "config.optim.precondition_b needs config.lora.variant 'lora_fa' (a fixed `a`), "
                f"got {lora.variant!r}."
            )
        if initializer_named(lora.init).reads == "format" and config.method != "qlora":
            raise ValueError(
                f"config.lora.init {lora.init!r} chooses the codes of a quantised base: it needs "
                "config.method 'qlora'."
            )
        if lora.embedding_rows == () or (lora.parts is not None and not any(lora.parts)):
            raise ValueError(
                "config.lora.embedding_rows and config.lora.parts must name something, got none. "
                "Write None to leave them out."
            )
    if config.method.startswith("prefix") and baseline.prefix + baseline.infix < 1:
        raise ValueError(
            "config.baseline.prefix and config.baseline.infix are both 0: a prefix needs at least "
            "one token."
        )


def _check_sizes(config: Config) -> None:
    """Buckets, where given, increase and hold max_length; parts divide the batch, and a choice of
    layers is not empty.
    """
    data, train = config.data, config.train
    if data.buckets is not None and (
        not data.buckets or any(low >= high for low, high in itertools.pairwise(data.buckets))
    ):
        raise ValueError(
            "config.data.buckets must be token counts that increase, such as (16, 32, 128), got "
            f"{data.buckets}. "
            "Write None to have them chosen from the lengths of the texts."
        )
    if data.buckets is not None and data.buckets[-1] < data.max_length:
        raise ValueError(
            "The last of config.data.buckets must hold a text of config.data.max_length = "
            f"{data.max_length} tokens, "
            f"got {data.buckets}. Add {data.max_length} to the buckets, or lower max_length to "
            f"{data.buckets[-1]}."
        )
    if train.batch_size % train.accumulate:
        raise ValueError(
            "config.train.accumulate must divide config.train.batch_size, "
            f"got {train.accumulate} and {train.batch_size}. "
            "Nearest that does: "
            f"{max(n for n in range(1, train.accumulate) if train.batch_size % n == 0)}."
        )
    if config.lora.layers == ():
        raise ValueError(
            "config.lora.layers must name at least one layer, got none. Write None for all layers."
        )
