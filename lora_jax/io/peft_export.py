"""An adapter as PEFT's configuration and tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_jax.core.changes import Change
from lora_jax.core.json_files import parse_json
from lora_jax.core.lowrank import LowRank
from lora_jax.core.paths import nearest
from lora_jax.core.trainable import Trainables
from lora_jax.io.named_weights import assembled
from lora_jax.io.names import Name, Names
from lora_jax.io.peft_changes import change_form, change_settings, change_tensors, stand_in
from lora_jax.io.peft_settings import alpha_of, common, endings
from lora_jax.io.peft_variants import own_form, own_settings, own_tensors
from lora_jax.io.tensors import check_finite

PREFIX = "base_model.model."
# PEFT calls them deltas; they are the new rows themselves
ROWS = "token_adapter.trainable_tokens_delta"
MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class PeftAdapter:
    """The content of a PEFT folder. `notes` says what was written in another form than it is held
    here.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def recorded(self) -> Mapping[str, Any]:
        """What we wrote beside PEFT's own words: the base's fingerprint as `base`, each module's
        scale; empty in PEFT's files.

        Raises:
            ValueError: it is damaged.
        """
        told = parse_json(self.metadata.get("lora_jax", "{}"), "the metadata 'lora_jax'")
        scales = told.get("scale", {}) if isinstance(told, dict) else None
        if not isinstance(scales, dict) or not all(type(x) is float for x in scales.values()):
            raise ValueError("the metadata 'lora_jax' holds no scales of modules; save it again.")
        return told


@dataclass(frozen=True)
class Factors:
    """One module's factors in our orientation: (in, r), (r, out), one scale, DoRA's magnitude
    (out,).
    """

    name: Name
    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None


def to_peft(
    trainable: Trainables,
    names: Names,
    *,
    base_model: str | None = None,
    task_type: str | None = None,
    base: str = "",
    dropout: float | None = None,
    plain: bool = False,
) -> PeftAdapter:
    """The adapter in PEFT's words.

    MiSS, LoHa, LoKr, GraLoRA, HiRA, OFT, FourierFT and SHiRA are written as PEFT's methods of those names, with as many numbers
    as are trained, unless `plain` asks for LoRA's factors, which more readers know. Other variants,
    and those that PEFT's method cannot say (modules of several ranks under MiSS), are written as the plain LoRA that computes the same (VeRA's gains multiplied into B;
    the start that PiSSA and others take out of the base as twice the rank), said in `notes`. Every
    module is written with r and alpha such that PEFT's alpha / r is our scale in float32, so
    use_rslora is never set. Where the columns of one module have several scales, they are
    multiplied into B, and the scale is 1 (said in `notes`). Parts of a fused weight are written as
    one module: with a shared A if all parts have the same, else block by block, ranks added.

    Raises:
        KeyError: `names` lacks a path of the adapter.
        ValueError: no site has factors (PEFT's LoRA needs one); a tied weight is adapted (PEFT
            would adapt one of its readers only); DoRA on some modules only; a weight trained whole
            that is no whole module; some biases of several; dropout rates that differ; shapes that
            are not the model's; a NaN.
    """
    notes: list[str] = []
    form, given = None if plain else own_form(trainable, names), trainable
    change = None if plain else change_form(trainable, names)
    if change is not None:
        trainable = {p: stand_in(x) if isinstance(x, Change) else x for p, x in trainable.items()}
    trainable = {
        path: leaf
        if leaf.kind in ("whole", "rows")
        else _plain(
            path, leaf.replace(of_base=False) if form is not None and leaf.rank else leaf, notes
        )
        for path, leaf in trainable.items()
    }
    _check(trainable, names)
    adapted: dict[str, Factors] = {}
    for module, parts in _by_module(trainable, names).items():
        adapted[module] = _fused(module, parts, names, notes)
    if not adapted:
        raise ValueError(
            "Cannot write the adapter as PEFT's LoRA: no site has factors with a scale other than "
            "0, and PEFT needs one. Weights trained whole alone (head only, BitFit, full) are "
            "saved with save_encoder, or with our own save_adapter."
        )

    bias, saved, whole_tensors = _whole(trainable, names, adapted)
    rows, row_tensors = _trained_rows(trainable, names, {*adapted, *saved})
    if change is not None:
        own = change_tensors(given, names, PREFIX)
    else:
        own = _factor_tensors(adapted) if form is None else own_tensors(form, given, names, PREFIX)
    tensors = own | whole_tensors | row_tensors
    check_finite(tensors, "; the adapter was not written.")
    if task_type in ("SEQ_CLS", "TOKEN_CLS") and (
        heads := [m for m in adapted if m.rpartition(".")[2] in ("classifier", "score")]
    ):
        raise ValueError(
            f"PEFT trains the head whole for task_type {task_type!r}, and {heads[0]!r} has "
            "factors. Choose another task_type."
        )

    matrices = {m for name in names.values() if name.kind != "vector" for _, m in name.modules()}
    drops = _dropout(trainable, dropout)
    config = _factor_settings(adapted, matrices) | {
        "base_model_name_or_path": base_model,
        "bias": bias,
        "lora_dropout": drops,
        "modules_to_save": saved or None,
        "task_type": task_type,
        "trainable_token_indices": rows or None,
    }
    if form is not None:
        notes = [] if form.dropout or not drops else [f"PEFT's {form.peft_type} drops no inputs"]
        config = own_settings(form, given, names, config)
    if change is not None:
        config = change_settings(change, given, names, config)
    scales = {module: float(f.scale) for module, f in sorted(adapted.items())}
    metadata = {
        "format": "pt",
        "lora_jax": json.dumps({"base": base, "scale": scales}, sort_keys=True),
    }
    return PeftAdapter(config, dict(sorted(tensors.items())), metadata, tuple(notes))


def _factor_settings(adapted: Mapping[str, Factors], matrices: set[str]) -> dict[str, Any]:
    """What `adapter_config.json` says of the factors, and the fields that are alike in all ours."""
    rank, rank_pattern = common({module: f.a.shape[1] for module, f in adapted.items()})
    alpha, alpha_pattern = common(
        {module: alpha_of(f.scale, f.a.shape[1]) for module, f in adapted.items()}
    )

    return {
        "alpha_pattern": alpha_pattern,
        "auto_mapping": None,
        "exclude_modules": None,
        "fan_in_fan_out": all(f.name.kind == "conv1d" for f in adapted.values()),
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "lora_bias": False,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": rank_pattern,
        "revision": None,
        "target_modules": endings(set(adapted), matrices),
        "use_dora": _uses_dora(adapted),
        "use_rslora": False,
    }


def _plain(path: str, leaf: Any, notes: list[str]) -> LowRank:
    """Ordinary factors of the same update, and a note if the leaf was a variant that PEFT's LoRA
    has not.
    """
    if not leaf.rank:
        raise ValueError(
            f"{path!r} is a {type(leaf).__name__}, which PEFT's LoRA has not. Save it with our own "
            "save_adapter."
        )
    plain = leaf.plain()
    if leaf.rounded:
        notes.append(
            f"{path}: trained merge-aware, as the sum of base and update rounded into the base's "
            "format. PEFT adds the update without rounding, which is another function until it is "
            "merged into that format"
        )
    extra = [
        field for field in ("gain", "out_gain", "parts", "a0") if getattr(leaf, field) is not None
    ]
    extra += [name for name in ("mix", "a2", "outer") if getattr(leaf, name) is not None]
    extra += [name for name in ("group", "blocks") if getattr(leaf, name) > 1]
    if extra:
        notes.append(
            f"{path}: a variant of LoRA ({', '.join(extra)}), written as plain LoRA of rank "
            f"{plain.rank} with the same update"
        )
    return plain


def _check(trainable: Trainables, names: Names) -> None:
    for path, leaf in trainable.items():
        if path not in names:
            raise KeyError(
                f"There is no PEFT name for {path!r}. Nearest: {', '.join(nearest(path, names))}. "
                "Give names of this model."
            )

        name = names[path]
        if leaf.kind == "rows":
            if name.kind != "embedding" or leaf.layers:
                raise ValueError(
                    f"PEFT trains single rows of embeddings, and {path!r} is none. Train it whole, "
                    "or save with save_adapter."
                )
            shapes = [(tuple(leaf.value.shape[1:]), tuple(name.shape[1:]))]
        elif leaf.replaces:
            if name.tied:
                raise ValueError(
                    f"{path!r} is tied and trained whole: PEFT would train a copy for one of its "
                    "readers, and compute something else. Train some rows of it (rows=...), which "
                    "PEFT ties, or merge."
                )
            shapes = [(tuple(leaf.value.shape), (*name.stack, *name.shape))]
        else:
            rank = leaf.rank
            shapes = [
                (tuple(leaf.a.shape), (*name.stack, name.rows, rank)),
                (tuple(leaf.b.shape), (*name.stack, rank, name.columns)),
                (tuple(leaf.in_axes), tuple(name.in_axes)),
            ]
            if name.tied:
                raise ValueError(
                    f"{path!r} is tied: the model reads it in two places, and the adapter acts in "
                    "both. PEFT would adapt only one of them, so the file would compute something "
                    "else. Merge it, or leave this site out."
                )

        for came, needed in shapes:
            if came != needed:
                raise ValueError(
                    f"{path!r} has {came} where the model's names say {needed}. The adapter is for "
                    "another model."
                )


def _by_module(trainable: Trainables, names: Names) -> dict[str, dict[int, Factors]]:
    """The used columns of every adapted layer, by module and by part of a fused module, with the
    scale still in a vector.
    """
    modules: dict[str, dict[int, Factors]] = {}
    for path, leaf in trainable.items():
        if not leaf.rank:
            continue
        a, b, scale = (np.asarray(x, np.float32) for x in (leaf.a, leaf.b, leaf.scale))
        magnitude = None if leaf.magnitude is None else np.asarray(leaf.magnitude, np.float32)
        for index, module in names[path].modules():
            used = np.flatnonzero(scale[index])
            if used.size:
                own = None if magnitude is None else magnitude[index]
                factors = Factors(
                    names[path], a[index][:, used], b[index][used], scale[index][used], own
                )
                part = names[path].part
                modules.setdefault(module, {})[0 if part is None else part[0]] = factors
    return modules


def _fused(module: str, parts: Mapping[int, Factors], names: Names, notes: list[str]) -> Factors:
    """The parts of a module as one, with one scale."""
    order = [parts[place] for place in sorted(parts)]
    first, columns = order[0], order[0].name.their_columns
    count = 1 if first.name.part is None else len(first.name.part[1])
    magnitude = None
    if any(f.magnitude is not None for f in order):
        if len(order) < count or any(f.magnitude is None for f in order):
            raise ValueError(
                f"{module!r} is fused of {count} parts, and DoRA has a magnitude for only some of "
                "them. Adapt all parts or none."
            )
        magnitude = np.zeros(columns, np.float32)
        for f in order:
            magnitude[f.name.outputs()] = f.magnitude

    # Parts with the same A share its columns; others have theirs one after the other.
    shared = all(
        np.array_equal(f.a, first.a) and np.array_equal(f.scale, first.scale) for f in order
    )
    apart = [first] if shared else order
    a, scale = (np.concatenate([getattr(f, x) for f in apart], -1) for x in ("a", "scale"))
    b, row = np.zeros((a.shape[1], columns), np.float32), 0
    for f in order:
        rank = f.b.shape[0]
        b[row : row + rank, f.name.outputs()] = f.b
        row += 0 if shared else rank
    if not shared:
        notes.append(
            f"{module}: {len(order)} adapted parts of a fused weight, written with the sum of "
            f"their ranks, {a.shape[1]}"
        )

    scales = np.unique(scale)
    if len(scales) == 1:
        return Factors(first.name, a, b, float(scales[0]), magnitude)
    notes.append(
        f"{module}: its columns have {len(scales)} scales, from {scales[0]:g} to {scales[-1]:g}; "
        "they are part of B, and the scale is 1"
    )
    return Factors(first.name, a, b * scale[:, None], 1.0, magnitude)


def _factor_tensors(adapted: Mapping[str, Factors]) -> dict[str, np.ndarray]:
    tensors = {}
    for module, f in adapted.items():
        key_a, key_b = factor_keys(f.name, module)
        tensors[PREFIX + key_a] = f.name.a_to_theirs(f.a)
        tensors[PREFIX + key_b] = f.name.b_to_theirs(f.b)
        if f.magnitude is not None:
            window = [1] * (len(f.name.shape) - 2)
            shape = (1, -1, *window) if f.name.kind == "conv" else (-1,)
            tensors[f"{PREFIX}{module}.{MAGNITUDE}"] = f.magnitude.reshape(shape)
    return tensors


def factor_keys(name: Name, module: str) -> tuple[str, str]:
    """PEFT's names of A and B of a module, without the prefix."""
    if name.kind == "embedding":
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _uses_dora(adapted: Mapping[str, Factors]) -> bool:
    without = [module for module, f in adapted.items() if f.magnitude is None]
    if without and len(without) < len(adapted):
        raise ValueError(
            f"PEFT's use_dora is for all modules or none, and {len(without)} of {len(adapted)} "
            f"have no magnitude, such as {without[0]!r}. Merge the adapter, or train all its sites "
            "with dora=True."
        )
    return not without


def _whole(
    trainable: Trainables, names: Names, adapted: Mapping[str, Factors]
) -> tuple[str, list[str], dict[str, np.ndarray]]:
    """PEFT's bias mode, its modules_to_save, and the tensors of both."""
    values = {path: np.asarray(leaf.value) for path, leaf in trainable.items() if leaf.replaces}
    theirs = dict(assembled(names, values))
    members: dict[str, set[str]] = {}
    for name in names.values():
        for _, parameter in name.layers():
            members.setdefault(parameter.rpartition(".")[0], set()).add(parameter)

    only_biases = lambda inside: all(parameter.endswith("bias") for parameter in inside)
    complete = sorted(
        m for m, inside in members.items() if inside <= set(theirs) and not only_biases(inside)
    )
    in_modules = {parameter for module in complete for parameter in members[module]}

    biases = {parameter for parameter in theirs if parameter.endswith("bias")} - in_modules
    if single := sorted(set(theirs) - in_modules - biases):
        module = single[0].rpartition(".")[0]
        raise ValueError(
            f"{single[0]!r} is trained whole, and {sorted(members[module] - set(theirs))} of the "
            "same module are not. PEFT's modules_to_save stores whole modules: train all weights "
            "of the module or none."
        )

    _check_whole(complete, members, adapted)
    tensors = {PREFIX + parameter: theirs[parameter] for parameter in in_modules}
    for parameter in biases:
        module, _, last = parameter.rpartition(".")
        key = f"{module}.base_layer.{last}" if module in adapted else parameter
        tensors[PREFIX + key] = theirs[parameter]

    return _bias_mode(biases, in_modules, members, adapted), complete, tensors


def _check_whole(
    complete: list[str], members: Mapping[str, set[str]], adapted: Mapping[str, Factors]
) -> None:
    """Refuses modules trained whole that PEFT, which goes by the ends of names, would mistake."""
    for module in complete:
        if clash := [
            other
            for other in members
            if other != module and other.endswith(module) and other not in complete
        ]:
            raise ValueError(
                f"PEFT would take {clash[0]!r} for the module {module!r}, which is trained whole. "
                "Train both whole or neither."
            )
        if module in adapted or (
            inside := [other for other in adapted if other.startswith(module + ".")]
        ):
            raise ValueError(
                f"{module!r} is trained whole and holds the adapted "
                f"{module if module in adapted else inside[0]!r}."
            )


def _trained_rows(
    trainable: Mapping[str, Any], names: Names, taken: set[str]
) -> tuple[dict[str, list[int]], dict[str, np.ndarray]]:
    """PEFT's trainable_token_indices and their tensors."""
    indices: dict[str, list[int]] = {}
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in trainable.items():
        if leaf.kind == "rows":
            (_, module), *_ = names[path].modules()
            if module in taken:
                raise ValueError(
                    f"{module!r} has trained rows and is adapted as well, which PEFT's file cannot "
                    "say of one module."
                )
            indices[module] = [int(i) for i in np.asarray(leaf.index)]
            tensors[f"{PREFIX}{module}.{ROWS}"] = np.asarray(leaf.value, np.float32)
    return indices, tensors


def _bias_mode(
    biases: set[str],
    in_modules: set[str],
    members: Mapping[str, set[str]],
    adapted: Mapping[str, Factors],
) -> str:
    if not biases:
        return "none"
    every = {name for inside in members.values() for name in inside if name.endswith("bias")}
    of_adapted = {name for module in adapted for name in members[module] if name.endswith("bias")}
    if biases == of_adapted:
        return "lora_only"
    if biases == every - in_modules:
        return "all"
    lacking, extra = sorted(of_adapted - biases), sorted(biases - of_adapted)
    raise ValueError(
        "PEFT can store the biases of all modules ('all') or of the adapted ones ('lora_only'), "
        f"and the adapter trains {len(biases)} that are neither: of the adapted modules it lacks "
        f"{lacking[:3] or 'none'}, and has {extra[:3] or 'none'} besides."
    )


def _dropout(trainable: Trainables, wanted: float | None) -> float:
    if wanted is not None:
        return wanted
    rates: dict[float, str] = {}
    for path, leaf in trainable.items():
        if leaf.rank and not path.endswith("embedding"):  # Nothing is dropped of an index.
            used = np.any(np.asarray(leaf.scale) != 0, axis=-1)
            each = np.zeros(used.shape) if leaf.dropout is None else np.asarray(leaf.dropout)
            rates |= {float(f"{rate:.6g}"): path for rate in each[used]}
    if len(rates) > 1:
        raise ValueError(
            f"PEFT's file has one lora_dropout, and the adapter has {sorted(rates)} (as at "
            f"{rates[max(rates)]!r}). Pass dropout=..."
        )
    return next(iter(rates), 0.0)
