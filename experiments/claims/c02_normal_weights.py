"""C2: pretrained weights are close to normal, so that NF4 fits them."""

import numpy as np
from scipy import stats

from lab.claim import Claim, Finding, Part, Reason
from lora_jax.analysis.quantisation import shapes, sweep

CLAIM = Claim(
    id="C2",
    title="MiniLM's weights are near-normal; where tails are heavier, AF4 gains on NF4",
    source="QLoRA, Appendix F",
    published="7.5 % of LLaMA-7B's neurons fail a Shapiro-Wilk test at 5 %",
    expected="fewer than 15 % of MiniLM's output channels fail it (two standard errors below). The rank correlation over its 36 matrices of excess kurtosis and AF4's error over NF4's is below 0 (p < 0.05), with the six matrices of heaviest tails and without them",
    kind="weights",
    minutes=1,
    models="MiniLM",
    regime="36 linear layers, 72 output channels of each, of 384 or 1,536 weights",
    distance="a distilled encoder of width 384 for a LLaMA of width 4,096; the longer a channel, the more easily the test rejects",
    limits={"rejected": 0.15, "p": 0.05},
)
CHANNELS = 72
HEAVIEST = 6


def failing(rows) -> tuple[int, float]:
    """(channels tested, share of them that fail)."""
    tested = sum(row.channels for row in rows)
    return tested, sum(row.not_normal * row.channels for row in rows) / tested


def judge_normal(tested: int, rejected: float):
    """The verdict on the share of channels that fail, by two standard errors."""
    spread = 2 * np.sqrt(rejected * (1 - rejected) / tested)
    if rejected + spread < CLAIM.limits["rejected"]:
        return "reproduced"
    return "not reproduced" if rejected - spread > CLAIM.limits["rejected"] else "inconclusive"


def judge_tails(kurtosis, ratio):
    """(the verdict on whether the ratio falls as kurtosis rises, the rank correlations of all
    matrices and of those without the heaviest tails).
    """
    light = np.argsort(kurtosis)[:-HEAVIEST]
    found = [stats.spearmanr(kurtosis, ratio), stats.spearmanr(kurtosis[light], ratio[light])]
    sure = [each.statistic for each in found if each.pvalue < CLAIM.limits["p"]]
    if len(sure) == len(found) and max(sure) < 0:
        return "reproduced", found
    return "not reproduced" if any(value > 0 for value in sure) else "inconclusive", found


def even_inputs(matrices, rejected: float) -> Reason:
    """Whether channels fail because some inputs have larger weights in all of them, which makes
    each a mixture of scales.
    """
    even = {path: w / w.std(-1, keepdims=True) for path, w in matrices.items()}
    share = lambda found: failing(
        [row for path, w in found.items() for row in shapes(path, w, channels=CHANNELS)]
    )[1]
    longest = max(w.shape[1] for w in matrices.values())
    long = {path: w for path, w in matrices.items() if w.shape[1] == longest}
    left, whole = share(even), share(long)
    cut = share({path: w[:, ::4] for path, w in long.items()})
    return Reason(
        "a few inputs have larger weights in every channel (outlier dimensions), so that a channel "
        "mixes scales; with each input's weights divided by their standard deviation, less than "
        "half as many channels should fail",
        f"{left:.1%} then fail, against {rejected:.1%}. (Of channels with {longest} inputs "
        f"{whole:.1%} fail as they are, and {cut:.1%} if every fourth weight of these is taken: a "
        "longer sample rejects more easily.)",
        left < rejected / 2,
        {"rejected_with_even_inputs": left, "rejected_longest": whole, "rejected_cut": cut},
    )


def run(lab):
    matrices = lab.matrices_of("minilm")
    rows = [row for path, w in matrices.items() for row in shapes(path, w, channels=CHANNELS)]
    tested, rejected = failing(rows)
    errors = {f: [row.relative_error for row in sweep(matrices, [f])] for f in ("nf4", "af4")}
    ratio = np.array(errors["af4"]) / np.array(errors["nf4"])
    kurtosis = np.array([row.kurtosis for row in rows])
    tails, (every, light) = judge_tails(kurtosis, ratio)
    reason = even_inputs(matrices, rejected)
    return Finding(
        (
            Part(
                "channels pass a test of normality",
                "exact",
                judge_normal(tested, rejected),
                f"{rejected:.1%} of {tested} channels fail",
            ),
            Part(
                "AF4 gains where tails are heavier",
                "exact",
                tails,
                f"rank correlation {every.statistic:.2f} (p = {every.pvalue:.1g}), without the six heaviest {light.statistic:.2f} (p = {light.pvalue:.1g})",
            ),
        ),
        {
            "rejected": rejected,
            "channels": tested,
            "kurtosis": kurtosis.tolist(),
            "af4_over_nf4": ratio.tolist(),
            "rank_correlation": [every.statistic, every.pvalue],
            "rank_correlation_light": [light.statistic, light.pvalue],
            "reason": reason.entry(),
        },
        note=f"Excess kurtosis: median {np.median(kurtosis):.2f}, largest {kurtosis.max():.0f}."
        + reason.text,
        plot={
            "x": "excess kurtosis of a matrix",
            "y": "error of AF4 / NF4",
            "log": "x",
            "lines": {
                "36 matrices of MiniLM": sorted(
                    [max(k, 1e-2), r] for k, r in zip(kurtosis.tolist(), ratio.tolist())
                )
            },
        },
    )
