"""The papers' formulas against the parameter counts that the papers print: which follow, which do
not.
"""

import jax
import jax.numpy as jnp
import pytest

from lora_jax.adapters import baselines
from lora_jax.adapters.sites import Site
from lora_jax.adapters.surgery import trainable_parameters
from lora_jax.core.init import initialize, with_magnitude
from lora_jax.core.lowrank import LoraSpec


def lora(layers, d, rank, matrices):
    """LoRA, section 5.1: 2 * L * d * r, measured on factors."""
    shape = jax.eval_shape(
        lambda: initialize(jax.random.key(0), (layers,), d, d, LoraSpec(rank=rank))
    )
    return matrices * (shape.a.size + shape.b.size)


def sites(layers, d):
    """The sites of an encoder that baselines look at, shapes only."""
    matrix = lambda path, i, o: Site(path, "Dense", (i, o), (layers,), (0,), True)
    vector = lambda path, n: Site(path, "LayerNorm", (n,), (layers,), (), False)
    every = [matrix(f"layers/attn/{name}/kernel", d, d) for name in "qkvo"]
    every += [
        matrix("layers/mlp/up/kernel", d, 4 * d),
        matrix("layers/mlp/down/kernel", 4 * d, d),
        vector("layers/mlp_norm/scale", d),
    ]
    every += [Site("embeddings/word/embedding", "Embed", (50, d), (), (0,), True)]
    return {site.path: site for site in every}


def bottleneck(kind, layers, d, size):
    """Trained entries of the adapters; `on` is counted as all ones (shapes alone hold no
    numbers).
    """
    leaves = jax.eval_shape(
        lambda: baselines.bottlenecks(sites(layers, d), kind, size, key=jax.random.key(0))
    )
    return sum(
        getattr(leaf, name).size for leaf in leaves.values() for name in leaf.trained_fields()
    )


def test_pieces_have_as_many_parameters_as_their_formulas_say():
    L, d, r = 4, 16, 3
    one = 2 * d * r + r + d
    count = lambda kind, **kw: trainable_parameters(
        baselines.bottlenecks(sites(L, d), kind, r, key=jax.random.key(0), **kw)
    )
    assert count("houlsby") == bottleneck("houlsby", L, d, r) == 2 * L * one
    assert count("pfeiffer") == L * one
    assert count("lin") == L * one + 2 * L * d
    assert count("houlsby", dropped=3) == 2 * one
    key = jax.random.key(0)
    assert trainable_parameters(baselines.prefix_embedding(sites(L, d), 5, 2, key=key)) == 7 * d
    assert trainable_parameters(baselines.prefix_layers(sites(L, d), 5, 2, key=key)) == L * 7 * d
    assert trainable_parameters(baselines.ia3(sites(L, d))) == L * (2 * d + 4 * d)


def rounds_to(count, text):
    """Whether a count in millions rounds to what the paper prints."""
    digits = len(text.partition(".")[2])
    return f"{count / 1e6:.{digits}f}" == text


GPT3, GPT2M, GPT2L = (96, 12288), (24, 1024), (36, 1280)
BASE, LARGE, XXL = (12, 768), (24, 1024), (48, 1536)

FOLLOW = [
    # LoRA, Tables 2, 4 and 15: query and value (or as told) of every layer.
    *[
        ("LoRA base r8", lora(*BASE, 8, 2), "0.3"),
        ("LoRA large r8", lora(*LARGE, 8, 2), "0.8"),
        ("LoRA XXL r16", lora(*XXL, 16, 2), "4.7"),
    ],
    *[
        ("LoRA GPT-3 rv2", lora(*GPT3, 2, 1), "4.7"),
        ("LoRA GPT-3 rq=rv=1", lora(*GPT3, 1, 2), "4.7"),
    ],
    *[(f"LoRA GPT-3 rq=rv={r}", lora(*GPT3, r, 2), text) for r, text in ((2, "9.4"), (8, "37.7"))],
    *[
        (f"LoRA GPT-3 four matrices r={r}", lora(*GPT3, r, 4), text)
        for r, text in ((1, "9.4"), (4, "37.7"))
    ],
    # Adapter-H on GPT-3, Table 15.
    *[
        (f"Adapter-H GPT-3 r={r}", bottleneck("houlsby", *GPT3, r), t)
        for r, t in ((1, "7.1"), (4, "21.2"), (8, "40.1"), (16, "77.9"), (64, "304.4"))
    ],
    # Prefix embeddings on GPT-3, Table 15, with li = 8.
    *[
        (f"PreEmbed GPT-3 lp={lp}", 12288 * (lp + 8), text)
        for lp, text in ((64, "0.9"), (128, "1.7"), (256, "3.2"), (512, "6.4"))
    ],
    # The last two of GPT-2 medium's blocks: 12 d^2 + 13 d each.
    ("FT-Top2 GPT-2 M", 2 * (12 * 1024**2 + 13 * 1024), "25.19"),
    # Adapter-L on GPT-2, Table 3, and Adapter-P and -H on RoBERTa-large, Table 2: the width that
    # gives the printed number.
    *[
        ("Adapter-L M r6", bottleneck("lin", *GPT2M, 6), "0.37"),
        ("Adapter-L M r224", bottleneck("lin", *GPT2M, 224), "11.09"),
    ],
    *[
        ("Adapter-L L r8", bottleneck("lin", *GPT2L, 8), "0.88"),
        ("Adapter-L L r248", bottleneck("lin", *GPT2L, 248), "23.00"),
    ],
    *[
        ("Adapter-P large r16", bottleneck("pfeiffer", *LARGE, 16), "0.8"),
        ("Adapter-H large r8", bottleneck("houlsby", *LARGE, 8), "0.8"),
    ],
]


@pytest.mark.parametrize(("name", "count", "printed"), FOLLOW, ids=[name for name, *_ in FOLLOW])
def test_printed_counts_follow_from_the_formulas(name, count, printed):
    assert rounds_to(count, printed), f"{name}: {count:,}"


DIFFER = [
    # (what, the formula's count, what the paper prints, the formula's count written out)
    ("LoRA GPT-3 rq=rv=4", lora(*GPT3, 4, 2), "18.8", 18_874_368),  # 18.9 rounded, 18.8 cut off
    ("LoRA GPT-3 four matrices r=2", lora(*GPT3, 2, 4), "18.8", 18_874_368),  # the same
    (
        "LoRA GPT-3 rq=rv=64",
        lora(*GPT3, 64, 2),
        "301.9",
        301_989_888,
    ),  # 302.0 rounded, 301.9 cut off
    (
        "LoRA GPT-3 four matrices r=64",
        lora(*GPT3, 64, 4),
        "603.8",
        603_979_776,
    ),  # 604.0; 603.8 is twice the printed 301.9
    ("LoRA GPT-2 M r4", lora(*GPT2M, 4, 2), "0.35", 393_216),
    ("LoRA GPT-2 L r4", lora(*GPT2L, 4, 2), "0.77", 737_280),
    ("PreEmbed GPT-3 lp=32", 12288 * 40, "0.4", 491_520),  # 0.4 follows without the 8 infix tokens
    ("PreLayer GPT-3 8+8", 96 * 12288 * 16, "20.2", 18_874_368),
    ("PreLayer GPT-3 2+2", 96 * 12288 * 4, "5.1", 4_718_592),
    ("PreLayer GPT-3 8+0", 96 * 12288 * 8, "10.1", 9_437_184),
    ("PreLayer GPT-3 32+4", 96 * 12288 * 36, "44.1", 42_467_328),
    ("PreLayer GPT-3 64+0", 96 * 12288 * 64, "76.1", 75_497_472),
    (
        "BitFit GPT-3",
        96 * 11 * 12288,
        "14.2",
        12_976_128,
    ),  # 3d + d + 4d + d + 2d biases a layer; 12 d a layer would give 14.2
]


@pytest.mark.parametrize(
    ("name", "count", "printed", "exact"), DIFFER, ids=[name for name, *_ in DIFFER]
)
def test_where_the_printed_count_and_the_formula_part_the_formula_gives_this(
    name, count, printed, exact
):
    assert count == exact
    assert not rounds_to(count, printed)


def test_widths_of_adapters_that_the_papers_do_not_tell():
    # Table 2 prints 3.0 and 6.0 M for RoBERTa-large and 0.3 and 0.9 M for base: some width gives
    # each.
    for kind, size, printed in (
        ("pfeiffer", LARGE, "3.0"),
        ("houlsby", LARGE, "6.0"),
        ("houlsby", BASE, "0.3"),
        ("houlsby", BASE, "0.9"),
    ):
        (layers, d), count = size, 1 if kind == "pfeiffer" else 2
        assert bottleneck(kind, *size, 7) == count * layers * (2 * d * 7 + 7 + d)
        widths = [
            r for r in range(1, 129) if rounds_to(count * layers * (2 * d * r + r + d), printed)
        ]
        assert widths, (kind, size, printed)
    # Adapter-H on GPT-2 medium, 11.09 M: no width does, with or without the block's two layer norms
    # trained.
    for norms in (0, 2 * 24 * 1024, 2 * 48 * 1024):
        assert not [
            r for r in range(100, 125) if rounds_to(48 * (2 * 1024 * r + r + 1024) + norms, "11.09")
        ]


def test_counts_of_variants_follow_their_papers():
    one = lambda d, spec: initialize(jax.random.key(0), (), d, d, spec).active_parameters()
    # VeRA, Table 2: L matrices of d + r. RoBERTa-base q and v with r = 1024 and large with r = 256:
    # 0.043 and 0.061 M.
    assert (
        one(768, LoraSpec(rank=1024, variant="vera")) == 768 + 1024 and 24 * (768 + 1024) == 43_008
    )
    assert (
        one(1024, LoraSpec(rank=256, variant="vera")) == 1024 + 256 and 48 * (1024 + 256) == 61_440
    )
    assert one(64, LoraSpec(rank=4, variant="lora_fa")) == 4 * 64
    dora = with_magnitude(
        initialize(jax.random.key(0), (), 64, 64, LoraSpec(rank=4)), jnp.ones((64, 64))
    )
    assert dora.active_parameters() == 2 * 4 * 64 + 64
    assert jnp.asarray(one(64, LoraSpec(rank=4, variant="adalora"))) == 2 * 4 * 64 + 4
