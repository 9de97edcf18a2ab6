"""Every published preset is a legal config, holds the published figure, and says where paper and
released scripts part.
"""

import importlib.util
import json
import statistics
from pathlib import Path

import jax
import pytest
from tiny_families import write_encoder, write_t5
from tiny_language import write_tiny_model

from lora_jax.commands import sweep
from lora_jax.config import Config, from_config_dict, load_config
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray
from lora_jax.sweeps.grid import expand
from lora_jax.sweeps.plan import plan
from lora_jax.sweeps.runner import run_sweep
from lora_jax.sweeps.store import RunStore
from lora_jax.tasks.opening import open_task
from lora_jax.tasks.task import Task
from published import lora as published_lora
from published import qlora as published_qlora
from published.lora import TASKS

FOLDER = Path(__file__).parents[1] / "configs" / "papers"
FILES = ("lora_glue", "lora_gpt2", "lora_gpt3", "qlora")


def presets(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PRESETS


def test_every_file_is_tested_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_every_preset_is_legal_has_a_figure_and_folders_differ(name):
    folders = []
    for sides in presets(name).values():
        assert "paper" in sides
        for preset in sides.values():
            folders.append(from_config_dict(preset.settings).out)
            assert (
                isinstance(preset.value, float)
                and preset.value > 0
                and preset.source
                and preset.metric
            )
    assert len(set(folders)) == len(folders)


def test_there_is_a_preset_for_every_row_that_has_settings():
    assert len(presets("lora_glue")) == 8 * 8
    assert len(presets("lora_gpt2")) == 6 + len(published_lora.TABLE_18)
    assert len(presets("lora_gpt3")) == 6 + 2 * 7 + 2 * 3 * 5 + 2 * 10 + 4
    assert len(presets("qlora")) == 6 + 6 + 6 + 5 + 3 * 2 * 4 + 8 * 4


@pytest.mark.parametrize(
    ("spec", "value", "spread"),
    [
        ("lora_glue:base-rte", 86.6, 0.7), ("lora_glue:large-restricted-rte", 85.2, 1.1), ("lora_glue:xxl-cola", 72.4, 1.1),
        ("lora_glue:adapter-h-0.8m-rte", 72.9, 2.9), ("lora_gpt2:e2e-m", 70.4, 0.1), ("lora_gpt2:dart-l", 47.5, 0.1),
        ("lora_gpt2:rank-4", 70.38, None), ("lora_gpt3:table5-qkvo-mnli", 91.7, 0.1), ("lora_gpt3:table6-q-r64-wikisql", 70.0, 0.5),
        ("lora_gpt3:table16-100", 63.8, 0.3), ("qlora:table4-65b-flan-v2-nf4", 63.9, None), ("qlora:table5-13b-oasst1", 46.4, None),
    ],
)  # fmt: skip
def test_presets_hold_the_published_figures(spec, value, spread):
    name, _, preset = spec.partition(":")
    found = presets(name)[preset]["paper"]
    assert (found.value, found.spread) == (value, spread)


def test_paper_and_script_differ_where_they_do_and_the_start_says_so(capsys):
    path = FOLDER / "lora_glue.py"
    paper, script = (load_config(f"{path}:base-rte:{side}") for side in ("paper", "script"))
    assert (paper.lora.alpha, paper.train.batch_size, paper.optim.weight_decay) == (8.0, 32, 0.0)
    assert (script.lora.alpha, script.train.batch_size, script.optim.weight_decay) == (
        16.0,
        256,
        0.1,
    )
    said = capsys.readouterr().err
    assert (
        "86.6 +- 0.7 published" in said
        and "alpha: paper 8.0 <- used  released script 16.0" in said
        and "MNLI" in said
    )
    xxl = load_config(f"{path}:xxl-rte:script")
    assert (xxl.lora.rank, xxl.lora.alpha, xxl.optim.learning_rate) == (16, 32.0, 2.6e-4)
    cola = load_config(f"{path}:large-cola:script")
    assert (cola.optim.learning_rate, cola.train.batch_size) == (3e-4, 32)
    assert load_config(f"{path}:base-cola:script").train.batch_size == 64


def shrunk(spec: str, model: Path, out: Path, **more: object) -> Config:
    """A preset for a tiny model and two steps."""
    values = {
        "model.name": model,
        "data.max_length": 20,
        "lora.rank": 2,
        "quant.block_size": 8,
        "train.total_steps": 2,
    } | more
    values |= {"train.batch_size": 8, "train.eval_batch_size": 32, "sweep.seeds": 0, "out": out}
    values |= {"lora.init_from": None, "train.accumulate": 1}  # MNLI's adapter is not there
    return load_config(
        str(FOLDER.parent / spec), [f"config.{key}={value}" for key, value in values.items()]
    )


def loads_or_trains(config: Config, *, trained: bool) -> tuple[Task, dict, dict]:
    """(task, frozen weights, trained ones) of a preset; with `trained` its run has to end as
    well.
    """
    one = expand(config)[0]
    task = open_task(one)
    if trained:
        assert run_sweep(config, quiet=True, say=print).failed == ()
        (record,) = RunStore(Path(config.out)).runs()
        scored = (
            set(task.recipe.metrics or ()) - {"accuracy"}
            if task.label_names or task.recipe.head == "score"
            else set()
        )
        assert record.result.steps == 2 and scored <= set(record.result.scores["test"])
    return task, *task.trainable(one, jax.random.key(0))


GLUE_PRESETS = [
    ("papers/lora_glue.py:base-sst2", "roberta", "accuracy"),
    ("papers/lora_glue.py:large-stsb:script", "roberta", "pearson"),
    ("papers/lora_glue.py:adapter-h-0.8m-cola", "roberta", "matthews"),
    ("papers/lora_glue.py:xxl-mrpc:script", "deberta/v2_xxlarge", "accuracy"),
    ("papers/qlora.py:table3-roberta-large-fp4", "roberta", "accuracy"),
    ("tasks/glue.py:qnli", "roberta", "accuracy"),
]
SLOW = pytest.param(True, marks=pytest.mark.slow)


@pytest.mark.parametrize("trained", [False, SLOW])
@pytest.mark.parametrize(("spec", "family", "metric"), GLUE_PRESETS)
def test_presets_of_GLUE_take_RoBERTa_and_DeBERTa_from_a_folder(
    spec, family, metric, trained, tmp_path, monkeypatch
):
    import tensorflow_datasets as tfds

    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path))
    with tfds.testing.mock_data(num_examples=40):
        config = shrunk(spec, write_encoder(tmp_path / "model", family), tmp_path / "runs")
        task, frozen, lora = loads_or_trains(config, trained=trained)
    assert task.recipe.metrics[0] == metric and task.model.config.family == {
        "roberta": "roberta"
    }.get(family, "deberta-v2")
    assert {"pooler/kernel", "classifier/kernel"} <= set(lora)  # of both families the pooler is new
    quantised = {path for path, leaf in flatten(frozen).items() if isinstance(leaf, QuantizedArray)}
    assert (len(quantised) == 6) == spec.endswith("fp4")


@pytest.mark.parametrize("trained", [False, SLOW])
@pytest.mark.parametrize(
    "spec", ["papers/qlora.py:table3-t5-80m-nf4", "papers/qlora.py:table3-t5-3b-bf16"]
)
def test_presets_of_T5_take_it_from_a_folder(spec, trained, tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text(
        "\n".join(json.dumps({"prompt": f"turn {n}", "completion": f"{n} nrut"}) for n in range(60))
    )
    config = shrunk(spec, write_t5(tmp_path / "model"), tmp_path / "runs", **{"data.name": data})
    task, frozen, lora = loads_or_trains(config, trained=trained)
    linears = {path for path, site in task.sites.items() if "/layers/" in path and site.is_matrix}
    assert (
        set(lora) == linears and len(linears) == 7 + 11 and task.recipe.text_metrics == ("rouge_l",)
    )
    quantised = {path for path, leaf in flatten(frozen).items() if isinstance(leaf, QuantizedArray)}
    assert quantised == (linears if spec.endswith("nf4") else set())


def test_presets_of_decoders_read_their_folders(tmp_path):
    rows = [dict(prompt=f"turn {n}", completion=f"{n} nrut") for n in range(40)]
    for split in ("train", "validation", "test"):
        text = "\n".join(json.dumps(row | {"references": ["a", "b"]}) for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text)
    model = write_tiny_model(tmp_path / "model")
    found = {}
    for spec in ("lora_gpt2.py:e2e-m", "qlora.py:table5-7b-oasst1", "qlora.py:table5-7b-alpaca"):
        more = {"data.name": tmp_path, "quant.block_size": 16}
        found[spec] = open_task(expand(shrunk(f"papers/{spec}", model, tmp_path / "r", **more))[0])
    e2e, oasst, alpaca = found.values()
    assert (e2e.records["test"].prompts[0], e2e.records["test"].references[0]) == (
        "turn 0",
        ("a", "b"),
    )
    assert (e2e.label_smoothing, e2e.recipe.decoding.beams) == (0.1, 10)
    assert {*oasst.records["train"].prompts} == {""} and len(oasst.records["train"]) == 40
    assert oasst.records["train"].completions[0] == alpaca.records["train"].completions[0]
    assert alpaca.records["train"].prompts[0] == "turn 0"


def test_presets_name_only_what_is_still_needed():
    glue = presets("lora_glue")
    needs = {f"{name}:{side}": one.needs for name, row in glue.items() for side, one in row.items()}
    assert needs["base-sst2:paper"] == needs["large-restricted-rte:paper"] == ""
    start = "runs/papers/lora_glue/mnli/large-script"
    assert needs["large-stsb:script"] == f"the adapter of MNLI's best run as {start}"
    assert (
        needs["xxl-cola:paper"].startswith("weights as safetensors")
        and not needs["base-mnli:paper"]
    )
    assert "T5" not in presets("qlora")["table3-t5-3b-nf4"]["paper"].needs


def test_GLUE_is_chosen_and_reported_as_it_was_published():
    """All of train, the best epoch on what is reported, MNLI on both sets, dropout as pretrained,
    and MNLI's adapter of the same side for three tasks.
    """
    for name, sides in presets("lora_glue").items():
        model, _, task = name.rpartition("-")
        for side, preset in sides.items():
            config = from_config_dict(preset.settings)
            both = "validation_matched+validation_mismatched"
            held_out = both if task == "mnli" else "validation"
            assert (config.data.validation_split, config.data.test_split) == (held_out, held_out)
            assert config.train.select == "best_epoch" and len(config.sweep.seeds) == 5
            assert (config.model.dropout, config.model.attention_dropout) == (0.1, 0.1)
            starts = task in ("mrpc", "rte", "stsb") and model in ("base", "large", "xxl")
            assert config.lora.init_from == (
                f"runs/papers/lora_glue/mnli/{model}-{side}" if starts else None
            )
    cls = {task: presets("lora_glue")[f"xxl-{task}"] for task in TASKS}
    heads = [cls[task]["script"].settings["model"]["head_dropout"] for task in cls]
    assert heads == [0.15, 0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.2]


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_planned_without_weights_data_and_hubs(name, tmp_path, monkeypatch, capsys):
    """`lora-jax sweep --dry-run` of it, but for the table that it prints."""
    monkeypatch.chdir(tmp_path)

    def unreachable(*_: object, local_files_only: bool = False, **__: object) -> None:
        assert local_files_only, "the hub was asked"
        raise FileNotFoundError("nothing is here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    for sides in presets(name).values():
        for preset in sides.values():
            config = from_config_dict(preset.settings)
            sweep._caution(config, fetch=False, quiet=True)
            runs = [run for group in plan(config) for run in group.pack.runs]
            assert len(runs) == max(1, len(config.sweep.seeds))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def written():
    """The generator of configs/papers/README.md, and the lines that are there."""
    path = FOLDER.parents[1] / "experiments" / "papers.py"
    spec = importlib.util.spec_from_file_location("papers_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, (FOLDER / "README.md").read_text().splitlines()


def test_the_page_of_rows_has_every_row_and_is_what_its_command_writes(written):
    """Footprints of one row a file and of another kind: all take minutes."""
    module, lines = written
    assert lines[: len(module.head())] == module.head()
    listed = [line.split("`")[1] for line in lines if line.startswith(("| `train", "| `sweep"))]
    rows = {f"{file}.py:{name}": one for file in FILES for name, one in module.rows(file)}
    assert [one.split()[1] for one in listed] == list(rows)
    again = ("lora_glue.py:base-rte:script", "lora_gpt2.py:rank-16", "lora_gpt3.py:table16-100")
    for name in (*again, "lora_glue.py:adapter-h-6m-rte", "qlora.py:table4-65b-alpaca-nf4"):
        file, _, argument = name.partition(".py:")
        assert module.line(file, argument, rows[name]) in lines, name


def test_the_table_of_plans_is_current_in_what_is_arithmetic(written):
    """Of the largest model: all columns up to the arguments, which the compiler counts as well."""
    module, lines = written
    rows = lines[-len(module.PLANS) :]
    assert [tuple(row[2:].split(" | ")[:2]) for row in rows] == list(module.PLANS)
    line = module.plan_line(*module.PLANS[-1], compiled=False)
    assert line.count("|") == 9 and rows[-1].startswith(line)


@pytest.mark.long  # Compiles seven steps, some 20 s each.
def test_the_table_of_plans_is_what_its_command_writes(written):
    module, lines = written
    assert module.plans() == lines[lines.index(module.plans()[0]) :]


def test_the_page_links_tables_to_claims_that_are_there(written):
    module, _ = written
    sources = {one.source for file in FILES for _, one in module.rows(file)}
    for table, (file, _, claims) in module.TABLES.items():
        assert any(source.startswith(f"{table},") for source in sources), table
        assert f"{file}.py" in {path.name for path in FOLDER.glob("*.py")}
        for claim in claims:
            folder = FOLDER.parents[1] / "experiments" / "claims"
            assert list(folder.glob(f"c{int(claim[1:]):02d}_*.py")), claim
    known = {source.rpartition(",")[0] if source.count(",") > 1 else source for source in sources}
    told = [*module.TABLES, *module.WITHOUT]
    assert all(any(source.startswith(table) for table in told) for source in known)


def test_an_unknown_preset_or_side_names_near_ones():
    with pytest.raises(ValueError, match="no preset 'base-rt'. Nearest: base-rte"):
        load_config(f"{FOLDER / 'lora_glue.py'}:base-rt")
    with pytest.raises(ValueError, match="'e2e-l' has paper, got 'script'"):
        load_config(f"{FOLDER / 'lora_gpt2.py'}:e2e-l:script")


def test_what_the_released_scripts_say():
    """Read from microsoft/LoRA at c4593f0 and 3732c24, and artidoro/qlora at 0b46ca8."""
    glue, gpt2, qlora = presets("lora_glue"), presets("lora_gpt2"), presets("qlora")
    batches = {"mnli": 64, "sst2": 64, "mrpc": 256, "cola": 32, "qnli": 48, "qqp": 64, "rte": 32}
    for task, batch in batches.items():
        script = glue[f"xxl-{task}"]["script"].settings
        assert script["train"]["batch_size"] == batch and script["lora"]["rank"] == 16
    large = [glue[f"large-{task}"]["script"].settings["data"]["max_length"] for task in TASKS]
    assert large == [128, 512, 512, 128, 512, 512, 512, 128]
    warmup = glue["xxl-mnli"]["script"].settings["optim"]["warmup_fraction"]
    assert warmup * 392_702 * 5 / 64 == pytest.approx(1_000)
    assert glue["xxl-mrpc"]["script"].settings["optim"]["warmup_fraction"] == 0.1

    e2e = gpt2["e2e-m"]
    assert e2e["script"].settings["optim"]["clip_norm"] == 0.0
    for side, penalty in (("paper", 0.9), ("script", 0.8)):
        data = e2e[side].settings["data"]
        decoding = dict(max_new=64, beams=10, length_penalty=penalty, no_repeat_ngram=4)
        assert (data["decoding"], data["label_smoothing"]) == (decoding, 0.1)
    for size, rate in (("7b", 2e-4), ("13b", 2e-4), ("33b", 1e-4), ("65b", 1e-4)):
        # Its source is the begin of text alone, so Table 9 prints no length; then a newline here.
        for side, length in (("paper", 514), ("script", 514)):
            settings = qlora[f"table5-{size}-oasst1"][side].settings
            assert settings["train"]["batch_size"] == 16, (size, side)
            assert settings["train"]["total_steps"] == 1_875
            assert settings["optim"]["learning_rate"] == rate
            assert settings["data"]["max_length"] == length
            # The script of 13B says 0.05, where Table 9 has 0.1.
            dropout = 0.1 if size == "7b" or (size, side) == ("13b", "paper") else 0.05
            assert settings["lora"]["dropout"] == dropout


def test_printed_means_follow_from_the_tables():
    averages = {
        "base lora": 87.2,
        "large lora": 89.0,
        "large lora restricted": 88.6,
        "xxl lora": 91.3,
        "base full": 86.4,
        "large full": 88.9,
    }
    for row, printed in averages.items():
        assert statistics.fmean(published_lora.TABLE_2[row][1]) == pytest.approx(
            printed, abs=0.06
        ), row
    for format, printed in published_qlora.TABLE_4_MEANS.items():
        rows = published_qlora.TABLE_4[format]
        follows = statistics.fmean([*rows["alpaca"], *rows["flan-v2"]]) == pytest.approx(
            printed, abs=0.06
        )
        # NF4's eight scores give 52.99, which is below BF16's 53.04: the printed 53.1 does not
        # follow from them.
        assert follows == (format != "nf4"), format
