"""Writes tests/golden/t5/: small random T5 (1.0) and T5 1.1 models of transformers, their logits
and what they generate.

Run in an environment with torch 2.13 and transformers 5.23 (the extra `peer`):

    python experiments/make_golden_t5.py
"""

from pathlib import Path

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

TARGET = Path(__file__).resolve().parents[1] / "tests" / "golden" / "t5"
SIZES = dict(
    vocab_size=50, d_model=16, d_kv=6, d_ff=24, num_heads=2, relative_attention_num_buckets=8,
    relative_attention_max_distance=20, decoder_start_token_id=0,
)  # fmt: skip
CONFIGS = {
    "v1_0": dict(
        num_layers=2, num_decoder_layers=2, feed_forward_proj="relu", tie_word_embeddings=True
    ),
    "v1_1": dict(
        num_layers=3,
        num_decoder_layers=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    ),
}


def main() -> None:
    rng = np.random.default_rng(0)
    tokens, target = rng.integers(3, 50, (3, 29)), rng.integers(3, 50, (3, 25))
    mask = np.arange(29) < np.array([29, 13, 4])[:, None]
    tokens[~mask], target[:, 0] = 0, 0
    out = {"tokens": tokens, "mask": mask, "target": target}
    for name, changes in CONFIGS.items():
        torch.manual_seed(1)
        model = T5ForConditionalGeneration(T5Config(**SIZES, **changes)).eval()
        if not changes["tie_word_embeddings"]:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        with torch.no_grad():
            for (
                parameter
            ) in model.parameters():  # Large enough that every part shows in the logits.
                parameter.copy_(
                    torch.where(parameter == 1, parameter, 0) + 0.4 * torch.randn(parameter.shape)
                )
            batch = dict(
                input_ids=torch.as_tensor(tokens), attention_mask=torch.as_tensor(mask.astype(int))
            )
            out[f"{name}/logits"] = model(
                **batch, decoder_input_ids=torch.as_tensor(target)
            ).logits.numpy()
            made = model.generate(**batch, max_new_tokens=16, do_sample=False, num_beams=1)
            out[f"{name}/generated"] = made[:, 1:].numpy()
        model.save_pretrained(TARGET / name)
        print(name, sorted(model.state_dict())[:3], out[f"{name}/generated"].tolist())
    distance = torch.arange(-300, 301)
    out["distance"] = distance.numpy()
    for way in (True, False):
        out[f"bucket_{'both' if way else 'causal'}"] = T5Attention._relative_position_bucket(
            distance, way, 32, 128
        ).numpy()
    np.savez_compressed(TARGET / "golden.npz", **out)


if __name__ == "__main__":
    main()
