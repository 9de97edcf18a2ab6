"""`lora-jax harness`: what the harness is asked, and its answers as a table; its own tests compare scores."""

import json
import sys
import types

import pytest

from lora_jax import cli

RESULTS = {
    "arc_easy": {"alias": "arc_easy", "acc,none": 0.25, "acc_stderr,none": 0.125, "acc_norm,none": 0.5},
    "mmlu": {"acc,none": 0.75, "acc_stderr,none": "N/A"},
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """What the harness was asked; a stand-in of it, which is large and not installed here."""
    seen = {}

    def evaluate(**options):
        seen.update(options)
        return {"results": RESULTS, "n-shot": {"mmlu": 5}, "samples": object()}

    harness = types.ModuleType("lm_eval")
    harness.simple_evaluate = evaluate
    monkeypatch.setitem(sys.modules, "lm_eval", harness)
    monkeypatch.setattr("lora_jax.commands.harness._model", lambda arguments: arguments.model)
    return seen


def test_tasks_are_asked_for_and_their_scores_are_a_table(asked, tmp_path, capsys):
    given = ["harness", "MODEL", "--tasks", "arc_easy,mmlu", "--shots", "5", "--limit", "3"]
    assert cli.main([*given, "--out", str(tmp_path / "a.json")]) == 0
    assert asked == dict(model="MODEL", tasks=["arc_easy", "mmlu"], num_fewshot=5, limit=3)
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.replace("│", " ").splitlines() if "0." in line]
    assert rows == [
        ["arc_easy", "acc", "none", "0.2500", "0.1250"],
        ["arc_easy", "acc_norm", "none", "0.5000"],
        ["mmlu", "5", "acc", "none", "0.7500"],
    ]
    assert json.loads((tmp_path / "a.json").read_text())["results"] == RESULTS
    assert cli.main([*given, "--json"]) == 0 and json.loads(capsys.readouterr().out) == RESULTS


def test_without_the_harness_its_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert cli.main(["harness", "MODEL", "--tasks", "mmlu"]) == 2
    assert "lora-jax[harness]" in capsys.readouterr().err.replace("\n  ", " ")
