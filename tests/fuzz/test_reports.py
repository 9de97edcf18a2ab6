"""Two stores whose runs differ in one setting, whichever it is: the report says in which.

Runs are made up and written by the store itself. `--fuzz N` takes N pairs in place of a few,
`--seed N` others.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_sweep import fill, result_of
from matplotlib.text import Text

from lora_jax.config import Config, canonical, flatten, from_config_dict, to_dict, value_of
from lora_jax.config.limits import Limit
from lora_jax.config.values import _marks, kind_of
from lora_jax.sweeps import plots
from lora_jax.sweeps.cells import UNLIKE, cells_of, gather
from lora_jax.sweeps.findings import findings_of
from lora_jax.sweeps.grid import run_id
from lora_jax.sweeps.report import write_report
from lora_jax.sweeps.store import RunRecord, RunStore

# Every setting is read by one of these.
BASES = {
    "lora": {},
    "qlora": {"method": "qlora", "quant": {"format": "nf4"}},
    "plain scales": {"method": "qlora", "quant": {"format": "nf4", "double": False}},
    "adalora": {"lora": {"variant": "adalora"}, "optim": {"adalora": {"target_rank": 2.0}}},
    "lora_fa": {"lora": {"variant": "lora_fa"}},
    "recipe": {"data": {"recipe": "classification", "fields": {"text": "review"}}},
    "language": {"data": {"task": "completion", "name": "tasks.jsonl"}},
    "full": {"method": "full"},
    "top_layers": {"method": "top_layers"},
    "bottleneck": {"method": "bottleneck"},
    "prefix": {"method": "prefix_layers"},
}
# Where a value of the right type is not enough.
VALUES = {
    "data.buckets": [[128, 256]],
    "data.mixture": [[{"name": "a.jsonl"}, {"name": "b.jsonl"}]],
    "data.fields": [{"text": "body"}],
    "lora.targets": ["query+value", "layers/mlp/.*"],
    "train.accumulate": [2, 4],
}
# What a report may call a setting, where it is not the last part of its key.
WORDS = {
    "data.name": "data",
    "data.fields": "text",
    "model.name": "model",
    "lora.init": "init|initialisation",
}


def with_setting(config: Config, key: str, draw: random.Random) -> Config | None:
    """The config with another value at a key, which makes it another run; None if none does."""
    for value in others(key, value_of(config, key), draw):
        tree = to_dict(config)
        *path, leaf = key.split(".")
        group = tree
        for name in path:
            group = group[name]
        group[leaf] = value
        try:
            changed = from_config_dict(tree)
        except (KeyError, TypeError, ValueError):
            continue
        if run_id(changed) != run_id(config):
            return changed
    return None


def others(key: str, value: object, draw: random.Random) -> Iterator[object]:
    named = [x for mark in _marks(kind_of(key)) if isinstance(mark, Limit) for x in mark.names()]
    named += re.findall(r"'([^']+)'", str(kind_of(key)))
    draw.shuffle(named)
    yield from VALUES.get(key, ())
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 2, value * 2, value / 2, 0.5, 0)
    elif isinstance(value, str) and not named:
        yield f"{value}_2"
    yield from named
    if value is None:
        yield from (2, 0.5, "other", ["accuracy"], [1], [True, False], ["a", "b"])


def pair(draw: random.Random) -> tuple[str, Config, Config]:
    """(a setting, two runs that differ in it alone)."""
    while True:
        one = from_config_dict(BASES[draw.choice(list(BASES))])
        keys = [key for key in flatten(Config()) if key in reached(one)]
        if draw.random() < 0.3:
            keys = [key for key in keys if key in ("data.name", "model.name", "data.mixture")]
        key = draw.choice(keys)
        if (other := with_setting(one, key, draw)) is not None:
            return key, one, other


def reached(config: Config) -> list[str]:
    """The settings in which it may differ from another cell."""
    skipped = ("train.seed", "method", "data.fields.text")
    keys = [key for key in canonical(config) if key not in skipped]
    return [*keys, "train.epochs"] if config.train.total_steps is None else keys


def cells_around(config: Config, seeds=(0, 1)) -> list[Config]:
    """A few ranks of it, if it has one, and a few seeds."""
    ranks = (config.lora.rank, 2 * config.lora.rank) if "lora" in config.method else (8,)
    return [
        replace(
            config,
            lora=replace(config.lora, rank=rank),
            train=replace(config.train, seed=seed),
        )
        for rank in ranks
        for seed in seeds
    ]


def words_of(key: str) -> re.Pattern[str]:
    """What a report may call a setting."""
    leaf = WORDS.get(key, key.rpartition(".")[2])
    return re.compile(rf"\b({leaf}|{leaf.replace('_', ' ')})\b", re.IGNORECASE)


def of_one_cell(run: Config) -> str:
    return str({key: x for key, x in canonical(run).items() if key != "train.seed"})


def check_cells(key: str, runs: list[Config], cells: list) -> None:
    """No two settings are one cell, and the names say what differs."""
    expected = {of_one_cell(run) for run in runs}
    assert len(cells) == len(expected), f"{key}: {len(expected)} settings in {len(cells)} cells"
    for cell in cells:
        assert len({of_one_cell(from_config_dict(run.config)) for run in cell.runs}) == 1, key
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names), f"{key}: {names}"
    if key not in ("lora.rank", "quant.format", "lora.targets"):  # said without their word
        assert any(words_of(key).search(name) for name in names), f"{key}: {names}"


def record_of(run: Config) -> RunRecord:
    return RunRecord(
        run_id(run), Path(run_id(run)), "done", config=to_dict(run), result=result_of(run)
    )


@pytest.mark.parametrize("base", BASES)
def test_cells_that_differ_in_any_setting_are_apart_and_their_names_say_it(base):
    draw = random.Random(0)
    one = from_config_dict(BASES[base])
    found = 0
    for key in reached(one):
        if (other := with_setting(one, key, draw)) is None:
            continue
        found += 1
        runs = [*cells_around(one, seeds=(0,)), *cells_around(other, seeds=(0,))]
        check_cells(
            key, runs, cells_of(map(record_of, {run_id(run): run for run in runs}.values()))
        )
    # A language model has four settings that only encoders may change, AdaLoRA one of others' alone.
    assert found > len(reached(one)) - (9 if base in ("language", "adalora") else 8)


@pytest.mark.slow
@pytest.mark.parametrize(("drawn", "count"), [(True, 6), (False, 30)], ids=["drawn", "written"])
def test_a_report_of_two_stores_names_the_setting_in_which_they_differ(
    drawn, count, tmp_path, pytestconfig, monkeypatch
):
    if not drawn:  # Pictures are nine tenths of a report's time.
        monkeypatch.setattr(plots, "draw", lambda *_: {})
    for number in range(pytestconfig.getoption("--fuzz") or count):
        drawing = f"{pytestconfig.getoption('--seed')} {drawn} {number}"
        key, one, other = pair(random.Random(drawing))
        stores = [RunStore(tmp_path / f"{number}_{place}") for place in (0, 1)]
        runs = [cells_around(one), cells_around(other)]
        for store, chosen in zip(stores, runs, strict=True):
            fill(store, chosen)
        roots, out = [store.root for store in stores], tmp_path / f"report_{number}"
        check_report(f"pair {drawing}, {key}", key, [*runs[0], *runs[1]], roots, out, drawn)


def check_report(
    where: str, key: str, runs: list[Config], roots: list[Path], out: Path, drawn: bool
) -> None:
    page = write_report(roots, out)
    cells = cells_of(gather(roots)[0])
    judged = [result_of(run).score("test").label for run in runs]
    if len(set(judged)) > 1:  # A recipe has a metric of its own.
        check_left_out(where, page, [run for run, by in zip(runs, judged) if by != judged[0]])
        return
    check_cells(key, runs, cells)
    named = words_of(key)
    for file in (page, page.with_suffix(".html"), out / "cells.csv"):
        assert named.search(file.read_text()), f"{where}: {file.name} does not name it"
    apart = key.startswith(("data.name", "data.mixture", "model.name"))
    always, of_the_best = (
        ("rank_curve", "axis_curves"),
        ("pareto", "pareto_time", "learning_curves"),
    )
    for name in (*always, *(of_the_best if apart else ())) if drawn else ():
        if (figure := plots.figure(name, cells)) is not None:
            said = " ".join(text.get_text() for text in figure.findobj(Text))
            assert named.search(said), f"{where}: {name} does not name it: {said}"
    # Nothing on other data, or of another model, is compared.
    tests = findings_of(cells)
    assert not apart or all(one.axis not in UNLIKE for one in tests.between_levels), where
    for one in tests.against_best:
        data = [name.partition(" data=")[2] for name in (one.first, one.second)]
        assert data[0] == data[1], where


def check_left_out(where: str, page: Path, runs: list[Config]) -> None:
    """Runs that are judged by another metric are no cells, and each is listed with the reason."""
    lines = page.read_text().splitlines()
    for run in runs:
        told = [line for line in lines if line.startswith(f"- `{run_id(run)}`: ")]
        assert len(told) == 1 and "most runs here by another metric" in told[0], where
