"""Writes configs/papers/README.md: every row of the papers' tables with its command, its published
figure, and what it takes. Nothing is trained, loaded or fetched.

python experiments/papers.py
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from lora_jax.analysis import plan
from lora_jax.analysis.devices import A100
from lora_jax.analysis.footprint import SMALL, UTILISATION, Footprint, footprint_of, seconds
from lora_jax.config import Config, from_config_dict
from lora_jax.models.sizes import SIZES
from lora_jax.sweeps.grid import duration

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "papers"
FILES = ("lora_glue", "lora_gpt2", "lora_gpt3", "qlora")
# Table: rows of a preset file, what they are, and the claims of experiments/README.md that test it
# at a size that fits here.
TABLES = {
    "LoRA, Table 2": ("lora_glue", "GLUE, RoBERTa and DeBERTa", ("C12",)),
    "LoRA, Table 3": ("lora_gpt2", "E2E, GPT-2", ("C12",)),
    "LoRA, Table 13": ("lora_gpt2", "DART, GPT-2", ()),
    "LoRA, Table 14": ("lora_gpt2", "WebNLG, GPT-2", ()),
    "LoRA, Table 18": ("lora_gpt2", "ranks 1 to 1024, GPT-2 on E2E", ("C15",)),
    "LoRA, Table 4": ("lora_gpt3", "GPT-3 175B", ("C22",)),
    "LoRA, Table 5": ("lora_gpt3", "which matrices, at one budget", ("C14",)),
    "LoRA, Table 6": ("lora_gpt3", "ranks and matrices", ("C13",)),
    "LoRA, Table 15": ("lora_gpt3", "budgets", ("C22",)),
    "LoRA, Table 16": ("lora_gpt3", "few examples", ()),
    "QLoRA, Table 3": ("qlora", "formats, RoBERTa and T5", ("C8",)),
    "QLoRA, Table 4": ("qlora", "formats, LLaMA", ("C8",)),
    "QLoRA, Table 5": ("qlora", "tuning sets, LLaMA", ()),
}
# Tables without a preset, and why.
WITHOUT = {
    "LoRA, Table 1 (latency)": "a timing on a Quadro RTX 8000, not a training run",
    "LoRA, Table 2, rows marked *": "copied there from earlier papers that tuned otherwise",
    "LoRA, Table 3, rows marked *": "likewise; Adapter-L and -H have no printed settings",
    "LoRA, Table 7 (amplification)": "of GPT-3; the measure itself is claim C18",
    "QLoRA, Table 2 (perplexity)": "over OPT, BLOOM, LLaMA and Pythia up to 13B; formats are claim C1",
    "QLoRA, Tables 1, 6 and 7 (Elo, Vicuna)": "judged by GPT-4 and by people",
}


def presets(name: str) -> Mapping[str, Mapping]:
    """{row: {side: preset}} of a file."""
    if str(FOLDER) not in sys.path:  # its neighbour `published`
        sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"papers_{name}", FOLDER / f"{name}.py")
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PRESETS


def rows(file: str) -> Iterator[tuple[str, object]]:
    """(argument, preset) of every row and side of a file."""
    for name, sides in presets(file).items():
        for side, preset in sides.items():
            yield name if side == "paper" else f"{name}:{side}", preset


def line(file: str, argument: str, preset) -> str:
    """A row of a table: its argument, figure, and what it takes."""
    config: Config = from_config_dict(preset.settings)
    found = footprint_of(config, SIZES[config.model.name], tokens=preset.tokens)
    spread = "" if preset.spread is None else f" ± {preset.spread}"
    kind = "sweep" if len(config.sweep.seeds) > 1 else "train"
    cells = (
        f"`{kind} {file}.py:{argument}`",
        f"{preset.metric} {preset.value}{spread}",
        memory(found),
        time(found, config, preset),
        "; ".join(filter(None, (preset.needs, preset.beyond))).replace("|", "\\|"),
    )
    return f"| {' | '.join(cells)} |"


def memory(found: Footprint) -> str:
    """'11.0' GB, and that of what is largest of it where it does not fit."""
    size = f"{found.total / 1e9:,.1f}"
    return size if found.total <= A100.memory else f"{size}, does not fit"


def time(found: Footprint, config: Config, preset) -> str:
    """Of a seed, or of a step where a row has no number of examples."""
    train = config.train
    per_step = seconds(found, config, 1)
    tokens = (preset.tokens or config.data.max_length) * train.batch_size / train.accumulate
    least = "≥ " if tokens < SMALL else ""
    steps = train.total_steps
    if steps is None and preset.examples is None:
        return f"{least}{per_step:.2g} s a step"
    steps = steps or round(preset.examples * train.epochs / train.batch_size)
    return f"{least}{duration(per_step * steps)}"


def head() -> list[str]:
    """The page above its rows."""
    index = ["| table | rows | presets | claims tested here |", "|---|---|---|---|"]
    for table, (file, words, claims) in TABLES.items():
        linked = ", ".join(f"[{one}](../../experiments/README.md#{one.lower()})" for one in claims)
        index.append(f"| {table} | {words} | `{file}.py` | {linked} |")
    index += [f"| {table} | {why} | none | |" for table, why in WITHOUT.items()]
    return [
        "# Rows of the papers' tables",
        "",
        "Made by `python experiments/papers.py`; do not edit. A row is run by",
        "`lora-jax sweep --config configs/papers/FILE.py:ARGUMENT` (`train` where it has one seed), and",
        "says when it starts what the paper got, where paper and released script differ, what has to be",
        "brought, and how the published metric is had of a finished run. `--dry-run` needs no weights.",
        "None was run here: they need a GPU.",
        "",
        *index,
        "",
        f"Memory and time are estimates for one {A100.name}, from shapes alone "
        "(`lora_jax/analysis/footprint.py`).",
        "Memory, in GB of 1e9 bytes, is of a training step of the longest texts, weights in float32",
        "but for those that are quantised; `--config.train.accumulate=N` takes a batch in N parts. Time",
        f"is of the training steps of one seed, at {UTILISATION:.0%} of the card's rate for dense products",
        "(TF32 for float32 ones): an assumption, which QLoRA's own 24 hours for 65B bear out; mean",
        "lengths of texts are assumed as well. `≥`: so few tokens a part that the card waits for its",
        "launches. Evaluation and compilation come on top.",
    ]


# QLoRA steps that are planned, compiled, at the foot of the page: a name of SIZES and an optimiser.
PLANS = (
    ("huggyllama/llama-7b", "adamw"),
    ("meta-llama/Meta-Llama-3-8B", "adamw"),
    ("huggyllama/llama-13b", "adamw"),
    ("huggyllama/llama-30b", "adamw"),
    ("huggyllama/llama-65b", "adamw"),
    ("huggyllama/llama-65b", "adamw8bit"),
    ("meta-llama/Meta-Llama-3-70B", "adamw8bit"),
)


def plans() -> list[str]:
    """What `lora-jax plan MODEL --method qlora --rank 64 --batch 1x512` says of each."""
    lines = [
        "## What QLoRA steps from 7B to 70B need",
        "",
        "nf4 with double quantisation, all linear layers, rank 64, 1 x 512 tokens, blocks recomputed,",
        "bfloat16, in GB of 1e9 bytes: arguments and temporaries by XLA's account of the step compiled",
        "for a CPU (`lora-jax plan MODEL --method qlora --rank 64 --batch 1x512`). No GPU has run them.",
        "",
        "| model | optimiser | codes | scales | words | factors | moments | arguments | temporaries | peak |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    return lines + [plan_line(*one) for one in PLANS]


def plan_line(name: str, optimizer: str, *, compiled: bool = True) -> str:
    """A row of `plans`; without the columns of its compiled step it ends before them."""
    model = dict(name=name, remat=True, compute_dtype="bfloat16", base_dtype="bfloat16")
    settings = dict(
        model=model,
        data=dict(task="completion", max_length=512),
        method="qlora",
        lora=dict(rank=64),
        quant=dict(format="nf4"),
        optim=dict(name=optimizer),
        train=dict(batch_size=1),
    )
    made = plan(from_config_dict(settings), compiled=compiled)
    found = made.footprint
    words = found.embeddings + found.head
    sizes = (found.codes, found.scales, words, found.factors, found.optimiser, found.arguments)
    if made.memory is not None:
        sizes = (*sizes[:-1], made.memory.arguments, made.memory.temporaries, made.peak)
    cells = " | ".join(f"{size / 1e9:.2f}" for size in sizes)
    return f"| {name} | {optimizer} | {cells} |"


def page() -> str:
    """The whole page."""
    lines = head()
    for file in FILES:
        lines += ["", f"## {file}.py", "", "| run | published | GB | time | needs; beyond |"]
        lines += ["|---|---|---:|---:|---|"]
        lines += [line(file, argument, preset) for argument, preset in rows(file)]
    lines += ["", *plans()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page())
    print(FOLDER / "README.md")
