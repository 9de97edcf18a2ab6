"""What a task is: a model, its base, its data and its loss, opened once and held by its caller."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax

from lora_jax.adapters.calibration import input_moments, weight_gradients
from lora_jax.adapters.sites import Site
from lora_jax.adapters.surgery import adapt
from lora_jax.config import ADAPTERS, Config, resolve_targets
from lora_jax.core.host import Place, StoredWeight, to_device
from lora_jax.core.init import initializer_named, reads
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.notice import say_once
from lora_jax.core.paths import Rules, flatten, match, unflatten
from lora_jax.core.quantize import QuantSpec
from lora_jax.data import Recipe
from lora_jax.data.batches import EpochBatches
from lora_jax.data.buckets import FILLER
from lora_jax.generation.engine import Generator
from lora_jax.io.quantized_folder import check_stored_as
from lora_jax.metrics.table import Primary
from lora_jax.tasks.building import lora_rules, quant_rules, shapes_of, unquantised
from lora_jax.tasks.losses import PerExample, Summed
from lora_jax.tasks.targets import in_model

Trees = tuple[dict[str, Any], dict[str, Any]]


@dataclass(eq=False)
class Task:
    """A problem to train on; a kind of model is a subclass. `open_task` makes one of a config, and
    `CustomTask` is one for any module.

    Attributes:
        model: the Linen module.
        params: arrays, or weights that are read from their files when they are asked for
            (`StoredWeight`), a head included.
        sites: the parameters by path, as `find_sites` gives them.
        splits: encoded examples by name: train, validation and test.
        fingerprint: gives `base`; of weights in files it reads them.
        label_names: classes or tags in the order of their ids, () where there are none.
        note: what a reader of results must know about the data; may be ''.
        records: what the splits were encoded from, by split.
        recipe: the kind of task, None for a mixture of several.
        data: the fingerprint of the examples of all splits and of the names of their classes.
        lora, quant: rules on paths, instead of those of a run's config.
        whole: patterns of weights that are trained whole beside adapters.
        label_smoothing: of the loss in training.
        generator: the class that writes texts with the model, None where it writes none.
        beams: whether beam search can write them.
        metrics: names of what scores predictions, in `lora_jax.metrics.table.METRICS`.
        given: whether what is trained is a caller's, and need not start as the base.
        by_example: whether a row of an evaluation's batch is one example, with a loss of its own.
        primary: the metric to report first, and what losses count.
    """

    model: Any
    params: Mapping[str, Any]
    sites: Mapping[str, Site]
    splits: Mapping[str, Any]
    fingerprint: Callable[[], str]
    label_names: tuple[str, ...] = ()
    note: str = ""
    records: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    tokenizer: Any = None
    data: str = ""
    lora: Rules[LoraSpec] | None = None
    quant: Rules[QuantSpec] | None = None
    whole: Sequence[str] = ()
    label_smoothing: float = 0.0

    generator: ClassVar[type[Generator] | None] = None
    beams: ClassVar[bool] = False
    metrics: ClassVar[Any] = ()
    by_example: ClassVar[bool] = True
    given: ClassVar[bool] = False
    primary: ClassVar[Any] = Primary("loss", "records")

    @functools.cached_property
    def base(self) -> str:
        """The fingerprint of the pretrained weights, which adapters and checkpoints carry."""
        return self.fingerprint()

    @property
    def per_example(self) -> PerExample:
        """The loss of a batch, row by row."""
        raise NotImplementedError

    def trainable(
        self,
        config: Config,
        key: jax.Array,
        *,
        frozen: Mapping[str, Any] | None = None,
        place: Place | None = None,
    ) -> Trees:
        """The frozen weights and what is trained, by the config's method; `key` fixes all that is
        random in them.

        Args:
            frozen: the base of another run that stores it in the same way: it is returned as it is,
                and only what is trained is made.
            place: where the arrays of each weight that lies in files are to lie; the default device
                has them where an initialiser reads weights or data before.

        Raises:
            ValueError: the method, a rule or a rank does not fit the model.
        """
        self.check_held(config)
        # What reads weights reads them as they were before they were quantised.
        reads_weights = reads(config.lora) != "shape"
        if place is not None and frozen is None and not reads_weights:
            laid = lambda leaf: leaf.at(place) if isinstance(leaf, StoredWeight) else leaf
            return self._select(config, jax.tree.map(laid, dict(self.params)), key)
        if frozen is None or (config.method == "qlora" and reads_weights):
            made, trained = self._select(config, self.params, key)
            return made if frozen is None else dict(frozen), trained
        known = unflatten({**flatten(self.params), **flatten(frozen)})
        return dict(frozen), self._select(unquantised(config), known, key)[1]

    @functools.cached_property
    def held(self) -> dict[str, QuantSpec]:
        """By path, the formats of the weights that the base's files hold quantised: they are taken
        as they are, and no other weight is quantised then.
        """
        in_files = {
            path: leaf.like
            for path, leaf in flatten(self.params).items()
            if isinstance(leaf, StoredWeight)
        }
        return {path: like.spec for path, like in in_files.items() if like is not None}

    def check_held(self, config: Config) -> None:
        """Raises ValueError if a config says another base than a quantised one's files hold."""
        if not self.held:
            return
        first = next(iter(self.held.values()))
        if config.method != "qlora":
            raise ValueError(
                f"The files of {config.model.name} hold {len(self.held)} quantised weights "
                f"({first}), and config.method {config.method!r} is of a base in floating numbers. "
                "Set config.method to 'qlora', and config.quant to this format."
            )
        rules = self.quant or quant_rules(config, self.targets(config.quant.targets), self._known())
        asked = match(rules, self.sites, what="quant")
        for path, spec in self.held.items():
            if path not in asked:
                raise ValueError(
                    f"{path!r} is quantised in the files of {config.model.name}, and "
                    f"config.quant.targets {config.quant.targets!r} leaves it out: results would "
                    "name another base. Name all of it."
                )
            check_stored_as(path, spec, asked[path])
        if dense := sorted(set(asked) - set(self.held)):
            say_once(
                f"{len(dense)} weights of {config.model.name} that config.quant names are floating "
                f"numbers in its quantised files, and stay so: {', '.join(dense[:4])}."
            )

    def shapes(self, config: Config, rules: Rules[LoraSpec] | None = None) -> Trees:
        """`trainable` as jax.ShapeDtypeStructs: nothing is read, quantised or copied. `rules` for the
        factors are instead of the config's.
        """

        def select(params: Any) -> Trees:
            return self._select(config, params, jax.random.key(0), rules)

        return jax.eval_shape(select, shapes_of(self.params))

    def read(self) -> dict[str, Any]:
        """The params as arrays; those of files are the same for all who hold them."""
        return jax.tree.map(to_device, dict(self.params))

    def widest(self, config: Config) -> dict[str, Any]:
        """Shapes of all that a run trains, with ranks cut to what each site can hold: every legal
        run of a group whose widest is `config` fits into them.
        """
        # An initialiser that makes up for the base's rounding has no shapes of its own, and needs a
        # format that is left out here.
        makes_up = initializer_named(config.lora.init).makes_up
        init = "kaiming" if makes_up else config.lora.init
        plain = replace(config, lora=replace(config.lora, init=init))
        if not config.lora.merge_aware:  # Else a leaf says how its base is rounded.
            plain = unquantised(plain)
        rules = [
            (re.escape(path), replace(spec, rank=min(spec.rank, site.rows, site.columns)))
            for path, spec in match(self._lora_rules(plain), self.sites, what="lora").items()
            if not self.is_new(path)
            for site in (self.sites[path],)
        ]
        return self.shapes(plain, rules)[1]

    def targets(self, name: str) -> str:
        """The regex on paths that named targets, or a regex, stand for in this model."""
        return in_model(resolve_targets(name), self.sites)

    def is_new(self, path: str) -> bool:
        """Whether a weight is part of a new head, which has no factors: it is trained whole."""
        return False

    def is_head(self, path: str) -> bool:
        """Whether a weight is of the head that the task puts on a pretrained model."""
        return False

    def split(self, name: str) -> Any:
        """The encoded split.

        Raises:
            ValueError: there is no such split.
        """
        if name not in self.splits:
            raise ValueError(f"A split needs to be one of {', '.join(self.splits)}, got {name!r}.")
        return self.splits[name]

    @property
    def epoch(self) -> int:
        """Examples of an epoch of training."""
        return len(self.splits["train"])

    def batched(self, batch_size: int) -> int:
        """Examples of an epoch of training that batches of this size take."""
        return self.epoch

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        accumulate: int = 1,
        packed: bool = True,
    ) -> EpochBatches:
        """The batches of a split, epoch after epoch: `len`, `[k]`, and iterators with a position
        that can be saved. Batch k follows from the arguments and k alone.

        Args:
            accumulate: rows of a batch are a multiple of it.
            packed: whether several short examples may share a row.

        Raises:
            ValueError: there is no such split.
        """
        rows = dict(row_multiple=accumulate, packed=packed)
        return self._batches(
            self.split(split), batch_size, rows, seed=seed, shuffle=shuffle, epochs=epochs
        )

    def examples_of(self, planned: Any) -> list[int]:
        """The example of each real row of a planned, unpacked batch (`batches.plan(0)[k]`)."""
        return [int(index) for index in planned.indices if index != FILLER]

    def text_bytes(self, split: str, examples: int | None = None) -> int | None:
        """UTF-8 bytes of the texts whose tokens the losses of a split count, or of its first
        examples; None where there are no such texts, or some were cut.
        """
        return None

    def answer(self, split: str, example: int, said: Any) -> tuple[Any, Any]:
        """(predicted, references) of an example as metrics compare them; `said` is its row of
        `Losses.answer`.
        """
        raise NotImplementedError("Of this model's batches the loss alone is known.")

    def _batches(
        self, encoded: Any, batch_size: int, rows: Mapping[str, Any], **order: Any
    ) -> EpochBatches:
        """The batches of an encoded split; `rows` says what those of several examples are like."""
        raise NotImplementedError

    def _select(
        self, config: Config, params: Any, key: jax.Array, rules: Rules[LoraSpec] | None = None
    ) -> Trees:
        """The frozen weights and what is trained of `params`, by the config's method. `rules` for
        the factors are instead of the config's.
        """
        if config.method == "full":
            whole = [self.targets(config.baseline.full_targets)]
            return adapt(self.model, params, (), whole=whole, key=key, sites=self.sites)
        if config.method not in ADAPTERS:
            raise ValueError(
                f"config.method {config.method!r} is for classifiers. For a language model use "
                "'lora', 'qlora' or 'full', and so for any other module."
            )
        return self._adapted(config, params, key, rules, whole=self.whole)

    def _adapted(
        self,
        config: Config,
        params: Any,
        key: jax.Array,
        rules: Rules[LoraSpec] | None,
        *,
        apart: Rules[Any] = (),
        **options: Any,
    ) -> Trees:
        """Factors on a base that is quantised under method qlora, but for what `apart` excepts."""
        quant: Rules[QuantSpec] = ()
        if config.method == "qlora" and not self.held:
            targets = self.targets(config.quant.targets)
            quant = self.quant or quant_rules(config, targets, self._known())
        if rules is None:
            rules = self.lora or self._lora_rules(config)
        rules = [*apart, *rules]

        return adapt(
            self.model,
            params,
            (),
            lora=rules,
            quant=[*apart, *quant] if quant else (),
            bias=config.lora.bias,
            statistics=self._measured(config, params, rules),
            key=key,
            sites=self.sites,
            **options,
        )

    def _lora_rules(self, config: Config) -> Rules[LoraSpec]:
        return lora_rules(config, self.targets(config.lora.targets), self._known())

    def _known(self) -> list[str]:
        """The paths that rules may name one by one: those of no new head."""
        return [path for path in self.sites if not self.is_new(path)]

    def _measured(
        self, config: Config, params: Mapping[str, Any], rules: Sequence[Any]
    ) -> dict[str, Any] | None:
        """What a data-driven initialiser reads, measured on the first training batches; None for
        the others.
        """
        measure = {"gradient": weight_gradients, "inputs": input_moments}.get(
            initializer_named(config.lora.init).measures
        )
        if measure is None:
            return None
        batches = self.batches("train", config.train.batch_size, seed=config.train.seed)
        count = min(config.lora.calibration_batches, len(batches))
        sites = [self.sites[path] for path in match(rules, self.sites, what="lora")]
        first = [batches[index] for index in range(count)]
        # A pass through the model as it was before it was quantised: all of it is read.
        return measure(Summed(self.per_example), jax.tree.map(to_device, params), first, sites)
