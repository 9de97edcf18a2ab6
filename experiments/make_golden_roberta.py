"""Writes tests/golden/roberta/: a small random RoBERTa of transformers with its classification
head, and what it computes.

Run in an environment with torch 2.13 and transformers 5.23 (the extra `peer`):

    python experiments/make_golden_roberta.py
"""

from pathlib import Path

import numpy as np
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

TARGET = Path(__file__).resolve().parents[1] / "tests" / "golden" / "roberta"


def main() -> None:
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=26,
    )
    config = RobertaConfig(**sizes, type_vocab_size=1, num_labels=3, layer_norm_eps=1e-5)
    model = RobertaForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # Large enough that every part shows in the logits.
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(TARGET)
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 60, (3, 11))
    mask = np.arange(11) < np.array([11, 7, 3])[:, None]
    tokens[~mask] = 1
    with torch.no_grad():
        batch = dict(
            input_ids=torch.as_tensor(tokens), attention_mask=torch.as_tensor(mask.astype(int))
        )
        hidden, logits = model.roberta(**batch).last_hidden_state, model(**batch).logits
    np.savez_compressed(
        TARGET / "golden.npz",
        tokens=tokens,
        mask=mask,
        hidden=hidden.numpy(),
        logits=logits.numpy(),
    )


if __name__ == "__main__":
    main()
