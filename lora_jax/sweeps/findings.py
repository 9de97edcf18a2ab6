"""What is asked of a sweep, with p-values that hold for all of it together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_jax.statistics.variance import Decomposition
from lora_jax.sweeps.cells import Cell, facets, measure
from lora_jax.sweeps.comparisons import (
    LOSS,
    ByScore,
    Comparison,
    ExampleTest,
    adapters,
    against_baselines,
    against_best,
    along_axes,
    between_levels,
    has_loss,
    on_examples,
    ranked,
    spread,
)
from lora_jax.sweeps.conclusions import Conclusions, conclude

_KINDS = ("against_best", "between_levels", "along_axes")


@dataclass(frozen=True)
class Findings:
    """Tests and sources of spread of the adapters of a sweep, by the primary metric and, where it
    is another, by the loss; what follows from them; and the margin of what counts as alike.
    """

    by_metric: ByScore
    by_loss: ByScore
    on_examples: tuple[ExampleTest, ...]
    margin: float | None
    conclusions: Conclusions

    @property
    def against_best(self) -> tuple[Comparison, ...]:
        """By the primary metric."""
        return self.by_metric.against_best

    @property
    def between_levels(self) -> tuple[Comparison, ...]:
        """By the primary metric."""
        return self.by_metric.between_levels

    @property
    def spread(self) -> Decomposition | None:
        """By the primary metric."""
        return self.by_metric.spread


def findings_of(cells: Sequence[Cell], missing: int = 0, margin: float | None = None) -> Findings:
    """The findings of these cells; `missing` is how many planned runs have no result, `margin` the
    smallest difference of the score that matters (see `margin_of`).

    In a sweep whose settings do not differ, some difference is called supported with a probability
    of at most 5%, over all tests, sentences and both scores together: levels and slopes of an axis
    are tested only if the axis as a whole explains more than chance would, among all axes and both
    scores, and cells only if any axis does (hierarchical testing: Marcus, Peritz & Gabriel 1976,
    Meinshausen 2008). A p-value carries that of its gate, and counts both scores. The 5%
    are promised where nothing differs: beside a rank that did, some other axis or pair of ranks was
    called different in 22 of 300 simulated sweeps. Baselines are a family of their own, with 5% for
    it.
    """
    chosen = adapters(cells)
    margin = margin_of(cells, margin)
    asked = [None, LOSS] if has_loss(chosen) else [None]
    by_metric, *rest = _gated([_tests(chosen, cells, metric) for metric in asked])
    by_loss = rest[0] if rest else ByScore()
    examples = on_examples(chosen)
    conclusions = conclude(
        chosen, by_metric.against_best, by_metric.between_levels, by_metric.spread, missing, examples,
        by_loss=by_loss, slopes=by_metric.along_axes, baselines=by_metric.against_baselines,
        margin=margin,
    )  # fmt: skip
    return Findings(by_metric, by_loss, tuple(examples), margin, conclusions)


def margin_of(cells: Sequence[Cell], given: float | None = None) -> float | None:
    """The smallest difference of the score that matters, in its own unit: as given, as the runs were
    configured (`config.report.margin`), 1 point of a share of right answers, or of another score a
    tenth of what the best setting gains over the head alone. None if none of these is there.
    """
    said = measure(cells)
    configured = [
        (run.config.get("report") or {}).get("margin") for cell in cells for run in cell.runs
    ]
    known = [
        value for value in (given, *configured) if isinstance(value, (int, float)) and value > 0
    ]
    if known:
        return float(known[0])
    if said.share:
        return 0.01
    heads = [cell for cell in cells if cell.method == "head"]
    if len(heads) != 1 or len(facets(cells)) > 1:
        return None
    return abs(ranked(adapters(cells))[0].value - heads[0].value) / 10 or None


def _tests(cells: Sequence[Cell], beside: Sequence[Cell], metric: str | None) -> ByScore:
    return ByScore(
        tuple(against_best(cells, metric)),
        tuple(between_levels(cells, metric)),
        tuple(along_axes(cells, metric)),
        spread(cells, metric),
        tuple(against_baselines(beside, metric)),
    )


def _gated(asked: Sequence[ByScore]) -> list[ByScore]:
    """The tests of each score with p-values that hold for all of them together."""
    gates = [
        {one.name: min(len(asked) * one.adjusted, 1.0) for one in tests.spread.sources}
        if tests.spread
        else {}
        for tests in asked
    ]
    known = [p for gate in gates for p in gate.values() if not math.isnan(p)]
    anything = min(known, default=math.nan)

    def gated(one: Comparison, gate: Mapping[str, float]) -> Comparison:
        # Runs of several data sets have no table: each kind of test has its share of the level.
        p = len(_KINDS) * len(asked) * one.adjusted
        if gate:
            p = np.maximum(len(asked) * one.adjusted, gate.get(one.axis, anything))
        return replace(one, adjusted=float(np.minimum(p, 1.0)))

    return [
        replace(
            tests,
            spread=tests.spread and _with_p(tests.spread, gate),
            against_baselines=tuple(
                replace(one, adjusted=float(np.minimum(len(asked) * one.adjusted, 1.0)))
                for one in tests.against_baselines
            ),
            **{kind: tuple(gated(one, gate) for one in getattr(tests, kind)) for kind in _KINDS},
        )
        for tests, gate in zip(asked, gates, strict=True)
    ]


def _with_p(table: Decomposition, adjusted: Mapping[str, float]) -> Decomposition:
    sources = tuple(replace(one, adjusted=adjusted[one.name]) for one in table.sources)
    return replace(table, sources=sources)
