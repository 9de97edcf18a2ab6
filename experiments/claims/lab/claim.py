"""What a claim is, and what came out of testing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# opposite: an effect that is there with the other sign.
Verdict = Literal["reproduced", "opposite", "not reproduced", "inconclusive"]
# How a part is judged, which says on what it must fail: see `lab.null`.
Rule = Literal["effect", "equal", "not worse", "exact"]


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how it is tested here. Everything in it is fixed before anything runs.

    kind: 'theorem' (mathematics, true or false in exact terms), 'accounting' (bytes and counts),
        'weights' (a pretrained model without training) or 'trained' (an effect of training).
    published: the figure or statement of the source. expected: what must hold here, in words, with
        its limits (`limits`, by name).
    minutes: how long it is expected to take on two quiet cores, beyond pretrainings and the arms
        that it shares with claims before it.
    models, regime: what it is tested on, and where its answer holds. distance: what of the paper's
        setting differs.
    out_of_scope: why it is not run here, with the command and the time that it would take; then
        nothing else is tested.
    version: raised when the test changes, so that older results are not mistaken for results of it.
    """

    id: str
    title: str
    source: str
    published: str
    expected: str
    kind: Literal["theorem", "accounting", "weights", "trained"]
    minutes: float = 0.0
    models: str = ""
    regime: str = ""
    distance: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)
    out_of_scope: str = ""
    version: int = 2


@dataclass(frozen=True)
class Part:
    """One half of a claim: what it says, how it is judged, and what came out."""

    says: str
    rule: Rule
    verdict: Verdict
    ours: str


@dataclass(frozen=True)
class Finding:
    """What came out: a verdict for each part, the numbers behind them, and what to draw.

    figures: everything that a reader could want to check, as JSON. plot: see `lab.page.draw`.
    note: why it is so where it was tested, and what differs from the source's setting. diverged:
        arms or runs that did; they stay in the count.
    """

    parts: tuple[Part, ...]
    figures: Mapping[str, Any]
    note: str = ""
    plot: Mapping[str, Any] | None = None
    seeds: tuple[int, ...] = ()
    diverged: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """That of all parts together."""
        return judge_all([part.verdict for part in self.parts])


@dataclass(frozen=True)
class Reason:
    """The most likely reason why a claim does not hold here, as a hypothesis that one more
    measurement could have refuted.

    supported: whether the measurement came out as the hypothesis says, by a rule that the claim's
    file fixed before it ran. It changes no verdict.
    """

    supposed: str
    measured: str
    supported: bool
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """A paragraph of a note."""
        outcome = "supports" if self.supported else "refutes"
        return (
            f"\n\n*Reason tested:* {self.supposed}. *Measured:* {self.measured}. This {outcome} it."
        )

    def entry(self) -> dict[str, Any]:
        """What stands in the figures under 'reason'."""
        return {
            "supposed": self.supposed,
            "measured": self.measured,
            "supported": self.supported,
            **self.figures,
        }


def judge_all(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim of several parts: what all of them have; else not reproduced where one
    is not, or the opposite of one is so; else inconclusive.
    """
    first, *others = dict.fromkeys(verdicts)
    if not others:
        return first
    failed = "not reproduced" in verdicts or "opposite" in verdicts
    return "not reproduced" if failed else "inconclusive"
