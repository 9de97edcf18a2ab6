"""C29: LoRA keeps up with full fine-tuning until the data reach its capacity."""

from lab.claim import Claim, Finding, Part
from lab.contrast import difference, diverged_in, forest_row, interval_of
from lab.protocol import MARGIN
from lab.setting import Setting
from lab.small_model import SmallModel
from lab.verdicts import judge_effect, judge_not_worse

CLAIM = Claim(
    id="C29",
    title="LoRA is as good as full fine-tuning until the data reach its capacity",
    source="LoRA Without Regret, 2025, Figure 1",
    published="loss curves of every rank follow full fine-tuning's until the adapter runs out of capacity, higher ranks later; at about 2 bits a parameter",
    expected="rank 4 on the MLP (12,288 parameters, 24.6 kbit at two bits each) memorises 24 rows of random words (3.1 kbit) as full fine-tuning of the MLP does, to a tenth of its gain, and of 192 rows (24.6 kbit) it misses a tenth or more",
    kind="trained",
    minutes=6,
    models="S of width 64",
    regime="300 steps of all 24 rows, 600 steps of 32 of 192, each arm at its own best rate; scored on the rows that were trained on",
    distance="memorising random words in place of instruction sets; whether a curve leaves full's is judged at its end. The rank (4, not 1) was chosen after a pilot of six runs on one pretraining; the limits were not",
    limits={"share": MARGIN},
)
BASE = Setting(SmallModel(width=64)).with_(**{"train.batch_size": 32})
LORA = {"lora.rank": 4, "lora.targets": "mlp"}
FULL_MLP = {"method": "full", "baseline.full_targets": "mlp"}
STEPS = {24: 300, 192: 600}


def run(lab):
    behind, gains, arms = {}, {}, []
    for rows, steps in STEPS.items():
        base = BASE.with_(**{"data.name": f"random-{rows}", "train.total_steps": steps})
        low = lab.arm(f"rank 4, {rows} rows", base.with_(**LORA))
        full = lab.arm(f"full, {rows} rows", base.with_(**FULL_MLP))
        behind[rows], gains[rows] = difference(low, full), full.gain().value
        arms += [low, full]
    few, many = STEPS
    said = {
        rows: f"{rows} rows: {gap} nats behind full ({gap.value / gains[rows]:.0%} of its gain)"
        for rows, gap in behind.items()
    }
    parts = (
        Part(
            "as good within its capacity",
            "not worse",
            judge_not_worse(behind[few], MARGIN * gains[few]),
            said[few],
        ),
        Part(
            "behind at its end",
            "effect",
            judge_effect(behind[many], max(MARGIN * gains[many], 0.0)),
            said[many],
        ),
    )
    return Finding(
        parts,
        {
            "behind_full": {str(n): interval_of(gap.interval()) for n, gap in behind.items()},
            "arms": {arm.name: arm.summary() for arm in arms},
        },
        plot={
            "forest": {f"{rows} rows": forest_row(gap) for rows, gap in behind.items()},
            "x": "loss of rank 4 above full, nats",
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms),
    )
