"""Which settings go together. What a single one may be stands on its field."""

from __future__ import annotations

from lora_jax.config.by_path import read_by_path
from lora_jax.config.fields import ADAPTERS, NO_FORMAT, Columns, Config, DataConfig
from lora_jax.config.limits import listed
from lora_jax.core.codebooks import FORMATS, check_fit
from lora_jax.core.init import initializer_named
from lora_jax.core.variants import VARIANTS
from lora_jax.data.recipes import RECIPES


def check_together(config: Config) -> None:
    """Nothing, if the settings go together.

    Raises:
        ValueError: the first that do not, with what to write instead.
    """
    _check_model(config)
    _check_data(config)
    _check_method(config)
    _check_variant(config)
    _check_steps(config)
    _check_selection(config)
    _check_mesh(config)
    _check_sweep(config)


def _check_model(config: Config) -> None:
    if config.model.offload and not config.model.remat:
        raise ValueError(
            "config.model.offload moves what recomputed blocks keep: it needs "
            "config.model.remat=true."
        )
    if config.model.base_dtype != "float32" and config.method in ("full", "top_layers"):
        raise ValueError(
            f"config.model.base_dtype {config.model.base_dtype!r} is of weights that are not "
            f"trained: small steps would round away. Method {config.method!r} needs float32."
        )
    rates = ("dropout", "attention_dropout", "head_dropout")
    if config.model.drops and config.data.task == "completion":
        named = next(name for name in rates if getattr(config.model, name))
        raise ValueError(
            f"config.model.{named} is an encoder's alone: a language model has the adapters' own, "
            "config.lora.dropout. Leave it at 0."
        )


def _check_data(config: Config) -> None:
    data = config.data
    if data.mixture and data.task != "completion":
        raise ValueError(
            "config.data.mixture is for language models: set config.data.task to 'completion', or "
            "leave it empty."
        )
    names = [part.name for part in data.mixture]
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(
            "Every task of config.data.mixture needs a name of its own, by which its metrics are "
            f"reported, got {names}."
        )
    encoded = data.task == "classification" and data.recipe is not None
    if data.label_smoothing and encoded and RECIPES[data.recipe].head in ("score", "span"):
        raise ValueError(
            f"config.data.label_smoothing spreads a label over classes or words, and the recipe "
            f"{data.recipe!r} has none on an encoder. Leave it at 0."
        )
    _check_balance(data)
    for part in (data, *data.mixture):
        _check_roles(part.recipe, part.fields)

    if data.buckets is None:
        return
    if not data.buckets or list(data.buckets) != sorted(set(data.buckets)):
        raise ValueError(
            "config.data.buckets must be token counts that increase, such as (16, 32, 128), got "
            f"{data.buckets}. Write None to have them chosen from the lengths of the texts."
        )
    if data.buckets[-1] < data.max_length:
        raise ValueError(
            "The last of config.data.buckets must hold a text of config.data.max_length = "
            f"{data.max_length} tokens, got {data.buckets}. Add {data.max_length} to the buckets, "
            f"or lower max_length to {data.buckets[-1]}."
        )


def _check_balance(data: DataConfig) -> None:
    """Only classes can be balanced, by sampling only those of whole texts."""
    if data.balance == "none":
        return
    head = "class" if data.recipe is None else RECIPES[data.recipe].head
    able = {"weights": ("class", "token"), "sampling": ("class",)}[data.balance]
    if data.task != "classification" or head not in able:
        of = "classes of texts" + (" or tags of words" if len(able) > 1 else "")
        raise ValueError(
            f"config.data.balance {data.balance!r} is of an encoder's {of}, and there are none in "
            f"task {data.task!r} with recipe {data.recipe!r}. Leave it at 'none'."
        )


def _check_roles(recipe: str | None, columns: Columns) -> None:
    if recipe is None:
        if columns:
            raise ValueError(
                f"config.data.fields ({columns}) names columns of a recipe's roles: set "
                "config.data.recipe, or name the columns with config.data.text and .label."
            )
        return
    roles = RECIPES[recipe].fields
    if unread := [role for role in columns if role not in roles]:
        raise ValueError(
            f"config.data.fields.{unread[0]} is not a role of the recipe {recipe!r}; its roles are "
            f"{', '.join(roles)}."
        )


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
            f"{format!r}. Set config.method to {instead}, or config.quant.format to 'none'."
        )

    if config.quant.double and config.quant.scale_dtype != "float32":
        raise ValueError(
            f"config.quant.scale_dtype {config.quant.scale_dtype!r} is of scales that are stored "
            "as they are: it needs config.quant.double=false."
        )
    if method == "qlora":
        named = dict.fromkeys([format, *(name for _, name in read_by_path(config.quant.formats))])
        for name in named:
            if name != NO_FORMAT:
                _check_fit(name, config)
    if method.startswith("prefix") and config.baseline.prefix + config.baseline.infix < 1:
        raise ValueError(
            "config.baseline.prefix and config.baseline.infix are both 0: a prefix needs at least "
            "one token."
        )


def _check_fit(format: str, config: Config) -> None:
    try:
        check_fit(FORMATS[format], config.quant.fit, config.quant.scale_dtype)
    except ValueError as error:
        raise ValueError(f"config.quant.fit: {error}") from None


def _check_variant(config: Config) -> None:
    """The adapter's settings go together, and with the optimiser's."""
    lora, budget = config.lora, config.optim.adalora.target_rank
    if lora.layers == ():
        raise ValueError(
            "config.lora.layers must name at least one layer, got none. Write None for all layers."
        )
    if config.method not in ADAPTERS:
        return

    VARIANTS[lora.variant].check(lora)
    init = initializer_named(lora.init)
    if lora.merge_aware and (config.method != "qlora" or init.makes_up):
        raise ValueError(
            "config.lora.merge_aware rounds the sum of base and update into the base's format: "
            + (
                f"it needs config.method 'qlora', got {config.method!r} (a base that is not "
                "quantised merges exactly)."
                if config.method != "qlora"
                else f"config.lora.init {lora.init!r} starts from factors that make up for the "
                "base's rounding, of which nothing would be left. Take another."
            )
        )
    if lora.merge_aware and lora.merge_scales == "refitted" and config.quant.fit != "range":
        raise ValueError(
            "config.lora.merge_scales 'refitted' fits scales anew in every program, to the same "
            f"bytes, and config.quant.fit {config.quant.fit!r} adds up in an order that differs. "
            "Take merge_scales 'kept', or fit 'range'."
        )
    adalora = lora.variant == "adalora"
    if adalora != (budget is not None):
        needs = (
            "needs a rank to end at: set config.optim.adalora.target_rank"
            if adalora
            else "has no budget: leave it at None"
        )
        raise ValueError(
            f"config.lora.variant {lora.variant!r} {needs} (config.optim.adalora.target_rank is "
            f"{budget})."
        )
    if adalora and budget > lora.rank:
        raise ValueError(
            f"config.optim.adalora.target_rank must be at most config.lora.rank = {lora.rank}, "
            f"got {budget}."
        )
    if config.optim.precondition_b and lora.variant != "lora_fa":
        raise ValueError(
            "config.optim.precondition_b needs config.lora.variant 'lora_fa' (a fixed `a`), "
            f"got {lora.variant!r}."
        )
    _check_factors(config)
    if lora.init_from is not None and init.reads != "shape":
        raise ValueError(
            f"config.lora.init {lora.init!r} and config.lora.init_from both say where the factors "
            "start. Leave one of them at its default."
        )
    if init.makes_up and config.method != "qlora":
        raise ValueError(
            f"config.lora.init {lora.init!r} makes up for the rounding of a quantised base: it "
            "needs config.method 'qlora'."
        )
    if lora.embedding_rows == () or (lora.parts is not None and not any(lora.parts)):
        raise ValueError(
            "config.lora.embedding_rows and config.lora.parts must name something, got none. "
            "Write None to leave them out."
        )


def _check_factors(config: Config) -> None:
    """What moves pairs of factors by their product has pairs."""
    optim, variant = config.optim, config.lora.variant
    if optim.factors == "adam":
        return
    reason = None
    if variant not in ("lora", "lora_fa", "qa_lora"):
        reason = (
            f"config.lora.variant {variant!r} trains more than two factors of a product, or others"
        )
    elif config.lora.parts is not None:
        reason = "config.lora.parts of a fused kernel are products of their own"
    elif optim.precondition_b:
        reason = "config.optim.precondition_b divides `b` by `a` a second time"
    elif optim.name != "adamw":
        reason = f"config.optim.name {optim.name!r} is of Adam's own moments"
    if reason is not None:
        raise ValueError(
            f"config.optim.factors {optim.factors!r} moves pairs of factors by their product, and "
            f"{reason}. Leave one of the two at its default."
        )


def _check_steps(config: Config) -> None:
    batch, parts = config.train.batch_size, config.train.accumulate
    if batch % parts:
        below = range(min(parts - 1, batch, 1 << 16), 0, -1)
        raise ValueError(
            "config.train.accumulate must divide config.train.batch_size, got "
            f"{parts} and {batch}. Nearest that does: "
            f"{next(n for n in below if batch % n == 0)}."
        )


def _check_selection(config: Config) -> None:
    if config.train.patience is not None and config.train.select != "best_epoch":
        raise ValueError(
            "config.train.patience counts epochs since the best one, and needs config.train.select "
            f"'best_epoch'; got {config.train.select!r}."
        )
    if config.train.select == "best_epoch" and config.train.eval_examples is not None:
        raise ValueError(
            "config.train.select 'best_epoch' chooses by the whole validation split: leave "
            f"config.train.eval_examples at None, got {config.train.eval_examples}."
        )


def _check_mesh(config: Config) -> None:
    if config.mesh.devices == 1:
        return
    alone = {"optim.offload": config.optim.offload, "memory_budget": config.memory_budget}
    if taken := [key for key, value in alone.items() if value]:
        raise ValueError(
            f"config.{taken[0]} is for one device, and config.mesh has {config.mesh.devices}: more "
            "of config.mesh.fsdp leaves less of the base and the optimiser on each. Leave it out."
        )


def _check_sweep(config: Config) -> None:
    sweep = config.sweep
    axes = [axis for axis in ("rank", "format", "targets") if getattr(sweep, axis)]
    if config.method not in ADAPTERS and axes:
        raise ValueError(
            f"config.sweep.{axes[0]} needs adapters, but config.method is {config.method!r}. Set "
            f"config.method to 'lora' and put {config.method!r} into config.sweep.baselines."
        )
    if list(sweep.halving.rungs) != sorted(set(sweep.halving.rungs)):
        raise ValueError(
            f"config.sweep.halving.rungs must be steps that increase, got {sweep.halving.rungs}."
        )
    if sweep.search.space and not sweep.search.trials:
        raise ValueError(
            "config.sweep.search.space is read by a search only: set config.sweep.search.trials to "
            "the number of trials."
        )
    if sweep.tune.factors:
        _check_tuning(config)


def _check_tuning(config: Config) -> None:
    sweep, tune = config.sweep, config.sweep.tune
    if list(tune.factors) != sorted(set(tune.factors)) or len(tune.factors) < 2:
        raise ValueError(
            "config.sweep.tune.factors must be two or more that increase, such as 0.5, 1, 2, got "
            f"{tune.factors}."
        )
    scored = sweep.seeds or (config.train.seed,)
    if not tune.seeds or set(tune.seeds) & set(scored):
        raise ValueError(
            "config.sweep.tune.seeds must be seeds that are not scored, or a value chosen by luck "
            f"would be scored with that luck; got {tune.seeds}, and {scored} are scored."
        )
    if sweep.halving.rungs:
        raise ValueError(
            "config.sweep.halving would stop cells for their loss at values that they are not "
            "scored at: leave config.sweep.halving.rungs or config.sweep.tune.factors empty."
        )
    if sweep.search.trials:
        raise ValueError(
            "A search asks for every setting itself: put config.sweep.tune.setting into "
            "config.sweep.search.space, and leave config.sweep.tune.factors empty."
        )
