"""Held-out records that the training set holds are found, and others are not."""

import pytest

from lora_jax.data.contamination import find_contamination, normalized

LONG = "the quick brown fox jumps over the lazy dog while the cat watches from a warm window sill"


def test_equal_after_normalisation_is_exact():
    found = find_contamination(["Hello,  World!", "ﬁne"], ["hello world", "FINE.", "goodbye"])
    assert found.exact == (0, 1) and found.near == () and found.clean == (2,)
    assert "2 of 3 held-out texts" in str(found)


def test_long_shared_runs_are_near_and_a_short_phrase_is_not():
    changed = LONG + " and sleeps"
    other = "the quick brown fox sat down and then a completely different story went on for many more words"
    found = find_contamination([LONG], [changed, other], n=8)
    assert found.near == (0,) and found.exact == ()
    # One run of two: half of them is enough where half is asked for.
    for share, near in ((0.5, (0,)), (0.51, ())):
        assert find_contamination(["a b x"], ["a b c"], n=2, share=share).near == near


def test_word_order_and_other_scripts_matter():
    assert find_contamination([" ".join(reversed(LONG.split()))], [LONG]).near == ()
    assert normalized("Ünïcode—Straße") == normalized("ünïcode straSSe")


def test_nonsense_settings_are_errors():
    with pytest.raises(ValueError, match="share above 0"):
        find_contamination(["a"], ["a"], share=0.0)
