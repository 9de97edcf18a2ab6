"""What a finished run is: its scores, sizes and times, as result.json keeps them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lora_jax.metrics.score import Score

VERSION = 2  # 1 was a flat object: test_accuracy, test_loss, ...; it is read as it is
_OLD_SCORE = re.compile(r"(train|validation|test)_(\w+)")
_LOWER_IS_BETTER = ("loss", "perplexity", "ter")


@dataclass(frozen=True)
class RunResult:
    """The measured result of a run, `scores[split][metric]`; a run that was only to be tuned by has
    no test scores.

    `primary` is the metric to report first: the task names it, and its Score says which way is
    better and what was counted. `examples` are records of each split. `selected_step` is the step
    whose state was scored and kept, of a run that chooses it.

    Sizes are of the arrays as stored. peak_bytes: arguments, outputs and temporaries of the largest
    compiled training step. peak_rss_bytes: of the whole process, whatever it did before. seconds:
    of the whole run, of which compile_seconds compiled and training_seconds went into training
    steps but for the first of each length in its process. tokens_per_second: real ones, over
    training_seconds. stacked: how many runs stood side by side in one program; times and memory are
    then this run's share. padded_bytes: by how much its program's adapter is larger than its own,
    being padded to the widest run of those that share the program; peak_bytes are of the padded.
    """

    scores: Mapping[str, Mapping[str, Score]]
    primary: str = "accuracy"
    examples: Mapping[str, int] = field(default_factory=dict)
    steps: int | None = None
    selected_step: int | None = None
    trainable_parameters: int | None = None
    base_bytes: int | None = None
    base_bits_per_weight: float | None = None
    adapter_bytes: int | None = None
    padded_bytes: int | None = None
    peak_bytes: int | None = None
    peak_rss_bytes: int | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    compile_seconds: float | None = None
    training_seconds: float | None = None
    padding_fraction: float | None = None
    stacked: int | None = None
    note: str = ""

    def score(self, split: str, name: str | None = None) -> Score:
        """The split's score of that name, by default of the primary metric.

        Raises:
            KeyError: the run has no such score; those that it has are named.
        """
        name = self.primary if name is None else name
        if name not in self.scores.get(split, {}):
            there = ", ".join(f"{s} {n}" for s, named in self.scores.items() for n in named)
            raise KeyError(f"The run has no {split} {name}. It has: {there or 'no score'}.")
        return self.scores[split][name]

    @property
    def is_tested(self) -> bool:
        """Whether the run was scored on the test split."""
        return "test" in self.scores

    def value(self, split: str, name: str | None = None) -> float:
        """`score(split, name).value`."""
        return self.score(split, name).value

    def row(self) -> dict[str, Any]:
        """A flat row of a table: every score as `test_accuracy`, the primary's name, sizes and
        times.
        """
        flat: dict[str, Any] = {"primary": self.primary}
        flat |= {
            f"{split}_{name}": score.value
            for split, named in self.scores.items()
            for name, score in named.items()
        }
        flat |= {f"examples.{split}": count for split, count in self.examples.items()}
        return flat | {name: getattr(self, name) for name in _NUMBERS} | {"note": self.note}

    def to_json(self) -> dict[str, Any]:
        """What result.json holds; a value that is no finite number becomes null."""
        scores = {
            split: {
                name: score.to_json() | {"value": score.value if score.is_finite else None}
                for name, score in named.items()
            }
            for split, named in self.scores.items()
        }
        sizes = {name: getattr(self, name) for name in _NUMBERS}
        return {
            "version": VERSION, "primary": self.primary, "scores": scores,
            "examples": dict(self.examples), **sizes, "note": self.note,
        }  # fmt: skip

    @classmethod
    def from_json(
        cls, content: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> RunResult:
        """The result that result.json holds, of this version or of the flat one before it.

        Args:
            config: the run's settings, as config.json has them: an old result does not name its
                primary metric and its units, its data's settings do.

        Raises:
            ValueError: a field has another type, the version is not known, or there is no test
                score of the primary metric (where the test split was not scored, no validation
                loss).
        """
        version = content.get("version", 1)
        if version not in (1, VERSION):
            raise ValueError(
                f"result.json has version {version!r}; this version of lora_jax reads 1 and "
                f"{VERSION}"
            )
        if version == 1:
            content = _from_version_1(content, config or {})
        scores, primary = _scores(content), _typed(content, "primary", str, None)
        # Nobody looked at the test split of a run to tune by.
        is_untested = "test" not in scores and "loss" in scores.get("validation", {})
        if not is_untested and primary not in scores.get("test", {}):
            raise ValueError(f"result.json holds no test {primary}, which is to be reported")
        return cls(
            scores=scores,
            primary=primary,
            examples=_examples(content),
            note=_typed(content, "note", str, ""),
            **{name: _figure(content, name, is_whole) for name, is_whole in _NUMBERS.items()},
        )


# Sizes and times, and whether each is a whole number.
_NUMBERS = {
    one.name: "int" in str(one.type)
    for one in fields(RunResult)
    if one.name not in ("scores", "primary", "examples", "note")
}


def _typed(content: Mapping[str, Any], name: str, kind: Any, otherwise: Any) -> Any:
    value = content.get(name)
    if value is None:
        return otherwise
    # True and False are ints to Python, and none of these fields is a yes or no.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"result.json needs another type in {name!r}, got {value!r}")
    if isinstance(value, int) and abs(value) >> 63:
        raise ValueError(f"result.json holds a number in {name!r} of more than 63 bits")
    return value


def _figure(content: Mapping[str, Any], name: str, is_whole: bool) -> Any:
    """A count, size or time: from 0 on, and no more than there are bytes or seconds."""
    value = _typed(content, name, (int, float), None)
    # Mixtures with a temperature once had a padding of all their examples over the drawn ones'.
    if value is None or (name == "padding_fraction" and -1 < value < 0):
        return None
    if not 0 <= value < 2**63:
        raise ValueError(f"result.json needs a number from 0 on in {name!r}, got {value!r}")
    return int(value) if is_whole else float(value)


def _object(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = content.get(name) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"result.json needs an object in {name!r}, got {value!r}")
    return value


def _examples(content: Mapping[str, Any]) -> dict[str, int]:
    counts = _object(content, "examples")
    return {split: _figure(counts, split, True) or 0 for split in counts}


def _scores(content: Mapping[str, Any]) -> dict[str, dict[str, Score]]:
    found: dict[str, dict[str, Score]] = {}
    for split, named in _object(content, "scores").items():
        found[split] = {}
        for name in named if isinstance(named, Mapping) else ():
            entry = _object(named, name)
            found[split][name] = Score(
                name,
                _value(entry),
                bool(entry.get("higher_is_better", True)),
                _typed(entry, "unit", str, "records"),
                _figure(entry, "count", True) or 0,
                bool(entry.get("share", False)),
            )
    return found


def _value(entry: Mapping[str, Any]) -> float:
    """A score; NaN where there was no finite one."""
    value = _typed(entry, "value", (int, float), math.nan)
    if entry.get("share") and not (math.isnan(value) or 0 <= value <= 1):
        raise ValueError(f"result.json needs a share between 0 and 1, got {value!r}")
    return float(value)


def _from_version_1(content: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A flat result, written before a task named its metric, as one of version 2. What its metrics
    counted, and which was to be reported, the settings of the run's data tell.
    """
    from lora_jax.data.recipes import RECIPES

    data, counts = config.get("data") or {}, _examples(content)
    recipe = RECIPES.get(data.get("recipe"))
    metrics = () if recipe is None else tuple(data.get("metrics") or recipe.metrics)
    named = [match.groups() for key in content if (match := _OLD_SCORE.fullmatch(key))]
    names = {name for _, name in named}

    # An encoder with a recipe was scored by all of its metrics; a language model by none.
    unscored = recipe is not None and not names.issuperset(metrics or ("a metric",))
    is_language = data.get("task") == "completion" or data.get("mixture") or unscored
    unit = "tokens" if is_language else "words" if "token_f1" in names else "records"

    scores: dict[str, dict[str, Any]] = {}
    for split, name in named:
        # Loss and accuracy were means over what the loss counts; other metrics were of records.
        counted = unit if name in ("loss", "accuracy") else "records"
        scores.setdefault(split, {})[name] = {
            "value": _typed(content, f"{split}_{name}", (int, float), None),
            "higher_is_better": name not in _LOWER_IS_BETTER,
            "unit": counted,
            "count": counts.get(split, 0),
            "share": name == "accuracy" and counted == "records" and "pearson" not in names,
        }
    reported = ("loss", *metrics) if is_language else metrics
    primary = next((name for name in reported if name in scores.get("test", {})), "accuracy")
    return {**content, "scores": scores, "primary": primary}
