"""C12: LoRA is as good as full fine-tuning."""

from lab.claim import Claim, Finding, Part
from lab.contrast import difference, interval_of
from lab.protocol import MARGIN
from lab.setting import FULL, FULL_ALL, MINILM, S
from lab.verdicts import judge_not_worse

CLAIM = Claim(
    id="C12",
    title="LoRA is as good as full fine-tuning",
    source="LoRA, Table 2",
    published="GLUE average, RoBERTa-base: full 86.4, LoRA (rank 8, q+v) 87.2",
    expected="LoRA of rank 8 on all linear layers, and on query and value, loses at most a tenth of what full fine-tuning of the linear layers gains on the untuned model",
    kind="trained",
    models="S and MiniLM",
    regime="100 or 150 steps of 16 sentences, each arm at its own best rate",
    distance="models of 1.5 and 23 M weights, one task each; the paper trains epochs on eight tasks, picks the best epoch and trains the embedding too",
    limits={"share": MARGIN},
)

LORA = {"all linear layers": "all-linear", "query and value": "query+value"}


def run(lab):
    parts, figures, diverged = [], {}, []
    forest = {}
    for model, base in (("S", S), ("MiniLM", MINILM)):
        full = lab.arm("full", base.with_(**FULL))
        whole = lab.arm("full, every weight", base.with_(**FULL_ALL))
        for name, targets in LORA.items():
            arm = lab.arm(f"LoRA {name}", base.with_(**{"lora.targets": targets}))
            behind = difference(arm, full)
            share = behind.value / full.gain().value
            parts.append(
                Part(
                    f"{model}, {name}",
                    "not worse",
                    judge_not_worse(behind, MARGIN * full.gain().value),
                    f"{model}, {name}: {behind} behind full ({share:.0%} of its gain)",
                )
            )
            figures[f"{model}, {name}"] = arm.summary() | {
                "behind_full": interval_of(behind.interval()),
                "behind_every_weight": interval_of(difference(arm, whole).interval()),
            }
            forest[f"{model}, {name}"] = {
                "interval": interval_of(behind.interval()),
                "seeds": behind.by_seed,
            }
            diverged += arm.diverged
        figures |= {f"{model}, full": full.summary(), f"{model}, every weight": whole.summary()}
        diverged += full.diverged + whole.diverged
    return Finding(
        tuple(parts),
        figures,
        plot={"forest": forest, "x": "loss above full fine-tuning, nats"},
        seeds=lab.seeds,
        diverged=tuple(diverged),
    )
