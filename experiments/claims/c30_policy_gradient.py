"""C30: policy gradient needs almost no rank."""

from lab.claim import Claim

CLAIM = Claim(
    id="C30",
    title="Policy gradient needs almost no rank",
    source="LoRA Without Regret, 2025",
    published="LoRA of rank 1 reaches full fine-tuning's reward on MATH and GSM8K: about one bit is learnt an episode",
    expected="a policy on MiniLM that draws the label, rewarded 1 or 0: reward after 200 steps at rank 1 within 1 point of rank 8 and of full fine-tuning",
    kind="trained",
    models="MiniLM",
    limits={"points": 0.01},
    out_of_scope="lora_jax trains on labelled examples: its step takes the loss of a batch, and sampling an action, its reward and a baseline between forward pass and gradient need another step, task and validation score, more than a claim's file may hold; no command runs it; 3 arms of 15 runs of 200 steps of 32 on MiniLM, 2 min each: 90 min here",
)
