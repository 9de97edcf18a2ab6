"""N13: the more a model was trained, the more it loses to few bits."""

import numpy as np

from lab.changes import Stored
from lab.claim import Claim, Finding, Part
from lab.contrast import OverSeeds, interval_of
from lab.setting import Setting
from lab.small_model import SmallModel, linear_bits
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="N13",
    title="Longer pretraining makes 3 and 4 bits cost more, larger models make them cost less",
    source="Scaling laws for precision (arXiv 2411.04330)",
    published="what quantisation after training costs grows as a power of the training tokens and falls as a power of the weights",
    expected="the loss that NF3, and NF4, cost S is a power of the pretraining steps with an exponent of 0.1 or more (t over three widths), and of the weights with one of -0.1 or less (t over four lengths)",
    kind="weights",
    minutes=3,
    models="S of widths 64, 96 and 160, pretrained for 400, 1,200, 3,600 and 7,200 steps",
    regime="0.8 to 15 M tokens a model (the longest sees its texts twice) of 0.2 to 1.3 M linear weights, so 0.6 to 70 tokens a weight; one pretraining of each; blocks of 64, scales in 8 bits",
    distance="each length is a run of its own with its own cosine, as in the paper; its models have 30 M weights and more, and are quantised by GPTQ",
    limits={"exponent": 0.1},
)
WIDTHS, STEPS = (64, 96, 160), (400, 1200, 3600, 7200)
JUDGED, FORMATS = {"nf3": "NF3", "nf4": "NF4"}, ("nf3", "nf4", "int4")
LEAST = 1e-4  # nats: below, the cost is noise and has no logarithm


def costs(lab):
    """Nats by format, (widths, steps)."""
    found = {name: np.zeros((len(WIDTHS), len(STEPS))) for name in FORMATS}
    for row, width in enumerate(WIDTHS):
        for column, steps in enumerate(STEPS):
            setting = Setting(SmallModel(width=width, steps=steps), bases=1)
            losses, weights = lab.in_formats(setting, [Stored(name) for name in FORMATS])
            for name in FORMATS:
                above = (losses[Stored(name)] - losses[None]) @ weights / weights.sum()
                found[name][row, column] = above[0]
    return found


def exponents(table, x) -> OverSeeds:
    """Slopes of log cost on log x, a row at a time."""
    logs = np.log(np.maximum(table, LEAST))
    return OverSeeds(tuple(float(np.polyfit(np.log(x), row, 1)[0]) for row in logs))


def run(lab):
    found = costs(lab)
    sizes = [linear_bits(SmallModel(width=width), None) / 16 for width in WIDTHS]
    of_text = {name: exponents(table, STEPS) for name, table in found.items()}
    of_size = {name: exponents(table.T, sizes) for name, table in found.items()}
    least, parts = CLAIM.limits["exponent"], []
    for name, title in JUDGED.items():
        text = of_text[name]
        falls = OverSeeds(tuple(-value for value in of_size[name].by_seed))
        parts += [
            Part(
                f"{title} costs more after more steps",
                "effect",
                judge_effect(text, least),
                f"{title}: exponent in steps {text}",
            ),
            Part(
                f"{title} costs larger models less",
                "effect",
                judge_effect(falls, least),
                f"{title}: exponent in weights {of_size[name]}",
            ),
        ]
    exponent = lambda found: {n: interval_of(each.interval()) for n, each in found.items()}
    return Finding(
        tuple(parts),
        {
            "cost": {name: table.tolist() for name, table in found.items()},
            "widths": WIDTHS,
            "steps": STEPS,
            "exponent_in_steps": exponent(of_text),
            "exponent_in_weights": exponent(of_size),
        },
        note=f"Int4: exponent in steps {of_text['int4']}, in weights {of_size['int4']}. Brackets are Student's t over widths, or over lengths: they hold what single pretrainings differ by, but not a second pretraining of each.",
        plot={
            "x": "pretraining steps",
            "y": "loss above float32, nats",
            "log": "xy",
            "lines": {
                f"{JUDGED[name]}, width {width}": [
                    [steps, max(float(cost), LEAST)] for steps, cost in zip(STEPS, row)
                ]
                for name in JUDGED
                for width, row in zip(WIDTHS, found[name])
            },
        },
        seeds=(0,),
    )
