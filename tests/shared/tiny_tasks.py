"""Small data for every encoder head over the tiny encoder's words: something that it can learn,
written as JSON lines.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tiny_encoder import WORDS

HEADS = (
    "classification",
    "pair_classification",
    "regression",
    "token_classification",
    "qa",
    "multiple_choice",
)
_PLAIN = WORDS[2:]


def records(recipe: str, count: int = 160) -> list[dict[str, Any]]:
    """Different records of a recipe; what is asked for follows from the words."""
    rng, out, seen = np.random.default_rng(0), [], set()
    while len(out) < count:
        words = [str(word) for word in rng.choice(_PLAIN, int(rng.integers(4, 9)))]
        good = int(rng.integers(0, 2))
        place = int(rng.integers(1, len(words)))
        marked = [*words[:place], WORDS[1 - good], *words[place:]]
        text = " ".join(marked)
        if text in seen:
            continue
        seen.add(text)
        out.append(
            {
                "classification": {"text": text, "label": ["neg", "pos"][good]},
                "pair_classification": {
                    "text": text,
                    "text_pair": WORDS[1 - good],
                    "label": ["neg", "pos"][good],
                },
                "regression": {"text": text, "score": 4.0 * good},
                "token_classification": {
                    "words": marked,
                    "tags": ["B-X" if word in WORDS[:2] else "O" for word in marked],
                },
                "qa": {
                    "context": text,
                    "question": "the actor",
                    "answers": [
                        {"text": WORDS[1 - good], "answer_start": text.index(WORDS[1 - good])}
                    ],
                },
                "multiple_choice": {
                    "question": text,
                    "choices": ["good", "bad"],
                    "answer": 1 - good,
                },
            }[recipe]
        )
    return out


def write_task(path: Path, recipe: str, count: int = 160) -> Path:
    """The records as a .jsonl file."""
    path.write_text("\n".join(json.dumps(record) for record in records(recipe, count)) + "\n")
    return path
