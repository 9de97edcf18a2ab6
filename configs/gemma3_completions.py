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

from configs.common import SHORT, chosen, gemma3

# {task: (data, tokens)}
TASKS = {
    "modes": ("evals-music-theory-scale-modes", 128),
    "sql": ("evals-sql/spider_sql.jsonl", 512),
    "titles": ("evals-abstract2title", 512),
}


def get_config(task: str = "modes") -> ml_collections.ConfigDict:
    """The config of one task: 'modes', 'sql' or 'titles'."""
    name, length = chosen(task, TASKS)
    return gemma3(
        data=dict(name=name, text="input", label="ideal", max_length=length),
        optim=SHORT,
        train=dict(
            total_steps=30, batch_size=12, eval_batch_size=12, log_every=5, checkpoint_every=30
        ),
        out="runs/gemma3_completions",
    )
