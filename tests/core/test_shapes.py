"""A tree of weights prints as a short table, and its entries as shapes."""

import jax
import jax.numpy as jnp

from lora_jax import LoraSpec, QuantSpec, adapt, bytes_of
from lora_jax.core import rows_of, summary
from tests.adapters.zoo import deep


def trees(form):
    model, params, (x,) = deep(form)
    return adapt(
        model,
        params,
        (x,),
        lora=[("layers.*/(up|down)/kernel", LoraSpec(rank=2, dora=True))],
        quant=[("layers.*/up/kernel", QuantSpec("nf4", 8, double=False))],
        whole=["head/.*"],
        key=jax.random.key(0),
    )


def test_both_trees_are_tables_with_one_row_for_equal_layers_and_honest_bytes():
    frozen, trainable = trees("loop")
    assert str(summary(trainable)).splitlines() == [
        "path                       kind   shape   format            bytes",
        "layers_*/down/kernel (x3)  lora   16 x 8  rank 2 magnitude    792",
        "layers_*/up/kernel (x3)    lora   8 x 16  rank 2 magnitude    984",
        "head/bias                  whole  3       float32              12",
        "head/kernel                whole  8 x 3   float32              96",
        "total                                                       1,884",
    ]
    table = summary(frozen)
    assert table.bytes == bytes_of(frozen)
    up = next(row for row in table.rows if "up/kernel" in row.path)
    assert (up.kind, up.count, up.shape, up.format) == ("quantised", 3, (8, 16), "nf4/8 float32")


def test_layers_of_a_scan_are_one_row_and_ranks_that_differ_are_told_apart():
    frozen, trainable = trees("scan")
    shapes = {row.path: row.shape for row in summary(frozen | {"adapters": trainable}).rows}
    assert shapes["layers/down/bias"] == (3, 8)
    low = trees("loop")[1]["layers_0/up/kernel"]
    uneven = {f"layers_{n}/up/kernel": low.with_rank(2 + n % 2) for n in range(4)}
    assert [row.format.split()[:2] for row in summary(uneven).rows] == [
        ["rank", "2"],
        ["rank", "3"],
    ]


def test_entries_print_shapes_and_no_numbers_also_while_they_are_traced():
    frozen, trainable = trees("loop")
    kernel = frozen["layers_0"]["up"]["kernel"]
    assert repr(kernel) == "QuantizedArray(nf4/8 float32, [8, 16], 128 bytes)"
    low = trainable["layers_0/up/kernel"]
    wanted = (
        "LowRank(a=float32[8,2], b=float32[2,16], scale=float32[2], magnitude=float32[16], "
        "base_square=float32[16])"
    )
    assert repr(low) == wanted
    assert repr(trainable["head/bias"]) == "TrainedWeight(value=float32[3])"
    rows = rows_of(jnp.ones((5, 2)), [1, 4])
    assert repr(rows) == "Rows(value=float32[2,2], index=int32[2])"
    seen = []
    jax.jit(lambda low: seen.append(repr(low)) or low.a)(low)
    assert seen == [wanted]
