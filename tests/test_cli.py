"""The command line: help that teaches, exit statuses, one paragraph for what a user can mend."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from rich.table import Table

import lora_jax
from lora_jax import cli
from lora_jax.commands.scores import tables_of
from lora_jax.commands.shared import print_parts, print_table, settings_lines
from lora_jax.config import Config, SweepConfig, describe, load_config
from lora_jax.config.shipped import shipped_configs
from lora_jax.io import load_encoder
from lora_jax.models.encoder import Encoder
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.leases import Leases
from lora_jax.sweeps.runner import Outcome
from lora_jax.sweeps.store import RunStore
from lora_jax.training.result import RunResult
from lora_jax.training.saved import load_run

DEFAULT = str(Path(__file__).parents[1] / "configs" / "default.py")
ROTTEN = str(Path(__file__).parents[1] / "configs" / "rotten_tomatoes.py")


def arguments(
    command: str, tiny: dict[str, str], out: Path, config: str = f"{ROTTEN}:lora", **more: str
) -> list[str]:
    values = {**tiny, "config.out": str(out), **more}
    return [
        command,
        "--config",
        config,
        "--quiet",
        *(f"--{key}={value}" for key, value in values.items()),
    ]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed to standard error, as one line; it must be a complaint without a
    traceback.
    """
    text = capsys.readouterr().err
    assert "lora-jax: error: " in text and "Traceback" not in text
    return " ".join(text.split())


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_example_of_a_command_is_valid_and_its_help_fits_100_columns(
    command, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and max(map(len, text.splitlines())) <= 100
    lines = text.replace("\\\n", " ").splitlines()
    examples = [shlex.split(line) for line in lines if line.startswith("  lora-jax ")]
    assert any(cli.split_name(words[1:])[0] == command for words in examples)
    for words in examples:
        _, parsed = cli.parse(words[1:])  # its options exist, and what it needs is there
        config = getattr(parsed, "config", "")
        if config.partition(":")[0] in shipped_configs():
            load_config(config, parsed.overrides)


def test_a_table_fits_100_columns_and_nothing_of_it_is_cut_off(capsys):
    table = Table("a", "b", "c", "d")
    rows = [["word " * 20, "x" * 130, "1,234,567", "name-with-dashes-" * 5]] * 2
    for row in rows:
        table.add_row(*row)
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    cells = [line.split("│")[1:-1] for line in lines if "│" in line]
    shown = ["".join("".join(column).split()) for column in zip(*cells)]
    assert shown == ["".join("".join(column).split()) for column in zip(*rows)]


def test_help_lists_every_command_and_none_is_no_success(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in cli.COMMANDS)
    assert max(map(len, text.splitlines())) <= 100
    assert cli.main([]) == 2


def test_a_family_of_commands_lists_its_kinds_and_former_names_lead_to_them(capsys):
    assert cli.main(["export", "--help"]) == 0 and cli.main(["export"]) == 2
    assert capsys.readouterr().out.count("  export peft ") == 2
    assert cli.main(["export", "runs/default", "--out", "a.csv"]) == 2
    assert "is lora-jax export runs STORE" in complaint(capsys)
    assert cli.parse(["merge", "RUN", "OUT"])[0] is cli.parse(["export", "merged", "RUN", "OUT"])[0]


@pytest.mark.parametrize(
    ("line", "words", "not_words"),
    [
        ("swee", {"sweep"}, {"train"}),
        ("export ", {"merged", "peft", "runs"}, {"sweep"}),
        ("export merged RUN --fo", {"--format"}, {"--out"}),
        ("train --config rotten", {"rotten_tomatoes"}, {"default"}),
    ],
)
def test_the_tab_key_completes_commands_options_and_configs(line, words, not_words, tmp_path):
    pytest.importorskip("argcomplete")
    line = f"lora-jax {line}"
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "said"),
    }  # fmt: skip
    command = [sys.executable, "-m", "lora_jax"]
    assert subprocess.run(command, env={**os.environ, **asked}).returncode == 0
    said = {word.strip() for word in (tmp_path / "said").read_text().split("\n")}
    assert words <= said and not not_words & said


def test_help_and_import_are_quick_and_touch_no_device():
    code = f"""
import contextlib, sys
import lora_jax.cli as cli
cli.main(["--help"])
for command in {list(cli.COMMANDS)}:
    with contextlib.suppress(SystemExit):
        cli.main([*command.split(), "--help"])
sys.exit(any(name in sys.modules for name in ("jax", "flax", "numpy", "matplotlib", "ml_collections")))
"""
    start = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    # 0.4 s here; what is tested is that no heavy package is loaded.
    assert time.perf_counter() - start < 5


def test_train_sweep_report_and_evaluate_agree(tiny, tmp_path, capsys):
    assert cli.main(arguments("train", tiny, tmp_path)) == 0
    (record,) = RunStore(tmp_path).runs()
    assert json.loads(capsys.readouterr().out.partition("run folder")[0]) == json.loads(
        json.dumps(record.result.row())
    )
    assert cli.main(["evaluate", str(record.folder), "--split", "test", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["accuracy"] == record.result.value("test", "accuracy") and again[
        "loss"
    ] == pytest.approx(record.result.value("test", "loss"), rel=1e-6)
    assert cli.main(["inspect", str(record.folder)]) == 0
    shown = capsys.readouterr().out
    assert f"run {record.run_id}: done" in shown and "rank=4" not in shown.partition("scores")[2]
    score = record.result.score("test")
    assert score.text(score.value) in shown and "batch_size=" in shown and "in it: adapter" in shown
    # Merged, it is a model whose files say the same as the run does.
    assert cli.main(["export", "merged", str(record.folder), str(tmp_path / "dense")]) == 0
    capsys.readouterr()
    saved = load_run(record.folder)
    key, classes = jax.random.key(0), len(saved.task.label_names)
    config, params = load_encoder(tmp_path / "dense", num_classes=classes, key=key)
    ids = jnp.arange(5, 13)[None]
    asked = (ids, jnp.ones_like(ids, bool))
    expected = lora_jax.apply(saved.task.model, saved.frozen, saved.trainable, *asked)
    given = Encoder(config).apply({"params": params}, *asked)
    # Sums in another order, of numbers below 1.
    assert jnp.allclose(given[-1], expected[-1], atol=1e-5)
    assert (tmp_path / "dense" / "vocab.txt").is_file()
    # A store that cannot be written costs what was said of each example, not the score.
    shutil.rmtree(record.folder / "predictions")
    (record.folder / "predictions").write_text("in the way")
    assert cli.main(["evaluate", str(record.folder), "--split", "test", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == again and "each example is not kept" in said.err
    (record.folder / "predictions").unlink()
    assert (
        cli.main(
            arguments(
                "sweep", tiny, tmp_path, **{"config.sweep.rank": "1", "config.sweep.seeds": "0"}
            )
        )
        == 0
    )
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    out = capsys.readouterr().out
    assert f"report: {tmp_path / 'page' / 'report.md'}" in out and "all-linear" in out
    assert {path.suffix for path in (tmp_path / "page").iterdir()} == {
        ".html",
        ".md",
        ".csv",
        ".png",
    }


def numbers(found, inside=""):
    """The numbers of what `evaluate` found that its tables show."""
    for key, value in found.items():
        if isinstance(value, dict):
            yield from numbers(value, key)
        elif inside and key in ("value", "mean", "low", "high"):
            yield value


def test_tables_of_an_evaluation_show_every_number_of_its_json(capsys):
    score = iter(round(0.1001 + 0.0107 * n, 4) for n in range(99))
    interval = lambda: {name: next(score) for name in ("value", "low", "high")}
    means = {**interval(), "mean": next(score), "deviation": 0.1, "runs": 2}
    del means["value"]
    found = {
        "loss": 0.5, "accuracy": 0.6, "examples": 8, "level": 0.95, "perplexity_per_token": 3.25,
        "intervals": {"loss": interval(), "macro_f1": interval()}, "seeds": {"loss": means},
        "seeds and examples": {"loss": interval()}, "tasks": {"a": {"examples": 3, "loss": interval()}},
        "against": {
            "run": "base", "scores": {"loss": interval()}, "verdict": ["first better"],
            "difference": {"loss": interval() | {"p": 0.03}, "mcnemar": {"first_only": 1, "second_only": 2, "p": 1.0}},
        },
        "forgetting": {"data": "b", "examples": 2, "before": interval(), "after": interval(), "difference": interval() | {"p": 0.5}},
        "contamination": {"finding": "two are the same", "without them": {"loss": interval()}},
    }  # fmt: skip
    print_parts(tables_of(found, "RUN", "test"))
    shown = capsys.readouterr().out
    assert all(f"{value:.4f}" in shown for value in numbers(found))
    for words in ("macro f1", "3.2500", "first better", "two are the same", "0.03", "task a"):
        assert words in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_the_result_of_a_run_on_other_data_is_not_shown(tiny, tmp_path, capsys):
    data = tmp_path / "reviews.csv"
    data.write_text(Path(tiny["config.data.name"]).read_text())
    given = arguments("train", tiny, tmp_path / "runs", **{"config.data.name": str(data)})
    config = load_config(given[2], given[4:])
    (run,) = expand(replace(config, sweep=SweepConfig(learning_rate=config.sweep.learning_rate)))
    leases = Leases(RunStore(tmp_path / "runs"), {}, print)
    leases.claim(run_id(run), run, "a run")
    leases.finish(run_id(run), RunResult.from_json({"test_accuracy": 0.5}), "done")
    capsys.readouterr()

    assert cli.main(given) == 0
    assert json.loads(capsys.readouterr().out.partition("run folder")[0])["test_accuracy"] == 0.5
    data.write_text("text,label\nfilm,0\n")
    assert cli.main(given) == 1
    said = capsys.readouterr()
    assert said.out == "" and "what it was made of has changed" in said.err


def test_dry_run_shows_the_plan_and_trains_nothing(tiny, tmp_path, capsys, monkeypatch):
    given = arguments("sweep", tiny, tmp_path, DEFAULT, **{"config.sweep.rank": "1,2"})

    def opened(config):
        raise AssertionError("a dry run reads no data and no weights")

    monkeypatch.setattr("lora_jax.tasks.opening.open_task", opened)
    assert cli.main([*given, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "14 runs in 5 groups" in out and "add --compile" in out
    runs = expand(load_config(given[2], [word for word in given if word.startswith("--config.")]))
    assert all(f" {run_id(run)} " in out for run in runs)
    assert not list(tmp_path.glob("*/result.json"))
    assert cli.main([*given, "--compile"]) == 2 and "a --dry-run compiles" in complaint(capsys)


@pytest.mark.parametrize(("failed", "status"), [((), 0), (("a",), 1)])
def test_a_sweep_with_a_failed_run_ends_with_1(failed, status, tiny, tmp_path, capsys, monkeypatch):
    outcome = Outcome(done=(), kept=(), failed=failed, elsewhere=("b",))
    monkeypatch.setattr("lora_jax.sweeps.runner.run_sweep", lambda config, **_: outcome)
    assert cli.main(arguments("sweep", tiny, tmp_path)) == status
    assert f"{len(failed)} failed, 1 run by another process" in capsys.readouterr().err


def test_the_start_prints_what_differs_from_the_defaults_and_all_with_verbose(
    tiny, tmp_path, capsys
):
    given = [word for word in arguments("sweep", tiny, tmp_path) if word != "--quiet"]
    config = load_config(given[2], given[3:])
    changed = {key.rpartition(".")[2] for key, _, differs in describe(config) if differs}
    every = {key.rpartition(".")[2] for key, _, _ in describe(config)}
    for lines, names in (
        (settings_lines(config), changed),
        (settings_lines(config, every=True), every),
    ):
        words = " ".join(lines).split()
        assert names <= {word.partition("=")[0].lstrip("*") for word in words}
        assert max(len(line) for line in lines if "/" not in line) <= 100
    assert not {"alpha", "dropout"} & {
        word.partition("=")[0] for line in settings_lines(config) for word in line.split()
    }
    assert settings_lines(Config()) == ["  none: every setting has its default"]

    assert cli.main([*given, "--dry-run", "--config.train.batch_size", "4"]) == 0
    text = capsys.readouterr().err
    assert " batch_size=4" in text and "total_steps=4" in text and "alpha=" not in text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"config.lora.targets": "layers_9/.*"}, "matches none of 41 sites. Nearest:"),
        ({"config.lora.rank": "17"}, "Rank 17 is larger than the smaller side of a 16 x 16 weight"),
        (
            {"config.data.label": "stars"},
            "reviews.csv:2: a row needs the field 'stars', but has 'text', 'label'",
        ),
        ({"config.lora.rnk": "4"}, "There is no setting config.lora.rnk. Nearest: 'lora.rank'"),
        ({"config.model.name": "/no/such/folder"}, "'/no/such/folder' is none of these"),
        ({"config.data.name": "nothing.csv"}, "'nothing.csv' does not exist"),
        (
            {"config.data.name": "glue/sst3"},
            "needs one of the configurations and versions of 'glue'",
        ),
        ({"config.data.max_length": "64"}, "has positions for 32"),
        ({"config.out": "/proc/nothing"}, "must be able to write /proc/nothing"),
        ({"config.quant.format": "nf44"}, "must be one of"),
    ],
)
def test_what_a_user_can_mend_is_one_paragraph_and_a_status(more, words, tiny, tmp_path, capsys):
    status = cli.main(arguments("train", tiny, tmp_path, **more))
    text = " ".join(capsys.readouterr().err.split())
    assert status in (1, 2) and words in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["swep"], "There is no command 'swep'. Nearest: 'sweep'"),
        (["report", "/no/such"], "there is no folder /no/such"),
        (["report", "."], "holds none"),
        (["evaluate", "."], "A run is a folder with config.json"),
        (["sweep", "--config", "nothing.py"], "there is no nothing.py"),
        (["report", ".", "--config.lora.rank=4"], "takes no settings"),
    ],
)
def test_wrong_words_are_one_paragraph(given, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(given) == 2
    assert words in complaint(capsys)


def test_labels_out_of_range_and_truncated_weights_name_the_place(tiny, tmp_path, capsys):
    rows = Path(tiny["config.data.name"]).read_text().splitlines()
    (tmp_path / "a.csv").write_text("\n".join([*rows, "the film,-1"]) + "\n")
    assert (
        cli.main(
            arguments(
                "train", tiny, tmp_path / "runs", **{"config.data.name": str(tmp_path / "a.csv")}
            )
        )
        != 0
    )
    assert f"a.csv:{len(rows) + 1}" in capsys.readouterr().err
    model = tmp_path / "model"
    model.mkdir()
    for file in Path(tiny["config.model.name"]).iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-100])
    assert (
        cli.main(arguments("train", tiny, tmp_path / "runs", **{"config.model.name": str(model)}))
        != 0
    )
    assert "needs to be a whole safetensors file" in " ".join(capsys.readouterr().err.split())


def test_a_stopped_sweep_says_so_and_goes_on_with_the_same_command(tiny, tmp_path):
    long = {**tiny, "config.train.total_steps": "4000", "config.train.checkpoint_every": "100000"}
    command = [
        sys.executable,
        "-m",
        "lora_jax",
        *arguments("sweep", long, tmp_path, **{"config.sweep.seeds": "0"}),
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    ) as process:
        deadline = time.monotonic() + 300
        while (
            not (logs := [path for path in tmp_path.glob("*/metrics.jsonl") if path.stat().st_size])
            and time.monotonic() < deadline
        ):
            time.sleep(0.2)
        assert logs, "the run never logged a step"
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=120)
    assert process.returncode == 130 and "The same command goes on from there" in text
    (record,) = RunStore(tmp_path).runs()
    assert record.status == "interrupted"
    done = int(text.partition("Stopped at step ")[2].partition(";")[0])
    assert [
        path.name for path in (record.folder / "checkpoints").iterdir() if path.name.isdigit()
    ] == [str(done)]


SIGNALLED = """
import runpy, signal, sys
module, number, *sys.argv = sys.argv[1:]
class Signals:
    def find_spec(self, name, path, target=None):
        if name == module:
            sys.meta_path.remove(self)
            try:
                signal.raise_signal(int(number))
            except BaseException:
                print("went on")  # as a package does that tries an import and can do without
sys.meta_path.insert(0, Signals())
runpy.run_module("lora_jax", run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["lora_jax.cli", "jax", "lora_jax.sweeps.runner"])
def test_a_signal_while_modules_are_imported_ends_the_command_without_a_traceback(
    module, number, tmp_path
):
    command = ["lora-jax", "sweep", "--config", DEFAULT, "--quiet", f"--config.out={tmp_path}"]
    ended = subprocess.run(
        [sys.executable, "-c", SIGNALLED, module, str(int(number)), *command],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    # Before its first line a process has the kernel's own answer, which a shell calls 130 as well.
    assert ended.returncode == (-number if module == "lora_jax.cli" else 128 + number)
    assert ended.stdout == "" and ended.stderr in ("", "lora-jax: stopped.\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("weakref.finalize(Thing(), signal.raise_signal, 2); print('went on')", 130, "stopped."),
        ("signal.raise_signal(15)", 9, ""),  # raised, for who called to tidy up
        ("twice()", 143, "stopped."),
    ],
    ids=["in a callback of C code", "anywhere else", "a second one"],
)
def test_a_signal_is_swallowed_nowhere(body, status, says):
    code = f"""
import signal, sys, weakref
from lora_jax.training.interrupted import ended_by_signals
class Thing: pass
def twice():
    try: signal.raise_signal(2)
    except BaseException: signal.raise_signal(15)
try:
    with ended_by_signals(): {body}
except KeyboardInterrupt: sys.exit(9)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == status and ended.stdout == ""
    assert says in ended.stderr and "Traceback" not in ended.stderr
