"""The settings: one frozen dataclass a group, each field with its unit and legal values; and the
names of targets.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Method = Literal[
    "full",
    "head",
    "lora",
    "qlora",
    "bitfit",
    "top_layers",
    "bottleneck",
    "prefix_embedding",
    "prefix_layers",
    "ia3",
]
Baseline = Literal[
    "full", "head", "bitfit", "top_layers", "bottleneck", "prefix_embedding", "prefix_layers", "ia3"
]
ADAPTERS = ("lora", "qlora")  # the methods that have a rank and targets; the others are baselines
NO_FORMAT = "none"  # the base as it was loaded, shown to people as "fp32"

# With scan the blocks are `layers/...`, without it `layers_0/...`, `layers_1/...`: one name must
# serve both.
TARGETS: dict[str, str] = {
    "query+value": r"layers(_\d+)?/attn/(q|v)/kernel",
    "attention": r"layers(_\d+)?/attn/(q|k|v|o)/kernel",
    "mlp": r"layers(_\d+)?/mlp/(gate|up|down)/kernel",
    "all-linear": r"(layers(_\d+)?/.*|pooler)/kernel",
}


@dataclass(frozen=True)
class ModelConfig:
    """The pretrained encoder and how its program is built."""

    name: str = "minilm-l6"  # a known name, a local folder, or a Hugging Face id
    revision: str | None = (
        None  # branch, tag or commit of a Hugging Face id; None = its main branch
    )
    scan: bool = True  # the equal blocks are one nn.scan: compiles once, not once a layer
    remat: bool = (
        False  # recompute a block in the backward pass: less memory, about a third more time
    )
    offload: bool = (
        False  # with remat: what is kept of a block waits in host memory, where the device has one
    )
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and products


@dataclass(frozen=True)
class FieldsConfig:
    """The column of each role of a task recipe, or a path such as input.-1.content; None = the
    recipe's own name for it.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    score: str | None = None
    words: str | None = None
    tags: str | None = None
    context: str | None = None
    question: str | None = None
    answers: str | None = None
    choices: str | None = None
    answer: str | None = None
    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    messages: str | None = None
    summary: str | None = None
    source: str | None = None
    target: str | None = None
    references: str | None = None
    task: str | None = None
    code: str | None = None
    table: str | None = None
    prompt: str | None = None
    completion: str | None = None


@dataclass(frozen=True)
class DecodingConfig:
    """How answers are generated when a language model is scored by its texts. None = as the recipe
    does it.
    """

    max_new: int | None = None  # new tokens at most, 1 or more
    beams: int | None = None  # 1 = greedy
    length_penalty: float | None = (
        None  # a finished beam's log probability is divided by length ** this
    )
    no_repeat_ngram: int | None = None  # n-grams that may not come twice in an answer; 0 = none
    stop: tuple[str, ...] | None = None  # strings that end an answer


@dataclass(frozen=True)
class MixturePart:
    """One task of a mixture; the fields are those of DataConfig."""

    name: str = ""
    recipe: str = "completion"
    fields: FieldsConfig = FieldsConfig()
    prompt: str | None = None
    completion: str | None = None
    train_examples: int | None = None
    on_error: Literal["stop", "skip"] = "stop"


@dataclass(frozen=True)
class DataConfig:
    """Texts and labels. `buckets`, where given, increase strictly and the last one holds a text of
    `max_length`.
    """

    task: Literal["classification", "completion"] = (
        "classification"  # completion: a decoder learns to continue prompts, T5 to answer them
    )
    # a known name, a TFDS catalogue name such as glue/sst2, or a .csv or .jsonl file
    name: str = "rotten_tomatoes"
    text: str = "text"  # column of the text, or of the prompt
    text_pair: str | None = (
        None  # column of a second text (sentence pairs); None = one text an example
    )
    label: str = "label"  # column of the class, or of the completion
    max_length: int = 128  # tokens, with the special ones; longer texts are cut. 3 or more
    # Tokens: a batch is padded to the first bucket that holds its texts. None = chosen from the
    # data's lengths.
    buckets: tuple[int, ...] | None = None
    train_examples: int | None = None  # cap of the training set; None = all
    # A name in lora_jax.data.tasks.RECIPES: what the fields mean, how a prompt is made of them,
    # what scores and decodes an answer. With it, text, text_pair and label are not read: `fields`
    # names the columns. None = the plain loaders.
    recipe: str | None = None
    fields: FieldsConfig = FieldsConfig()
    prompt: str | None = (
        None  # template over the recipe's roles, such as 'Review: {text}'; None = the recipe's
    )
    completion: str | None = None  # template of what a decoder is to write; None = the recipe's
    label_names: tuple[str, ...] | None = (
        None  # classes in the order of their ids; None = the data set's, or those of train, sorted
    )
    metrics: tuple[str, ...] | None = (
        # names in lora_jax.metrics.table.METRICS, the one to report first; None = the recipe's
        None
    )
    decoding: DecodingConfig = DecodingConfig()
    # Several tasks for one language model, drawn with probability ~ size ** (1 /
    # mixture_temperature). With them, `name` is not read.
    mixture: tuple[MixturePart, ...] = ()
    mixture_temperature: float = 1.0  # 1 or more; 1 = every example alike, large = every task alike
    on_error: Literal["stop", "skip"] = (
        "stop"  # a wrong row: an error, or left out and counted (with a recipe)
    )

    @property
    def title(self) -> str:
        """What is trained on, in words: the name, or those of a mixture."""
        return " + ".join(part.name for part in self.mixture) or self.name


@dataclass(frozen=True)
class LoraConfig:
    """The adapter of methods lora and qlora. The other methods do not read it."""

    rank: int = 8  # 1 or more
    alpha: float = 16.0  # numerator of the scale, above 0
    scaling: Literal["standard", "rslora"] = "standard"  # alpha / rank, or alpha / sqrt(rank)
    dropout: float = 0.0  # probability in [0, 1) on the adapter's input, in training
    # a name in lora_jax.core.init.INITIALIZERS, or pissa_niter_N; loftq and qpissa need method
    # qlora
    init: str = "kaiming"
    targets: str = "all-linear"  # a name in TARGETS, or a full-match regex on parameter paths
    layers: tuple[int, ...] | None = None  # indices of the adapted layers, from 0; None = all
    dora: bool = False  # a trained magnitude for each output column
    variant: str = (
        "lora"  # a name in lora_jax.core.variants.VARIANTS: lora, lora_fa, vera, adalora, qa_lora
    )
    group_size: int = 32  # inputs that share a row of `a` under variant qa_lora, 1 or more
    parts: tuple[bool, ...] | None = (
        None  # which projections of a fused kernel are adapted, such as (true, false, true)
    )
    bias: Literal["none", "all", "lora_only"] = "none"  # biases that are trained whole besides
    embedding_rows: tuple[int, ...] | None = None  # word ids whose embeddings are trained besides
    calibration_batches: int = (
        8  # training batches that inits eva, corda, corda_kpm and lora_ga measure, 1 or more
    )


@dataclass(frozen=True)
class QuantConfig:
    """How the frozen base is stored under method qlora. The other methods do not read it."""

    format: str = NO_FORMAT  # none, or a name in lora_jax.core.codebooks.FORMATS
    block_size: int | None = (
        64  # weights that share a scale, even; None = one scale an output channel
    )
    double: bool = True  # store the scales themselves in 8 bits
    second_level: Literal["mean", "log"] = (
        "mean"  # of double: QLoRA's, or 'log', safe where some blocks are far larger than others
    )
    scale_dtype: Literal["float32", "bfloat16", "e8m0"] = (
        "float32"  # of scales without double; e8m0: the powers of two of MX formats
    )
    targets: str = TARGETS["all-linear"]  # as lora.targets: the parameters that are quantised


@dataclass(frozen=True)
class BaselineConfig:
    """The baselines that are not adapters of weights. Each method reads its own fields."""

    # method top_layers: the last blocks, trained whole with the pooler and the classifier, 1 or
    # more
    top_layers: int = 2
    kind: Literal["houlsby", "lin", "pfeiffer"] = (
        "houlsby"  # method bottleneck: where the adapters stand
    )
    size: int = 64  # method bottleneck: width, 1 or more
    dropped: int = (
        0  # method bottleneck: blocks from the first that have none (AdapterDrop), 0 or more
    )
    prefix: int = 16  # methods prefix_*: trained tokens after the first token, 0 or more
    infix: int = 0  # methods prefix_*: trained tokens at the end, 0 or more


@dataclass(frozen=True)
class AdaLoraConfig:
    """AdaLoRA's rank budget, under lora.variant adalora. It starts at lora.rank columns a
    matrix.
    """

    target_rank: float | None = (
        None  # mean columns a matrix at the end, above 0; None = no budget (other variants)
    )
    warmup_steps: int = 0  # steps before the budget falls, 0 or more
    final_steps: int = 0  # steps at the end with a fixed choice, 0 or more
    interval: int = 10  # steps from one masking to the next, 1 or more
    beta1: float = 0.85  # smoothing of the importance, in [0, 1)
    beta2: float = 0.85  # smoothing of its fluctuation, in [0, 1)
    orthogonality: float = 0.1  # weight of the penalty, 0 or more


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    name: Literal["adamw", "adamw8bit"] = (
        "adamw"  # adamw8bit: moments of 4096 numbers or more in 8 bits, as bitsandbytes has them
    )
    offload: bool = False  # the moments stay in host memory between steps, where the device has one
    learning_rate: float = 1e-3  # peak, above 0
    head_learning_rate: float | None = None  # of the modules trained whole; None = learning_rate
    lora_plus_ratio: float = 1.0  # learning rate of `b` over that of `a`, above 0 (LoRA+: 16)
    weight_decay: float = 0.01  # decoupled, 0 or more
    beta1: float = 0.9  # in [0, 1)
    beta2: float = 0.999  # in [0, 1)
    eps: float = 1e-8  # above 0
    schedule: Literal["linear", "cosine", "constant"] = (
        "linear"  # what follows the warm-up, down to 0
    )
    warmup_fraction: float = 0.06  # share of the steps, in [0, 1)
    clip_norm: float = 1.0  # largest global norm of the gradient; 0 = no clipping
    precondition_b: bool = (
        False  # PEFT's form of LoRA-FA: the gradient of `b` times (a^T a)^-1 / scale^2
    )
    adalora: AdaLoraConfig = AdaLoraConfig()


@dataclass(frozen=True)
class TrainConfig:
    """The loop. `accumulate` divides `batch_size`."""

    total_steps: int | None = None  # optimiser steps; None = as many as `epochs` has
    epochs: float = 1.0  # passes over the training set, above 0; not read when total_steps is set
    batch_size: int = 32  # examples an optimiser step
    accumulate: int = 1  # the batch is computed in this many equal parts
    eval_batch_size: int = 64  # examples
    eval_examples: int | None = None  # cap of the validation set; None = all
    log_every: int = 10  # steps
    eval_every: int | None = None  # steps; None = at the end only
    checkpoint_every: int = 100  # steps
    seed: int = 0  # of the factors, the head, the order of the data and dropout; 0 or more


@dataclass(frozen=True)
class LearningRates:
    """Learning rate of each method in a sweep; None = optim.learning_rate."""

    full: float | None = None
    head: float | None = None
    lora: float | None = None
    qlora: float | None = None
    bitfit: float | None = None
    top_layers: float | None = None
    bottleneck: float | None = None
    prefix_embedding: float | None = None
    prefix_layers: float | None = None
    ia3: float | None = None


@dataclass(frozen=True)
class HalvingConfig:
    """Successive halving: at each rung the best 1 / factor of the runs that have come so far go on,
    by validation loss.
    """

    rungs: tuple[
        int, ...
    ] = ()  # steps, ascending, below the run's last; none = every run is finished
    factor: int = 3  # 2 or more


@dataclass(frozen=True)
class SearchConfig:
    """A search by Optuna (the extra 'search') in place of a grid: trials are judged by validation
    loss, the mean over sweep.seeds.
    """

    trials: int = 0  # how many; 0 = no search
    # A line for each setting: "optim.learning_rate = log 1e-4 .. 1e-2", "lora.rank = 1, 4, 16". See
    # lora_jax.sweeps.search.
    space: tuple[str, ...] = ()
    seed: int = 0  # of the settings that are asked


@dataclass(frozen=True)
class SweepConfig:
    """A grid, rank × format × targets × seeds, and baselines × seeds. An empty axis keeps the
    config's value.
    """

    rank: tuple[int, ...] = ()
    format: tuple[str, ...] = ()  # as quant.format; none = LoRA on the base as it was loaded
    targets: tuple[
        str, ...
    ] = ()  # as lora.targets; regexes with commas must stand in a config file
    seeds: tuple[int, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    learning_rate: LearningRates = LearningRates()
    # More axes, each a line: "lora.alpha = 8, 16"; zipped: "lora.rank, lora.alpha = (4, 8), (8,
    # 16)"; for some runs only: "quant.block_size = 32, 64 if quant.format == nf4"; several bases:
    # "model.name = minilm-l6, ./mine". See lora_jax.sweeps.axes.
    axes: tuple[str, ...] = ()
    # most adapters that are trained side by side in one program; 1 = each alone, 0 = all that the
    # memory budget holds
    stack: int = 1
    memory_budget_gb: float | None = (
        None  # largest predicted peak of a program, in GB of 1e9 bytes, above 0; None = no limit
    )
    halving: HalvingConfig = HalvingConfig()
    search: SearchConfig = SearchConfig()


@dataclass(frozen=True)
class Config:
    """One run, or with `sweep` a grid of them. `method` qlora goes with a quant.format, the others
    with format none.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    # full: every weight. head: the classifier alone. The others train the classifier and: lora,
    # qlora: factors. bitfit: biases. top_layers: the last blocks. bottleneck: small networks in
    # each block. prefix_*: inserted states. ia3: gains.
    method: Method = "lora"
    lora: LoraConfig = LoraConfig()
    quant: QuantConfig = QuantConfig()
    baseline: BaselineConfig = BaselineConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    # Such as 2GiB: before training, format, micro-batches and remat are chosen so that the process
    # stays under it; None = as set.
    memory_budget: str | None = None
    out: str = "runs/default"  # folder of the result store


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a config, in the order of its fields."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        flat.update(flatten(value, key + ".") if dataclasses.is_dataclass(value) else {key: value})
    return flat


def default_of(key: str) -> Any:
    """The default of a dotted key."""
    return flatten(Config())[key]


def listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    """The names in quotes, for an error."""
    return ", ".join(repr(name) for name in names)


def choose(value: str, names: Sequence[str], key: str) -> str:
    """`value`, if it is one of the `names` that `config.key` may have.

    Raises:
        ValueError: it is not; the nearest is named.
    """
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, 1, 0.4)
    hint = f" Nearest: {near[0]!r}." if near else ""
    raise ValueError(f"config.{key} must be one of {listed(names)}, got {value!r}.{hint}")


def resolve_targets(name: str) -> str:
    """The regex on parameter paths that a name in TARGETS stands for; any other text is a regex
    itself.

    Raises:
        ValueError: it is no regex, or a misspelt name.
    """
    if name in TARGETS:
        return TARGETS[name]
    near = difflib.get_close_matches(name, TARGETS, 1, 0.75)
    if near and "/" not in name:
        raise ValueError(
            f"Targets {name!r} is neither a name nor a path pattern. Nearest name: {near[0]!r}; "
            f"names are {listed(TARGETS)}."
        )
    try:
        re.compile(name)
    except re.error as error:
        raise ValueError(
            f"Targets must be one of {listed(TARGETS)} or a full-match regex on parameter paths, "
            f"got {name!r}, which is not a regex ({error}). An example: 'layers/attn/(q|v)/kernel'."
        ) from error
    return name
