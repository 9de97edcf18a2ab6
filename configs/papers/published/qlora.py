"""Figures that QLoRA (Dettmers et al. 2023, arXiv 2305.14314) prints, by table. No table of these
prints a spread.
"""

from __future__ import annotations

# Table 3: GLUE accuracy of RoBERTa-large and RougeL on Super-NaturalInstructions of T5 of 80M,
# 250M, 780M, 3B, 11B. None: not run.
TABLE_3_MODELS = ("roberta-large", "t5-80m", "t5-250m", "t5-780m", "t5-3b", "t5-11b")
TABLE_3: dict[str, tuple[float | None, ...]] = {
    "bf16": (88.6, 40.1, 42.1, 48.0, 54.3, 62.0),
    "bf16 replication": (88.6, 40.0, 42.2, 47.3, 54.9, None),
    "lora bf16": (88.8, 40.5, 42.6, 47.1, 55.4, 60.7),
    "int8": (88.8, 40.4, 42.9, 45.4, 56.5, 60.7),
    "fp4": (88.6, 40.3, 42.4, 47.5, 55.6, 60.9),
    "nf4": (None, 40.4, 42.7, 47.7, 55.3, 60.9),
}

SIZES = ("7b", "13b", "33b", "65b")
# Table 4: 5-shot MMLU after tuning on Alpaca and FLAN v2, by size, and the mean of all eight.
TABLE_4: dict[str, dict[str, tuple[float, ...]]] = {
    "bf16": {"alpaca": (38.4, 47.2, 57.7, 61.8), "flan-v2": (45.6, 50.6, 60.5, 62.5)},
    "fp4": {"alpaca": (37.2, 47.3, 55.9, 61.3), "flan-v2": (44.0, 50.0, 58.5, 63.3)},
    "nf4": {"alpaca": (39.0, 47.5, 57.3, 61.8), "flan-v2": (44.5, 50.7, 59.2, 63.9)},
}
TABLE_4_MEANS = {"bf16": 53.0, "fp4": 52.2, "nf4": 53.1}

# Table 5: 5-shot MMLU by tuning set and size.
TABLE_5: dict[str, tuple[float, ...]] = {
    "none": (35.1, 46.9, 57.8, 63.4), "self-instruct": (36.4, 33.3, 53.0, 56.7), "longform": (32.1, 43.2, 56.6, 59.7),
    "chip2": (34.5, 41.6, 53.6, 59.8), "hh-rlhf": (34.9, 44.6, 55.8, 60.1), "unnatural": (41.9, 48.1, 57.3, 61.3),
    "oasst1": (36.6, 46.4, 57.0, 62.2), "alpaca": (38.8, 47.8, 57.3, 62.5), "flan-v2": (44.5, 51.4, 59.2, 63.9),
}  # fmt: skip
