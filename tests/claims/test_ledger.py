"""The ledger finds claims, refuses results of another version, and makes its page from the result
files alone.
"""

import json
from pathlib import Path

import pytest

from lab import ledger
from lab.page import draw
from lora_jax.cli import main

CHECKOUT = Path(__file__).parents[2] / "experiments" / "claims"
CLAIM = """
from lab.claim import Claim, Finding, Part
CLAIM = Claim(id="{id}", title="{title}", source="A, Table 1", published="2", expected="3 +- 1", kind="{kind}", models="S", version={version})
def run(lab):
    lines = {{"x": "rank", "y": "loss", "log": "x", "lines": {{"a": [[1, 2.0], [4, 1.0, 0.9, 1.2]]}}}}
    parts = (Part("all of it", "exact", "{verdict}", "{ours}"),)
    return Finding(parts, {{"n": {n}}}, plot=lines if {plot} else None, seeds=lab.seeds, diverged=("b at rate 1",))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "experiments" / "claims"
    place.mkdir(parents=True)
    write(place, "C1", title="one", plot=True)
    write(place, "C12", title="twelve", verdict="inconclusive", kind="trained")
    return place


def write(place: Path, id: str, **values) -> None:
    options = (
        dict(
            id=id,
            title="t",
            kind="theorem",
            version=1,
            verdict="reproduced",
            ours="3.0",
            plot=False,
            n=3,
        )
        | values
    )
    (place / f"c{id[1:].zfill(2)}_x.py").write_text(CLAIM.format(**options))


def run(folder: Path, *arguments: str) -> int:
    return main(["claims", *arguments, "--folder", str(folder), "--runs", str(folder / "runs")])


def test_claims_are_run_kept_listed_and_reported(folder, capsys):
    assert run(folder, "run", "c1", "12") == 0
    assert "C1 reproduced: 3.0" in capsys.readouterr().out
    result = json.loads((folder / "results" / "C1.json").read_text())
    assert (
        result["format"] == ledger.FORMAT
        and result["seeds"] == [0, 1, 2, 3, 4]
        and result["figures"] == {"n": 3}
    )
    assert (
        result["environment"]["versions"]["jax"]
        and result["environment"]["command"].startswith("lora-jax")
        and "git" in result["environment"]
    )
    assert run(folder, "run", "all") == 0 and "kept: 3.0" in capsys.readouterr().out
    assert run(folder, "list") == 0 and "inconclusive" in capsys.readouterr().out
    write(folder, "C30", title="never run")
    assert run(folder, "report") == 0
    page = (folder.parent / "README.md").read_text()
    assert (
        "2 of 3 claims have been run" in page
        and "| C30 never run | theorem | S | A, Table 1: 2 |  | **not run** |  |  |" in page
    )
    assert (
        "[3.0](claims/results/C1.json) | **reproduced** |" in page
        and "Diverged: b at rate 1." in page
    )
    assert "In all 0.0 h on two cores for 0 runs and pretrainings, each counted once" in page
    assert (folder / "results" / "C1.png").stat().st_size > 1000 and not (
        folder / "results" / "C12.png"
    ).exists()


def test_an_unknown_claim_names_near_ones(folder, capsys):
    assert run(folder, "run", "C11") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "There is no claim 'C11'. Nearest: C1" in said and "twelve" in said
    assert run(folder, "run") == 2 and "Which claims?" in capsys.readouterr().err
    assert (
        run(folder, "run", "C1", "--seeds", "a") == 2
        and "--seeds needs whole numbers" in capsys.readouterr().err
    )


def test_a_result_of_another_version_is_refused_with_the_way_out(folder, capsys):
    run(folder, "run", "C1")
    write(folder, "C1", version=2)
    assert run(folder, "report") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "is a result of C1 version 1, and the claim's test is C1 version 2" in said
        and "claims run C1 --again" in said
    )
    assert run(folder, "list") == 0 and "result of another version" in capsys.readouterr().out
    assert run(folder, "run", "C1", "--again") == 0 and run(folder, "report") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": "other", "claim": {"version": 1}}', "of format 'other'"),
    ],
)
def test_a_damaged_or_foreign_result_is_an_error_that_names_the_file(folder, text, message):
    (folder / "results").mkdir()
    (folder / "results" / "C1.json").write_text(text)
    entries = ledger.load_claims(folder)
    with pytest.raises(ledger.ResultError, match=message) as caught:
        ledger.read_result(folder / "results" / "C1.json", entries["C1"].claim)
    assert "C1.json" in str(caught.value)


def test_files_that_are_no_claims_and_double_ids_are_refused(folder):
    (folder / "c03_no.py").write_text("CLAIM = 3\n")
    with pytest.raises(ValueError, match="needs a CLAIM"):
        ledger.load_claims(folder)
    (folder / "c03_no.py").write_text((folder / "c01_x.py").read_text())
    with pytest.raises(ValueError, match="both claim to be C1"):
        ledger.load_claims(folder)


def test_without_a_checkout_the_command_says_what_is_missing(folder, capsys, monkeypatch):
    assert main(["claims", "list", "--folder", str(folder / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err
    monkeypatch.chdir(folder)
    monkeypatch.setattr("lora_jax.commands.claims.CHECKOUT", folder)
    assert main(["claims", "list"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no experiments/claims/lab here" in said and "from the root of a checkout" in said


def test_heat_maps_are_drawn(tmp_path):
    draw({"x": "j", "y": "i", "heat": {"q": [[0.0, 1.0], [0.5, 0.2]]}}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_forests_are_drawn_with_their_margin_and_the_published_value(tmp_path):
    rows = {
        "one": {"interval": [0.1, 0.0, 0.2], "seeds": [0.1, 0.2]},
        "two": {"interval": [1, 1, 1]},
    }
    draw(
        {"x": "nats", "forest": rows, "margin": 0.1, "published": {"paper": 0.3}},
        tmp_path / "a.png",
    )
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_tally_counts_verdicts_of_now_and_of_before(folder):
    (folder / "results").mkdir()
    before = {"C1": {"verdict": "inconclusive", "ours": "2", "commit": "a"}}
    (folder / "results" / "earlier.json").write_text(json.dumps(before))
    (folder / "n02_x.py").write_text(
        "from lab.claim import Claim\n"
        "CLAIM = Claim(id='N2', title='two', source='A', published='2', expected='3', "
        "kind='trained', out_of_scope='needs a GPU; an hour')\n"
    )
    assert run(folder, "run", "all") == 0 and run(folder, "report") == 0
    page = (folder.parent / "README.md").read_text()
    assert (
        "| **all** | 1 | 0 | 0 | 1 | 1 | 0 |" in page
        and "| before P | 0 | 0 | 0 | 1 | 0 | 0 |" in page
    )
    assert "| needs a GPU; an hour | **out of scope** |" in page
    assert "Before P: inconclusive (2)." in page


def test_a_claim_out_of_scope_is_not_run_and_says_why(folder, capsys):
    (folder / "n02_x.py").write_text(
        "from lab.claim import Claim\n"
        "CLAIM = Claim(id='N2', title='two', source='A', published='2', expected='3', "
        "kind='trained', out_of_scope='needs a GPU; an hour')\n"
    )
    assert run(folder, "run", "n2") == 2
    assert "out of scope here: needs a GPU" in " ".join(capsys.readouterr().err.split())


def test_verify_runs_a_claim_anew_and_says_where_a_figure_differs(folder, capsys):
    assert run(folder, "verify", "C1") == 2 and "claims run C1" in capsys.readouterr().err
    assert run(folder, "run", "C1") == 0 and run(folder, "verify", "C1") == 0
    assert "C1 agrees: the largest relative difference is 0.0e+00" in capsys.readouterr().out
    kept = folder / "results" / "C1.json"
    kept.write_text(kept.read_text().replace('"n": 3', '"n": 4'))
    assert run(folder, "verify", "C1") == 1
    assert "C1 DIFFERS: the largest relative difference is 2.5e-01 at /n" in capsys.readouterr().out


def test_the_checkouts_claims_are_well_formed():
    entries = ledger.load_claims(CHECKOUT)
    for key, entry in entries.items():
        claim, number = entry.claim, int(key[1:])
        assert entry.path.name.startswith(f"{key[0].lower()}{number:02d}_")
        assert claim.title and claim.source and claim.published and claim.expected
        assert claim.kind in ledger.KINDS and claim.version >= 2
        assert claim.out_of_scope or (claim.models and claim.regime and claim.minutes > 0)


def test_the_page_in_the_checkout_is_the_one_that_its_results_make(tmp_path):
    entries = ledger.load_claims(CHECKOUT)
    page = (CHECKOUT.parent / "README.md").read_text()
    for key, entry in entries.items():
        result = ledger.read_result(CHECKOUT / "results" / f"{key}.json", entry.claim)
        row = next(
            line for line in page.splitlines() if line.startswith((f"| {key} ", f"| [{key}]"))
        )
        if result is None:
            assert "**not run**" in row or "**out of scope**" in row
            continue
        assert f"**{result['verdict']}**" in row
        assert all(part["ours"].replace("|", "\\|") in row for part in result["parts"])


def test_a_claim_that_cannot_be_tested_does_not_keep_others_from_it(folder, capsys):
    text = (folder / "c01_x.py").read_text()
    (folder / "c01_x.py").write_text(
        text.replace(
            "    return Finding(", "    raise RuntimeError('no model')\n    return Finding("
        )
    )
    assert run(folder, "run", "all") == 1
    said = capsys.readouterr()
    assert (
        "C1 could not be tested: RuntimeError: no model" in said.err
        and "C12 inconclusive" in said.out
    )
    assert not (folder / "results" / "C1.json").exists()
