"""Runs that are unlike are never pooled without a word, and one odd record does not end a report."""

import json
from dataclasses import replace

import pytest
from made_up_sweep import ENVIRONMENT, fill, grid, result_of

from lora_jax.config import Config, LoraConfig, TrainConfig, from_config_dict
from lora_jax.statistics.aggregate import interquartile_mean, probability_of_improvement
from lora_jax.sweeps import plots, watch
from lora_jax.sweeps.cells import axes, cells_of, facets, gather
from lora_jax.sweeps.comparisons import between_levels, spread
from lora_jax.sweeps.findings import findings_of
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.over_tasks import over_tasks
from lora_jax.sweeps.report import headline, write_report
from lora_jax.sweeps.settings import settings_of
from lora_jax.sweeps.store import RunStore


def ranks(*values: int, seeds=(0,), **changes) -> list[Config]:
    runs = []
    for rank in values:
        for seed in seeds:
            run = replace(Config(), lora=LoraConfig(rank=rank), train=TrainConfig(seed=seed))
            for group, settings in changes.items():
                run = replace(run, **{group: replace(getattr(run, group), **settings)})
            runs.append(run)
    return runs


def names(*stores: RunStore) -> set[str]:
    return {cell.name for cell in cells_of(gather([store.root for store in stores])[0])}


def test_two_stores_of_two_data_sets_are_named_by_their_data(tmp_path):
    """One rank curve through both, 76 to 100 to 78, was what a report drew of these."""
    one, other = RunStore(tmp_path / "one"), RunStore(tmp_path / "other")
    fill(one, ranks(1, 16))
    fill(other, [*ranks(4, 8, data=dict(name="imdb")), replace(Config(), method="full")])
    assert names(one, other) == {
        "fp32 r1 all-linear data=rotten_tomatoes", "fp32 r16 all-linear data=rotten_tomatoes",
        "fp32 r4 all-linear data=imdb", "fp32 r8 all-linear data=imdb", "full data=rotten_tomatoes",
    }  # fmt: skip
    found = cells_of(gather([one.root, other.root])[0])
    curve = plots.figure("rank_curve", found)
    lines = [text.get_text() for text in curve.legends[0].get_texts()]
    assert {"fp32 data=rotten_tomatoes", "fp32 data=imdb"} <= set(lines)
    said = headline(found)
    assert said.count("has the highest validation accuracy; its test accuracy is") == 2
    for name in ("pareto", "learning_curves"):
        titles = [axis.get_title() for axis in plots.figure(name, found).axes]
        assert [title.partition("\n")[0] for title in titles] == [
            "data=rotten_tomatoes", "data=imdb",
        ]  # fmt: skip
    tests = findings_of(found)
    best = [(one.first[:8], one.second[:8]) for one in tests.against_best]
    assert sorted(best) == [("fp32 r16", "fp32 r1 "), ("fp32 r8 ", "fp32 r4 ")]
    assert not any(one.axis == "data" for one in tests.between_levels) and spread(found) is None
    text = write_report([one.root, other.root], tmp_path / "report").read_text()
    assert "These runs are of 2 data sets, which every name and line says" in text
    assert (
        "inf" not in text.replace("info", "") and not (tmp_path / "report/heat_maps.png").exists()
    )


def test_a_line_along_an_axis_is_of_one_data_set_and_one_model(tmp_path):
    """Of two data sets and two models, a line was a mean over the models."""
    store = RunStore(tmp_path)
    for data in ("rotten_tomatoes", "imdb"):
        for model in ("minilm-l6", "org/other"):
            for rate in (0.1, 0.01):
                changes = dict(data=dict(name=data), model=dict(name=model))
                fill(store, ranks(4, **changes, optim=dict(learning_rate=rate)))
    curves = plots.figure("axis_curves", cells_of(gather([tmp_path])[0]))
    (panel,) = [axis for axis in curves.axes if axis.get_xlabel().startswith("Learning rate")]
    assert [line.get_label() for line in panel.get_lines()] == [
        f"data {data} model {model}"
        for data in ("imdb", "rotten_tomatoes")
        for model in ("minilm-l6", "org/other")
    ]


def test_recipes_and_revisions_are_not_compared(tmp_path):
    """They were in the table of searches and rungs, and not in that of reports."""
    store = RunStore(tmp_path)
    for revision in ("v1", "v2"):
        fill(store, ranks(4, 8, model=dict(name="org/other", revision=revision)))
    found = cells_of(gather([tmp_path])[0])
    assert {cell.name.partition(" revision=")[2] for cell in found} == {"v1", "v2"}
    assert {*facets(found)} == {"revision=v1", "revision=v2"}
    assert plots.figure("heat_maps", found) is None
    assert not any(one.axis == "revision" for one in findings_of(found).between_levels)


def test_no_map_averages_over_data_sets(tmp_path):
    store = RunStore(tmp_path)
    runs = expand(grid())
    fill(store, [*runs, *(replace(run, data=replace(run.data, name="imdb")) for run in runs)])
    found = cells_of(gather([tmp_path])[0])
    assert plots.figure("heat_maps", found) is None
    assert not any(one.axis == "data" for one in between_levels(found))
    assert plots.figure("heat_maps", [cell for cell in found if "imdb" in cell.name]) is not None


def test_settings_that_ran_on_several_data_sets_are_compared_over_all_of_them(tmp_path):
    store, names = RunStore(tmp_path), ("rotten_tomatoes", "imdb", "sst2")
    for name in names:
        fill(store, ranks(1, 16, seeds=(0, 1, 2), data=dict(name=name)))
    fill(store, ranks(4, data=dict(name="imdb")))
    found = cells_of(gather([tmp_path])[0])
    first, second = over_tasks(found)
    # Rank 4 ran on one of them only.
    assert (first.name, first.rank, second.name, second.rank) == ("rank 16", 1.0, "rank 1", 2.0)
    both = [
        [[x for cell in found if cell.rank == rank and name in cell.name for x in cell.by_seed().values()] for name in names]
        for rank in (16, 1)
    ]  # fmt: skip
    assert second.improvement.value == pytest.approx(probability_of_improvement(*both))
    assert first.middle.value == pytest.approx(interquartile_mean(both[0]))
    text = write_report([tmp_path]).read_text()
    assert (
        "## Over all tasks" in text
        and f"| rank 1 | 3 | 9 | 2.0 | {second.middle.value:.1%}"[:-1] in text
    )
    assert (tmp_path / "report" / "profiles.png").exists()
    assert over_tasks([cell for cell in found if "imdb" in cell.name]) == []


def test_of_a_run_in_two_folders_the_one_that_is_done_counts(tmp_path):
    (run,) = ranks(4)
    done, failed = RunStore(tmp_path / "done"), RunStore(tmp_path / "failed")
    fill(done, [run])
    failed.start(run_id(run), run, ENVIRONMENT)
    failed.fail(run_id(run), RuntimeError("out of memory"))
    for stores in ((done, failed), (failed, done)):
        assert [record.status for record in gather([one.root for one in stores])[0]] == ["done"]


def test_one_rank_that_was_trained_otherwise_says_so(tmp_path):
    store = RunStore(tmp_path)
    other = dict(optim=dict(learning_rate=0.01), train=dict(total_steps=6000))
    fill(store, [*ranks(1, 4), *ranks(16, **other)])
    (odd,) = [name for name in names(store) if " r16 " in name]
    assert "learning_rate=0.01" in odd and "total_steps=6000" in odd
    assert "fp32 r1 all-linear learning_rate=0.001 epochs=1.0" in names(store)


def test_alpha_that_follows_the_rank_is_no_axis_and_one_that_does_not_is(tmp_path):
    store = RunStore(tmp_path)
    runs = [replace(run, lora=replace(run.lora, alpha=2.0 * run.lora.rank)) for run in ranks(1, 4)]
    fill(store, runs)
    assert names(store) == {"fp32 r1 all-linear", "fp32 r4 all-linear"}
    fill(store, ranks(16, lora=dict(rank=16, alpha=3.0)))
    assert "fp32 r16 all-linear alpha=3.0" in names(store)


def test_a_tie_is_called_one_and_seeds_that_agree_promise_nothing(tmp_path):
    store = RunStore(tmp_path)
    perfect = result_of(Config())
    score = replace(perfect.score("test"), value=1.0)
    perfect = replace(perfect, scores={"test": {"accuracy": score}})
    fill(store, ranks(1, 4, 16, seeds=(0, 1)), lambda run: perfect)
    found = cells_of(gather([tmp_path])[0])
    assert "100.0 ± 0.0 % (so have 2 others)" in headline(found)
    assert not any("must differ by" in text for text in findings_of(found).conclusions.unsupported)


ODD_RESULTS = [
    {"test_accuracy": "x"}, {"test_accuracy": None}, {}, {"test_accuracy": 0.5, "examples": 5},
    {"test_accuracy": 0.5, "seconds": "long"}, [], 7, {"version": 2, "primary": "bleu", "scores": {"test": []}},
]  # fmt: skip
ODD_CONFIGS = [
    {"lora": {"rank": "4"}}, {"train": {"seed": None}}, {"train": {"seed": "0"}}, {"train": 5}, {"quant": []},
    {"method": None}, {"lora": None}, {"optim": 1}, {"data": "x"}, {"train": {"seed": True}}, {"data": {"mixture": 0.5}},
]  # fmt: skip


def odd_store(tmp_path):
    """A store of six good runs and the folder of a seventh, whose files a test breaks."""
    store = RunStore(tmp_path)
    fill(store, expand(grid())[:7])
    folder = store.runs()[3].folder
    (tmp_path / "index.jsonl").unlink()
    return store, folder


def check(store, folder, text="cannot be read"):
    """List, report and watch go on, and name the run and the reason."""
    (bad,) = [record for record in store.runs() if record.folder == folder]
    page = write_report(store.root).read_text()
    assert f"`{bad.run_id}`: " in page and "Runs: 6 done, 1 failed" in page
    line = next(line for line in page.splitlines() if line.startswith(f"- `{bad.run_id}`"))
    assert text in line
    assert watch.look(store.root).best is not None


@pytest.mark.parametrize("content", ODD_RESULTS, ids=json.dumps)
def test_an_odd_result_is_a_failed_run_with_a_reason(tmp_path, content):
    store, folder = odd_store(tmp_path)
    (folder / "result.json").write_text(json.dumps(content))
    check(store, folder, "")


@pytest.mark.parametrize("change", ODD_CONFIGS, ids=json.dumps)
def test_an_odd_config_is_a_failed_run_with_a_reason(tmp_path, change):
    store, folder = odd_store(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    check(store, folder, "config.json")


@pytest.mark.parametrize("name", ["result.json", "config.json", "environment.json", "status.json"])
def test_a_file_that_is_nested_too_deeply_is_one(tmp_path, name):
    store, folder = odd_store(tmp_path)
    (folder / name).write_text('{"a":' * 100_000)
    check(store, folder)


@pytest.mark.parametrize("status", [[], None, 5, "done?", {}], ids=str)
def test_an_odd_status_is_one(tmp_path, status):
    store, folder = odd_store(tmp_path)
    (folder / "status.json").write_text(json.dumps({"status": status}))
    check(store, folder)


@pytest.mark.parametrize(
    "line",
    [
        '{"run_id": 5, "files": 3}', '{"run_id": "NAME", "files": 3}', '{"is": 4, "environment": []}', "[1]", '{"a":' * 50_000,
        '{"run_id": "NAME", "files": FILES, "status": [], "error": 1, "config": 1, "environment": 1, "result": 1, "time": "x"}',
    ],
)  # fmt: skip
def test_an_odd_line_of_the_index_is_passed_over(tmp_path, line):
    from lora_jax.sweeps.index import signature

    store, folder = odd_store(tmp_path)
    before = store.runs()
    line = line.replace("NAME", folder.name).replace("FILES", json.dumps(signature(folder)))
    with (tmp_path / "index.jsonl").open("a") as index:
        index.write(line + "\n")
    assert RunStore(tmp_path).runs() == before


def stores_of(tmp_path, *contents):
    """A run of one seed in a store each, made of these contents of its data; None = not known."""
    stores = []
    for seed, content in enumerate(contents):
        store = RunStore(tmp_path / f"runs_{seed}")
        run = replace(Config(), train=replace(Config().train, seed=seed))
        known = {} if content is None else {"contents": {"rotten_tomatoes": content}}
        store.start(run_id(run), run, {**ENVIRONMENT, **known})
        store.finish(run_id(run), result_of(run))
        stores.append(store)
    return stores


def test_runs_of_edited_data_are_not_averaged(tmp_path):
    found = cells_of(gather([s.root for s in stores_of(tmp_path, "a1", "a1", "b2")])[0])
    assert {cell.name.rpartition(" ")[2]: cell.seeds for cell in found} == {
        "content=a1": 2, "content=b2": 1,
    }  # fmt: skip
    assert axes(found) == {"data content": [cell.name[-2:] for cell in found]}


def test_runs_from_before_contents_were_recorded_join_the_others_where_those_agree(tmp_path):
    (cell,) = cells_of(gather([s.root for s in stores_of(tmp_path, None, "a1", "a1")])[0])
    assert cell.seeds == 3 and "content" not in cell.name
    stores = stores_of(tmp_path / "more", None, "a1", "b2")
    assert [cell.seeds for cell in cells_of(gather([s.root for s in stores])[0])] == [1, 1, 1]


def test_two_stores_of_one_run_on_other_data_lose_none(tmp_path):
    (one,), (other,) = stores_of(tmp_path / "a", "a1"), stores_of(tmp_path / "b", "b2")
    records, _ = gather([one.root, other.root])
    assert [record.status for record in records] == ["done", "done"]
    assert len({record.run_id for record in records}) == 2 and len(cells_of(records)) == 2
    (copy,) = stores_of(tmp_path / "c", "a1")
    assert len(gather([one.root, copy.root])[0]) == 1


def test_settings_that_are_lists_or_columns_are_axes_as_any(tmp_path):
    store = RunStore(tmp_path)
    changes = [{}, {"lora": {"layers": [0, 1]}}, {"lora": {"layers": [1]}}]
    fill(store, [from_config_dict(changed) for changed in changes])
    found = cells_of(gather([tmp_path])[0])
    assert {cell.name for cell in found} == {
        "fp32 r8 all-linear", "fp32 r8 all-linear layers=[0, 1]", "fp32 r8 all-linear layers=[1]",
    }  # fmt: skip
    write_report([tmp_path], tmp_path / "report")

    named = {"recipe": "classification", "fields": {"text": "review"}}
    (run, *_) = store.runs()
    settings = settings_of(replace(run, config={**run.config, "data": named}))[1]
    assert settings["data.fields.text"] == "review"
    assert all(isinstance(value, (str, int, float, type(None))) for value in settings.values())


def test_a_method_of_another_version_is_drawn_as_any_baseline(tmp_path):
    store = RunStore(tmp_path)
    fill(store, [replace(Config(), method="head"), *ranks(1, 4)])
    (folder,) = tmp_path.glob("head*")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"method": "next_year"}))
    assert "next_year" in write_report(tmp_path).read_text()
