"""C14: for one budget, more matrices are better than more rank."""

from scipy import stats

from lab.claim import Claim, Finding, Part
from lab.contrast import OverSeeds, contrast, diverged_in, forest_row, interval_of
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="C14",
    title="For one budget, more kinds of matrices beat more rank",
    source="LoRA, Table 5",
    published="WikiSQL at 18 M parameters: q 70.4, k 70.0, v 73.0, o 73.2, q+k 71.4, q+v 73.7, all four 73.7",
    expected="20,480 parameters each: the order of the losses correlates with the published column by 0.6 or more (Spearman, in the mean over seeds), and the three arms of several kinds are better than the four of one, in the mean, by a tenth of what q+v gains",
    kind="trained",
    minutes=6,
    models="S",
    regime="100 steps of 16 sentences, each arm at its own best rate, alpha 16",
    distance="18 M parameters on GPT-3 and one seed in the paper",
    limits={"spearman": 0.6, "share": MARGIN},
)
PUBLISHED = {"q": 70.4, "k": 70.0, "v": 73.0, "o": 73.2, "qk": 71.4, "qv": 73.7, "qkvo": 73.7}
NAMED = {"qv": "query+value", "qkvo": "attention"}


def setting(letters: str):
    """Rank 16 of one kind, 8 of two, 4 of four."""
    one_of = letters if len(letters) == 1 else f"({'|'.join(letters)})"
    targets = NAMED.get(letters, f"layers/attn/{one_of}/kernel")
    return S.with_(**{"lora.rank": 16 // len(letters), "lora.targets": targets})


def order_of(found) -> OverSeeds:
    """Spearman's correlation of minus the loss with the published column, for each seed."""
    gains = zip(*([-loss for loss in arm.by_seed()] for arm in found.values()))
    published = list(PUBLISHED.values())
    return OverSeeds(tuple(float(stats.spearmanr(published, row).statistic) for row in gains))


def run(lab):
    found = {
        letters: lab.arm(f"{letters}, rank {16 // len(letters)}", setting(letters))
        for letters in PUBLISHED
    }
    budgets = {arm.runs[0].trainable_parameters for arm in found.values()} - {None}
    if len(budgets) != 1:
        raise ValueError(f"The arms of C14 must have one budget, got {budgets}.")
    order = order_of(found)
    terms = [(1 / 4 if len(letters) == 1 else -1 / 3, arm) for letters, arm in found.items()]
    kinds = contrast(terms)
    gain = found["qv"].gain().value
    behind = {
        letters: contrast(((1.0, arm), (-1.0, found["qv"])))
        for letters, arm in found.items()
        if letters != "qv"
    }
    parts = (
        Part(
            "the published order",
            "effect",
            judge_effect(order, CLAIM.limits["spearman"]),
            f"Spearman's correlation with the published order {order}",
        ),
        Part(
            "several kinds beat one",
            "effect",
            judge_effect(kinds, max(MARGIN * gain, 0.0)),
            f"one kind is {kinds} nats above several ({kinds.value / gain:.0%} of the gain of q+v)",
        ),
    )
    return Finding(
        parts,
        {
            "spearman": interval_of(order.interval()),
            "one_kind_above_several": interval_of(kinds.interval()),
            "above_qv": {name: interval_of(gap.interval()) for name, gap in behind.items()},
            "arms": {arm.name: arm.summary() for arm in found.values()},
        },
        note="From best to worst: "
        + ", ".join(sorted(found, key=lambda letters: found[letters].mean()))
        + ".",
        plot={
            "forest": {
                f"{name} (published {PUBLISHED[name]})": forest_row(gap)
                for name, gap in behind.items()
            },
            "x": "loss above q+v of rank 8, nats",
        },
        seeds=lab.seeds,
        diverged=diverged_in(found.values()),
    )
