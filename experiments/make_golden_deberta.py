"""Writes tests/golden/deberta/: small random DeBERTa-v2 and -v3 classifiers of transformers, and
what they compute.

Run in an environment with torch 2.13 and transformers 5.23 (the extra `peer`):

    python experiments/make_golden_deberta.py
"""

from pathlib import Path

import numpy as np
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

TARGET = Path(__file__).resolve().parents[1] / "tests" / "golden" / "deberta"
SIZES = dict(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=40,
)
SHARED = dict(
    relative_attention=True,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type="p2c|c2p",
    position_biased_input=False,
)
CONFIGS = {
    "v3": dict(SHARED, position_buckets=8, type_vocab_size=0),
    "v2_xxlarge": dict(SHARED, position_buckets=8, type_vocab_size=0, conv_kernel_size=3, conv_act="gelu", attention_head_size=8),
    # Everything that the two published forms do not use.
    "other": dict(
        relative_attention=True, norm_rel_ebd="none", share_att_key=False, pos_att_type=["p2c", "c2p"], position_buckets=-1, max_relative_positions=9,
        position_biased_input=True, type_vocab_size=2, embedding_size=12, conv_kernel_size=3, conv_groups=2, pooler_hidden_act="tanh",
    ),
}  # fmt: skip


def main() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 60, (3, 31))
    mask = np.arange(31) < np.array([31, 17, 3])[:, None]
    tokens[~mask] = 0
    out = {"tokens": tokens, "mask": mask}
    for name, changes in CONFIGS.items():
        torch.manual_seed(0)
        model = DebertaV2ForSequenceClassification(
            DebertaV2Config(**SIZES, **changes, num_labels=3)
        ).eval()
        with torch.no_grad():
            for (
                parameter
            ) in model.parameters():  # Large enough that every part shows in the logits.
                parameter.add_(0.3 * torch.randn(parameter.shape))
            batch = dict(
                input_ids=torch.as_tensor(tokens), attention_mask=torch.as_tensor(mask.astype(int))
            )
            out[f"{name}/hidden"] = model.deberta(**batch).last_hidden_state.numpy()
            out[f"{name}/logits"] = model(**batch).logits.numpy()
        model.save_pretrained(TARGET / name)
    distance = torch.arange(-600, 601)
    out["distance"], out["bucket_256_512"] = (
        distance.numpy(),
        make_log_bucket_position(distance, 256, 512).long().numpy(),
    )
    np.savez_compressed(TARGET / "golden.npz", **out)


if __name__ == "__main__":
    main()
