"""Three small adapters for three domains, served from one quantised base: each wins on its own
held-out data.

python experiments/three_adapters.py [--examples 24] [--config configs/domains/adapters.py]
[--config.KEY=VALUE ...]

Trains what is not there yet, loads the base once, scores it and every adapter on every domain's
test split, and answers one prompt of each domain in a single batch. The table is printed and
written to runs/adapters/table.json.
"""

import argparse
import json
from pathlib import Path

from lora_jax import load_config, load_run, run_sweep
from lora_jax.analysis import adapter_matrix, home_wins
from lora_jax.generation import TextGenerator
from lora_jax.sweeps import RunStore, expand, run_id

DOMAINS = ("finance", "music", "sales")


def main() -> None:
    """Trains, scores, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default=str(Path(__file__).parents[1] / "configs" / "domains" / "adapters.py")
    )
    parser.add_argument(
        "--examples", type=int, default=24, help="held-out examples of each domain at most (24)"
    )
    arguments, overrides = parser.parse_known_args()
    runs = {}
    for domain in DOMAINS:
        config = load_config(f"{arguments.config}:{domain}", overrides)
        if run_sweep(config, quiet=True).failed:
            raise SystemExit(f"{domain} did not train; see {config.out}")
        runs[domain] = load_run(RunStore(config.out).folder(run_id(expand(config)[0])))
    rows = home_wins(adapter_matrix(runs, examples=arguments.examples))
    print(
        f"{'domain':<10}{'adapter':<10}{'n':>4}{'nats a token [95 %]':>28}{'own adapter less this':>24}{'p':>9}"
    )
    for row in rows:
        bounds = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        against = f"{row['difference']:+.3f}" if "difference" in row else "own"
        print(
            f"{row['domain']:<10}{row['adapter']:<10}{row['examples']:>4}{bounds:>28}{against:>24}{row.get('p', float('nan')):>9.3f}"
        )
    out = Path("runs/adapters/table.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    print(
        "every adapter wins at home"
        if all(row.get("wins", True) for row in rows)
        else "NOT every adapter wins at home"
    )
    answer_together(runs)


def answer_together(runs: dict) -> None:
    """One prompt of every domain in one batch, each with its own adapter, from one base."""
    first = next(iter(runs.values()))
    rank = max(leaf.rank for run in runs.values() for leaf in run.trainable.values())
    texts = TextGenerator(
        first.task.model,
        first.frozen,
        first.task.tokenizer,
        max_adapters=len(runs),
        max_rank=rank,
        like=first.trainable,
    )
    prompts = []
    for name, run in runs.items():
        texts.add(name, run.trainable)
        prompts.append(run.task.records["test"].prompts[0].rstrip() + "\n")
    for name, answer in zip(
        runs, texts.generate(prompts, max_new=24, adapters=list(runs), stop=["\n"])
    ):
        print(f"{name}: {answer!r} (right: {runs[name].task.records['test'].completions[0]!r})")


if __name__ == "__main__":
    main()
