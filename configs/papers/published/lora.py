"""Figures that LoRA (Hu et al. 2021, arXiv 2106.09685, version 2) prints, by table. (value,
spread); spread None where none is printed.
"""

from __future__ import annotations

TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")

# Table 2, GLUE: the row's trained parameters in millions, then a score and a spread a task. Rows
# marked * there, full fine-tuning, BitFit and Adapter-D, are copied from earlier papers that tuned
# otherwise.
TABLE_2: dict[str, tuple[float, tuple[float, ...], tuple[float, ...] | None]] = {
    "base full": (125.0, (87.6, 94.8, 90.2, 63.6, 92.8, 91.9, 78.7, 91.2), None),
    "base bitfit": (0.1, (84.7, 93.7, 92.7, 62.0, 91.8, 84.0, 81.5, 90.8), None),
    "base adapter-d 0.3m": (
        0.3,
        (87.1, 94.2, 88.5, 60.8, 93.1, 90.2, 71.5, 89.7),
        (0.0, 0.1, 1.1, 0.4, 0.1, 0.0, 2.7, 0.3),
    ),
    "base adapter-d 0.9m": (
        0.9,
        (87.3, 94.7, 88.4, 62.6, 93.0, 90.6, 75.9, 90.3),
        (0.1, 0.3, 0.1, 0.9, 0.2, 0.0, 2.2, 0.1),
    ),
    "base lora": (
        0.3,
        (87.5, 95.1, 89.7, 63.4, 93.3, 90.8, 86.6, 91.5),
        (0.3, 0.2, 0.7, 1.2, 0.3, 0.1, 0.7, 0.2),
    ),
    "large full": (355.0, (90.2, 96.4, 90.9, 68.0, 94.7, 92.2, 86.6, 92.4), None),
    "large lora": (
        0.8,
        (90.6, 96.2, 90.9, 68.2, 94.9, 91.6, 87.4, 92.6),
        (0.2, 0.5, 1.2, 1.9, 0.3, 0.1, 2.5, 0.2),
    ),
    "large adapter-p 3m": (
        3.0,
        (90.2, 96.1, 90.2, 68.3, 94.8, 91.9, 83.8, 92.1),
        (0.3, 0.3, 0.7, 1.0, 0.2, 0.1, 2.9, 0.7),
    ),
    "large adapter-p 0.8m": (
        0.8,
        (90.5, 96.6, 89.7, 67.8, 94.8, 91.7, 80.1, 91.9),
        (0.3, 0.2, 1.2, 2.5, 0.3, 0.2, 2.9, 0.4),
    ),
    "large adapter-h 6m": (
        6.0,
        (89.9, 96.2, 88.7, 66.5, 94.7, 92.1, 83.4, 91.0),
        (0.5, 0.3, 2.9, 4.4, 0.2, 0.1, 1.1, 1.7),
    ),
    "large adapter-h 0.8m": (
        0.8,
        (90.3, 96.3, 87.7, 66.3, 94.7, 91.5, 72.9, 91.5),
        (0.3, 0.5, 1.7, 2.0, 0.2, 0.1, 2.9, 0.5),
    ),
    "large lora restricted": (
        0.8,
        (90.6, 96.2, 90.2, 68.2, 94.8, 91.6, 85.2, 92.3),
        (0.2, 0.5, 1.0, 1.9, 0.3, 0.2, 1.1, 0.5),
    ),
    "xxl full": (1500.0, (91.8, 97.2, 92.0, 72.0, 96.0, 92.7, 93.9, 92.9), None),
    "xxl lora": (
        4.7,
        (91.9, 96.9, 92.6, 72.4, 96.0, 92.9, 94.9, 93.0),
        (0.2, 0.2, 0.6, 1.1, 0.1, 0.1, 0.4, 0.2),
    ),
}

NLG = ("BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr")
# Table 3, GPT-2 on E2E: parameters in millions, scores, spreads.
TABLE_3: dict[str, tuple[float, tuple[float, ...], tuple[float, ...] | None]] = {
    "m full": (354.92, (68.2, 8.62, 46.2, 71.0, 2.47), None),
    "m adapter-l 0.37m": (0.37, (66.3, 8.41, 45.0, 69.8, 2.40), None),
    "m adapter-l 11.09m": (11.09, (68.9, 8.71, 46.1, 71.3, 2.47), None),
    "m adapter-h 11.09m": (11.09, (67.3, 8.50, 46.0, 70.7, 2.44), (0.6, 0.07, 0.2, 0.2, 0.01)),
    "m top2": (25.19, (68.1, 8.59, 46.0, 70.8, 2.41), None),
    "m prelayer": (0.35, (69.7, 8.81, 46.1, 71.4, 2.49), None),
    "m lora": (0.35, (70.4, 8.85, 46.8, 71.8, 2.53), (0.1, 0.02, 0.2, 0.1, 0.02)),
    "l full": (774.03, (68.5, 8.78, 46.0, 69.9, 2.45), None),
    "l adapter-l 0.88m": (0.88, (69.1, 8.68, 46.3, 71.4, 2.49), (0.1, 0.03, 0.0, 0.2, 0.0)),
    "l adapter-l 23m": (23.00, (68.9, 8.70, 46.1, 71.3, 2.45), (0.3, 0.04, 0.1, 0.2, 0.02)),
    "l prelayer": (0.77, (70.3, 8.85, 46.2, 71.7, 2.47), None),
    "l lora": (0.77, (70.4, 8.89, 46.8, 72.0, 2.47), (0.1, 0.02, 0.2, 0.2, 0.02)),
}

# Table 4, GPT-3 175B: parameters in millions; WikiSQL, MNLI-m, SAMSum R1 R2 RL. The caption gives
# the noise of all rows.
GPT3_NOISE = {"wikisql": 0.5, "mnli": 0.1, "samsum": 0.2}
TABLE_4: dict[str, tuple[float, float, float, tuple[float, float, float]]] = {
    "full": (175_255.8, 73.8, 89.5, (52.0, 28.0, 44.5)),
    "bitfit": (14.2, 71.3, 91.0, (51.3, 27.4, 43.5)),
    "preembed": (3.2, 63.1, 88.6, (48.3, 24.2, 40.5)),
    "prelayer": (20.2, 70.1, 89.5, (50.8, 27.3, 43.5)),
    "adapter-h 7.1m": (7.1, 71.9, 89.8, (53.0, 28.9, 44.8)),
    "adapter-h 40.1m": (40.1, 73.2, 91.5, (53.2, 29.0, 45.1)),
    "lora 4.7m": (4.7, 73.4, 91.7, (53.8, 29.8, 45.9)),
    "lora 37.7m": (37.7, 74.0, 91.6, (53.4, 29.2, 45.1)),
}

# Table 5, GPT-3 with 18 M parameters: matrices, rank, WikiSQL, MNLI.
TABLE_5: dict[str, tuple[int, float, float]] = {
    "q": (8, 70.4, 91.0), "k": (8, 70.0, 90.8), "v": (8, 73.0, 91.0), "o": (8, 73.2, 91.3),
    "qk": (4, 71.4, 91.3), "qv": (4, 73.7, 91.3), "qkvo": (2, 73.7, 91.7),
}  # fmt: skip

# Table 6, GPT-3: scores at ranks 1, 2, 4, 8, 64.
TABLE_6_RANKS = (1, 2, 4, 8, 64)
TABLE_6: dict[str, dict[str, tuple[float, ...]]] = {
    "wikisql": {
        "q": (68.8, 69.6, 70.5, 70.4, 70.0),
        "qv": (73.4, 73.3, 73.7, 73.8, 73.5),
        "qkvo": (74.1, 73.7, 74.0, 74.0, 73.9),
    },
    "mnli": {
        "q": (90.7, 90.9, 91.1, 90.7, 90.7),
        "qv": (91.3, 91.4, 91.3, 91.6, 91.4),
        "qkvo": (91.2, 91.7, 91.7, 91.5, 91.4),
    },
}

# Table 13, GPT-2 on DART: BLEU with its spread, METEOR, TER. Only the LoRA rows have a spread.
TABLE_13: dict[str, tuple[float, float | None, float, float]] = {
    "m full": (46.2, None, 0.39, 0.46), "m adapter-l 0.37m": (42.4, None, 0.36, 0.48), "m adapter-l 11m": (45.2, None, 0.38, 0.46),
    "m top2": (41.0, None, 0.34, 0.56), "m prelayer": (46.4, None, 0.38, 0.46), "m lora": (47.1, 0.2, 0.39, 0.46),
    "l full": (47.0, None, 0.39, 0.46), "l adapter-l 0.88m": (45.7, None, 0.38, 0.46), "l adapter-l 23m": (47.1, None, 0.39, 0.45),
    "l prelayer": (46.7, None, 0.38, 0.45), "l lora": (47.5, 0.1, 0.39, 0.45),
}  # fmt: skip

# Table 14, GPT-2 on WebNLG: BLEU on unseen categories, seen ones, all.
TABLE_14: dict[str, tuple[float, float, float]] = {
    "m full": (27.7, 64.2, 46.5), "m adapter-l 0.37m": (45.1, 54.5, 50.2), "m adapter-l 11m": (48.3, 60.4, 54.9),
    "m top2": (18.9, 53.6, 36.0), "m prelayer": (45.6, 62.9, 55.1), "m lora": (46.7, 62.1, 55.3),
    "l full": (43.1, 65.3, 55.5), "l adapter-l 0.88m": (49.8, 61.1, 56.0), "l adapter-l 23m": (49.2, 64.7, 57.7),
    "l prelayer": (47.7, 63.4, 56.3), "l lora": (48.4, 64.0, 57.0),
}  # fmt: skip

# Table 15, GPT-3, LoRA rows: matrices, rank, parameters in millions, WikiSQL, MNLI-m.
TABLE_15: dict[str, tuple[str, int, float, float, float]] = {
    "v r=2": ("v", 2, 4.7, 73.4, 91.7), "qv r=1": ("qv", 1, 4.7, 73.4, 91.3), "qv r=2": ("qv", 2, 9.4, 73.3, 91.4),
    "qkvo r=1": ("qkvo", 1, 9.4, 74.1, 91.2), "qv r=4": ("qv", 4, 18.8, 73.7, 91.3), "qkvo r=2": ("qkvo", 2, 18.8, 73.7, 91.7),
    "qv r=8": ("qv", 8, 37.7, 73.8, 91.6), "qkvo r=4": ("qkvo", 4, 37.7, 74.0, 91.7), "qv r=64": ("qv", 64, 301.9, 73.6, 91.4),
    "qkvo r=64": ("qkvo", 64, 603.8, 73.9, 91.4),
}  # fmt: skip

# Table 16, MNLI-m of GPT-3 by number of examples; seed variance 0.3 by the caption.
TABLE_16: dict[str, dict[int, float]] = {
    "full": {100: 60.2, 1_000: 85.8, 10_000: 88.9, 392_000: 89.5},
    "preembed": {100: 37.6, 1_000: 75.2, 10_000: 79.5, 392_000: 88.6},
    "prelayer": {100: 48.3, 1_000: 82.5, 10_000: 85.9, 392_000: 89.6},
    "lora": {100: 63.8, 1_000: 85.6, 10_000: 89.2, 392_000: 91.7},
}

# Table 18, GPT-2 medium on E2E, 26,000 steps: validation loss, BLEU, NIST, METEOR, ROUGE-L, CIDEr
# by rank.
TABLE_18: dict[int, tuple[float, ...]] = {
    1: (1.23, 68.72, 8.7215, 0.4565, 0.7052, 2.4329), 2: (1.21, 69.17, 8.7413, 0.4590, 0.7052, 2.4639),
    4: (1.18, 70.38, 8.8439, 0.4689, 0.7186, 2.5349), 8: (1.17, 69.57, 8.7457, 0.4636, 0.7196, 2.5196),
    16: (1.16, 69.61, 8.7483, 0.4629, 0.7177, 2.4985), 32: (1.16, 69.33, 8.7736, 0.4642, 0.7105, 2.5255),
    64: (1.16, 69.24, 8.7174, 0.4651, 0.7180, 2.5070), 128: (1.16, 68.73, 8.6718, 0.4628, 0.7127, 2.5030),
    256: (1.16, 68.92, 8.6982, 0.4629, 0.7128, 2.5012), 512: (1.16, 68.78, 8.6857, 0.4637, 0.7128, 2.5025),
    1024: (1.17, 69.37, 8.7495, 0.4659, 0.7149, 2.5090),
}  # fmt: skip
