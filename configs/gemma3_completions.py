"""Can Gemma-3-270M learn a small task from prompts and completions? QLoRA, nf4 base, rank 8 on all
linear layers.

Argument: modes (name the scale of eight notes), sql (questions about tables to SQL) or titles
(abstracts to titles); real task files of OpenAI's evals. Loss is on the completions alone; several
examples are packed into a row.

lora-jax train --config configs/gemma3_completions.py:modes

The figures are of the split before it was by hash (16 held-out prompts of modes, now 18): splits of
completion files changed.

| task | held-out loss before, nats a token | after | time and device |
|---|---|---|---|
| modes | 7.685 | 0.570 (token accuracy 0.075 to 0.788), 30 steps, seed 0 | 1,294 s on 2 CPU cores shared with some 8 other jobs; alone: not measured yet |
| sql | not measured yet | not measured yet | |
| titles | not measured yet | not measured yet | |
"""

import ml_collections


def get_config(task: str = "modes") -> ml_collections.ConfigDict:
    """The config of one task: 'modes', 'sql' or 'titles'."""
    files = {
        "modes": "evals-music-theory-scale-modes",
        "sql": "evals-sql/spider_sql.jsonl",
        "titles": "evals-abstract2title",
    }
    lengths = {"modes": 128, "sql": 512, "titles": 512}
    if task not in files:
        raise ValueError(f"the argument must be one of {', '.join(files)}, got {task!r}")
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gemma3-270m"),
            data=dict(
                task="completion",
                name=files[task],
                text="input",
                label="ideal",
                max_length=lengths[task],
            ),
            method="qlora",
            lora=dict(rank=8, alpha=16.0, targets="all-linear"),
            quant=dict(format="nf4", block_size=64, double=True),
            optim=dict(
                learning_rate=1e-3,
                weight_decay=0.0,
                schedule="linear",
                warmup_fraction=0.1,
                clip_norm=1.0,
            ),
            train=dict(
                total_steps=30, batch_size=12, eval_batch_size=12, log_every=5, checkpoint_every=30
            ),
            out="runs/gemma3_completions",
        )
    )
