"""The settings that decide a run but for its seed, and those in which several runs differ."""

from __future__ import annotations

import functools
import json
import marshal
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lora_jax.config import Config, canonical, from_config_dict, shown_by_path, value_of
from lora_jax.core.escapes import one_line
from lora_jax.sweeps.grid import shown_targets
from lora_jax.sweeps.records import RunRecord

# A setting that a run does not read, such as the block size of a base that is not quantised.
NOT_READ = "–"
# A setting that each cell has at its own best value.
TUNED = "tuned"
# Settings that a name says in its own way, and words for those that it adds.
NAMED = ("method", "lora.rank", "lora.targets", "quant.format")
_SHORT = {"data.name": "data", "model.name": "model", "quant.targets": "quant.targets"}
# Settings of which each value has losses and scores of its own, that compare with no other's: what a
# report calls them, one and several.
INCOMPARABLE = {
    "data.name": ("data", "data sets"),
    "data.mixture": ("mixture", "mixtures"),
    "data.recipe": ("recipe", "recipes"),
    "data.content": ("data content", "contents of the data"),
    "model.name": ("model", "models"),
    "model.revision": ("revision", "revisions of the model"),
    "model.content": ("model content", "contents of the model"),
}
# A baseline is named by these as soon as any runs differ in them, also if it has none of its kind
# to differ from: next to runs of other data it must not stand without a word.
_SHARED = ("data.", "model.", "train.", "optim.")


def settings_of(run: RunRecord) -> tuple[str, Mapping[str, Any]]:
    """(a key, {dotted setting: value}) of what decides a run but for its seed; the key is equal for
    runs of one cell. What its data and its model were made of counts as two settings,
    data.content and model.content, where it was recorded. A setting that was tuned for the run's
    cell has no value of its own: it is TUNED.
    """
    config = run.config if run.curve is None else _without(run.config, run.curve.setting)
    train = {key: value for key, value in (config.get("train") or {}).items() if key != "seed"}
    # marshal writes ten times as fast as json, and a report asks this of every run; its version 2
    # writes equal values to equal bytes.
    own = {key: value for key, value in config.items() if key not in ("out", "sweep")}
    key, settings = _settings(marshal.dumps({**own, "train": train}, 2))
    made_of = run.environment.get("contents") or {}
    names = names_of(config)
    content = {
        f"{group}.content": " ".join(str(made_of[name]) for name in names[group])
        for group in names
        if all(name in made_of for name in names[group])
    }
    tuned = {} if run.curve is None else {run.curve.setting: TUNED}
    return f"{key} {content} {tuned}", settings | content | tuned


def variants(
    kinds: Sequence[str], settings: Sequence[Mapping[str, Any]], quantised: Sequence[bool]
) -> list[str]:
    """The words that each name needs beside method, format, rank and targets, such as
    'learning_rate=0.001'.

    Args:
        kinds: the method of each baseline; "" of adapters.
        settings: as `settings_of` gives them.
        quantised: which have a quantised base.
    """
    shared = [key for key in differing(settings, quantised) if key.startswith(_SHARED)]
    groups: dict[str, list[int]] = defaultdict(list)
    for place, kind in enumerate(kinds):
        groups[kind].append(place)
    words = [""] * len(kinds)
    for kind, places in groups.items():
        varied = differing([settings[n] for n in places], [quantised[n] for n in places])
        keys = [key for key in varied if key not in NAMED]
        if kind:
            keys = [*dict.fromkeys([*shared, *keys])]
        short = _short_names(keys)
        for place in places:
            setting = settings[place]
            words[place] = " ".join(
                one_line(f"{short[key]}={setting[key]}")
                for key in keys
                # None is "not given": the others say what they have instead.
                if setting.get(key, NOT_READ) not in (NOT_READ, None)
            )
    return words


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, with the part before where two would be alike."""
    leaf_of = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(leaf_of.values())
    return {
        key: _SHORT.get(key, leaf if count[leaf] == 1 else key) for key, leaf in leaf_of.items()
    }


def changed_settings(then: Config, now: Config) -> str:
    """The first settings by which two runs are not the same one: 'lora.rank is 8 there and 3 here';
    nothing where they are.
    """
    one, other = canonical(then), canonical(now)
    differ = [key for key in {**other, **one} if one.get(key, NOT_READ) != other.get(key, NOT_READ)]
    return ", ".join(
        f"{key} is {one.get(key, NOT_READ)!r} there and {other.get(key, NOT_READ)!r} here"
        for key in differ[:4]
    )


def names_of(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of a run's data sets, under 'data', and of its model, under 'model'."""
    data, model = config.get("data") or {}, config.get("model") or {}
    parts = data.get("mixture") or [data]
    return {
        "data": [str(part.get("name")) for part in parts if isinstance(part, Mapping)],
        "model": [str(model.get("name"))],
    }


_OF_A_QUANTISED_BASE = ("quant.", "lora.merge_")


def differing(
    settings: Sequence[Mapping[str, Any]], quantised: Sequence[bool]
) -> dict[str, list[Any]]:
    """{dotted setting: its value in each} of the settings that are not the same in all, without
    those that follow another. `quantised` says which of them have a quantised base.
    """
    keys = dict.fromkeys(key for setting in settings for key in setting)
    columns = {key: [setting.get(key, NOT_READ) for setting in settings] for key in keys}
    varied = {key: column for key, column in columns.items() if len(set(map(str, column))) > 1}

    # Each of these says nothing new where it follows another: the head's rate the rate, unless it
    # was set; alpha the rank, in a sweep over ranks at one scale.
    if varied.get("optim.head_learning_rate") == columns.get("optim.learning_rate"):
        varied.pop("optim.head_learning_rate", None)
    if "lora.alpha" in varied and _proportional(
        columns["lora.alpha"], columns.get("lora.rank", [])
    ):
        del varied["lora.alpha"]

    # Runs without a quantised base lack its settings: that is the format, not another difference.
    for key in [key for key in varied if key.startswith(_OF_A_QUANTISED_BASE)]:
        read = {str(value) for value, has in zip(varied[key], quantised, strict=True) if has}
        if len(read) < 2:
            del varied[key]
    return varied


def _without(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The nested config without the setting at a dotted key."""
    group, _, rest = key.partition(".")
    left = {name: value for name, value in config.items() if name != group}
    below = config.get(group)
    return left | {group: _without(below, rest)} if rest and isinstance(below, Mapping) else left


@functools.lru_cache(maxsize=100_000)
def _settings(config: bytes) -> tuple[str, Mapping[str, Any]]:
    values = marshal.loads(config)
    try:
        # What was left out, the seed among it, has its default.
        config = from_config_dict(values)
        setting, words = flat(canonical(config)), in_words(config)
    except (KeyError, TypeError, ValueError, AttributeError):
        # Written by another version: its own keys still tell its runs apart.
        setting = words = flat(values)
    key = {name: value for name, value in setting.items() if name != "train.seed"}
    return json.dumps(key, sort_keys=True), {name: words[name] for name in key}


def in_words(config: Config) -> dict[str, Any]:
    """{dotted setting: its value, as a table has it} of what decides a run: exceptions by path and
    the targets of quantisation have the name that they were given.
    """
    settings = flat(canonical(config))
    if "quant.targets" in settings:
        settings["quant.targets"] = shown_targets(config.quant.targets)
    for key in ("lora.ranks", "quant.formats"):
        if key in settings:
            settings[key] = shown_by_path(value_of(config, key)) or "uniform"
    return settings


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}; a list is its text, as levels of an axis are looked up by value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value) if isinstance(value, list) else value
    return found


def _proportional(some: Sequence[Any], others: Sequence[Any]) -> bool:
    pairs = [(a, b) for a, b in zip(some, others) if a != NOT_READ]
    numbers = all(isinstance(value, (int, float)) and value for pair in pairs for value in pair)
    return numbers and len({a / b for a, b in pairs}) == 1
