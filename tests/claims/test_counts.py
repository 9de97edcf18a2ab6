"""Every printed count, checkpoint size and memory figure beside what the shapes of our own modules
give; no weights are made.
"""

import pytest

from lab.counts import PRINTED, lora_parameters, parameters, table


@pytest.mark.parametrize("row", PRINTED, ids=lambda row: row.what)
def test_printed_figures_follow_from_shapes_or_are_known_not_to(row):
    assert (
        row.shown() == row.printed.removesuffix(".0") or row.shown() == row.printed
    ) == row.follows, row.shown()


def test_deberta_xxl_had_rank_16_not_the_printed_8():
    assert (
        lora_parameters("DeBERTa-XXL", 8) == 2_359_296
        and lora_parameters("DeBERTa-XXL", 16) == 4_718_592
    )


def test_llama_has_the_sizes_of_its_files():
    sizes = {
        "7B": 6_738_415_616,
        "13B": 13_015_864_320,
        "33B": 32_528_943_616,
        "65B": 65_285_660_672,
    }
    assert {name: parameters(f"LLaMA {name}") for name in sizes} == sizes


def test_published_memory_is_that_of_the_weights_and_what_adam_keeps():
    count = parameters("GPT-3 175B")
    # LoRA: 350 GB are the weights in two bytes, with nothing for gradients and moments worth a
    # digit.
    assert 2 * count / 1e9 == pytest.approx(350, rel=0.005)
    assert 14 * lora_parameters("GPT-3 175B", 4) / 1e9 < 0.3
    # Full: 1.2 TB lie between weights with two moments in 16 bits (6 bytes) and gradients besides
    # (8).
    assert 6 * count < 1.2e12 < 8 * count
    assert count / lora_parameters("GPT-3 175B", 4) == pytest.approx(10_000, rel=0.1)


def test_the_table_lists_what_does_not_follow():
    lines = table()
    assert len(lines) == 2 + sum(not row.follows for row in PRINTED) and any(
        "rank 16" in line for line in lines
    )
