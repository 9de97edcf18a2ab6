"""Which rank, which bit-width, which layers? MiniLM-L6 on Rotten Tomatoes.

The argument `tuned` is the main job: around a centre (rank 4, fp32, all linear layers) one setting
at a time is changed, and the head alone stands beside them. Each of the seven has the learning rate
with the lowest validation loss under seed 101, of a half, one and two times its own and of what
lies beyond where that is best at an edge; its score is that of seeds 0 to 4. Forty steps a run are
less than a fifth of an epoch: enough to tell cells apart, not to finish.

lora-jax sweep --config configs/default.py:tuned
# the whole grid at one rate, one seed
lora-jax sweep --config configs/default.py

Test accuracy in %, mean ± standard error over five seeds, 875 texts:

| | rate | test accuracy, % |
|---|---|---|
| head alone | 0.08 | 59.4 ± 1.9 |
| rank 4, fp32, all linear | 0.002 | 76.1 ± 0.8 |
| rank 1 | 0.002 | 75.5 ± 0.6 |
| rank 16 | 0.002 | 76.4 ± 0.6 |
| int8 | 0.002 | 76.1 ± 0.8 |
| nf4 | 0.004 | 74.3 ± 1.0 |
| query+value | 0.008 | 76.8 ± 0.6 |

What the report supports, over seeds and examples and after correction: adapters are 16.4 points
above the head alone (95% interval 9.7 to 23.2); rank 1 and 4, rank 4 and 16, fp32 and int8, all
linear layers and query+value differ by no more than 3 points (`report.margin`, which was set before
the run by what five seeds can show). Open: nf4 against fp32 (-4.5 to 0.9 points). Its rate is the
nearer call of one seed (validation loss 0.539 at 0.004, 0.547 at 0.002), and one of its five seeds
is 5 points below the others; at 0.002 the same seeds give 75.1 ± 0.7.

Texts are cut at 48 tokens (one in twenty is), so that four lengths are compiled in place of six,
without more padding. From an empty cache on 2 CPU cores (AMD EPYC, jax 0.10.2), nothing beside it:
59 runs in 9 min 12 s, downloads and compilation counted, of which 66 s compiled and 339 s were
training steps. Full fine-tuning is left out: its programs and its tuning would cost two seeds.

The grid: rank 1, 4, 16 × base in fp32, int8, nf4 × query+value or all linear layers, and besides
them full fine-tuning and the head alone. From an empty cache on the same two cores, alone: 9 min
36 s, downloads and compilation counted. Test accuracy in %, one seed, binomial standard error 1.4
to 1.7; full fine-tuning 79.0, head alone 60.8:

| | r1 | r4 | r16 | base, MB |
|---|---|---|---|---|
| fp32, all linear | 75.7 | 77.7 | 77.4 | 90.9 |
| int8, all linear | 75.1 | 77.4 | 77.1 | 58.7 |
| nf4, all linear | 72.3 | 77.0 | 77.3 | 53.3 |
| fp32, query+value | 75.1 | 72.6 | 72.5 | 90.9 |
| int8, query+value | 75.4 | 72.5 | 72.7 | 58.7 |
| nf4, query+value | 74.7 | 72.6 | 72.7 | 53.3 |

One rate for all is not fair to query+value, as the tuned form shows.
"""

import ml_collections

GRID = dict(
    rank=(1, 4, 16),
    format=("none", "int8", "nf4"),
    targets=("query+value", "all-linear"),
    seeds=(0,),
    baselines=("full", "head"),
    learning_rate=dict(full=2e-4, head=5e-3, lora=2e-3, qlora=2e-3),
)
TUNED = dict(
    axes=(
        "lora.rank, quant.format, lora.targets = (4, none, all-linear), (1, none, all-linear), "
        "(16, none, all-linear), (4, int8, all-linear), (4, nf4, all-linear), "
        "(4, none, query+value) if method == lora",
    ),
    seeds=(0, 1, 2, 3, 4),
    baselines=("head",),
    learning_rate=dict(head=8e-2, lora=2e-3),
    tune=dict(factors=(0.5, 1.0, 2.0), seeds=(101,)),
)
# One text in twenty is cut, and four lengths are compiled in place of six.
SHORT = dict(max_length=48, buckets=(16, 24, 32, 48))


def get_config(form: str = "grid") -> ml_collections.ConfigDict:
    """'tuned', the main job: cells each at their own learning rate; or the whole 'grid'."""
    sweeps = {"grid": GRID, "tuned": TUNED}
    if form not in sweeps:
        raise ValueError(f"the argument must be one of {', '.join(sweeps)}, got {form!r}")
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="minilm-l6", scan=False, compute_dtype="float32"),
            data=dict(
                name="rotten_tomatoes",
                text="text",
                label="label",
                **(dict(max_length=128) if form == "grid" else SHORT),
            ),
            method="lora",
            lora=dict(rank=8, alpha=16.0, scaling="standard", targets="all-linear"),
            quant=dict(format="none", block_size=64, double=True),
            optim=dict(
                learning_rate=2e-3,
                weight_decay=0.01,
                schedule="linear",
                warmup_fraction=0.1,
                clip_norm=1.0,
            ),
            train=dict(
                total_steps=40,
                batch_size=32,
                eval_batch_size=64,
                eval_examples=256,
                log_every=5,
                checkpoint_every=20,
                seed=0,
            ),
            sweep=sweeps[form],
            report=dict(margin=None if form == "grid" else 0.03),
            out="runs/default" if form == "grid" else "runs/tuned",
        )
    )
