"""Variants of LoRA that PEFT stores as methods of their own: a row each of how its file says it.

Facts are those of PEFT 0.21.2, of linear modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lora_jax.core.lowrank import RANK_AXIS, LowRank
from lora_jax.core.own_starts import tiled
from lora_jax.core.trainable import Trainables
from lora_jax.io.names import Name, Names
from lora_jax.io.peft_settings import alpha_of, common

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Form:
    """One method of PEFT.

    is_of: whether factors are of this variant. keys: what follows the module in the names of its
    tensors. to_theirs, from_theirs: one layer's arrays, by our names and by their keys; blocks of
    GraLoRA are a number beside them. alpha, dropout, blocks: PEFT's names of those settings, None
    where it has none. settings: what else a file says, with the value that is written. by_module:
    whether modules may differ in rank. known: settings that change nothing of what is computed.
    static: fields of the factors that are read.
    """

    peft_type: str
    is_of: Callable[[LowRank], bool]
    keys: tuple[str, ...]
    to_theirs: Callable[[Arrays, int], Arrays]
    from_theirs: Callable[[Arrays, int], Arrays]
    alpha: str | None = "alpha"
    dropout: str | None = None
    blocks: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_module: bool = False
    known: tuple[str, ...] = ()
    static: Mapping[str, Any] = field(default_factory=dict)


def _miss_from(theirs: Arrays, _: int) -> Arrays:
    return {"b": theirs["miss_block"]}


def _loha_to(own: Arrays, _: int) -> Arrays:
    return {
        "hada_w1_a": own["b"].T,
        "hada_w1_b": own["a"].T,
        "hada_w2_a": own["b2"].T,
        "hada_w2_b": own["a2"].T,
    }


def _loha_from(theirs: Arrays, _: int) -> Arrays:
    pairs = {"b": "hada_w1_a", "a": "hada_w1_b", "b2": "hada_w2_a", "a2": "hada_w2_b"}
    return {ours: theirs[key].T for ours, key in pairs.items()}


def _lokr_to(own: Arrays, _: int) -> Arrays:
    return {"lokr_w1": own["outer"].T, "lokr_w2_a": own["b"].T, "lokr_w2_b": own["a"].T}


def _lokr_from(theirs: Arrays, _: int) -> Arrays:
    pairs = {"outer": "lokr_w1", "b": "lokr_w2_a", "a": "lokr_w2_b"}
    return {ours: theirs[key].T for ours, key in pairs.items()}


def _gralora_to(own: Arrays, k: int) -> Arrays:
    # Theirs have the columns of one block side by side, ours every k-th.
    a, b = own["a"], own["b"]
    rank = a.shape[1]
    a = a.reshape(k, -1, rank // k, k).swapaxes(-1, -2).reshape(k, -1, rank)
    b = b.reshape(rank // k, k, k, -1).transpose(2, 1, 0, 3).reshape(k, rank, -1)
    return {"gralora_A": a, "gralora_B": b}


def _gralora_from(theirs: Arrays, k: int) -> Arrays:
    a, b = theirs["gralora_A"], theirs["gralora_B"]
    rank = a.shape[-1]
    a = a.reshape(k, -1, k, rank // k).swapaxes(-1, -2).reshape(-1, rank)
    b = b.reshape(k, k, rank // k, -1).transpose(2, 1, 0, 3).reshape(rank, -1)
    return {"a": a, "b": b}


def _is_miss(low: LowRank) -> bool:
    if low.fixed != ("a",) or low.group > 1:
        return False
    used = low.used_columns()
    a = np.asarray(low.a)[..., used].reshape(-1, low.rows, used.size)
    layers = (np.asarray(low.scale) != 0).any(-1).ravel()
    return bool(used.size) and bool((a[layers] == tiled(low.rows, used.size)).all())


_DROPS = {"rank_dropout": 0.0, "module_dropout": 0.0}
FORMS: dict[str, Form] = {
    form.peft_type: form
    for form in (
        Form(
            "MISS",
            _is_miss,
            ("miss_block",),
            lambda own, _: {"miss_block": own["b"]},
            _miss_from,
            alpha=None,
            dropout="miss_dropout",
            settings={"init_weights": True, "mini_r": 1},
            known=("mini_r",),
            static={"fixed": ("a",)},
        ),
        Form(
            "LOHA",
            lambda low: low.a2 is not None,
            ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
            _loha_to,
            _loha_from,
            settings={"init_weights": True, "use_effective_conv2d": False, **_DROPS},
            by_module=True,
            known=("use_effective_conv2d", *_DROPS),
        ),
        Form(
            "LOKR",
            lambda low: low.outer is not None,
            ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
            _lokr_to,
            _lokr_from,
            settings={
                "init_weights": True,
                "use_effective_conv2d": False,
                "decompose_both": False,
                "decompose_factor": -1,
                "rank_dropout_scale": False,
                **_DROPS,
            },
            by_module=True,
            known=("use_effective_conv2d", "decompose_factor", "rank_dropout_scale", *_DROPS),
        ),
        Form(
            "HIRA",
            lambda low: low.of_base,
            ("hira_A", "hira_B"),
            lambda own, _: {"hira_A": own["a"].T, "hira_B": own["b"].T},
            lambda theirs, _: {"a": theirs["hira_A"].T, "b": theirs["hira_B"].T},
            alpha=None,
            dropout="hira_dropout",
            settings={"init_weights": True},
            by_module=True,
            static={"of_base": True},
        ),
        Form(
            "GRALORA",
            lambda low: low.blocks > 1,
            ("gralora_A", "gralora_B"),
            _gralora_to,
            _gralora_from,
            dropout="gralora_dropout",
            blocks="gralora_k",
            settings={"init_weights": True, "hybrid_r": 0},
        ),
    )
}
# Of all of them.
_SHARED = (
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "task_type", "rank_pattern", "alpha_pattern", "bias",
)  # fmt: skip
_WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "init_weights", "peft_type", "peft_version", "revision",
)  # fmt: skip


def form_of(low: LowRank) -> Form | None:
    """The form that PEFT has for these factors; None for what it stores as LoRA."""
    if low.magnitude is not None:
        return None
    return next((form for form in FORMS.values() if form.is_of(low)), None)


def own_form(trainable: Trainables, names: Names) -> Form | None:
    """The method that PEFT has for all factors of an adapter; None where it is LoRA's."""
    low = {path: leaf for path, leaf in trainable.items() if isinstance(leaf, LowRank)}
    forms = {id(form): form for form in map(form_of, low.values())}
    form = next(iter(forms.values()), None)
    if len(forms) != 1 or form is None or any(leaf.rounded for leaf in low.values()):
        return None
    linear = all(
        path in names and names[path].kind == "linear" and not names[path].partial for path in low
    )
    only_factors = all(
        isinstance(leaf, LowRank) or leaf.kind == "whole" for leaf in trainable.values()
    )
    alike = {leaf.blocks for leaf in low.values()}
    layers = [
        layer
        for path in low
        if path in names
        for layer in _own_layers(form, low[path], names[path])
    ]
    scales = {scale for _, _, scale in layers}
    ranks = {arrays["b"].shape[0] for _, arrays, _ in layers}
    one = len(ranks) == 1 and len(scales) == 1
    fits = form.by_module or one
    # Each column's scale must be that of its layer.
    return (
        form if linear and only_factors and len(alike) == 1 and fits and 0 not in scales else None
    )


def _own_layers(
    form: Form, leaf: LowRank, name: Name
) -> list[tuple[str, dict[str, np.ndarray], float]]:
    """(module, arrays, scale) of every adapted layer, in the columns that it uses; a scale of 0
    where the columns have several.
    """
    out, axes = [], dict(RANK_AXIS)
    for index, module in name.modules():
        scale = np.asarray(leaf.scale, np.float32)[index]
        used = np.flatnonzero(scale)
        if used.size:
            arrays = {
                field: np.asarray(getattr(leaf, field), np.float32)[index]
                for field in ("a", "b", "a2", "b2", "outer")
                if getattr(leaf, field) is not None
            }
            arrays = {
                field: np.take(x, used, axis=axes[field]) if field in axes else x
                for field, x in arrays.items()
            }
            one = float(scale[used[0]]) if np.ptp(scale[used]) == 0 else 0.0
            if form.alpha is None:  # Its file has no word for a scale.
                arrays["b"], one = arrays["b"] * one, float(one != 0)
            out.append((module, arrays, one))
    return out


def own_tensors(
    form: Form, trainable: Trainables, names: Names, prefix: str
) -> dict[str, np.ndarray]:
    """The tensors of PEFT's method, by their keys."""
    return {
        f"{prefix}{module}.{key}": np.ascontiguousarray(value)
        for path, leaf in trainable.items()
        if leaf.rank
        for module, arrays, _ in _own_layers(form, leaf, names[path])
        for key, value in form.to_theirs(arrays, leaf.blocks).items()
    }


def own_settings(
    form: Form, trainable: Trainables, names: Names, lora: Mapping[str, Any]
) -> dict[str, Any]:
    """What `adapter_config.json` says of PEFT's method, where LoRA's would say `lora`."""
    low = {path: leaf for path, leaf in trainable.items() if leaf.rank}
    layers = [layer for path, leaf in low.items() for layer in _own_layers(form, leaf, names[path])]
    rank, ranks = common({module: arrays["b"].shape[0] for module, arrays, _ in layers})
    alphas = {module: alpha_of(scale, arrays["b"].shape[0]) for module, arrays, scale in layers}
    alpha, alpha_pattern = common(alphas)

    shared = (
        "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "modules_to_save",
        "revision", "target_modules", "task_type",
    )  # fmt: skip
    config = {name: lora[name] for name in shared} | dict(form.settings)
    config |= {"peft_type": form.peft_type, "r": rank}
    config |= {} if form.alpha is None else {form.alpha: alpha}
    config |= {} if form.dropout is None else {form.dropout: lora["lora_dropout"]}
    config |= {"rank_pattern": ranks} if form.by_module else {}
    config |= {"alpha_pattern": alpha_pattern} if form.by_module and form.alpha else {}
    config |= {} if form.blocks is None else {form.blocks: next(iter(low.values())).blocks}
    return config


def as_lora(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a variant's file as LoRA's have them: which modules, and their rank and scale.

    Raises:
        ValueError: it says something that cannot be represented here.
    """
    form = FORMS[raw["peft_type"]]
    own = {"r", form.alpha, form.dropout, form.blocks, *form.known, *_SHARED, *_WITHOUT_EFFECT}
    for name in sorted(set(raw) - own):
        if raw[name] not in (None, False, "", [], {}, 0, form.settings.get(name)):
            raise ValueError(
                f"adapter_config.json of method {form.peft_type} sets {name} to {raw[name]!r}, "
                "which cannot be represented here. Merge the adapter in PEFT, or train it without."
            )
    if form.peft_type == "MISS" and raw.get("init_weights") in ("bat", "mini"):
        raise ValueError(
            f"adapter_config.json of method MISS has init_weights {raw['init_weights']!r}, another "
            "method than its default. Merge the adapter in PEFT."
        )
    if raw.get("bias", "none") != "none":
        raise ValueError(
            f"adapter_config.json of method {form.peft_type} trains biases ({raw['bias']!r}), "
            "which is read of LoRA alone. Save the adapter without them."
        )
    rank = raw.get("r", 8)
    lora = {name: raw[name] for name in _SHARED if name in raw}
    alpha = rank if form.alpha is None else raw.get(form.alpha, rank)
    drops = 0.0 if form.dropout is None else raw.get(form.dropout, 0.0)
    return {**lora, "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "lora_dropout": drops}


def layers_of(
    form: Form, rows: int, layers: Mapping[Any, Arrays], blocks: int
) -> dict[Any, Arrays]:
    """Our arrays of each layer out of PEFT's.

    Raises:
        ValueError: their shapes do not go together.
    """
    out = {}
    for index, theirs in layers.items():
        own = form.from_theirs(theirs, blocks)
        if "a" not in own:
            own["a"] = tiled(rows, own["b"].shape[0])
        if own["a"].shape[-1] != own["b"].shape[0]:
            raise ValueError(
                f"the tensors of method {form.peft_type} have ranks {own['a'].shape[-1]} and "
                f"{own['b'].shape[0]}, which must be one."
            )
        out[index] = own
    return out
