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
FEW, MANY = range(3), range(20)
BY_CHANCE = 0.05  # of the worlds in which nothing differs may have an effect
EXACT_TESTS = Path(__file__).with_name("test_exact.py")


def parts_of(key: str, world: str, seed: int) -> list:
    return ENTRIES[key].run(NullLab(world, seed)).parts


def check(key: str, worlds: range) -> None:
    """Each part's rule in the worlds in which it must fail.

    Raises:
        AssertionError: it says "reproduced" there.
    """
    first = parts_of(key, "equal", 0)
    rules = [(part.says, part.rule) for part in first]
    assert len(rules) == len(set(rules))
    if all(rule == "exact" for _, rule in rules):
        assert f"def test_{key.lower()}_" in EXACT_TESTS.read_text()
        return

    equal = [first, *(parts_of(key, "equal", seed) for seed in worlds[1:])]
    apart = [parts_of(key, "apart", seed) for seed in worlds]
    mirrored = [parts_of(key, "mirrored", seed) for seed in worlds]
    held = lambda parts, place: parts[place].verdict == "reproduced"
    for place, (says, rule) in enumerate(rules):
        if rule == "effect":
            false = [seed for seed in worlds if held(equal[seed], place)]
            most = max(1, BY_CHANCE * len(worlds))
            assert len(false) <= most, f"{says}: an effect where settings are equal, {false}"
        if rule == "equal":
            false = [seed for seed in worlds if held(apart[seed], place)]
            assert not false, f"{says}: equality where settings differ, {false}"
        if rule in ("effect", "not worse"):
            false = [s for s in worlds if held(apart[s], place) and held(mirrored[s], place)]
            assert not false, f"{says}: better both in a world and in its mirror, {false}"


@pytest.mark.parametrize("key", ENTRIES)
def test_no_rule_finds_what_is_not_there(key):
    check(key, FEW)


@pytest.mark.long
@pytest.mark.parametrize("key", ENTRIES)
def test_no_rule_finds_what_is_not_there_in_twenty_worlds(key):
    check(key, MANY)
