"""Trees of weights on a mesh: ordered rules say along which axes each weight is cut."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import DictKey, tree_flatten_with_path

from lora_jax.core.changes import Change
from lora_jax.core.host import StoredWeight
from lora_jax.core.hosts import spread
from lora_jax.core.lowrank import LowRank
from lora_jax.core.mesh import Axes, Cut, Placed, laid
from lora_jax.core.notice import say_once
from lora_jax.core.paths import match
from lora_jax.core.quantize import QuantizedArray
from lora_jax.core.scales import DoubleQuantized
from lora_jax.core.trainable import Trainable, given_fields
from lora_jax.core.trained_weight import TrainedWeight

Rules = Sequence[tuple[str, tuple[Axes, Axes] | None]]

# A block's first products are cut along the features that they make, its last along those that they
# take: one sum over `model` a half of a block (Shoeybi et al. 2019, arXiv 1909.08053). The names of
# modules are those of all our families: decoders, encoders, encoder-decoders, experts in any.
_LAYER = r"(?:.*/)?layers(?:_\d+)?/"
RULES: Rules = (
    (_LAYER + r"(?:attn|cross)/(?:q|k|v|pos_k|pos_q)/kernel", ("fsdp", "model")),
    (_LAYER + r"(?:attn|cross)/o/kernel", ("model", "fsdp")),
    (_LAYER + r"mlp/(?:.*/)?(?:gate|up)/kernel", ("fsdp", "model")),
    (_LAYER + r"mlp/(?:.*/)?down/kernel", ("model", "fsdp")),
    (r"embed/embedding|embeddings/word/embedding", ("model", "fsdp")),
    (r"head/kernel", ("fsdp", "model")),
)


def shardings(tree: Any, mesh: Mesh, rules: Rules | None = None) -> Any:
    """The tree with a `NamedSharding` in place of each array: for `jax.jit` and `jax.device_put`.

    The tree is what is frozen, what is trained, an optimiser's state, or a `TrainState`. Codes lie
    as their weight does, scales and factors in parts of the same size; an optimiser's moments lie as
    what they are moments of. What has no rule, and vectors, lie whole on every device.

    Args:
        rules: the axes of `lora_jax.core.mesh.AXES`, or None, along which a weight's (inputs,
            outputs) are cut, by regular expressions on whole paths of which the first that matches
            counts. By default those of this library's models.

    Raises:
        ValueError: a rule matches none of a base's weights, or names an axis that no mesh has.
    """
    leaves, structure = _leaves(tree)
    cuts = _cuts(leaves, mesh, rules, base=_is_base(tree, leaves))
    return jax.tree.unflatten(
        structure, [_laid(leaf, cuts.get(path, Cut(mesh))) for path, leaf in leaves]
    )


def shard(tree: Any, mesh: Mesh, rules: Rules | None = None) -> Any:
    """The tree on the mesh, as `shardings` says; its frozen weights know how they are cut, so that
    products gather codes and not dense weights.

    Host arrays go to their devices part by part; of ShapeDtypeStructs come ShapeDtypeStructs. An
    axis that does not divide a weight is said, and the weight is whole along it.

    Raises:
        ValueError: as `shardings`.
    """
    leaves, structure = _leaves(tree)
    base = _is_base(tree, leaves)
    cuts = _cuts(leaves, mesh, rules, base=base)
    made = []
    for path, leaf in leaves:
        cut = cuts.get(path)
        if base and cut is not None:
            _say_what_is_whole(path, leaf, cut)
            leaf = _knowing(leaf, cut)
        made.append(jax.tree.map(_put, leaf, _laid(leaf, cut or Cut(mesh))))
    return jax.tree.unflatten(structure, made)


def _leaves(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """(path, box or array) of the tree, and its structure down to these."""
    boxes = (QuantizedArray, LowRank, Change, TrainedWeight, Placed)
    found, structure = tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, boxes))
    return [(_path(keys), leaf) for keys, leaf in found], structure


def _path(keys: Sequence[Any]) -> str:
    """The weight's path: the last names in a row of mappings. An optimiser's state has its own trees
    of what is trained, at any depth.
    """
    names: list[str] = []
    for before, key in zip((None, *keys), keys):
        if isinstance(key, DictKey):
            names = [*(names if isinstance(before, DictKey) else []), str(key.key)]
    return "/".join(names)


def _cuts(
    leaves: Sequence[tuple[str, Any]], mesh: Mesh, rules: Rules | None, *, base: bool
) -> dict[str, Cut]:
    """The cut of each path that a rule covers. Every rule that is given for a base has to be used;
    the built-in ones are of all families, and what is trained is a part of the model.
    """
    given = RULES if rules is None else list(rules)
    paths = list(dict.fromkeys(path for path, leaf in leaves if getattr(leaf, "ndim", 2) > 1))
    if base and rules is not None:
        found = match(given, paths, what="sharding", among="weights", kind=tuple)
    else:
        first = lambda path: next(
            (axes for regex, axes in given if re.fullmatch(regex, path)), None
        )
        found = {path: axes for path in paths if (axes := first(path)) is not None}
    if base and not found:
        raise ValueError(
            f"None of {len(paths)} weights has a rule, and the mesh {dict(mesh.shape)} would cut "
            "nothing. Give rules for this model: [('path/.*/kernel', ('fsdp', 'model')), ...]."
        )
    for path, axes in found.items():
        _check_axes(path, axes, mesh)
    return {path: Cut(mesh, *axes) for path, axes in found.items() if any(axes)}


def _check_axes(path: str, axes: Any, mesh: Mesh) -> None:
    known = {None, *mesh.axis_names}
    named = lambda end: tuple(end) if isinstance(end, (tuple, list)) else (end,)
    if len(axes) != 2 or not all(name in known for end in axes for name in named(end)):
        raise ValueError(
            f"The sharding rule of {path!r} needs the mesh axes of its (inputs, outputs), each one "
            f"of {', '.join(mesh.axis_names)}, several of them, or None; got {axes!r}."
        )


def _is_base(tree: Any, leaves: Sequence[tuple[str, Any]]) -> bool:
    """Whether a tree is of frozen weights: those are nested mappings, and none is trained."""
    trained = any(isinstance(leaf, Trainable) for _, leaf in leaves)
    return isinstance(tree, Mapping) and bool(leaves) and not trained


def _knowing(leaf: Any, cut: Cut) -> Any:
    """A frozen weight that knows its cut."""
    if isinstance(leaf, QuantizedArray):
        return leaf.replace(cut=cut)
    base = leaf.base if isinstance(leaf, Placed) else leaf
    return Placed(base=base.load(None) if isinstance(base, StoredWeight) else base, cut=cut)


def _say_what_is_whole(path: str, leaf: Any, cut: Cut) -> None:
    stored = leaf.codes if isinstance(leaf, QuantizedArray) else leaf
    ends = zip(("inputs", "outputs"), stored.shape[-2:], (cut.rows, cut.columns))
    for what, size, axes in ends:
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        wanted = math.prod(cut.mesh.shape[name] for name in names)
        if size % wanted:
            say_once(
                f"{path!r} is whole along its {what}: {size} of them as they are stored are not "
                f"divided by {' x '.join(names)} = {wanted} of the mesh."
            )


# Axes of an adapter's arrays: r rows of the weight's inputs, o of its outputs, from the right.
_INPUTS, _OUTPUTS = ("a", "a0", "a2"), ("b", "b0", "b2")
_VECTORS = ("magnitude", "out_gain", "base_square")


def _laid(leaf: Any, cut: Cut) -> Any:
    """A box with a NamedSharding in place of each array."""
    rows, columns = cut.rows, cut.columns

    def lay(x: Any, *axes: Axes) -> Any:
        return jax.tree.map(lambda x: _placed_as_before(x, laid(x.shape, cut.mesh, *axes)), x)

    if isinstance(leaf, QuantizedArray):
        stored = lambda scale: _laid_scale(scale, cut, lay)
        return leaf.replace(
            codes=lay(leaf.codes, rows, columns),
            scale=stored(leaf.scale),
            zero=stored(leaf.zero),
            in_scale=lay(leaf.in_scale, rows),
        )
    if isinstance(leaf, LowRank):
        # Factors and their moments are float32, so they are cut along fsdp wherever they can be.
        is_cut = rows is not None or columns is not None
        more = "fsdp" if is_cut else None
        axes = dict.fromkeys(_INPUTS, (_joined(rows, more), None))
        axes |= dict.fromkeys(_OUTPUTS, (None, _joined(columns, more)))
        axes |= dict.fromkeys(_VECTORS, (columns,))
        given = {name: getattr(leaf, name) for name in given_fields(leaf)}
        return leaf.replace(**{name: lay(x, *axes.get(name, ())) for name, x in given.items()})
    if isinstance(leaf, Change):
        return lay(leaf)  # Vectors.
    if isinstance(leaf, Placed):
        return leaf.replace(base=lay(leaf.base, rows, columns))
    # A trained weight's moments are of its shape.
    return jax.tree.map(lambda x: lay(x, *((rows, columns) if len(x.shape) > 1 else ())), leaf)


def _laid_scale(scale: Any, cut: Cut, lay: Any) -> Any:
    if not isinstance(scale, DoubleQuantized):
        return lay(scale, cut.rows, cut.columns)
    # Flat, output by output: cut along all axes of the weight, since it is only stored so.
    both = _joined(cut.columns, cut.rows)
    offset = (both,) if scale.level == "log" else ()
    return scale.replace(
        codes=lay(scale.codes, both),
        absmax=lay(scale.absmax, both),
        offset=lay(scale.offset, *offset),
    )


def _joined(*axes: Axes) -> Axes:
    """All of these mesh axes, each once."""
    names = [(one,) if isinstance(one, str) else tuple(one or ()) for one in axes]
    return tuple(dict.fromkeys(name for several in names for name in several)) or None


def _placed_as_before(x: Any, sharding: NamedSharding) -> NamedSharding:
    """The sharding in the memory where `x` is: an optimiser's state may wait in the host's."""
    is_there = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    is_away = is_there and x.sharding.memory_kind == "pinned_host"
    return sharding.with_memory_kind("pinned_host") if is_away else sharding


def _put(x: Any, sharding: NamedSharding) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return spread(x, sharding)
