"""Changes of a weight that are no factors (`lora_jax.core.changes`) as PEFT's OFT, FourierFT and SHiRA.

Facts are those of PEFT 0.21.2, of linear modules. Its files have no entries' places: they follow from
a seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.core.changes import Change
from lora_jax.core.lowrank import LowRank
from lora_jax.core.own_starts import DRAW, drawn_by_torch
from lora_jax.core.trainable import Trainables
from lora_jax.io.names import Index, Name, Names
from lora_jax.io.peft_settings import common

# What of LoRA's settings all of them have.
_SHARED = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "revision", "target_modules", "task_type",
)  # fmt: skip
_LAYERS = ("bias", "exclude_modules", "layers_pattern", "layers_to_transform")
_WITHOUT_EFFECT = ("fan_in_fan_out", "init_weights", "peft_type", "peft_version")
_TORCHS_OWN_SEED = 67280421310721


@dataclass(frozen=True)
class ChangeForm:
    """A method of PEFT: our form of it, what follows the module in its tensors' names, the settings
    that say how large it is and which entries it has, with PEFT's defaults, and those that have to
    be at theirs.
    """

    form: str
    key: str
    settings: Mapping[str, Any]
    fixed: Mapping[str, Any]


CHANGES: dict[str, ChangeForm] = {
    "OFT": ChangeForm(
        "oft",
        "oft_R.weight",
        dict(r=0, oft_block_size=32, use_cayley_neumann=True, num_cayley_neumann_terms=5),
        dict(coft=False, block_share=False, module_dropout=0.0, eps=6e-5),
    ),
    "FOURIERFT": ChangeForm(
        "fourierft",
        "fourierft_spectrum",
        dict(n_frequency=1000, n_frequency_pattern={}, scaling=150.0, random_loc_seed=777),
        {},
    ),
    "SHIRA": ChangeForm(
        "shira", "shira_weight", dict(r=32, random_seed=None), dict(mask_type="random")
    ),
}


def change_form(trainable: Trainables, names: Names) -> str | None:
    """The method that PEFT has for all changes of an adapter; None where it has none."""
    changes = {path: leaf for path, leaf in trainable.items() if isinstance(leaf, Change)}
    linear = all(
        path in names and names[path].kind == "linear" and not names[path].partial
        for path in changes
    )
    alike = {(leaf.form, leaf.block, leaf.terms) for leaf in changes.values()}
    others = all(isinstance(leaf, Change) or leaf.kind == "whole" for leaf in trainable.values())
    if len(alike) != 1 or not linear or not others:
        return None
    form = next(iter(alike))[0]
    layers = [
        (leaf, *each) for path, leaf in changes.items() for each in _layers(leaf, names[path])
    ]
    scales = {scale for *_, scale, _ in layers}
    if form == "fourierft" and len(scales) > 1:
        return None
    drawn = all(np.array_equal(where, expected) for *_, (where, expected) in layers)
    # SHiRA's file has one rank, and as many numbers as LoRA of that.
    ranks = {divmod(len(value), leaf.rows + leaf.columns) for leaf, _, value, *_ in layers}
    whole = form != "shira" or (len(ranks) == 1 and not next(iter(ranks))[1])
    if not drawn or not whole:
        return None
    return next(key for key, own in CHANGES.items() if own.form == form)


def stand_in(leaf: Change) -> LowRank:
    """Factors of 0 in the layers that are changed, for what a file says of modules alone."""
    stack = leaf.value.shape[:-1]
    return LowRank(
        a=jnp.zeros((*stack, leaf.rows, 1)),
        b=jnp.zeros((*stack, 1, leaf.columns)),
        scale=jnp.any(leaf.scale != 0, axis=-1, keepdims=True).astype(jnp.float32),
        in_axes=leaf.in_axes,
    )


def change_tensors(trainable: Trainables, names: Names, prefix: str) -> dict[str, np.ndarray]:
    """The tensors of PEFT's method, by their keys."""
    tensors = {}
    for path, leaf in trainable.items():
        if isinstance(leaf, Change):
            own = next(own for own in CHANGES.values() if own.form == leaf.form)
            for module, value, scale, _ in _layers(leaf, names[path]):
                value = value if leaf.form == "fourierft" else value * np.float32(scale)
                value = value.reshape(leaf.rows // leaf.block, -1) if leaf.block else value
                tensors[f"{prefix}{module}.{own.key}"] = np.ascontiguousarray(value)
    return tensors


def change_settings(
    method: str, trainable: Trainables, names: Names, lora: Mapping[str, Any]
) -> dict[str, Any]:
    """What `adapter_config.json` says of PEFT's method, where LoRA's would say `lora`."""
    changes = {path: leaf for path, leaf in trainable.items() if isinstance(leaf, Change)}
    leaf = next(iter(changes.values()))
    shared = _SHARED if method == "SHIRA" else (*_SHARED, *_LAYERS)
    config = {name: lora[name] for name in shared} | dict(CHANGES[method].fixed)
    config |= {"peft_type": method, "init_weights": True}
    layers = [each for path, own in changes.items() for each in _layers(own, names[path])]
    if method == "OFT":
        series = dict(use_cayley_neumann=leaf.terms > 0, num_cayley_neumann_terms=leaf.terms or 5)
        return config | dict(r=0, oft_block_size=leaf.block) | series
    if method == "SHIRA":
        rank = len(layers[0][1]) // (leaf.rows + leaf.columns)
        return config | dict(r=rank, random_seed=DRAW)
    count, pattern = common({module: len(value) for module, value, *_ in layers})
    sizes = dict(n_frequency=count, n_frequency_pattern=pattern, random_loc_seed=DRAW)
    return config | sizes | dict(scaling=layers[0][2])


def change_as_lora(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of such a file as LoRA's have them: which modules.

    Raises:
        ValueError: it says something that cannot be represented here.
    """
    method = CHANGES[raw["peft_type"]]
    known = {*_SHARED, *_LAYERS, *_WITHOUT_EFFECT, *method.settings}
    for name in sorted(set(raw) - known):
        if raw[name] not in (None, False, "", [], {}, 0, method.fixed.get(name)):
            raise ValueError(
                f"adapter_config.json of method {raw['peft_type']} sets {name} to {raw[name]!r}, "
                "which cannot be represented here. Merge the adapter in PEFT, or train it without."
            )
    if raw.get("bias", "none") != "none":
        raise ValueError(
            f"adapter_config.json of method {raw['peft_type']} trains biases ({raw['bias']!r}), "
            "which is read of LoRA alone. Save the adapter without them."
        )
    shared = {name: raw[name] for name in (*_SHARED, *_LAYERS) if name in raw}
    return {**shared, "peft_type": "LORA", "r": 1, "lora_alpha": 1}


def change_from(
    path: str,
    name: Name,
    modules: Mapping[Index, str],
    raw: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> Change:
    """The change of one weight out of PEFT's tensors of its layers.

    Raises:
        ValueError: the weight is no linear module of its own, or a tensor is not as large as the
            settings say.
    """
    method = CHANGES[raw["peft_type"]]
    said = {key: raw.get(key, default) for key, default in method.settings.items()}
    if name.kind != "linear" or name.partial:
        raise ValueError(
            f"{path!r} is no linear module of its own, and method {raw['peft_type']} is read of "
            "those alone. Merge the adapter in PEFT, or leave the module out."
        )
    found = {i: np.asarray(tensors[f"{m}.{method.key}"], np.float32) for i, m in modules.items()}
    block = 0
    if method.form == "oft":
        block = said["oft_block_size"] or name.rows // max(said["r"], 1)
        blocks = name.rows // max(block, 1)
        needed = {index: (blocks, block * (block - 1) // 2) for index in found}
        whole = blocks * block == name.rows
    elif method.form == "shira":
        needed, whole = {i: (said["r"] * (name.rows + name.columns),) for i in found}, True
    else:
        counts = said["n_frequency_pattern"] or {}
        needed = {
            index: (_pattern(counts, module, said["n_frequency"]),)
            for index, module in modules.items()
        }
        whole = True
    for index, value in found.items():
        if value.shape != needed[index] or not whole:
            raise ValueError(
                f"{modules[index]!r} has numbers of shape {value.shape}, and needs rank "
                f"{needed[index]} by the settings {said}, for a weight of {name.rows} inputs."
            )
    most = max(value.size for value in found.values())
    value, scale = (np.zeros((*name.stack, most), np.float32) for _ in range(2))
    where = np.zeros((*name.stack, most), np.int32)
    factor = said["scaling"] if method.form == "fourierft" else 1.0
    seed = said.get("random_loc_seed", said.get("random_seed"))
    seed = _TORCHS_OWN_SEED if seed is None else seed
    for index, own in found.items():
        value[index][: own.size], scale[index][: own.size] = own.ravel(), factor
        if not block:
            ordered = method.form == "shira"
            drawn = drawn_by_torch(name.rows, name.columns, own.size, seed, ordered)
            where[index][: own.size] = drawn
    terms = said["num_cayley_neumann_terms"] if said.get("use_cayley_neumann") else 0
    return Change(
        value=jnp.asarray(value),
        scale=jnp.asarray(scale),
        where=None if block else jnp.asarray(where),
        form=method.form,
        rows=name.rows,
        columns=name.columns,
        block=block,
        terms=terms,
        in_axes=tuple(name.in_axes),
    )


def _pattern(counts: Mapping[str, int], module: str, default: int) -> int:
    """PEFT's rule: the first entry that is the end of the module's name."""
    ends = (count for end, count in counts.items() if f".{module}".endswith(f".{end}"))
    return next(ends, default)


def _layers(leaf: Change, name: Name) -> Iterator[tuple[str, np.ndarray, float, tuple[Any, Any]]]:
    """(module, numbers, scale, (their places, those that PEFT draws)) of every changed layer."""
    for index, module in name.modules():
        scale = np.asarray(leaf.scale, np.float32)[index]
        used = np.flatnonzero(scale)
        if used.size:
            places: tuple[Any, Any] = (None, None)
            if leaf.where is not None:
                ordered = leaf.form == "shira"
                drawn = drawn_by_torch(leaf.rows, leaf.columns, used.size, DRAW, ordered)
                places = np.asarray(leaf.where)[index][used], drawn
            if np.ptp(scale[used]):
                raise ValueError(
                    f"The numbers of {module} have several scales, from {scale[used].min():g} to "
                    f"{scale[used].max():g}: PEFT's file has one a module."
                )
            value = np.asarray(leaf.value, np.float32)[index][used]
            yield module, value, float(scale[used[0]]), places
