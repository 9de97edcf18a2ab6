"""What `evaluate` found, as tables: scores with their intervals, differences with their tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from lora_jax.core.escapes import in_terminal

_MEASURED = ("before", "after")


def tables_of(found: Mapping[str, Any], run: str, split: str) -> list[Table | str]:
    """Tables and lines of all that `evaluate` prints as JSON."""
    against, forgetting = found.get("against"), found.get("forgetting")
    scores = _scores_table(found, f"{run}: {split}, {found['examples']:,} examples")
    out: list[Table | str] = [scores]
    if against or forgetting:
        out.append(_differences_table(found))
    if against:
        out += against["verdict"]
    if contamination := found.get("contamination"):
        out.append(contamination["finding"])
    return out


def _scores_table(found: Mapping[str, Any], title: str) -> Table:
    table = Table(title=in_terminal(title), caption=f"intervals at {found['level']:.0%}")
    for name in ("of", "score", "value", "from", "to"):
        table.add_column(name, justify="left" if name in ("of", "score") else "right")
    against, forgetting = found.get("against", {}), found.get("forgetting", {})
    perplexities = {name: found[name] for name in found if name.startswith("perplexity")}
    groups: dict[str, Mapping[str, Any]] = {
        "run": {**found["intervals"], **perplexities},
        "mean over seeds": found.get("seeds", {}),
        "seeds and examples": found.get("seeds and examples", {}),
        **{f"task {name}": scores for name, scores in found.get("tasks", {}).items()},
        **({against["run"]: against["scores"]} if against else {}),
        **{
            f"{forgetting['data']}, {when} training": {"loss": forgetting[when]}
            for when in _MEASURED
            if forgetting
        },
        "without repeated records": found.get("contamination", {}).get("without them", {}),
    }
    for group, scores in groups.items():
        first = True
        for name, score in scores.items():
            if name == "examples":
                continue
            cells = _cells(score if isinstance(score, Mapping) else {"value": score})
            table.add_row(in_terminal(group) if first else "", name.replace("_", " "), *cells)
            first = False
        table.add_section()
    return table


def _cells(score: Mapping[str, Any]) -> list[str]:
    """Value, or mean over seeds, and the two limits; empty where there are none."""
    value = score.get("value", score.get("mean"))
    return [_number(value), _number(score.get("low")), _number(score.get("high"))]


def _differences_table(found: Mapping[str, Any]) -> Table:
    table = Table(title="differences on the same examples")
    for name in ("of", "score", "difference", "from", "to", "p"):
        table.add_column(name, justify="left" if name in ("of", "score") else "right")
    rows: list[tuple[str, str, Mapping[str, Any]]] = []
    if against := found.get("against"):
        rows += [
            (f"run less {against['run']}", name, test)
            for name, test in against["difference"].items()
        ]
    if forgetting := found.get("forgetting"):
        rows.append((f"{forgetting['data']}, after less before", "loss", forgetting["difference"]))
    for what, name, test in rows:
        if name == "mcnemar":
            right = (
                f"{test['first_only']} right by the run alone, {test['second_only']} by the other"
            )
            table.add_row(in_terminal(what), f"McNemar: {right}", "", "", "", f"{test['p']:.2g}")
        else:
            cells = [_number(test[part], sign="+") for part in ("value", "low", "high")]
            table.add_row(in_terminal(what), name.replace("_", " "), *cells, f"{test['p']:.2g}")
    return table


def _number(value: float | None, sign: str = "") -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:{sign}.4f}"
