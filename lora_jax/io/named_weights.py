"""Weights of a model whose `Name`s are known, out of another tool's tensors and back: every tensor
is used exactly once, and no more than one matrix is held besides the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.core.heap import release_freed_memory
from lora_jax.core.host import Filling
from lora_jax.core.paths import Rules, match, nearest
from lora_jax.core.quantize import QuantizedArray, QuantSpec
from lora_jax.core.quantize_columns import quantize_by_columns
from lora_jax.io.names import Index, Name, Names
from lora_jax.io.tensors import Tensors, check_finite

_CHUNK = 1 << 20  # numbers that are looked at together
_LARGE = 1 << 20  # bytes of a matrix whose quantisation leaves room worth giving back


def check_named(
    names: Names,
    tensors: Tensors,
    *,
    what: str,
    ignored: Collection[str] = (),
    by: str = "config.json",
) -> None:
    """Checks that every tensor has a place and every weight a tensor of the right shape; nothing is
    read.

    Args:
        what: of what the tensors should be, for the error: 't5 model in FOLDER'.
        ignored: tensors that nothing reads.
        by: who says which shapes are right.

    Raises:
        ValueError: tensors are missing, left over or of another shape; all of them are listed.
    """
    stored = set(tensors) - set(ignored)
    check_claimed(names, len(stored), what)
    wanted = {
        parameter: name.their_shape() for name in names.values() for _, parameter in name.layers()
    }
    missing, extra = sorted(set(wanted) - stored), sorted(stored - set(wanted))
    wrong = [
        name for name in sorted(wanted) if name in stored and tensors.shape(name) != wanted[name]
    ]
    if not missing and not extra and not wrong:
        return
    lines = [f"  missing    {name}{perhaps(name, extra)}" for name in missing]
    lines += [f"  left over  {name}" for name in extra]
    lines += [
        f"  shape      {name}: {tensors.shape(name)}, {by} says {wanted[name]}" for name in wrong
    ]
    raise ValueError(
        f"The tensors are not those of the {what}: {len(missing)} missing, {len(extra)} left "
        f"over, {len(wrong)} of another shape. Every tensor must be used exactly once. Check that "
        "the configuration belongs to the file.\n" + "\n".join(lines[:60])
    )


def check_claimed(names: Names, stored: int, what: str) -> None:
    """Raises ValueError if a configuration claims far more tensors than there are: more layers than
    memory can count.
    """
    claimed = sum(math.prod(name.stack) for name in names.values())
    if claimed > 8 * stored + 10_000:
        raise ValueError(
            f"The configuration of the {what} claims {claimed:,} tensors, and the file has "
            f"{stored:,}. Check that it belongs to the file."
        )


def formats_of(quant: Rules[QuantSpec], names: Names) -> dict[str, QuantSpec]:
    """How each matrix is stored, by path, if a rule matches it.

    Raises:
        ValueError: a rule matches nothing.
    """
    matrices = [path for path, name in names.items() if len(name.shape) > 1]
    return match(quant, matrices, what="quant", among="weights", kind=QuantSpec)


def read_leaf(
    name: Name,
    parts: Iterable[tuple[Index, np.ndarray]],
    spec: QuantSpec | None = None,
    *,
    dtype: Any = np.float32,
    place: Callable[[Any], Any] | None = None,
    seen: Callable[[np.ndarray, QuantizedArray], None] | None = None,
) -> np.ndarray | jax.Array | QuantizedArray:
    """One weight, its layers joined; each is quantised, or put where it belongs, as soon as it is
    read.

    Norms and biases are float32, matrices of `dtype`.

    Args:
        parts: as `parts_of` gives them.
        place: the shardings of its arrays, as `core.host.Place` has them; without it what is not
            quantised is a host array, closed to writing, so that jax on a CPU can share it.
        seen: is given each matrix that is quantised, as it was and as it is.
    """
    if spec is None:
        like = jax.ShapeDtypeStruct((*name.stack, *name.shape), dtype_of(name, dtype))
        filling = Filling(
            like.shape, like.dtype, None if place is None else place(like), on_host=place is None
        )
        for index, part in parts:
            filling.put(index, part)
        return filling.done()

    def boxes() -> Iterator[tuple[Index, QuantizedArray]]:
        for index, part in parts:
            yield index, quantized(part)

    def quantized(part: np.ndarray) -> QuantizedArray:
        made = quantize_by_columns(part, spec, in_axes=name.in_axes)
        if seen is not None:
            seen(part, made)
        return made.replace(dtype=jnp.dtype(dtype))

    return join_boxes(name, boxes(), place)


def join_boxes(
    name: Name,
    boxes: Iterable[tuple[Index, QuantizedArray]],
    place: Callable[[Any], Any] | None = None,
) -> QuantizedArray:
    """One quantised weight of the boxes of its layers, each put where it belongs as soon as it
    comes.
    """
    # What is kept lies between what the program needed, which is free for the next matrix then: it
    # is given back, or it would fall apart.
    fillings: list[Filling] = []
    for index, box in boxes:
        leaves, structure = jax.tree.flatten(box)
        fillings = fillings or _fillings(name, structure, leaves, place)
        for filling, leaf in zip(fillings, leaves, strict=True):
            filling.put(index, leaf)
        large = 4 * box.size >= _LARGE
        del box, leaves, leaf
        if large:
            release_freed_memory()
    return jax.tree.unflatten(structure, [filling.done() for filling in fillings])


def _fillings(
    name: Name, structure: Any, leaves: Sequence[Any], place: Callable[[Any], Any] | None
) -> list[Filling]:
    """Room for the arrays of a weight whose matrices have these, one after the other."""
    shapes = [jax.ShapeDtypeStruct((*name.stack, *x.shape), x.dtype) for x in leaves]
    given = None if place is None else place(jax.tree.unflatten(structure, shapes))
    places = [None] * len(shapes) if given is None else jax.tree.leaves(given)
    return [Filling(x.shape, x.dtype, to) for x, to in zip(shapes, places, strict=True)]


def parts_of(name: Name, tensors: Tensors) -> Iterator[tuple[Index, np.ndarray]]:
    """(index along the stack axes, weight) of one layer after the other.

    Raises:
        ValueError: a tensor does not hold floating numbers, or a NaN or an infinity.
    """
    for index, parameter in name.layers():
        tensor = tensors[parameter]
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(
                f"{parameter} holds numbers of {tensor.dtype}, and weights are floating numbers. "
                "Load quantised files with the tools of their format."
            )
        # Of a fused weight our part alone: the others are read, and looked at, for themselves.
        own = name.own(tensor)
        if not _is_finite(own):
            raise ValueError(
                f"{parameter} holds a NaN or an infinity: the file was damaged, or saved when "
                "training had diverged. Fetch it again."
            )
        yield index, name.turned(own)


def _is_finite(tensor: np.ndarray) -> bool:
    """Whether all numbers are finite, with no second array of the tensor's size."""
    step = max(1, _CHUNK * len(tensor) // max(1, tensor.size))
    return all(np.isfinite(tensor[n : n + step]).all() for n in range(0, len(tensor), step))


def dtype_of(name: Name, dtype: Any) -> np.dtype:
    """What a weight is kept in: norms and biases stay float32."""
    return np.dtype(dtype) if len(name.shape) > 1 else np.dtype(np.float32)


def named_tensors(
    names: Names, flat: Mapping[str, Any], *, dtype: Any = np.float32
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by the other tool's name, made one by one; the parts of a fused one together.

    Raises:
        ValueError: the paths or shapes are not those of `names`, a leaf is a box, or one holds a
            NaN.
    """
    missing, extra = sorted(set(names) - set(flat)), sorted(set(flat) - set(names))
    if missing or extra:
        raise ValueError(
            f"The params are not this model's: missing {missing[:4] or 'none'}, unexpected "
            f"{extra[:4] or 'none'}."
        )
    for path, name in names.items():
        if not isinstance(flat[path], (np.ndarray, jax.Array)):
            raise ValueError(
                f"{path} is a {type(flat[path]).__name__}: files hold plain weights. Use the first "
                "result of lora_jax.merge."
            )
        if flat[path].shape != (*name.stack, *name.shape):
            raise ValueError(
                f"{path} has shape {flat[path].shape}, and this model's is "
                f"{(*name.stack, *name.shape)}."
            )

    for parameter, tensor in assembled(names, flat):
        check_finite({parameter: tensor}, "; nothing was written.")
        yield parameter, np.ascontiguousarray(tensor.astype(dtype))


def assembled(names: Names, flat: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """These weights in float32 by the other tool's names, the parts of a fused one together.

    Raises:
        ValueError: some parts of a fused weight are not there.
    """
    held: dict[str, list[tuple[str, Index]]] = {}
    for path, name in names.items():
        for index, parameter in name.layers() if path in flat else ():
            held.setdefault(parameter, []).append((path, index))

    for parameter, places in held.items():
        name = names[places[0][0]]
        if name.part is not None and len(places) < len(name.part[1]):
            raise ValueError(
                f"{parameter!r} is fused of {len(name.part[1])} parts, and only "
                f"{', '.join(path for path, _ in places)} of them is there. Give all parts or none."
            )
        tensor = np.empty(name.their_shape(), np.float32)
        for path, index in places:
            part = names[path].to_theirs(np.asarray(flat[path][index], np.float32))
            if names[path].partial:
                names[path].put(tensor, part)
            else:
                tensor = part
        yield parameter, tensor


def perhaps(name: str, extra: list[str]) -> str:
    """What a missing name may be called among those that are left over, for an error's line."""
    close = nearest(name, extra, 1) if extra else []
    return f"  (perhaps {close[0]!r})" if close else ""
