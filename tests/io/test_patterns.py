"""Patterns of files are answered as `re.fullmatch` answers them, in time that does not explode."""

import random
import re
import time

import pytest

from lora_jax.io.patterns import check_pattern, matches

# As target_modules are written: by hand, by PEFT's documentation, by fine-tuning tools.
PATTERNS = [
    r".*\.(q|v)_proj",
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|k_proj|v_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn)\.(?:(?:q_proj|k_proj)))",
    r"^(?!.*patch).*(?:q_proj|v_proj)$",
    r"model\.layers\.([0-9]|1[0-9])\.self_attn\.q_proj",
    r".*(?<!embed)_proj",
    r"[^.]+\..*",
    r"(?:layers\.\d+\.)+x",
    r"\Aq\w*\Z",
    "",
]
NAMES = [
    *("model.layers.0.self_attn.q_proj", "model.layers.12.mlp.up_proj", "q_proj", "x_proj"),
    *("language.model.layers.3.self_attn.v_proj", "patch.q_proj", "embed_proj", "lm_head"),
    *("layers.1.layers.2.x", "", "a\n", "q_proj\n"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_in_use_are_answered_as_by_re(pattern: str) -> None:
    for name in NAMES:
        assert matches(pattern, name) == (re.fullmatch(pattern, name) is not None), name


def test_random_patterns_are_answered_as_by_re() -> None:
    rng = random.Random(0)
    atoms = ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\w", r"\D", r"\b", "^", "$", "(?=a)", "(?!b)"]
    counts = ["*", "+", "?", "{2}", "{1,2}", "*?", "{0,3}?"]

    def pattern(depth: int) -> str:
        kind = rng.random()
        if depth > 3 or kind < 0.3:
            return rng.choice([*atoms, "(?<=a)"])
        one = pattern(depth + 1)
        if kind < 0.55:
            return one + pattern(depth + 1)
        if kind < 0.7:
            return f"(?:{one}|{pattern(depth + 1)})"
        return f"(?:{one}){rng.choice(counts)}"

    for _ in range(2000):
        made, name = pattern(0), "".join(rng.choice("ab.1\n") for _ in range(rng.randrange(7)))
        try:
            wanted = re.fullmatch(made, name) is not None
        except re.error:
            continue
        assert matches(made, name) == wanted, (made, name)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|a)*b",
        "(.*)*x",
        ".*.*.*.*.*.*.*.*x",
        "((a{1000}){1000}){1000}b",
        "(a*)*" * 20 + "b",
        "(" * 48 + "." + "+)" * 48 + "b",
    ],
)
def test_time_does_not_explode(pattern: str) -> None:
    start = time.process_time()
    assert not matches(pattern, "a" * 100 + "c")
    assert time.process_time() - start < 1.0  # It takes a hundredth; re never ends.


@pytest.mark.parametrize(
    "pattern",
    [
        "((",
        "[",
        "(?i)a",
        r"(a)\1",
        "a++",
        "a(?<=a*)b",
        "(?>a)",
        "(" * 5000,
        "(" * 300 + ")" * 300,
        "a" * 200_000,
    ],
)
def test_what_is_not_followed_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        check_pattern(pattern)
