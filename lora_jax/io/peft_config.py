"""PEFT's `adapter_config.json`: what it may say here, which modules it selects, and which rank and
scale each of them has.

Facts are those of PEFT 0.21.2. What a field would change and we cannot represent is refused by
name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_jax.core.paths import nearest
from lora_jax.io.names import is_suffix
from lora_jax.io.patterns import check_pattern, matches

# Values that a missing field stands for.
DEFAULTS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "target_modules": None,
    "exclude_modules": None,
    "lora_dropout": 0.0,
    "bias": "none",
    "use_rslora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "layers_pattern": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_dora": False,
    "trainable_token_indices": None,
}
# Fields that say where the file came from, or how training began or is run, and change nothing of
# what it computes.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode", "loftq_config",
    "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
# Each would make PEFT compute something else than base + scale * B A.
_REFUSED = {
    "alora_invocation_tokens": "Activated LoRA acts only after a sequence of tokens",
    "arrow_config": "Arrow routes between several adapters",
    "ensure_weight_tying": "it ties the adapters of two modules, and ours are tied where the weights are",
    "kasa_config": "KaSA changes the base and adds singular values between B and A",
    "layer_replication": "it makes a deeper model out of the same layers",
    "lora_bias": "it adds a bias to B, which our factors have not",
    "megatron_config": "it shards the layers of another framework",
    "monteclora_config": "MonteCLoRA samples its factors",
    "target_parameters": "its factors belong to bare parameters (experts), stored in another layout",
    "use_bdlora": "its factors are block-diagonal",
    "use_qalora": "QA-LoRA pools the inputs of A",
    "velora_config": "VeLoRA changes the gradient of A, and training would go on differently",
}
_BASE_CHANGED = ("pissa", "olora", "corda", "lora_ga", "loftq")
_LARGEST = 1e38  # of numbers that are kept in float32
_HEADS = ("classifier", "score")  # PEFT adds both to modules_to_save of classifiers, there or not


@dataclass(frozen=True)
class PeftConfig:
    """The fields of an `adapter_config.json` that say what the adapter computes, checked."""

    r: int
    lora_alpha: float
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...] | None = None
    lora_dropout: float = 0.0
    bias: str = "none"
    use_rslora: bool = False
    modules_to_save: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_dora: bool = False
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None
    optional_heads: bool = False

    def rank(self, module: str) -> int:
        """Rank of a module: the first matching entry of rank_pattern, else r."""
        return _first_match(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """What multiplies B A in a module: alpha / r, or alpha / sqrt(r) with use_rslora."""
        rank, alpha = self.rank(module), _first_match(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def saves(self, module: str) -> bool:
        """Whether the module is trained and stored whole (a bare `endswith`, as PEFT has it)."""
        return any(module.endswith(entry) for entry in self.modules_to_save)

    def rows(self, module: str, is_input: bool) -> tuple[int, ...] | None:
        """The rows of an embedding that are trained; a bare list is about the model's input
        embedding.
        """
        if not isinstance(self.trainable_token_indices, Mapping):
            return self.trainable_token_indices if is_input else None
        indices = self.trainable_token_indices.items()
        return next((rows for entry, rows in indices if module.endswith(entry)), None)

    def targets(self, module: str) -> bool:
        """Whether the module gets factors, by PEFT's rules: excluded, saved whole, matched, of a
        wanted layer.
        """
        if self.exclude_modules and _selects(self.exclude_modules, module):
            return False
        # PEFT looks for the entry among the parts of the name, which an entry may be several of.
        if any(f".{entry}." in f".{module}." for entry in self.modules_to_save):
            return False
        if isinstance(self.target_modules, str):
            return matches(self.target_modules, module)
        if module in self.target_modules:
            return True  # A full name passes the layer filter.
        return _selects(self.target_modules, module) and self._wanted_layer(module)

    def _wanted_layer(self, module: str) -> bool:
        if self.layers_to_transform is None:
            return True
        patterns = [rf".*?\.{re.escape(name)}\.(\d+)\." for name in self.layers_pattern] or [
            r".*?\.[^.]*\.(\d+)\."
        ]
        index = next(
            (found.group(1) for pattern in patterns if (found := re.match(pattern, module))), None
        )
        return index is not None and int(index) in self.layers_to_transform

    def check_used(self, modules: Iterable[str], others: Iterable[str]) -> None:
        """Raises ValueError if an entry of a list or pattern matches none of the modules with a
        matrix, or of the others.
        """
        modules, indices = list(modules), self.trainable_token_indices
        targets = () if isinstance(self.target_modules, str) else self.target_modules
        heads = _HEADS if self.optional_heads else ()
        saved = [entry for entry in self.modules_to_save if entry not in heads]
        rows = indices if isinstance(indices, Mapping) else ()
        for where, entries, among, ends in (
            ("target_modules", targets, modules, is_suffix),
            ("modules_to_save", saved, [*modules, *others], str.endswith),
            ("trainable_token_indices", rows, modules, str.endswith),
        ):
            for entry in entries:
                if not any(ends(module, entry) for module in among):
                    raise ValueError(
                        f"{where} names {entry!r}, which is none of the model's {len(among)} "
                        f"modules. Nearest: {', '.join(nearest(entry, among))}. The adapter is for "
                        "another model; or take the entry out of the list."
                    )

        targeted = [module for module in modules if self.targets(module)]
        if not targeted:
            raise ValueError(
                f"target_modules {self.target_modules!r} selects none of the model's "
                f"{len(modules)} modules, such as {', '.join(modules[:4])}. The adapter is for "
                "another model."
            )
        for field_name in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, field_name):
                if not any(_matches(pattern, module) for module in targeted):
                    raise ValueError(
                        f"{field_name} has {pattern!r}, which matches none of the {len(targeted)} "
                        f"adapted modules. Nearest: {', '.join(nearest(pattern, targeted))}. Take "
                        "it out, or correct it."
                    )


def read_config(raw: Mapping[str, Any]) -> PeftConfig:
    """The checked configuration.

    Raises:
        ValueError: it is no LoRA configuration, a value is not usable, or it says something that
            cannot be represented here.
    """
    if raw.get("peft_type") != "LORA":
        raise ValueError(
            f"adapter_config.json needs peft_type 'LORA', but has {raw.get('peft_type')!r}. Other "
            "methods are not read."
        )
    for name, why in _REFUSED.items():
        if raw.get(name):
            raise ValueError(
                f"adapter_config.json sets {name} to {raw[name]!r}, which cannot be represented "
                f"here: {why}."
            )

    for name in sorted(set(raw) - set(DEFAULTS) - set(_REFUSED) - _WITHOUT_EFFECT):
        if raw[name] not in (None, False, "", [], {}):
            raise ValueError(
                f"adapter_config.json sets {name} to {raw[name]!r}, which is not known here, and "
                "may change what the adapter computes. Known fields: "
                f"{', '.join(sorted(DEFAULTS))}."
            )

    values = {name: raw.get(name, default) for name, default in DEFAULTS.items()}
    _check_values(values)
    return PeftConfig(
        r=values["r"],
        lora_alpha=values["lora_alpha"],
        target_modules=_names("target_modules", values["target_modules"]),
        exclude_modules=None
        if values["exclude_modules"] is None
        else _names("exclude_modules", values["exclude_modules"]),
        lora_dropout=values["lora_dropout"],
        bias=values["bias"],
        use_rslora=values["use_rslora"],
        modules_to_save=_names("modules_to_save", values["modules_to_save"] or ()),
        layers_to_transform=_layers(values["layers_to_transform"]),
        layers_pattern=_layers_pattern(values["layers_pattern"] or ()),
        rank_pattern=values["rank_pattern"] or {},
        alpha_pattern=values["alpha_pattern"] or {},
        use_dora=values["use_dora"],
        trainable_token_indices=_rows(values["trainable_token_indices"]),
        optional_heads=raw.get("task_type") in ("SEQ_CLS", "TOKEN_CLS"),
    )


def _check_values(values: Mapping[str, Any]) -> None:
    init = str(values["init_lora_weights"]).lower()
    if any(init.startswith(name) for name in _BASE_CHANGED):
        raise ValueError(
            f"adapter_config.json sets init_lora_weights to {values['init_lora_weights']!r}: PEFT "
            "took the first factors out of the base, so the adapter is not right on the original "
            "base. Save it again in PEFT with save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...), which writes it as plain LoRA of twice "
            "the rank (for loftq: on the base it was trained on)."
        )
    number = (int, float)
    wanted = dict(r=int, lora_alpha=number, lora_dropout=number, use_rslora=bool, use_dora=bool)
    for name, kind in wanted.items():
        # A truth value is an int to Python, and no number here.
        wrong = kind is not bool and isinstance(values[name], bool)
        if wrong or not isinstance(values[name], kind):
            raise ValueError(
                f"adapter_config.json needs a number or a truth value for {name}, but has "
                f"{_shown(values[name])}."
            )
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(values[name] or {}, Mapping):
            raise ValueError(
                f"adapter_config.json needs an object of modules and numbers for {name}, but has "
                f"{_shown(values[name])}."
            )
        for pattern in values[name] or {}:
            _check_pattern(name, _ending(pattern))
    for name, rank in {"r": values["r"], **_numbered("rank_pattern", values)}.items():
        if type(rank) is not int or not 1 <= rank < 1 << 31:
            raise ValueError(
                f"adapter_config.json needs ranks of at least 1, but {name} is {_shown(rank)}."
            )
    alphas = {"lora_alpha": values["lora_alpha"], **_numbered("alpha_pattern", values)}
    for name, alpha in alphas.items():
        # Scales are kept in float32.
        if type(alpha) not in number or not abs(alpha) < _LARGEST:
            raise ValueError(
                f"adapter_config.json needs a finite number for alpha, but {name} is "
                f"{_shown(alpha)}."
            )
    if not 0 <= values["lora_dropout"] < 1:
        raise ValueError(
            "adapter_config.json needs a lora_dropout from 0 to below 1, but has "
            f"{_shown(values['lora_dropout'])}."
        )
    if values["bias"] not in ("none", "all", "lora_only"):
        raise ValueError(
            "adapter_config.json needs bias 'none', 'all' or 'lora_only', but has "
            f"{values['bias']!r}."
        )
    if not values["target_modules"]:
        raise ValueError(
            "adapter_config.json needs target_modules, as PEFT writes them when it saves, but has "
            "none."
        )
    if values["target_modules"] == "all-linear":
        raise ValueError(
            "adapter_config.json has target_modules 'all-linear', which depends on the torch "
            "model. PEFT saves the list of names that it stands for; save the adapter from PEFT."
        )


def _numbered(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a table of patterns, by what an error calls them."""
    return {f"{name}[{pattern!r}]": value for pattern, value in (values[name] or {}).items()}


def _check_pattern(name: str, pattern: str) -> None:
    try:
        check_pattern(pattern)
    except ValueError as error:
        raise ValueError(
            f"adapter_config.json has a {name} that cannot be used: {error}."
        ) from None


def _shown(value: Any) -> str:
    """A value for an error, of a length that can be read."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _names(name: str, value: Any) -> Any:
    if isinstance(value, str) and name in ("target_modules", "exclude_modules"):
        _check_pattern(name, value)
        return value
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, str) for entry in value):
        raise ValueError(
            f"adapter_config.json needs a list of names for {name}, but has {_shown(value)}."
        )
    return tuple(value)


def _layers_pattern(value: Any) -> tuple[str, ...]:
    """Names of lists of layers. PEFT takes each for a regular expression; what it finds in a name
    depends on how that is searched for, so anything but a name is refused.
    """
    names = _names("layers_pattern", (value,) if isinstance(value, str) else value)
    if odd := [name for name in names if not re.fullmatch(r"[\w.]+", name)]:
        raise ValueError(
            "adapter_config.json needs the name of a list of layers for layers_pattern, such as "
            f"'layers', but has {_shown(odd[0])}."
        )
    return names


def _layers(value: Any) -> tuple[int, ...] | None:
    layers = [value] if type(value) is int else value
    if layers is None:
        return None
    if not isinstance(layers, (list, tuple)) or any(type(layer) is not int for layer in layers):
        raise ValueError(
            "adapter_config.json needs numbers of layers for layers_to_transform, but has "
            f"{_shown(value)}."
        )
    return tuple(layers)


def _rows(value: Any, inner: bool = False) -> Any:
    if isinstance(value, Mapping) and not inner:
        return {name: _rows(rows, inner=True) for name, rows in value.items()}
    whole = isinstance(value, (list, tuple)) and all(
        type(row) is int and 0 <= row < 1 << 31 for row in value
    )
    if value is not None and (not whole or not value or len(set(value)) != len(value)):
        raise ValueError(
            "adapter_config.json needs different row numbers for trainable_token_indices, but has "
            f"{_shown(value)}."
        )
    return None if value is None else tuple(value)


def _selects(entries: str | tuple[str, ...], module: str) -> bool:
    if isinstance(entries, str):
        return matches(entries, module)
    return any(is_suffix(module, entry) for entry in entries)


def _first_match(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    return next(
        (value for pattern, value in patterns.items() if _matches(pattern, module)), otherwise
    )


def _matches(pattern: str, module: str) -> bool:
    return matches(_ending(pattern), module)


def _ending(pattern: str) -> str:
    """Matches what ends, after a dot or as a whole, with a match of the pattern."""
    return rf"(.*\.)?({pattern})$"
