"""Every claim's rule on outcomes in which its effect is not there: it must not say "reproduced"
(`lab.null` says in which worlds which rules must fail).
"""

from pathlib import Path

import pytest

from lab import ledger
from lab.null import NullLab

CHECKOUT = Path(__file__).parents[2] / "experiments" / "claims"
EXACT = ("theorem", "accounting")  # wrong on purpose in tests/claims/test_exact.py
ENTRIES = {
    key: entry
    for key, entry in ledger.load_claims(CHECKOUT).items()
    if entry.run is not None and entry.claim.kind not in EXACT
}
WORLDS = range(8)
MOST = 1  # of the worlds in which chance alone may make an effect: 5 % each


def parts_of(key: str, world: str, seed: int) -> list:
    return ENTRIES[key].run(NullLab(world, seed)).parts


@pytest.mark.parametrize("key", ENTRIES)
def test_no_rule_finds_what_is_not_there(key):
    first = parts_of(key, "equal", 0)
    rules = [(part.says, part.rule) for part in first]
    assert len(rules) == len(set(rules))
    assert any(rule != "exact" for _, rule in rules), "a claim without an effect is no such kind"

    equal = [first, *(parts_of(key, "equal", seed) for seed in WORLDS[1:])]
    apart = [parts_of(key, "apart", seed) for seed in WORLDS]
    mirrored = [parts_of(key, "mirrored", seed) for seed in WORLDS]
    held = lambda parts, place: parts[place].verdict == "reproduced"
    for place, (says, rule) in enumerate(rules):
        if rule == "effect":
            false = [seed for seed in WORLDS if held(equal[seed], place)]
            assert len(false) <= MOST, f"{says}: an effect where settings are equal, {false}"
        if rule == "equal":
            false = [seed for seed in WORLDS if held(apart[seed], place)]
            assert not false, f"{says}: equality where settings differ, {false}"
        if rule in ("effect", "not worse"):
            false = [s for s in WORLDS if held(apart[s], place) and held(mirrored[s], place)]
            assert not false, f"{says}: better both in a world and in its mirror, {false}"
