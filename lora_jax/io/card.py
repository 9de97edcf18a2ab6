"""The model card beside an adapter: a README.md that says base, data, settings, scores and licences,
with the fields that the model hub reads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_jax.core.escapes import as_code, in_markdown, one_line
from lora_jax.core.replacing import replacing
from lora_jax.core.trainable import Trainables
from lora_jax.io.hub import HUB_ID, LICENCES, PIECES, WHEELS, resolve

FILE = "README.md"
UNKNOWN = "unknown"
_MARK = "<!-- Written by lora_jax; a card without this line is kept as it is. -->"
_FIELD = re.compile(r"^license:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class ScoreLine:
    """A score of a split as a card tells it; `metric` is its name as the hub knows it."""

    split: str
    metric: str
    label: str
    value: float
    text: str


@dataclass(frozen=True)
class Card:
    """What a card says that is not in the adapter's own file.

    Attributes:
        data: what was trained on, in words.
        task: the kind of task, as the hub names it: 'text-classification', 'text-generation'.
        settings: lines of the settings that differ from the defaults.
        scores: measured scores of the splits.
        base_id: the hub's id of the pretrained model, '' where it has none (`base_id_of`).
        base_licence: of the pretrained weights, as the hub names licences; None where it is not
            known.
    """

    data: str = ""
    task: str = ""
    settings: Sequence[str] = ()
    scores: Sequence[ScoreLine] = ()
    base_id: str = ""
    base_licence: str | None = None


def write_card(
    folder: Path,
    trainable: Trainables,
    *,
    model: str,
    base: str,
    card: Card | None = None,
    library: str = "lora_jax",
) -> None:
    """Writes `folder`/README.md, in one step. A card that somebody else has written is kept.

    Args:
        model: the name of the pretrained model, `base` the fingerprint of its weights.
        library: what loads the adapter: 'lora_jax' or 'peft'.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / FILE
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    text = _card(trainable, model, base, card or Card(), library)
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def base_id_of(model: str) -> str:
    """The hub's id of a model that `lora_jax.io.resolve` was given; '' for a folder, or a package."""
    shipped = model in WHEELS or model in PIECES
    return "" if shipped or not HUB_ID.fullmatch(model) or Path(model).exists() else model


def licence_of(model: str) -> str | None:
    """The licence that the files of a model which is on this machine name, in the hub's words; None
    where they name none.
    """
    if model in LICENCES:
        return LICENCES[model]
    try:
        readme = resolve(model, fetch=False) / FILE
    except (OSError, ImportError, ValueError):
        return None
    return licence_in(
        readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    )


def licence_in(card: str) -> str | None:
    """The licence field of a card's text; None where it has none, or says 'unknown'."""
    _, fence, rest = card.partition("---\n")
    found = _FIELD.search(rest.partition("\n---")[0]) if fence and card.startswith("---") else None
    return None if found is None or found[1] == UNKNOWN else found[1]


def with_licence(card: str, licence: str) -> str:
    """The card's text with another licence field.

    Raises:
        ValueError: it is no identifier of a licence, or the card has no such field.
    """
    if not re.fullmatch(r"[\w.+-]+", licence):
        raise ValueError(
            f"A licence is named as the hub does, such as apache-2.0, mit or other, got {licence!r}."
        )
    if not _FIELD.search(card):
        raise ValueError(
            "The card (README.md) needs a line 'license: ...' between its first two lines '---'. "
            "Add one, or delete the card and save the adapter again."
        )
    return _FIELD.sub(f"license: {licence}", card, count=1)


def _card(trainable: Trainables, model: str, base: str, card: Card, library: str) -> str:
    ranks = sorted({leaf.rank for leaf in trainable.values() if leaf.rank})
    trained = sum(leaf.active_parameters() for leaf in trainable.values())
    fields: dict[str, Any] = {}
    if card.base_id:
        fields["base_model"] = card.base_id
    tags = ["lora", "lora_jax"] if ranks else ["lora_jax"]
    fields |= {"library_name": library, "license": UNKNOWN, "tags": tags}
    if card.task:
        fields["pipeline_tag"] = card.task
    if index := _index(model, card):
        fields["model-index"] = index
    # JSON is YAML. A licence is written bare, as people write it and other tools look for it.
    lines = [
        f"{name}: {value if name == 'license' else json.dumps(value)}"
        for name, value in fields.items()
    ]
    rows = {
        "base": in_markdown(model) or "not recorded",
        "fingerprint of the base's weights": as_code(base) if base else "not recorded",
        "data": in_markdown(card.data) or "not recorded",
        "adapter": f"{len(trainable)} sites, {trained:,} trained numbers"
        + (f", rank {', '.join(map(str, ranks))}" if ranks else ""),
    }
    out = [
        "---",
        *lines,
        "---",
        _MARK,
        "",
        f"# An adapter of {in_markdown(model) or 'a model that is not recorded'}",
        "",
    ]
    out += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    out += ["", "## Scores", "", *(_scores(card.scores) or ["None are recorded here."])]
    settings = [f"    {one_line(line.strip())}" for line in card.settings]
    out += ["", "## Settings that differ from lora_jax's defaults", ""]
    out += settings or ["None are recorded here."]
    out += ["", "## Licence", "", _licence(card.base_licence), "", "## Use", "", *_use(library)]
    return "\n".join(out) + "\n"


def _index(model: str, card: Card) -> list[dict[str, Any]]:
    """The scores as the hub reads them."""
    splits = dict.fromkeys(line.split for line in card.scores)
    results = [
        {
            "task": {"type": card.task or "other"},
            "dataset": {"name": card.data or "not recorded", "type": "other", "split": split},
            "metrics": [
                {"type": line.metric, "name": line.label, "value": line.value}
                for line in card.scores
                if line.split == split and math.isfinite(line.value)
            ],
        }
        for split in splits
    ]
    found = [result for result in results if result["metrics"]]
    return [{"name": f"adapter of {model}".strip(), "results": found}] if found else []


def _scores(scores: Sequence[ScoreLine]) -> list[str]:
    if not scores:
        return []
    rows = [f"| {line.split} | {in_markdown(line.label)} | {line.text} |" for line in scores]
    return ["| split | score | value |", "|---|---|---|", *rows]


def _licence(base: str | None) -> str:
    said = (
        f"The base's files name the licence {as_code(base)}."
        if base
        else "The base's files name no licence that was found: look where it comes from."
    )
    return (
        f"{said} Whoever trained this adapter has named none for it, which the field `license: "
        f"{UNKNOWN}` above says; name one before it is published, under what the base and the data "
        "allow."
    )


def _use(library: str) -> list[str]:
    if library == "peft":
        return ["With PEFT: `PeftModel.from_pretrained(model, FOLDER)`, on the base named above."]
    return [
        "```python",
        "import lora_jax",
        "",
        'trainable, said = lora_jax.load_adapter("FOLDER")  # of this adapter',
        "# logits = lora_jax.apply(model, params, trainable, *inputs)",
        "```",
    ]
