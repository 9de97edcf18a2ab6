"""Writes tests/golden/quantised: tiny models that transformers 5.23 with bitsandbytes 0.50.2 stored
in 4 and 8 bits, and what they dequantise them to, for tests without torch.

Run in an environment with the extra `peer`:

    python experiments/make_golden_quantised.py

A folder a model; logits.npz holds the logits of each one's dequantised weights, weights.json the
sha256 of each of these. GPT-2's matrices are (in, out) in its dense files, and (out, in) quantised and dequantised.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

OUT = Path(__file__).resolve().parents[1] / "tests" / "golden" / "quantised"
TOKENS = torch.arange(1, 13)[None]
FOUR = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
# Inputs of 64 and of 32: blocks of 64 that end with the rows, and blocks that run on.
LLAMA = LlamaConfig(
    vocab_size=16,
    hidden_size=64,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
    initializer_range=0.3,
    tie_word_embeddings=False,
)
GPT2 = GPT2Config(
    vocab_size=16,
    n_embd=64,
    n_inner=128,
    n_layer=1,
    n_head=2,
    n_positions=32,
    initializer_range=0.3,
)
MODELS = {
    "llama_nf4": (LlamaForCausalLM, LLAMA, dict(FOUR, bnb_4bit_use_double_quant=True)),
    "llama_int8": (LlamaForCausalLM, LLAMA, dict(load_in_8bit=True)),
    "gpt2_nf4": (GPT2LMHeadModel, GPT2, FOUR),
}


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    logits, weights = {}, {}
    for name, (kind, config, how) in MODELS.items():
        torch.manual_seed(0)
        dense = OUT / "dense"
        kind(config).save_pretrained(dense)
        model = AutoModelForCausalLM.from_pretrained(
            dense,
            quantization_config=BitsAndBytesConfig(**how),
            dtype=torch.float32,
            device_map="cpu",
        )
        model.save_pretrained(OUT / name)
        shutil.rmtree(dense)
        (OUT / name / "generation_config.json").unlink(missing_ok=True)
        model = AutoModelForCausalLM.from_pretrained(OUT / name, dtype=torch.float32).dequantize()
        with torch.no_grad():
            logits[name] = model.eval()(TOKENS).logits.numpy()
        weights[name] = {
            key: hashlib.sha256(np.ascontiguousarray(value.float().numpy()).tobytes()).hexdigest()[
                :16
            ]
            for key, value in model.state_dict().items()
            if value.ndim == 2
        }
    np.savez_compressed(OUT / "logits.npz", **logits)
    (OUT / "weights.json").write_text(json.dumps(weights, indent=1) + "\n")


if __name__ == "__main__":
    main()
