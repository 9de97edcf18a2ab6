"""What a data set looks like to a model: records, rendered prompts, lengths, and what its splits
share.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from .completions import Completions, EncodedCompletions
from .contamination import find_contamination
from .records import Example

_BARS, _WIDTH = 12, 40  # of a histogram: lines at most, and letters of the longest
_ANSWERS = ("label", "score", "tags", "answers", "answer")  # roles that are no inputs
Records = Completions | Sequence[Example]


def texts_of(records: Records) -> list[str]:
    """The inputs of a split, a text each, as contamination checks compare them."""
    if isinstance(records, Completions):
        return list(records.prompts)
    return [
        "\n".join(
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for role, value in row.values.items()
            if role not in _ANSWERS
        )
        for row in records
    ]


def show_records(records: Records, count: int) -> Iterator[str]:
    """The first `count` records, a paragraph each."""
    for n in range(min(count, len(records))):
        if isinstance(records, Completions):
            yield f"prompt: {records.prompts[n]!r}\ncompletion: {records.completions[n]!r}"
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
    if isinstance(records, Completions):
        return ""
    counts = collections.Counter(row.values["label"] for row in records if "label" in row.values)
    return ", ".join(f"{name} {counts[name]}" for name in label_names) if counts else ""
