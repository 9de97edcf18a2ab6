"""Class ids from the labels that files hold: integers, or names."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .records import near_names


class Classes(NamedTuple):
    """The names of the classes, in the order of their ids."""

    names: tuple[str, ...]
    declared: bool

    def ids(self, labels: Iterable[tuple[str, object]]) -> list[int]:
        """The class ids of (place, label) rows.

        A label is a class name; where the classes were declared and their names are words, it may
        be an id as well.

        Raises:
            ValueError: a label is neither; the message holds its place.
        """
        table = {name: i for i, name in enumerate(self.names)}
        if self.declared and not any(_is_integer(name) for name in self.names):
            table |= {str(i): i for i in range(len(self.names))}
        ids = []
        for place, label in labels:
            key = _name(place, label)
            if key not in table:
                known = ", ".join(repr(name) for name in self.names[:12])
                raise ValueError(
                    f"{place}: a label needs to be one of the {len(self.names)} classes "
                    f"({known}{', ...' * (len(self.names) > 12)}), but {label!r} came. "
                    f"{near_names(key, self.names)}Correct the row"
                    f"{', or raise num_classes / extend label_names' if self.declared else ''}."
                )
            ids.append(table[key])
        return ids


def declared_classes(label_names: Sequence[str] | None, num_classes: int | None) -> Classes | None:
    """The classes that the user named or counted ('0', '1', ...), or None if neither.

    Raises:
        ValueError: fewer than two classes, a repeated name, or a count that differs from the number
            of names.
    """
    if label_names is None and num_classes is None:
        return None
    names = (
        tuple(map(str, label_names))
        if label_names is not None
        else tuple(map(str, range(num_classes or 0)))
    )
    if (
        len(names) < 2
        or len(set(names)) < len(names)
        or (num_classes is not None and num_classes != len(names))
    ):
        raise ValueError(
            "classes need at least two different names, as many as num_classes, but "
            f"label_names={label_names!r} with num_classes={num_classes!r} came. Give one of the "
            "two, or "
            "make them agree."
        )
    return Classes(names, declared=True)


def observed_classes(labels: Sequence[tuple[str, object]]) -> Classes:
    """The classes that (place, label) rows hold: their different labels, sorted; as numbers if all
    are integers.

    Raises:
        ValueError: a label is empty, negative, a fraction or not a scalar; or all labels are equal.
    """
    names = {_name(place, label): place for place, label in labels}
    integers = all(map(_is_integer, names))
    negative = [name for name in names if _is_integer(name) and int(name) < 0]
    if integers and negative:
        raise ValueError(
            f"{names[negative[0]]}: a label needs to be a class name or an id from 0, but "
            f"{negative[0]} "
            "came (-1 often marks rows without a label). Remove these rows."
        )
    if labels and len(names) < 2:
        raise ValueError(
            "a classification data set needs at least two classes, but every one of the "
            f"{len(labels)} "
            f"labels is {next(iter(names))!r} (first: {labels[0][0]}). Check the label column, or "
            "declare "
            "the classes with label_names."
        )
    return Classes(tuple(sorted(names, key=int if integers else str)), declared=False)


def _is_integer(name: str) -> bool:
    return re.fullmatch(r"-?\d+", name) is not None


def _name(place: str, label: object) -> str:
    """The label as a class name: true and false become '1' and '0', integers their digits."""
    if isinstance(label, bool):
        return str(int(label))
    if isinstance(label, int):
        return str(label)
    if isinstance(label, str) and label.strip():
        # '01' and '1' are one class when labels are numbers, as they would be in a table of
        # integers.
        stripped = label.strip()
        return str(int(stripped)) if _is_integer(stripped) else stripped
    raise ValueError(
        f"{place}: a label needs to be an integer or a class name, but {label!r} came. Fill it in "
        "or remove the row."
    )
