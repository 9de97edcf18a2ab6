"""What a data set looks like to a model: records, rendered prompts, lengths, and what its splits
share.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from .completions import Completions, EncodedCompletions
from .contamination import find_contamination
from .examples import Example
from .records import TextRecords

_BARS = 12
_WIDTH = 40
Records = TextRecords | Completions | Sequence[Example]


def texts_of(records: Records) -> list[str]:
    """The inputs of a split, a text each, as contamination checks compare them."""
    if isinstance(records, Completions):
        return list(records.prompts)
    if isinstance(records, TextRecords):
        return [
            f"{text}\n{pair}"
            for text, pair in zip(records.texts, records.pairs or [""] * len(records))
        ]
    return [
        json.dumps(
            {key: value for key, value in row.values.items() if key not in _ANSWERS},
            ensure_ascii=False,
        )
        for row in records
    ]


_ANSWERS = ("label", "score", "tags", "answers", "answer")


def show_records(records: Records, count: int) -> Iterator[str]:
    """The first `count` records, a paragraph each."""
    for n in range(min(count, len(records))):
        if isinstance(records, Completions):
            yield f"prompt: {records.prompts[n]!r}\ncompletion: {records.completions[n]!r}"
        elif isinstance(records, TextRecords):
            pair = "" if records.pairs is None else f"\npair: {records.pairs[n]!r}"
            label = (
                records.label_names[int(records.labels[n])]
                if records.label_names
                else f"{records.labels[n]:g}"
            )
            yield f"text: {records.texts[n]!r}{pair}\nlabel: {label}"
        else:
            values = "\n".join(f"{role}: {value!r}" for role, value in records[n].values.items())
            yield f"({records[n].place})\n{values}"


def mark_loss(
    encoded: EncodedCompletions, index: int, decode: Callable[[Sequence[int]], str]
) -> str:
    """The text of an example's tokens, special ones shown, with those that bear loss between « and
    ».
    """
    tokens, cut = encoded.tokens[index].tolist(), int(encoded.prompt_lengths[index])
    return f"{decode(tokens[:cut])}«{decode(tokens[cut:])}»"


def histogram(lengths: Int[np.ndarray, " examples"], *, cap: int | None = None) -> list[str]:
    """Lines of a bar chart of token counts, the median and the 95th percentile first; `cap` is
    where texts are cut.
    """
    low, middle, high, top = (
        int(x) for x in np.quantile(lengths, [0, 0.5, 0.95, 1], method="nearest")
    )
    lines = [
        f"tokens: {low} to {top}, median {middle}, 95 % up to {high}"
        + (f", cut at {cap}" if cap else "")
    ]
    edges = np.unique(np.linspace(low, top + 1, _BARS + 1).astype(int))
    counts, _ = np.histogram(lengths, edges)
    for start, end, count in zip(edges, edges[1:], counts):
        bar = "#" * max(round(_WIDTH * count / counts.max()), int(count > 0))
        lines.append(f"{start:>6}-{end - 1:<6} {bar} {count}")
    return lines


def overlaps(records: Mapping[str, Records]) -> list[str]:
    """A sentence a pair of splits on what they share, and one a split on inputs that it repeats."""
    texts = {split: texts_of(part) for split, part in records.items()}
    lines = []
    for split, own in texts.items():
        repeated = sum(count - 1 for count in collections.Counter(own).values())
        lines.append(f"{split}: {repeated} of {len(own)} inputs came before in it")
    for split in ("validation", "test"):
        if split in texts and "train" in texts:
            lines.append(f"{split}: {find_contamination(texts['train'], texts[split])}")
    return lines


def label_counts(records: Records, label_names: Sequence[str]) -> str:
    """'good 120, bad 80' of a split's classes, or nothing where there are none."""
    labels: list[Any] = []
    if isinstance(records, TextRecords) and records.label_names:
        labels = [records.label_names[int(label)] for label in records.labels]
    elif not isinstance(records, (TextRecords, Completions)):
        labels = [row.values["label"] for row in records if "label" in row.values]
    return ", ".join(f"{name} {labels.count(name)}" for name in label_names) if labels else ""
