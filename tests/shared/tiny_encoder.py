"""A random BERT of a few kilobytes with its tokenizer, and labelled texts it can learn: a real
folder and a real CSV.
"""

import csv
from pathlib import Path

import jax
import numpy as np

from lora_jax.io import save_encoder
from lora_jax.models import Encoder, EncoderConfig

WORDS = [
    "good",
    "bad",
    "film",
    "plot",
    "the",
    "a",
    "very",
    "not",
    "dull",
    "fine",
    "actor",
    "scene",
    "slow",
    "warm",
]
CONFIG = EncoderConfig(
    vocab_size=5 + len(WORDS),
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    max_positions=32,
)


def save_tiny_encoder(folder: Path) -> Path:
    """config.json, model.safetensors and vocab.txt of a random encoder."""
    model = Encoder(CONFIG)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), np.zeros((1, 4), np.int32), np.ones((1, 4), bool)
    )["params"]
    rng = np.random.default_rng(0)
    # Weights large enough that the embeddings reach the pooled token.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: (("scale" in str(path[-1])) + 0.3 * rng.standard_normal(x.shape)).astype(
            np.float32
        ),
        shapes,
    )
    save_encoder(folder, CONFIG, params)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n"
    )
    return folder


def write_reviews(path: Path, rows: int = 160) -> Path:
    """Different sentences with 'good' or 'bad' in them, labelled by it."""
    rng, seen = np.random.default_rng(1), set()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        while len(seen) < rows:
            label = len(seen) % 2
            words = [*rng.choice(WORDS[2:], int(rng.integers(2, 9)))]
            words.insert(int(rng.integers(0, len(words))), WORDS[label])
            if (text := " ".join(words)) not in seen:
                seen.add(text)
                writer.writerow([text, ["pos", "neg"][label]])
    return path
