"""PEFT's configuration and tensors as an adapter in our paths; what the configuration promises and
the file holds must be the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.core.changes import Change
from lora_jax.core.lowrank import RANK_AXIS, LowRank
from lora_jax.core.paths import flatten
from lora_jax.core.rows import Rows
from lora_jax.core.trainable import Trainable, Trainables
from lora_jax.io.named_weights import perhaps
from lora_jax.io.names import Index, Name, Names
from lora_jax.io.peft_changes import CHANGES, change_as_lora, change_from
from lora_jax.io.peft_config import PeftConfig, read_config
from lora_jax.io.peft_export import MAGNITUDE, PREFIX, ROWS, PeftAdapter, factor_keys
from lora_jax.io.peft_variants import FORMS, Form, as_lora, layers_of
from lora_jax.io.trained_layers import (
    check_numbers,
    fitted,
    low_rank,
    module_of_key,
    renamed,
    trained_weight,
)

# The keys of one weight: by what a tensor is of it ('A', 'B', 'magnitude', 'rows', 'whole'), by layer.
Keys = dict[str, dict[Index, str]]


def from_peft(
    found: PeftAdapter, names: Names, *, frozen: Mapping[str, Any] | None = None
) -> dict[str, Trainable]:
    """The adapter in our layout: layers stacked, ranks padded to the largest of a site, scales as
    PEFT computes them.

    Names may begin with another prefix than `names` has ('bert.encoder...' or 'encoder...'), as
    long as it is one prefix.

    Raises:
        ValueError: the configuration says what cannot be represented, names modules that are not
            there, or promises other tensors than the file holds (all of them are listed); a tensor
            has another shape, a dtype that is not floating, or a NaN; a weight trained whole is
            there for some layers of a stack only; the file changes nothing.
    """
    method = str(found.config.get("peft_type"))
    form, change = FORMS.get(method), CHANGES.get(method)
    if change is not None:
        config = read_config(change_as_lora(found.config))
    else:
        config = read_config(found.config if form is None else as_lora(found.config))
    tensors = _without_doubles(_unprefixed(found.tensors))
    module_of = renamed(names, tensors)
    matrices = {
        m
        for path, name in names.items()
        if name.kind != "vector"
        for _, m in _modules(name, module_of)
    }
    config.check_used(sorted(matrices), sorted(set(module_of.values()) - matrices))
    _check_said(config, names, module_of)
    own_keys = (change.key,) if change is not None else None if form is None else form.keys
    promised = list(_promised(config, names, module_of, own_keys))
    _check_keys({key for key, *_ in promised}, tensors, names, module_of, frozen)

    keys: dict[str, Keys] = {}
    for key, path, role, index in promised:
        keys.setdefault(path, {}).setdefault(role, {})[index] = key
    scales = found.recorded.get("scale", {})
    trainable: dict[str, Trainable] = {}
    for path, own in keys.items():
        if "rows" in own:
            trainable[path] = _rows(path, names[path], own, config, tensors)
        elif {"A", "whole"} <= own.keys():
            raise ValueError(
                f"{path!r} has factors in some layers and is trained whole in others, which are "
                "not read together. Train all of its layers one way."
            )
        elif "A" not in own:
            convert = names[path].from_theirs
            whole = {i: fitted(key, tensors[key], convert) for i, key in own["whole"].items()}
            trainable[path] = trained_weight(path, names[path], whole)
        elif change is not None:
            modules = {index: module_of_key(key) for index, key in own["A"].items()}
            trainable[path] = change_from(path, names[path], modules, found.config, tensors)
        elif form is not None:
            blocks = 1 if form.blocks is None else found.config.get(form.blocks, 2)
            trainable[path] = _own_factors(path, names[path], own, config, tensors, form, blocks)
        elif (low := _factors(names[path], own, config, tensors, scales)) is not None:
            trainable[path] = low
    _check_effect(trainable)
    return trainable


def _promised(
    config: PeftConfig, names: Names, module_of: Mapping[str, str], own_keys: tuple[str, ...] | None
) -> Iterator[tuple[str, str, str, Index]]:
    """(key, our path, what it is of the weight, layer) of every tensor that the configuration
    promises. Several paths share a key where their weights are fused.
    """
    adapted = {
        module
        for name in names.values()
        if name.kind != "vector"
        for _, module in _modules(name, module_of)
        if config.targets(module)
    }

    for path, name in names.items():
        for index, parameter in name.layers():
            module, _, last = parameter.rpartition(".")
            module = module_of[module]
            if name.kind == "embedding" and config.rows(module, _is_input(path)) is not None:
                yield f"{module}.{ROWS}", path, "rows", index
            if name.kind != "vector" and module in adapted and own_keys is not None:
                for number, key in enumerate(own_keys):
                    yield f"{module}.{key}", path, "A" if not number else key, index
            elif name.kind != "vector" and module in adapted:
                for role, key in zip("AB", factor_keys(name, module)):
                    yield key, path, role, index
                if config.use_dora:
                    yield f"{module}.{MAGNITUDE}", path, "magnitude", index
            # PEFT wraps an adapted module, so that its own bias lies a name deeper.
            if config.saves(module):
                yield f"{module}.{last}", path, "whole", index
            elif last == "bias" and (
                config.bias == "all" or (config.bias == "lora_only" and module in adapted)
            ):
                inside = ".base_layer" if module in adapted else ""
                yield f"{module}{inside}.{last}", path, "whole", index


def _factors(
    name: Name,
    keys: Keys,
    config: PeftConfig,
    tensors: Mapping[str, np.ndarray],
    scales: Mapping[str, float],
) -> LowRank | None:
    layers: dict[Index, tuple[np.ndarray, np.ndarray, float]] = {}
    magnitude = np.zeros((*name.stack, name.columns), np.float32)
    for index, key_a in keys["A"].items():
        module, key_b = module_of_key(key_a), keys["B"][index]
        a = fitted(key_a, tensors[key_a], name.a_from_theirs)
        b = fitted(key_b, tensors[key_b], name.b_from_theirs)
        rank, scale = config.rank(module), config.scale(module)
        if a.shape[1] != rank or b.shape[0] != rank:
            raise ValueError(
                f"{module!r} has factors of rank {a.shape[1]} and {b.shape[0]}, and "
                f"adapter_config.json says {rank}."
            )
        if np.float32(scales.get(module, scale)) != np.float32(scale):
            raise ValueError(
                f"{module!r} was saved with scale {scales[module]}, and adapter_config.json gives "
                f"{scale}: it was changed since."
            )

        if name.part is not None:
            full = tensors[key_b].reshape(-1, rank)
            # Columns of the other parts of a fused weight.
            elsewhere = (np.abs(full).max(0) > 0) & (np.abs(b).max(1) == 0)
            a, b = a[:, ~elsewhere], b[~elsewhere]
            if not b.size:
                continue
        layers[index] = (a, b, scale)
        if config.use_dora:
            magnitude[index] = tensors[keys["magnitude"][index]].reshape(-1)[name.outputs()]
    if not layers:
        return None

    drops = config.lora_dropout and name.kind != "embedding"
    return low_rank(
        name,
        layers,
        dropout=jnp.full(name.stack, config.lora_dropout, jnp.float32) if drops else None,
        magnitude=jnp.asarray(magnitude) if config.use_dora else None,
    )


def _own_factors(
    path: str,
    name: Name,
    keys: Keys,
    config: PeftConfig,
    tensors: Mapping[str, np.ndarray],
    form: Form,
    blocks: Any,
) -> LowRank:
    """The factors of one of PEFT's own methods."""
    if name.kind != "linear" or name.partial:
        raise ValueError(
            f"{path!r} is no linear module of its own, and method {form.peft_type} is read of "
            "those alone. Merge the adapter in PEFT, or leave the module out."
        )
    if type(blocks) is not int or blocks < 1:
        raise ValueError(f"adapter_config.json needs a number for gralora_k, but has {blocks!r}.")
    modules = {index: module_of_key(key) for index, key in keys["A"].items()}
    theirs = {
        index: {key: np.asarray(tensors[f"{module}.{key}"], np.float32) for key in form.keys}
        for index, module in modules.items()
    }
    try:
        layers = layers_of(form, name.rows, theirs, blocks)
    except ValueError as error:
        raise ValueError(f"{path!r} does not fit: {error}") from None

    unscaled = form.alpha is None
    scales = {index: 1.0 if unscaled else config.scale(module) for index, module in modules.items()}
    first = {
        index: (own.pop("a"), own.pop("b"), scales[index])
        for index, own in ((index, dict(own)) for index, own in layers.items())
    }
    for index, (a, b, _) in first.items():
        outer = layers[index].get("outer", np.ones((1, 1)))
        shape = (a.shape[0] * outer.shape[0], b.shape[1] * outer.shape[1])
        if shape != (name.rows, name.columns) or b.shape[0] != config.rank(modules[index]):
            raise ValueError(
                f"{modules[index]!r} has arrays of rank {b.shape[0]} for a weight of {shape}, and "
                f"needs rank {config.rank(modules[index])} and {(name.rows, name.columns)}."
            )

    extra: dict[str, Any] = {}
    rank = max(b.shape[0] for _, b, _ in first.values())
    for field in ("a2", "b2", "outer"):
        if field in next(iter(layers.values())):
            shape = list(next(iter(layers.values()))[field].shape)
            if field in RANK_AXIS:
                shape[RANK_AXIS[field]] = rank
            value = np.zeros((*name.stack, *shape), np.float32)
            for index, own in layers.items():
                part = own[field]
                value[index][tuple(slice(size) for size in part.shape)] = part
            extra[field] = jnp.asarray(value)
    drops = config.lora_dropout
    return low_rank(
        name,
        first,
        dropout=jnp.full(name.stack, drops, jnp.float32) if drops else None,
        blocks=blocks,
        **form.static,
        **extra,
    )


def _rows(
    path: str, name: Name, keys: Keys, config: PeftConfig, tensors: Mapping[str, np.ndarray]
) -> Rows:
    (key,) = keys["rows"].values()
    if others := sorted(set(keys) - {"rows"}):
        raise ValueError(
            f"{path!r} has trained rows and {', '.join(others)} besides, which are not read "
            "together. Save the adapter without one of them."
        )
    rows = config.rows(module_of_key(key), _is_input(path))
    value = np.asarray(tensors[key], np.float32)
    if value.shape != (len(rows), *name.shape[1:]) or max(rows) >= name.shape[0]:
        raise ValueError(
            f"{key} has shape {value.shape}, and the {len(rows)} rows up to {max(rows)} are of a "
            f"weight of shape {name.shape}."
        )
    order = np.argsort(rows)
    return Rows(
        value=jnp.asarray(value[order]), index=jnp.asarray(np.asarray(rows)[order], jnp.int32)
    )


def _is_input(path: str) -> bool:
    return path in ("embed/embedding", "embeddings/word/embedding")


def _check_said(config: PeftConfig, names: Names, module_of: Mapping[str, str]) -> None:
    """Refuses what PEFT computes and our factors cannot: one of two readers of a tied weight, rows
    of a matrix that is no embedding.
    """
    for path, name in names.items():
        for _, module in _modules(name, module_of):
            if name.tied and (config.targets(module) or config.saves(module)):
                raise ValueError(
                    f"{module!r} is tied, and PEFT adapts it where words are looked up alone: the "
                    f"head would go on reading the base's. Here {path!r} acts in both places. "
                    "Train in PEFT without it, or some of its rows (trainable_token_indices), "
                    "which PEFT ties."
                )
            if name.kind == "linear" and config.rows(module, is_input=False) is not None:
                raise ValueError(
                    f"trainable_token_indices names {module!r}, which is no embedding: rows of an "
                    "output head cannot be trained apart here. Save the adapter without them."
                )


def _check_keys(
    expected: set[str],
    tensors: Mapping[str, np.ndarray],
    names: Names,
    module_of: Mapping[str, str],
    frozen: Mapping[str, Any] | None,
) -> None:
    missing, extra = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    copies = {key: path for path, key in _base_copies(names, module_of) if key in extra}
    for key, path in copies.items():
        _check_copy(key, tensors[key], path, names[path], frozen)
    extra = [key for key in extra if key not in copies]

    if missing or extra:
        lines = [f"  missing     {key}{perhaps(key, extra)}" for key in missing] + [
            f"  unexpected  {key}" for key in extra
        ]
        raise ValueError(
            "the tensors are not those that adapter_config.json promises for this model: "
            f"{len(missing)} missing, {len(extra)} unexpected. "
            "The adapter is for another model, or the file is incomplete.\n" + "\n".join(lines[:60])
        )

    check_numbers(tensors)


def _base_copies(names: Names, module_of: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """PEFT stores an adapted embedding's base weight as well (save_embedding_layers='auto')."""
    for path, name in names.items():
        if name.kind in ("embedding", "linear"):
            for _, module in _modules(name, module_of):
                yield path, f"{module}.base_layer.weight"


def _check_copy(
    key: str, value: np.ndarray, path: str, name: Name, frozen: Mapping[str, Any] | None
) -> None:
    base = None if frozen is None else flatten(frozen).get(path)
    if base is None:
        raise ValueError(
            f"the file holds {key!r}, a copy of a base weight (PEFT's save_embedding_layers). Pass "
            "frozen=..., the base's weights, so that it can be seen to be the base's own; or save "
            "with save_embedding_layers=False."
        )

    if not hasattr(base, "__array__"):
        raise ValueError(
            f"the file holds {key!r}, a copy of a base weight, and {path!r} is quantised: whether "
            "they are the same cannot be seen. Pass the unquantised base as frozen=..., or save "
            "with save_embedding_layers=False."
        )

    if tuple(base.shape) != name.shape or not np.array_equal(
        name.to_theirs(np.asarray(base, np.float32)), np.asarray(value, np.float32)
    ):
        raise ValueError(
            f"the file holds {key!r} of shape {value.shape}, which is not the base's {path!r} of "
            f"shape {tuple(base.shape)}: the vocabulary was resized or the base changed. Build the "
            "base with that embedding."
        )


def _check_effect(trainable: Trainables) -> None:
    low = [leaf for leaf in trainable.values() if leaf.rank]
    if len(low) == len(trainable) and not any(
        np.any(leaf.value)
        if isinstance(leaf, Change)
        else all(np.any(x) for x in (leaf.a, leaf.b, leaf.a2, leaf.outer) if x is not None)
        or leaf.magnitude is not None
        for leaf in low
    ):
        raise ValueError(
            f"the adapter changes nothing: A or B is 0 at all {len(low)} sites. It was saved "
            "before it was trained."
        )


def _unprefixed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    wrong = [key for key in tensors if not key.startswith(PREFIX)]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(tensors)} tensors have no name of PEFT's, such as {wrong[0]!r}; "
            f"they begin with {PREFIX!r}."
        )
    # DoRA's vector has had both names.
    return {
        key.removeprefix(PREFIX).replace(f"{MAGNITUDE}.weight", MAGNITUDE): value
        for key, value in tensors.items()
    }


def _without_doubles(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without what PEFT 0.21.2 stores twice under bias='all': the bias of a module that is saved
    whole, and of its unused original.
    """
    doubles = {
        key: key.replace(".modules_to_save.", ".") for key in tensors if ".modules_to_save." in key
    }
    for key, own in doubles.items():
        if own not in tensors or not np.array_equal(tensors[key], tensors[own]):
            raise ValueError(
                f"the file holds {key!r}, and {own!r} is not equal to it. Save the adapter again."
            )
    originals = {key.replace(".modules_to_save.", ".original_module.") for key in doubles}
    return {
        key: value for key, value in tensors.items() if key not in doubles and key not in originals
    }


def _modules(name: Name, module_of: Mapping[str, str]) -> Iterable[tuple[Index, str]]:
    return ((index, module_of[module]) for index, module in name.modules())
