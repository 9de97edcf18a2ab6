"""What a reader must know to trust a comparison: which setting each cell had tuned for itself, and
what was the same for all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lora_jax.core.escapes import as_code, in_markdown
from lora_jax.sweeps.cells import Cell, shown, word_of
from lora_jax.sweeps.settings import settings_of
from lora_jax.sweeps.tuned import Curve

RATE = "optim.learning_rate"
_RULES = {"standard": "alpha / rank", "rslora": "alpha / sqrt(rank)", "fixed": "alpha"}
_MOST_NAMES = 6


def fairness(cells: Sequence[Cell], curves: Sequence[Curve]) -> list[str]:
    """Sentences of Markdown: what was tuned for each of these cells and how far its best can be
    trusted, or that one learning rate was used for all; and what was held fixed.

    Args:
        curves: what tuning found, of these cells and of those that have no scored run.
    """
    tuned = [cell for cell in cells if cell.curve is not None]
    sentences = [*_tuned(cells, tuned), *_lost(curves)] if curves else _untuned(cells)
    return [*sentences, *_held_fixed(cells)]


def chosen(cell: Cell) -> str:
    """The value that was chosen for the cell, and whether it is at an edge of what was tried."""
    if cell.curve is None or cell.curve.best is None:
        return ""
    at = f" ({cell.curve.edge} tried)" if cell.curve.edge else ""
    return f"{shown(cell.curve.best)}{at}"


def _tuned(cells: Sequence[Cell], tuned: Sequence[Cell]) -> list[str]:
    if not tuned:
        return []
    curves = [cell.curve for cell in tuned]
    named = " and ".join(dict.fromkeys(word_of(curve.setting) for curve in curves))
    seeds = ", ".join(map(str, sorted({seed for curve in curves for seed in curve.seeds})))
    counts = sorted({len(curve.losses) for curve in curves})
    span = "to".join(f" {count} " for count in dict.fromkeys((counts[0], counts[-1]))).strip()
    found = [
        f"The {in_markdown(named)} was tuned for each setting by itself: of {span} values it has "
        f"the one with the lowest mean validation loss over seeds that are not scored ({seeds}). "
        "The table has it."
    ]
    if len(tuned) < len(cells):
        others = [cell.name for cell in cells if cell.curve is None]
        found.append(f"It was not tuned for {_listed(others)}.")
    if at_edge := [cell for cell in tuned if cell.curve.edge]:
        words = [f"{cell.name}: {chosen(cell)}" for cell in at_edge]
        found.append(
            f"At an edge of what was tried stands the best of {_listed(words)}: a value further out "
            "might be better, and with it the score. `--config.sweep.tune.grow` lets grids grow "
            "further."
        )
    return found


def _lost(curves: Sequence[Curve]) -> list[str]:
    lost = sorted({curve.cell for curve in curves if curve.losses and curve.best is None})
    if not lost:
        return []
    named = ", ".join(map(as_code, lost[:_MOST_NAMES]))
    return [
        f"Not scored, as at every value that was tried a run diverged or failed: {named}"
        f"{_more(lost)}."
    ]


def _untuned(cells: Sequence[Cell]) -> list[str]:
    rates: dict[str, dict[Any, None]] = defaultdict(dict)
    for cell in cells:
        rates[cell.method][settings_of(cell.runs[0])[1].get(RATE)] = None
    if len(cells) < 2 or any(None in own for own in rates.values()):
        return []
    if any(len(own) > 1 for own in rates.values()):
        return ["The learning rate is a setting that is compared here; none was tuned."]

    by_method = {method: shown(next(iter(own))) for method, own in rates.items()}
    if len(set(by_method.values())) == 1:
        used = f"One learning rate, {next(iter(by_method.values()))}, was used for all settings"
    else:
        listed = ", ".join(f"{in_markdown(one)} {rate}" for one, rate in by_method.items())
        used = f"One learning rate was used for all settings of a method ({listed})"
    return [
        f"{used}, and none was tuned: a setting that needs another rate looks worse than it is. "
        "`--config.sweep.tune.factors=0.5,1,2` tunes it for each on validation data."
    ]


def _held_fixed(cells: Sequence[Cell]) -> list[str]:
    """One sentence of the settings that are the same in all cells, and matter."""
    same = _common(cells)
    adapters = [cell for cell in cells if cell.rank is not None]
    parts = [*_scale(_common(adapters), {cell.rank for cell in adapters})] if adapters else []
    if steps := same.get("train.total_steps"):
        parts.append(f"{steps:,} steps")
    elif epochs := same.get("train.epochs"):
        parts.append(f"{shown(epochs)} epoch{'s' * (epochs != 1)}")
    if batch := same.get("train.batch_size"):
        parts.append(f"{batch} examples a step")
    if schedule := same.get("optim.schedule"):
        warm = same.get("optim.warmup_fraction")
        after = f" after a warm-up over {warm:g} of the steps" if warm else ""
        parts.append(f"{schedule} schedule{after}")
    if (decay := same.get("optim.weight_decay")) is not None:
        parts.append(f"weight decay {shown(decay)}")
    return [f"The same for all: {', '.join(map(in_markdown, parts))}."] if parts else []


def _scale(same: Mapping[str, Any], ranks: set[int]) -> list[str]:
    rule, alpha = same.get("lora.scaling"), same.get("lora.alpha")
    if rule is None:
        return []
    of = "" if alpha is None else f" with alpha {shown(alpha)}"
    # Under a fixed alpha the rule itself makes the scale follow the rank: a reader of ranks should
    # know it.
    low, high = min(ranks), max(ranks)
    grows = {"standard": high / low, "rslora": (high / low) ** 0.5}.get(rule, 1.0)
    beside = (
        f" (so rank {low} has {grows:g} times the scale of rank {high})"
        if alpha is not None and grows > 1
        else ""
    )
    return [f"scale {_RULES.get(rule, rule)}{of}{beside}"]


def _common(cells: Sequence[Cell]) -> dict[str, Any]:
    """The settings that have one value in all of these cells."""
    every = [settings_of(cell.runs[0])[1] for cell in cells]
    return {
        key: value
        for key, value in (every[0] if every else {}).items()
        if all(other.get(key) == value for other in every)
    }


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(in_markdown, names[:_MOST_NAMES])) + _more(names)


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
