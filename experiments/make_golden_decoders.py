"""Writes tests/golden/decoders/: tiny random models of every decoder family with what transformers
computes, for tests without torch.

Run in an environment with torch 2.13 and transformers 5.23 (the extra `peer`):

    python experiments/make_golden_decoders.py

A folder a family holds config.json and model.safetensors as `save_pretrained` writes them (weights
rounded to float16, so that files are small and float32 is exact). logits.npz holds, for each
family, the logits of two texts in float32, of which the second is padded on the left by 3 tokens;
for a few, what `generate` gives greedily; and what the logits processors do.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.generation import logits_process

TARGET = Path(__file__).resolve().parents[1] / "tests" / "golden" / "decoders"
PADDING, LENGTH, VOCAB, NEW = 3, 11, 40, 12
SMALL = dict(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, max_position_embeddings=64,
             pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
GROUPED = SMALL | dict(num_key_value_heads=2)
ROPE3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16)
LONG = dict(rope_type="longrope", rope_theta=500.0, short_factor=[1.0, 1.5], long_factor=[2.0, 5.0])
FAMILIES = {
    "gpt2": ("gpt2", dict(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)),
    "gpt_neox": ("gpt_neox", SMALL | dict(rotary_pct=0.5)),
    "gpt_neox_serial": ("gpt_neox", SMALL | dict(rotary_pct=1.0, use_parallel_residual=False)),
    "opt": ("opt", dict(vocab_size=VOCAB, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=4, ffn_dim=24,
                        max_position_embeddings=64)),
    "llama": ("llama", SMALL),
    "llama3": ("llama", GROUPED | dict(rope_parameters=ROPE3, tie_word_embeddings=True)),
    "llama_yarn": ("llama", GROUPED | dict(rope_parameters=YARN, attention_bias=True, mlp_bias=True)),
    "mistral": ("mistral", GROUPED | dict(sliding_window=4, head_dim=6)),
    "mixtral": ("mixtral", GROUPED | dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen2": ("qwen2", GROUPED | dict(tie_word_embeddings=True, use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "qwen2_moe": ("qwen2_moe", GROUPED | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12,
                                              shared_expert_intermediate_size=10)),
    "qwen3": ("qwen3", GROUPED | dict(head_dim=8)),
    "qwen3_moe": ("qwen3_moe", GROUPED | dict(head_dim=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12,
                                              norm_topk_prob=True)),
    "phi3": ("phi3", GROUPED | dict(sliding_window=5, original_max_position_embeddings=8, rope_parameters=LONG)),
    "gemma": ("gemma", GROUPED | dict(head_dim=8)),
    "gemma2": ("gemma2", GROUPED | dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=6, attn_logit_softcapping=5.0,
                                        final_logit_softcapping=3.0)),
    "gemma3": ("gemma3_text", GROUPED | dict(num_hidden_layers=3, head_dim=8, sliding_window=4, query_pre_attn_scalar=6,
                                             layer_types=["sliding_attention", "sliding_attention", "full_attention"])),
}  # fmt: skip
GREEDY = ("llama3", "gemma3", "gpt2", "mixtral")


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for seed, (name, (kind, settings)) in enumerate(FAMILIES.items()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **settings), attn_implementation="eager"
        ).eval()
        randomise(model)
        model.half().save_pretrained(TARGET / name)
        (TARGET / name / "generation_config.json").unlink(missing_ok=True)
        model = AutoModelForCausalLM.from_pretrained(
            TARGET / name, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        tokens = torch.randint(3, VOCAB, (2, LENGTH))
        mask = torch.ones_like(tokens)
        mask[1, :PADDING] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            # One by one: in a batch, LongRoPE chooses by the longest of its texts.
            alone = [
                model(input_ids=ids, attention_mask=own, position_ids=places).logits.numpy()
                for ids, own, places in zip(
                    tokens.split(1), mask.split(1), positions.split(1), strict=True
                )
            ]
            arrays[f"{name}/logits"] = np.concatenate(alone)
            if name in GREEDY:
                model.generation_config.eos_token_id = None  # No text ends before the last token.
                out = model.generate(
                    tokens, attention_mask=mask, do_sample=False, max_new_tokens=NEW, pad_token_id=0
                )
                arrays[f"{name}/greedy"] = out[:, LENGTH:].numpy().astype(np.int32)
        arrays[f"{name}/tokens"], arrays[f"{name}/mask"] = (
            tokens.numpy().astype(np.int32),
            mask.numpy().astype(bool),
        )
        print(
            name,
            round(float(arrays[f"{name}/logits"].std()), 3),
            sum(f.stat().st_size for f in (TARGET / name).iterdir()),
        )
    arrays |= processed()
    np.savez_compressed(TARGET / "logits.npz", **arrays)
    total = sum(file.stat().st_size for file in TARGET.rglob("*") if file.is_file())
    (TARGET / "versions.json").write_text(
        json.dumps({"transformers": transformers.__version__, "torch": torch.__version__}) + "\n"
    )
    print(f"{TARGET}: {total / 1024:.0f} KiB")


def randomise(model: torch.nn.Module) -> None:
    """Weights of a size that makes attention, experts and soft-caps matter; none at the value it
    starts with.
    """
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn_like(weight)
            weight.copy_(0.3 * noise if weight.ndim > 1 else weight + 0.2 * noise)


def processed() -> dict[str, np.ndarray]:
    """Logits of 3 texts after each processor; texts of 9 tokens with repetitions."""
    torch.manual_seed(99)
    texts, logits = torch.randint(0, 12, (3, 9)), 3 * torch.randn(3, VOCAB)
    each = {
        "temperature": logits_process.TemperatureLogitsWarper(0.7),
        "top_k": logits_process.TopKLogitsWarper(5),
        "top_p": logits_process.TopPLogitsWarper(0.8),
        "min_p": logits_process.MinPLogitsWarper(0.1),
        "repetition_penalty": logits_process.RepetitionPenaltyLogitsProcessor(1.3),
        "no_repeat_ngram": logits_process.NoRepeatNGramLogitsProcessor(2),
    }
    out = {
        f"process/{name}": process(texts, logits.clone()).numpy() for name, process in each.items()
    }
    return out | {"process/texts": texts.numpy().astype(np.int32), "process/logits": logits.numpy()}


if __name__ == "__main__":
    main()
