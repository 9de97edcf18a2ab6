"""C36: AdaLoRA moves rank to the MLP and to upper layers, and is as good as a fixed rank."""

import numpy as np
from scipy import stats

from lab.claim import Claim, Finding, Part
from lab.contrast import OverSeeds, difference, interval_of
from lab.inside import over_pairs
from lab.protocol import MARGIN
from lab.setting import S
from lab.small_model import SmallModel
from lab.verdicts import judge_effect, judge_not_worse

CLAIM = Claim(
    id="C36",
    title="AdaLoRA moves rank to the MLP and to upper layers, alike under every seed, and is as good as a fixed rank",
    source="AdaLoRA (arXiv 2303.10512)",
    published="more rank in the MLP and in upper layers; better than LoRA at equal budget (DeBERTaV3-base: 89.46 and 88.50 on GLUE)",
    expected="S, all linear layers, 12 columns a matrix falling to 8: loss not above that of LoRA of rank 8 by a tenth of its gain; a mean of one column more in the MLP than in attention, and in the upper half of the layers than in the lower; Kendall's tau of the matrices' ranks between seeds above 0, and 0.2 or more",
    kind="trained",
    minutes=2,
    models="S",
    regime="100 steps of 16 sentences: the budget falls from step 10 to 50, every 5 steps",
    distance="four layers of width 160 and 100 steps; the paper has 12 layers and 85,000 steps",
    limits={"share": MARGIN, "columns": 1.0, "tau": 0.2},
)
ADALORA = {
    "lora.variant": "adalora",
    "lora.rank": 12,
    "optim.adalora.target_rank": 8.0,
    "optim.adalora.warmup_steps": 10,
    "optim.adalora.final_steps": 50,
    "optim.adalora.interval": 5,
}
MLP, ATTENTION = ("gate", "up", "down"), ("q", "k", "v", "o")
LAYERS = SmallModel().layers


def ranks(lab, run) -> np.ndarray:
    """Columns that are left (names, layers); a matrix that has lost all counts with 0."""
    names = ATTENTION + MLP
    found = np.zeros((len(names), LAYERS))
    for matrix in lab.updates(run, names):
        s = matrix.update.s
        kept = (s > 1e-6 * s.max()).sum() if len(s) and s.max() > 0 else 0
        found[names.index(matrix.path.split("/")[-2]), matrix.layer] = kept
    return found


def tau(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's, and 0 where all ranks are equal."""
    found = stats.kendalltau(first.ravel(), second.ravel()).statistic
    return float(found) if np.isfinite(found) else 0.0


def run(lab):
    lora, ada = lab.arm("LoRA r=8", S), lab.arm("AdaLoRA", S.with_(**ADALORA))
    behind, whole = difference(ada, lora), lora.gain().value
    tables = [ranks(lab, run) for run in ada.runs if run.result is not None]
    split = len(ATTENTION)
    each = lambda figure: OverSeeds(tuple(float(figure(table)) for table in tables))
    mlp = each(lambda table: table[split:].mean() - table[:split].mean())
    upper = each(lambda table: table[:, LAYERS // 2 :].mean() - table[:, : LAYERS // 2].mean())
    agree = over_pairs(len(tables), lambda one, other: tau(tables[one], tables[other]))
    columns = CLAIM.limits["columns"]
    mean = np.mean(tables, axis=0)
    return Finding(
        (
            Part(
                "the loss",
                "not worse",
                judge_not_worse(behind, CLAIM.limits["share"] * whole),
                f"{behind} nats behind LoRA ({behind.value / whole:.0%} of its gain)",
            ),
            Part(
                "more in the MLP",
                "effect",
                judge_effect(mlp, columns),
                f"{mlp} columns more in the MLP",
            ),
            Part(
                "more in upper layers",
                "effect",
                judge_effect(upper, columns),
                f"{upper} more in the upper half",
            ),
            Part(
                "alike under every seed",
                "effect",
                judge_effect(agree, CLAIM.limits["tau"]),
                f"tau {agree}",
            ),
        ),
        {
            "behind": interval_of(behind.interval()),
            "columns": {name: row.tolist() for name, row in zip(ATTENTION + MLP, mean)},
            "mean_columns": float(mean.mean()),
            "mlp_less_attention": mlp.by_seed,
            "upper_less_lower": upper.by_seed,
            "tau": agree.by_seed,
            "arms": {arm.name: arm.summary() for arm in (lora, ada)},
        },
        plot={
            "lines": {
                name: [[layer, float(x)] for layer, x in enumerate(row)]
                for name, row in zip(ATTENTION + MLP, mean)
            },
            "x": "layer",
            "y": "columns left, of 12",
        },
        seeds=lab.seeds,
        diverged=lora.diverged + ada.diverged,
    )
