"""C12: LoRA is as good as full fine-tuning."""

from lab.claim import Claim, Finding, Part
from lab.contrast import difference, forest_row, interval_of
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
    minutes=40,
    models="S and MiniLM",
    regime="100 steps of 16 sentences, each arm at its own best rate",
    distance="models of 1.5 and 23 M weights, one task each; the paper trains epochs on eight tasks, picks the best epoch and trains the embedding too",
    limits={"share": MARGIN},
)

LORA = {"all linear layers": "all-linear", "query and value": "query+value"}


def run(lab):
    # What full fine-tuning is: the linear layers; on S, beside it, every weight as in the paper.
    arms = {
        ("S", S): {"full": FULL, "full, every weight": FULL_ALL},
        ("MiniLM", MINILM): {"full": FULL},
    }
    parts, figures, forest, diverged = [], {}, {}, []
    for (model, base), kinds in arms.items():
        fulls = [lab.arm(name, base.with_(**changes)) for name, changes in kinds.items()]
        full = fulls[0]
        loras = [lab.arm(name, base.with_(**{"lora.targets": t})) for name, t in LORA.items()]
        for arm in loras:
            title, behind = f"{model}, {arm.name}", difference(arm, full)
            share = behind.value / full.gain().value
            verdict = judge_not_worse(behind, MARGIN * full.gain().value)
            ours = f"{title}: {behind} behind full ({share:.0%} of its gain)"
            parts.append(Part(title, "not worse", verdict, ours))
            gaps = {f"behind {other.name}": difference(arm, other) for other in fulls}
            figures[title] = arm.summary() | {
                name: interval_of(gap.interval()) for name, gap in gaps.items()
            }
            forest |= {
                f"{model}: {arm.name}, {name}": forest_row(gap) for name, gap in gaps.items()
            }
        figures |= {f"{model}, {arm.name}": arm.summary() for arm in fulls}
        diverged += [one for arm in (*fulls, *loras) for one in arm.diverged]
    return Finding(
        tuple(parts),
        figures,
        plot={"forest": forest, "x": "loss above full fine-tuning, nats"},
        seeds=lab.seeds,
        diverged=tuple(diverged),
    )
