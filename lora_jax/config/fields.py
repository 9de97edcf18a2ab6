"""The settings: a frozen dataclass for each group, each field with its unit, default and limit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from lora_jax.config.by_path import by_path
from lora_jax.config.limits import (
    TARGETS,
    Count,
    Limit,
    Name,
    NotNegative,
    Positive,
    ReadBy,
    Share,
    Targets,
    Weight,
    at_least,
    one_of,
)
from lora_jax.core.codebooks import FORMATS
from lora_jax.core.init import INITIALIZERS
from lora_jax.core.variants import SCALINGS, VARIANTS
from lora_jax.data.recipes import RECIPES

T = TypeVar("T")

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
Sink = Literal["tensorboard", "wandb", "mlflow"]
# See lora_jax.training.factor_optimizers.
FactorSteps = Literal["adam", "riemannian", "lora_rite", "lora_muon"]
ADAPTERS = ("lora", "qlora")  # the methods that have a rank and targets; the others are baselines
NO_FORMAT = "none"  # the base as it was loaded, shown to people as "fp32"

NO_RESULT = ReadBy()  # changes files, memory or speed, never a number of the result
FOR_ADAPTERS = ReadBy(ADAPTERS)
FOR_BOTTLENECK = ReadBy(("bottleneck",))
FOR_PREFIX = ReadBy(("prefix_embedding", "prefix_layers"))

_RANK = Limit("a rank of 1 or more", lambda value: value >= 1)
_CUT = Limit("mesh axes, as in 'fsdp model'", re.compile(r"[-+a-z]+ [-+a-z]+").fullmatch)
_EVEN = Limit("an even number of weights, 2 or more", lambda value: value >= 2 and value % 2 == 0)
_NOT_ONE = Limit("0 or 2 or more", lambda value: value >= 0 and value != 1)
_ROOM = Limit("3 or more (two of the tokens are special ones)", lambda value: value >= 3)

Format = Annotated[str, one_of(FORMATS, besides=NO_FORMAT)]
# Exceptions by path: 'PATTERN: VALUE, PATTERN: VALUE', the first that matches counts. With NAME=
# before them, tables have the name. See lora_jax.config.by_path; `lora-jax allocate` writes some.
Formats = Annotated[str, by_path(one_of(FORMATS, besides=NO_FORMAT), str)]
Ranks = Annotated[str, by_path(_RANK, lambda text: int(text) if text.isdigit() else 0)]
# A line of a small language: commas belong to it, and on the command line ';' stands between two.
Line = Annotated[str, "line"]


class Columns(Mapping[str, str]):
    """The column of each role of a recipe, or a path such as input.-1.content. A role that is left
    out is read from the recipe's own name for it. Not to be changed once made.
    """

    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self._columns = dict(sorted((columns or {}).items()))

    def __getitem__(self, role: str) -> str:
        return self._columns[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __hash__(self) -> int:
        return hash(tuple(self._columns.items()))

    def __repr__(self) -> str:
        return repr(self._columns)


@dataclass(frozen=True)
class ModelConfig:
    """The pretrained model and how its program is built."""

    name: Name = "minilm-l6"  # a known name, a local folder, or a Hugging Face id
    # Branch, tag or commit of a Hugging Face id; None = its main branch.
    revision: str | None = None
    scan: bool = True  # the equal blocks are one nn.scan: compiles once, not once a layer
    # Recompute a block in the backward pass: less memory, about a third more time.
    remat: bool = False
    # With remat: what is kept of a block waits in host memory, where the device has one.
    offload: Annotated[bool, NO_RESULT] = False
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and products
    # What the base's matrices are kept in that quant does not store in few bits: half the memory in
    # 16 bits, and no loss where its files have no more. Norms and biases stay float32.
    base_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    # Of an encoder in training, as its pretraining had them (BERT, RoBERTa and DeBERTa 0.1, which
    # config.json calls hidden_dropout_prob, attention_probs_dropout_prob, and cls_dropout or
    # classifier_dropout): of what a layer adds to its input, of attention weights, before the
    # classifier. The adapters' own is lora.dropout.
    dropout: Share = 0.0
    attention_dropout: Share = 0.0
    head_dropout: Share = 0.0

    @property
    def drops(self) -> bool:
        """Whether training draws random numbers for dropout in the model."""
        return bool(self.dropout or self.attention_dropout or self.head_dropout)


@dataclass(frozen=True)
class DecodingConfig:
    """How answers are generated when a language model is scored by its texts. None = as the recipe
    does it.
    """

    max_new: Count | None = None  # new tokens at most
    beams: Count | None = None  # 1 = greedy
    # A finished beam's log probability is divided by length ** this.
    length_penalty: float | None = None
    # n-grams of this length may not come twice in an answer; 0 = all may.
    no_repeat_ngram: Annotated[int, _NOT_ONE] | None = None
    stop: tuple[str, ...] | None = None  # strings that end an answer


@dataclass(frozen=True)
class MixturePart:
    """One task of a mixture; the fields are those of DataConfig."""

    name: str = ""
    recipe: Annotated[str, one_of(RECIPES)] = "completion"
    fields: Columns = Columns()
    prompt: str | None = None
    completion: str | None = None
    train_examples: Count | None = None
    on_error: Literal["stop", "skip"] = "stop"


@dataclass(frozen=True)
class DataConfig:
    """Texts, and what is to be found of them."""

    # completion: a decoder learns to continue prompts, T5 to answer them.
    task: Literal["classification", "completion"] = "classification"
    # A known name, a TFDS name such as glue/sst2, hf:org/name, or a .csv, .tsv, .jsonl, .json or
    # .parquet file or a folder of them.
    name: Name = "rotten_tomatoes"
    text: str = "text"  # column of the text, or of the prompt
    text_pair: str | None = None  # column of a second text; None = one text an example
    label: str = "label"  # column of the class, or of the completion
    # Tokens, with the special ones; longer texts are cut.
    max_length: Annotated[int, _ROOM] = 128
    # Tokens: a batch is padded to the first bucket that holds its texts. None = chosen from the
    # data's lengths.
    buckets: tuple[Count, ...] | None = None
    train_examples: Count | None = None  # cap of the training set alone; None = all
    # Published splits to hold out, such as validation_matched+validation_mismatched; None = those of
    # these names, or texts of train. One may be both, as where papers report the best epoch of it.
    validation_split: Name | None = None
    test_split: Name | None = None
    # In training, this share of a label's weight is spread evenly over all classes or words.
    label_smoothing: Share = 0.0
    # Classes or tags of unlike sizes: all count alike in the training loss by 'weights', or texts of
    # rarer classes come again, until all come as often ('sampling'). Scores are as ever.
    balance: Literal["none", "weights", "sampling"] = "none"
    # What the fields mean, how a prompt is made of them, what scores and decodes an answer. With
    # it, text, text_pair and label are not read: `fields` names the columns. None = completion,
    # pair_classification or classification, as task and text_pair say, scored by accuracy alone.
    recipe: Annotated[str, one_of(RECIPES)] | None = None
    fields: Columns = Columns()
    # Template over the recipe's roles, such as 'Review: {text}'; None = the recipe's.
    prompt: str | None = None
    completion: str | None = None  # template of what a decoder is to write; None = the recipe's
    # Classes in the order of their ids; None = the data set's, or those of train, sorted.
    label_names: tuple[str, ...] | None = None
    # Names in lora_jax.metrics.table.METRICS, the one to report first; None = the recipe's.
    metrics: tuple[str, ...] | None = None
    decoding: DecodingConfig = DecodingConfig()
    # Several tasks for one language model, drawn with probability ~ size ** (1 /
    # mixture_temperature). With them, `name` is not read.
    mixture: tuple[MixturePart, ...] = ()
    # 1 = every example alike, large = every task alike.
    mixture_temperature: Annotated[float, at_least(1)] = 1.0
    # A wrong row: an error, or left out and counted.
    on_error: Literal["stop", "skip"] = "stop"

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets that are read: the name, or those of a mixture."""
        return tuple(part.name for part in self.mixture) or (self.name,)

    @property
    def title(self) -> str:
        """What is trained on, in words."""
        return " + ".join(self.names)


@dataclass(frozen=True)
class LoraConfig:
    """The adapter of methods lora and qlora."""

    rank: Count = 8
    ranks: Ranks = ""  # of some of the targets: 'layers_0/.*: 16, layers_5/.*: 2'
    alpha: Positive = 16.0  # numerator of the scale
    # Scale of the update: alpha / rank; rslora: alpha / sqrt(rank); fixed: alpha itself.
    scaling: Annotated[str, one_of(SCALINGS)] = "standard"
    dropout: Share = 0.0  # probability on the adapter's input, in training
    # First values of the factors; those that make up for the rounding of a base (loftq, qpissa, cloq,
    # eora) need method qlora.
    init: Annotated[str, one_of(INITIALIZERS, also=r"pissa_niter_\d+")] = "kaiming"
    # The folder adapter/ of a run on the same base to go on from, in place of the first values; a
    # new head stays new.
    init_from: Name | None = None
    targets: Targets = "all-linear"  # which weights
    layers: tuple[NotNegative, ...] | None = None  # adapted layers by index; None = all
    dora: bool = False  # a trained magnitude for each output column
    variant: Annotated[str, one_of(VARIANTS)] = "lora"
    group_size: Count = 32  # inputs that share a row of `a` under variant qa_lora
    blocks: Count = 2  # along each side of the weight under variant gralora
    # Which projections of a fused kernel are adapted, such as (true, false, true).
    parts: tuple[bool, ...] | None = None
    # Trains the weight as it is after merging into the quantised base, which then changes nothing;
    # its blocks keep the scales that are stored, or are fitted anew at every step.
    merge_aware: Annotated[bool, ReadBy(("qlora",))] = False
    merge_scales: Annotated[Literal["kept", "refitted"], ReadBy(("qlora",))] = "kept"
    bias: Literal["none", "all", "lora_only"] = "none"  # biases that are trained whole besides
    # Word ids whose embeddings are trained besides.
    embedding_rows: tuple[NotNegative, ...] | None = None
    # Training batches that inits eva, corda, corda_kpm, cloq, eora, lora_ga and lora_one measure.
    calibration_batches: Count = 8


@dataclass(frozen=True)
class QuantConfig:
    """How the frozen base is stored under method qlora."""

    format: Format = NO_FORMAT
    # Weights that share a scale; None = one scale an output channel.
    block_size: Annotated[int, _EVEN] | None = 64
    double: bool = True  # store the scales themselves in 8 bits
    # Of double: QLoRA's; 'log', safe where some blocks are far larger than others; 'tensor', that of
    # NVFP4 (format fp4_e2m1, block_size 16).
    second_level: Literal["mean", "log", "tensor"] = "mean"
    # Of scales without double; e8m0: the powers of two of MX formats.
    scale_dtype: Literal["float32", "bfloat16", "e8m0"] = "float32"
    # How scales are chosen: by the largest magnitude of a block; hqq, for a smaller p-norm of the
    # error; entropy, with an offset for each block (IR-QLoRA). See lora_jax.core.fits.
    fit: Literal["range", "hqq", "entropy"] = "range"
    # hadamard: quantised with inputs rotated into each other, which spreads outliers; exact otherwise.
    rotation: Literal["none", "hadamard"] = "none"
    targets: Targets = TARGETS["all-linear"]  # the weights that are quantised
    formats: Formats = ""  # of some of them: 'layers_0/.*: int8, pooler/kernel: none'


@dataclass(frozen=True)
class BaselineConfig:
    """The baselines that are not adapters of weights. Each method reads its own fields."""

    # Which weights full fine-tuning trains, besides the classifier.
    full_targets: Annotated[Targets, ReadBy(("full",))] = ".*"
    # The last blocks, trained whole with the pooler and the classifier.
    top_layers: Annotated[Count, ReadBy(("top_layers",))] = 2
    # Where the bottlenecks stand, their width, and how many of the first blocks have none
    # (AdapterDrop).
    kind: Annotated[Literal["houlsby", "lin", "pfeiffer"], FOR_BOTTLENECK] = "houlsby"
    size: Annotated[Count, FOR_BOTTLENECK] = 64
    dropped: Annotated[NotNegative, FOR_BOTTLENECK] = 0
    # Trained tokens after the first token, and at the end.
    prefix: Annotated[NotNegative, FOR_PREFIX] = 16
    infix: Annotated[NotNegative, FOR_PREFIX] = 0


@dataclass(frozen=True)
class AdaLoraConfig:
    """AdaLoRA's rank budget, under lora.variant adalora; it starts at lora.rank columns a matrix."""

    # Mean columns a matrix at the end; None = no budget (other variants).
    target_rank: Positive | None = None
    warmup_steps: NotNegative = 0  # steps before the budget falls
    final_steps: NotNegative = 0  # steps at the end with a fixed choice
    interval: Count = 10  # steps from one masking to the next
    beta1: Share = 0.85  # smoothing of the importance
    beta2: Share = 0.85  # smoothing of its fluctuation
    orthogonality: Weight = 0.1  # weight of the penalty


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    # adamw8bit: moments of 4096 numbers or more in 8 bits, as bitsandbytes has them.
    name: Literal["adamw", "adamw8bit"] = "adamw"
    # How pairs of factors are moved; all but adam look at their product alone, whatever alpha, and
    # at the norm of their unmagnified gradients. What is trained besides has AdamW.
    factors: Annotated[Literal["adam", "riemannian", "lora_rite", "lora_muon"], FOR_ADAPTERS] = (
        "adam"
    )
    # The moments stay in host memory between steps, where the device has one.
    offload: Annotated[bool, NO_RESULT] = False
    learning_rate: Positive = 1e-3  # peak
    head_learning_rate: Positive | None = None  # of modules trained whole; None = learning_rate
    # Learning rate of `b` over that of `a` (LoRA+: 16).
    lora_plus_ratio: Annotated[Positive, FOR_ADAPTERS] = 1.0
    weight_decay: Weight = 0.01  # decoupled
    beta1: Share = 0.9
    beta2: Share = 0.999
    eps: Positive = 1e-8
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # after the warm-up, down to 0
    warmup_fraction: Share = 0.06  # of the steps
    clip_norm: Weight = 1.0  # largest global norm of the gradient; 0 = no clipping
    # PEFT's form of LoRA-FA: the gradient of `b` times (a^T a)^-1 / scale^2.
    precondition_b: Annotated[bool, FOR_ADAPTERS] = False
    adalora: Annotated[AdaLoraConfig, FOR_ADAPTERS] = AdaLoraConfig()


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    total_steps: Count | None = None  # optimiser steps; None = as many as `epochs` has
    epochs: Positive = 1.0  # passes over the training set; not read when total_steps is set
    batch_size: Count = 32  # examples an optimiser step
    accumulate: Count = 1  # the batch is computed in this many equal parts
    eval_batch_size: Count = 64  # examples
    eval_examples: Count | None = None  # cap of the validation set; None = all
    log_every: Annotated[Count, NO_RESULT] = 10  # steps
    # Where metrics go besides metrics.jsonl. wandb and mlflow need the extra of their name.
    sinks: Annotated[tuple[Sink, ...], NO_RESULT] = ("tensorboard",)
    eval_every: Count | None = None  # steps; None = at the end only
    # Which state is scored and kept: that of the last step, or of the end of the epoch with the
    # best validation score (of the metric to report; where there is none, the loss).
    select: Literal["last", "best_epoch"] = "last"
    # Early stopping: epochs without a better validation score, then it ends; None = never before its
    # last step. Needs select best_epoch. The schedule is that of all steps.
    patience: Count | None = None
    checkpoint_every: Annotated[Count, NO_RESULT] = 100  # steps
    seed: NotNegative = 0  # of the factors, the head, the order of the data and dropout


@dataclass(frozen=True)
class MeshConfig:
    """The devices of a run: data x fsdp x model of them. Losses are one's up to the order of sums."""

    data: Count = 1  # the batch's rows are cut
    fsdp: Count = 1  # the batch's rows are cut, and what is stored of weights and moments
    model: Count = 1  # the features of each product are cut, and what is stored
    # In place of lora_jax.core.sharding.RULES, the axes of a weight's inputs and outputs by path:
    # 'dense_1/kernel: fsdp model, dense_2/kernel: model fsdp+data, head/kernel: - fsdp'.
    rules: Annotated[str, by_path(_CUT, str)] = ""

    @property
    def devices(self) -> int:
        """How many it has."""
        return self.data * self.fsdp * self.model


@dataclass(frozen=True)
class LearningRates:
    """Learning rate of each method in a sweep; None = optim.learning_rate."""

    full: Positive | None = None
    head: Positive | None = None
    lora: Positive | None = None
    qlora: Positive | None = None
    bitfit: Positive | None = None
    top_layers: Positive | None = None
    bottleneck: Positive | None = None
    prefix_embedding: Positive | None = None
    prefix_layers: Positive | None = None
    ia3: Positive | None = None


@dataclass(frozen=True)
class HalvingConfig:
    """Successive halving: at each rung the best 1 / factor of the runs that have come so far go on,
    by validation loss. What it finds and saves: experiments/LOG.md, "Early stopping".
    """

    # Steps, ascending, below the run's last; none = every run is finished.
    rungs: tuple[Count, ...] = ()
    factor: Annotated[int, at_least(2)] = 3
    # Nats: a run goes on, too, whose loss is at most so much above that of the last that does.
    margin: Weight = 0.0


@dataclass(frozen=True)
class SearchConfig:
    """A search by Optuna (the extra 'search') in place of a grid: trials are judged by validation
    loss, the mean over sweep.seeds.
    """

    trials: NotNegative = 0  # how many; 0 = no search
    # A line for each setting: "optim.learning_rate = log 1e-4 .. 1e-2", "lora.rank = 1, 4, 16". See
    # lora_jax.sweeps.search.
    space: tuple[Line, ...] = ()
    seed: NotNegative = 0  # of the settings that are asked


@dataclass(frozen=True)
class TuneConfig:
    """A nuisance setting that is tuned for every cell of the sweep, by its validation loss: a grid
    around the cell's own value, under seeds that are not scored; then sweep.seeds at the best.
    """

    # The grid, in multiples of the cell's own value: 0.5, 1, 2. None = nothing is tuned.
    factors: tuple[Positive, ...] = ()
    setting: str = "optim.learning_rate"
    grow: NotNegative = 2  # values added at most where the best stands at an edge of the grid
    seeds: tuple[NotNegative, ...] = (101, 102)  # of the runs of tuning
    # A round of tuning: a line for each cell that is trained, with its values. Written by
    # lora_jax.sweeps.tuning.
    at: tuple[Line, ...] = ()


@dataclass(frozen=True)
class SweepConfig:
    """A grid, rank × format × targets × seeds, and baselines × seeds. An empty axis keeps the
    config's value.
    """

    rank: tuple[Count, ...] = ()
    format: tuple[Format, ...] = ()  # none = LoRA on the base as it was loaded
    # Several, or as a dict with names of your own: dict(ffn=r"layers(_\d+)?/mlp/.*/kernel"). On the
    # command line, in `axes` and in lora.targets a named one is NAME=REGEX.
    targets: tuple[Targets, ...] = ()
    seeds: tuple[NotNegative, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    learning_rate: LearningRates = LearningRates()
    # More axes, each a line: "lora.alpha = 8, 16"; zipped: "lora.rank, lora.alpha = (4, 8), (8,
    # 16)"; for some runs only: "quant.block_size = 32, 64 if quant.format == nf4"; several bases:
    # "model.name = minilm-l6, ./mine". See lora_jax.sweeps.axes.
    axes: tuple[Line, ...] = ()
    # Most adapters that are trained side by side in one program; 1 = each alone, 0 = all that the
    # memory budget holds.
    stack: NotNegative = 1
    # Largest predicted peak of a program, in GB of 1e9 bytes; None = no limit.
    memory_budget_gb: Positive | None = None
    halving: HalvingConfig = HalvingConfig()
    search: SearchConfig = SearchConfig()
    tune: TuneConfig = TuneConfig()


@dataclass(frozen=True)
class ReportConfig:
    """What a report of the runs calls a difference."""

    # Smallest difference of the score that matters, in its own unit: 0.01 is 1 point of accuracy.
    # None = 1 point, or of other scores a tenth of what the best setting gains over the head alone.
    margin: Positive | None = None


@dataclass(frozen=True)
class Config:
    """One run, or with `sweep` a grid of them. `method` qlora goes with a quant.format, the others
    with format none.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    # full: every weight, or those of baseline.full_targets. head: the classifier alone. The others
    # train the classifier and: lora, qlora: factors. bitfit: biases. top_layers: the last blocks.
    # bottleneck: small networks in each block. prefix_*: inserted states. ia3: gains.
    method: Method = "lora"
    lora: Annotated[LoraConfig, FOR_ADAPTERS] = LoraConfig()
    quant: Annotated[QuantConfig, ReadBy(("qlora",))] = QuantConfig()
    baseline: BaselineConfig = BaselineConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: Annotated[MeshConfig, NO_RESULT] = MeshConfig()
    sweep: Annotated[SweepConfig, NO_RESULT] = SweepConfig()
    report: Annotated[ReportConfig, NO_RESULT] = ReportConfig()
    # Such as 2GiB: before training, format, micro-batches and remat are chosen so that the process
    # stays under it; None = as set. What it chooses stands in other settings.
    memory_budget: Annotated[str, NO_RESULT] | None = None
    # Folder of the result store.
    out: Annotated[str, Limit("a folder", bool), NO_RESULT] = "runs/default"

    @property
    def names(self) -> tuple[str, ...]:
        """What a run is made of besides its settings: the names of its model and data sets, and of
        the adapter that it starts from.
        """
        start = self.lora.init_from if self.method in ADAPTERS else None
        return (self.model.name, *self.data.names, *([] if start is None else [start]))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a config, in the order of its fields; `data.fields` is one value."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        flat.update(flatten(value, key + ".") if dataclasses.is_dataclass(value) else {key: value})
    return flat


def built(kind: type[T], settings: Any, *, without: tuple[str, ...] = ()) -> T:
    """The library's dataclass `kind` of the settings of the same names: a LoraSpec of
    `config.lora`, a QuantSpec of `config.quant`. Fields `without` a setting keep their defaults.

    Raises:
        AttributeError: `kind` has a field for which there is no setting.
    """
    names = [field.name for field in dataclasses.fields(kind) if field.name not in without]
    return kind(**{name: getattr(settings, name) for name in names})
