"""The allocation is the best there is, and a run with it stores what it says."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax import load_run
from lora_jax.analysis.allocation import (
    Choice,
    allocate,
    bytes_of,
    rise_of,
    settings_of,
    uniform,
)
from lora_jax.analysis.sensitivity import choices, measure, truncated
from lora_jax.cli import main
from lora_jax.config import Config, from_config_dict, read_by_path
from lora_jax.core.lowrank import LowRank
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray
from lora_jax.core.quantize import bytes_of as stored_bytes
from lora_jax.sweeps.axes import read_axis
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.runner import run_sweep
from lora_jax.sweeps.store import RunStore
from lora_jax.tasks.opening import open_task


def random_choices(seed: int, sites: int = 4, each: int = 3) -> dict[str, list[Choice]]:
    rng = np.random.default_rng(seed)
    return {
        f"layers_{site}/up/kernel": [
            Choice("nf4", rank, int(rng.integers(1_000, 900_000)), float(10 ** rng.uniform(-6, 0)))
            for rank in range(1, each + 1)
        ]
        for site in range(sites)
    }


@pytest.mark.parametrize("seed", range(12))
def test_no_other_selection_within_the_budget_loses_less(seed):
    some = random_choices(seed)
    every = [dict(zip(some, one)) for one in itertools.product(*some.values())]
    budget = int(np.quantile([bytes_of(one) for one in every], 0.2 + 0.05 * seed))
    chosen = allocate(some, budget)
    fits = [rise_of(one) for one in every if bytes_of(one) <= budget]
    assert bytes_of(chosen) <= budget and rise_of(chosen) == pytest.approx(min(fits), rel=1e-9)


def test_a_budget_that_nothing_fits_is_refused():
    some = random_choices(0)
    least = sum(min(choice.bytes for choice in each) for each in some.values())
    assert bytes_of(allocate(some, least)) == least
    with pytest.raises(ValueError, match=f"take {least:,} bytes, and the budget is {least - 1:,}"):
        allocate(some, least - 1)
    with pytest.raises(ValueError, match="no weight"):
        allocate({}, 10)
    with pytest.raises(ValueError, match="layers_0/up/kernel was not measured in format nf3"):
        uniform(some, "nf3", 1)


def test_settings_say_the_commonest_and_the_exceptions_by_layer():
    of = lambda format, rank: Choice(format, rank, 1, 0.0)
    chosen = {f"layers_{n}/up/kernel": of("int8" if n in (0, 11) else "nf4", 4) for n in range(12)}
    chosen["a.b/kernel"] = of(None, 2)
    assert settings_of(chosen, "best") == {
        "quant.format": "nf4",
        "quant.formats": "best=layers_(0|11)/up/kernel: int8",
        "lora.rank": 4,
        "lora.ranks": r"best=a\.b/kernel: 2",
    }


def test_a_truncated_adapter_is_the_nearest_update_of_its_rank():
    rng = np.random.default_rng(3)
    low = LowRank(
        a=jnp.asarray(rng.standard_normal((10, 4)), jnp.float32),
        b=jnp.asarray(rng.standard_normal((4, 7)), jnp.float32),
        scale=jnp.full((4,), 0.5),
    )
    u, s, vt = np.linalg.svd(np.asarray(low.delta(), np.float64), full_matrices=False)
    for rank in (1, 3, 4):
        exact = (u[:, :rank] * s[:rank]) @ vt[:rank]
        np.testing.assert_allclose(truncated(low, rank).delta(), exact, atol=1e-5)


@pytest.fixture(scope="module")
def ground(tiny, tmp_path_factory) -> tuple[dict, str]:
    """Settings of a tiny run with layers one by one, and its folder."""
    settings = dict(
        model=dict(name=tiny["config.model.name"], scan=False),
        data=dict(name=tiny["config.data.name"], max_length=16, buckets=(16,)),
        lora=dict(rank=3),
        quant=dict(block_size=8, double=False),
        train=dict(total_steps=6, batch_size=16, eval_batch_size=16),
        optim=dict(learning_rate=0.05),
        out=str(tmp_path_factory.mktemp("ground")),
    )
    config = from_config_dict(settings)
    assert len(run_sweep(config, quiet=True).done) == 1
    return settings, str(RunStore(config.out).folder(run_id(expand(config)[0])))


@pytest.fixture(scope="module")
def measured(ground):
    return measure(load_run(ground[1]), formats=("none", "int2", "int8"), ranks=(1, 3), examples=32)


def test_fewer_bits_and_lower_ranks_lose_more(measured, ground):
    of = {(one.path, one.value): one for one in measured}
    paths = {one.path for one in measured}
    assert len(paths) == 13 and len(measured) == 5 * 13
    for path in paths:
        assert of[path, "none"].rise == 0 == of[path, "none"].observed
        assert 0 < of[path, "int8"].rise < of[path, "int2"].rise, path
        assert of[path, "int8"].bytes < of[path, "none"].bytes
        # The whole adapter, in other factors: rounding alone.
        assert of[path, 3].rise < 1e-9 and of[path, 3].rise <= of[path, 1].rise, path
        assert of[path, 3].bytes == 3 * of[path, 1].bytes


def test_a_run_stores_what_was_allocated(measured, ground):
    some = choices(measured)
    middle = (bytes_of(uniform(some, "int2", 1)) + bytes_of(uniform(some, "int8", 3))) // 2
    chosen = allocate(some, middle)
    assert len({(one.format, one.rank) for one in chosen.values()}) > 1
    axis = settings_of(chosen, "half")
    line = f"{', '.join(axis)} = ({', '.join(map(repr, axis.values()))})"
    (run,) = read_axis(line).runs(from_config_dict({**ground[0], "method": "lora"}))
    assert run.method == "qlora" and read_by_path(run.quant.formats)

    frozen, trained = open_task(run).trainable(run, jax.random.key(0))
    flat = flatten(frozen)
    for path, one in chosen.items():
        stored = flat[path]
        kind = stored.spec.format if isinstance(stored, QuantizedArray) else "none"
        assert (kind, trained[path].rank) == (one.format, one.rank)
        low = trained[path]
        assert stored_bytes(stored) + low.a.nbytes + low.b.nbytes == one.bytes, path


def test_the_command_prints_an_axis_that_a_sweep_reads(ground, tmp_path, capsys):
    arguments = ["--formats", "int2,int8", "--ranks", "1,3", "--examples", "16"]
    out = tmp_path / "allocation.json"
    assert main(["allocate", ground[1], "--budget", "int2/3", *arguments, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    line = said.partition("as an axis of a sweep:\n")[2].splitlines()[0]
    points = read_axis(line).points
    assert len(points) == 2 and points[1] == ("int2", "", 3, "")
    kept = json.loads(out.read_text())
    assert len(kept["measured"]) == 4 * 13
    assert kept["chosen"][0]["settings"]["quant.formats"] in line

    for wrong, told in (
        (["--budget", "much"], "--budget needs megabytes, such as 6.5"),
        (["--budget", "nf4/3"], "was not measured in format nf4"),
        (["--budget", "1", "--ranks", "4"], "ranks from 1 to that can be measured"),
        (["--budget", "1", "--formats", "nf44"], "got 'nf44'"),
        (["--budget", "0.000001"], "The smallest choices take"),
    ):
        assert main(["allocate", ground[1], *arguments, *wrong]) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_exceptions_are_of_the_targets_and_reach_something(ground):
    task = open_task(from_config_dict(ground[0]))
    for setting, told in (
        ("layers_9/.*: 2", r"lora.ranks rule 'layers_9/\.\*' matches none of 13 targets"),
        ("layers_0/.*: 2, layers_0/attn/.*: 1", "is never reached"),
    ):
        run = from_config_dict({**ground[0], "lora": {"rank": 3, "ranks": setting}})
        with pytest.raises(ValueError, match=told):
            task.shapes(run)
    for text, told in (
        ("layers_0", "reads 'PATTERN: VALUE'"),
        ("(: 2", "not a regular expression"),
        ("a: 0", "a rank of 1 or more each"),
    ):
        with pytest.raises(ValueError, match=told):
            from_config_dict({"lora": {"ranks": text}})
    assert Config().lora.ranks == Config().quant.formats == ""
