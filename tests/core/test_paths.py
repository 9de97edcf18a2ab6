"""Paths and ordered rules: first full match wins, and no rule goes unused."""

import pytest

from lora_jax.core.paths import flatten, match, nearest, unflatten
from lora_jax.core.trained_weight import TrainedWeight

PATHS = ["layers/attn/q/kernel", "layers/attn/v/kernel", "layers/mlp/up/kernel", "head/kernel"]


def test_the_first_rule_that_matches_the_whole_path_wins() -> None:
    rules = [(r"layers/attn/q/kernel", 1), (r"layers/.*", 2), (r"head/kernel", 3)]
    assert match(rules, PATHS, what="demo") == dict(zip(PATHS, (1, 2, 2, 3), strict=True))


def test_none_leaves_a_path_alone_and_ends_the_search() -> None:
    assert match([("head/.*", None), (".*", 5)], PATHS, what="demo") == dict.fromkeys(PATHS[:3], 5)


def test_a_part_of_a_path_is_no_match() -> None:
    for pattern in ("kernel", "layers/attn", "ayers/attn/q/kernel", "layers/attn/q/kerne"):
        with pytest.raises(ValueError, match=f"demo rule '{pattern}' matches none of 4 sites"):
            match([(pattern, 1)], PATHS, what="demo")


def test_an_unused_rule_names_the_nearest_paths() -> None:
    with pytest.raises(ValueError, match="Nearest: 'layers/attn/q/kernel'"):
        match([("layers/attn/q_proj/kernel", 1)], PATHS, what="demo")
    with pytest.raises(
        ValueError, match=r"matches none of 0 things\. Nearest: none \(there are no things\)"
    ):
        match([(".*", 1)], [], what="demo", among="things")


def test_a_rule_that_earlier_rules_shadow_is_an_error_even_if_it_says_leave_alone() -> None:
    for rules in (
        [(".*", 1), ("head/.*", 2)],
        [("layers/.*", None), ("layers/attn/.*", 1)],
        [("head/.*", 1), ("head/kernel", None)],
    ):
        with pytest.raises(
            ValueError, match="is never reached: earlier rules match all that it matches"
        ):
            match(rules, PATHS, what="demo")


def test_a_rule_that_is_shadowed_in_part_still_counts() -> None:
    assert match([("layers/attn/q/kernel", 1), ("layers/attn/.*", 2)], PATHS, what="demo") == {
        PATHS[0]: 1,
        PATHS[1]: 2,
    }


def test_a_pattern_that_is_no_regular_expression_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"demo rule '\(q' is not a regular expression: missing \)"
    ):
        match([("(q", 1)], PATHS, what="demo")


def test_flattening_and_back_is_the_identity_and_boxes_are_leaves() -> None:
    box = TrainedWeight(value=1.0)
    tree = {"a": {"b": {"kernel": box}, "c": 2}, "d": 3}
    flat = flatten(tree)
    assert flat == {"a/b/kernel": box, "a/c": 2, "d": 3} and unflatten(flat) == tree
    assert flatten({}) == {} and unflatten({}) == {}


def test_nearest_gives_the_most_similar_first_and_something_if_none_is() -> None:
    assert nearest("layers/attn/w/kernel", PATHS, 2) == [
        "layers/attn/v/kernel",
        "layers/attn/q/kernel",
    ]
    assert nearest("zzz", PATHS, 2) == PATHS[:2] and nearest("zzz", []) == []
