"""N5: reinforcement learning needs rank 1, where supervised tuning on the same labels needs more."""

from lab.claim import Claim

CLAIM = Claim(
    id="N5",
    title="Reinforcement learning needs rank 1, where supervised tuning on the same labels needs more",
    source="LoRA Without Regret, 2025, beside C13 and C29",
    published="rank 1 is enough for policy gradients",
    expected="as C30 (two one-sided tests, five seeds), beside a supervised twin of every arm, whose gap of rank 1 to full is larger",
    kind="trained",
    models="MiniLM",
    limits={"points": 0.01},
    out_of_scope="lora_jax trains on labelled examples: its step takes the loss of a batch, and sampling an action, its reward and a baseline between forward pass and gradient need another step, task and validation score, more than a claim's file may hold; no command runs it; 6 arms of 15 runs of 200 steps of 32 on MiniLM, 2 min each: 3 h here",
)
