"""One adapter for three tasks, or three adapters of a third of its size each? QLoRA of Gemma-3-270M
on real task files of OpenAI's evals.

Argument: shared (rank 24, a mixture drawn at temperature 2), or sql, titles, modes (rank 8 each:
together as many parameters). Every run sees its tasks' examples as often: the shared one takes
three times the steps.

lora-jax train --config configs/tasks/multitask.py:shared
lora-jax evaluate RUN                       loss of every task, with intervals

Results at a size that two cores carry (36 steps shared, 12 each apart: train.batch_size=4,
data.max_length=384; seed 0; nats a token on test examples):

| task | examples | shared (rank 24) | its own (rank 8) |
|---|---|---|---|
| sql | 24 | 1.217 [0.967, 1.469] | 1.014 [0.823, 1.219] (base 2.869) |
| titles | 27 | 2.263 [2.007, 2.526] | 2.142 |
| modes | 18 | 1.177 [0.966, 1.405] | 0.683 |

Apart is ahead on all three, though a few steps and one seed say little; 4 of the 69 test examples
share their input with the training set.
"""

import ml_collections

from configs.common import SHORT, chosen, gemma3

PARTS = {
    "sql": dict(name="evals-sql/spider_sql.jsonl", fields=dict(prompt="input", completion="ideal")),
    "titles": dict(
        name="evals-abstract2title/samples.jsonl", fields=dict(prompt="input", completion="ideal")
    ),
    "modes": dict(
        name="evals-music-theory-scale-modes/samples.jsonl",
        fields=dict(prompt="input", completion="ideal"),
    ),
}


def get_config(task: str = "shared") -> ml_collections.ConfigDict:
    """The config of the shared adapter, or of one of the three."""
    apart = {name: dict(recipe="completion", **part) for name, part in PARTS.items()}
    together = dict(mixture=tuple(PARTS.values()), mixture_temperature=2.0)
    data = chosen(task, {"shared": together, **apart})
    # The shared adapter has the parameters, and takes the steps, of the three.
    times = 3 if task == "shared" else 1
    return gemma3(
        data=dict(max_length=512, **data),
        lora=dict(rank=8 * times, alpha=16.0 * times),
        optim=SHORT,
        train=dict(
            total_steps=30 * times,
            batch_size=12,
            eval_batch_size=12,
            log_every=5,
            checkpoint_every=30,
        ),
        out=f"runs/multitask/{task}",
    )
