"""Writes tests/golden/gemma3_270m.npz: what transformers computes and tokenises with the real
Gemma-3-270M, loaded from its GGUF file.

Run in an environment with torch 2.13, transformers 5.23 and gguf (the extra `peer`), with the
folder that `lora_jax.io.hub.resolve('gemma3-270m')` gives:

    python experiments/make_golden_gemma.py FOLDER

Stored: token ids of some texts and of a chat; for two texts (the second shorter, padded on the
left) logits of a few positions at 64 words, the largest logit's word at every position, log-sum-exp
of all logits; and 24 tokens that greedy decoding gives.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGET = Path(__file__).resolve().parents[1] / "tests" / "golden" / "gemma3_270m.npz"
PROMPTS = ["The capital of France is Paris, and the capital of Italy is", "Water boils at"]
TEXTS = [
    "Hello world",
    "  two spaces, a\ttab and\n\n\nthree lines ",
    "naïve café — “quotes” 中文 日本語 🙂👩‍👩‍👧",
    "def f(x):\n    return x**2  # comment",
    "1234567890 3.14159",
    "a<end_of_turn>b<bos><start_of_turn>user",
    "\u0000control\u200b zero width \ue000 private",
    "",
    "▁already▁marked",
]
WORDS = np.linspace(0, 262_143, 64).astype(int)


def main(folder: str) -> None:
    file = next(Path(folder).glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    arrays = {
        f"text/{n}": np.asarray(tokenizer(text)["input_ids"], np.int32)
        for n, text in enumerate(TEXTS)
    }
    arrays |= {
        f"decoded/{n}": np.asarray(tokenizer.decode(arrays[f"text/{n}"], skip_special_tokens=True))
        for n in range(len(TEXTS))
    }
    tokenizer.padding_side = "left"
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(**batch, position_ids=positions).logits
        greedy = model.generate(**batch, do_sample=False, max_new_tokens=24)
    np.savez_compressed(
        TARGET,
        **arrays,
        texts=np.asarray(TEXTS),
        prompts=np.asarray(PROMPTS),
        tokens=batch["input_ids"].numpy().astype(np.int32),
        mask=batch["attention_mask"].numpy().astype(bool),
        words=WORDS,
        logits=logits[:, :, WORDS].numpy(),
        best=logits.argmax(-1).numpy().astype(np.int32),
        logsumexp=logits.logsumexp(-1).numpy(),
        greedy=greedy[:, batch["input_ids"].shape[1] :].numpy().astype(np.int32),
    )
    print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB; {tokenizer.batch_decode(greedy)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
