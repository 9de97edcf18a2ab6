"""The measurements for a GPU run on shapes that any machine has, each part on its own, and what fails
is said.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import on_gpu  # noqa: E402
from benchmark_dequant_matmul import most_tokens  # noqa: E402


def row(tokens: int, fused: float, reference: float = 1.0) -> dict:
    return dict(bits=4, dtype="bfloat16", tokens=tokens, fused=fused, reference=reference)


def test_the_fused_product_is_chosen_up_to_the_first_size_at_which_it_is_slower():
    assert most_tokens([row(1, 0.5), row(2, 0.9), row(4, 1.1), row(8, 0.9)]) == {(4, "bfloat16"): 2}
    assert most_tokens([row(1, 1.5), row(2, 0.9)]) == {}


def test_a_table_has_what_was_measured_and_says_what_failed():
    text = on_gpu.table(
        {
            "environment": {"card": "H100", "versions": {"jax": "0.10"}, "git": {"commit": "abc"}},
            "step 7b nf4": {
                "seconds": [0.2, 0.1, 0.3], "tokens_per_second": 10240.0, "planned_bytes": 7e9,
                "measured_bytes": 7.1e9, "compile_seconds": 31.0, "flops_per_second": 3e14,
            },
            "step 65b": {"failed": "XlaRuntimeError: RESOURCE_EXHAUSTED"},
            "tests": {"said": "12 passed in 40 s"},
        }
    )  # fmt: skip
    assert text.startswith("H100, jax 0.10, commit abc")
    assert "| step 7b nf4 | 200.0 | 10240 | 300.0 | 7.00 | 7.10 | 31 |" in text
    assert "- step 65b failed: XlaRuntimeError: RESOURCE_EXHAUSTED" in text
    assert "- tests: 12 passed in 40 s" in text


def test_parts_are_chosen_by_the_beginnings_of_their_names():
    names = list(on_gpu.parts(None, tiny=False))
    assert on_gpu.chosen("step 65b,kernels", names) == ["kernels", "step 65b nf4, 1 x 512"]
    assert on_gpu.chosen("", names) == names
    assert sum(on_gpu.parts("python", tiny=False).values()) > 20 * 60  # so there is a deadline
    with pytest.raises(SystemExit, match="Nothing begins with .'stepp'."):
        on_gpu.chosen("stepp", names)


def test_without_a_gpu_it_says_so(tmp_path):
    command = [sys.executable, str(EXPERIMENTS / "on_gpu.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 1 and "The backend here is 'cpu', and this measures a GPU" in done.stderr
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("step 65b", marks=pytest.mark.slow),
        pytest.param("adapters 8", marks=pytest.mark.long),
        pytest.param("decode 7b nf4, one", marks=pytest.mark.long),
    ],
)
def test_a_rehearsal_measures_every_kind_of_part(name, tmp_path):
    command = [sys.executable, str(EXPERIMENTS / "on_gpu.py"), "--tiny", "--out", str(tmp_path)]
    subprocess.run([*command, "--only", name], check=True, capture_output=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 2 and not any("failed" in one for one in results.values())
    whole, found = list(results.items())[1]
    assert found["tokens_per_second"] > 0 and len(found["seconds"]) >= 3
    if not name.startswith("decode"):
        assert found["planned_bytes"] > 0 and found["loss"] > 0
    # What is there is not measured again.
    before = (tmp_path / "results.json").stat().st_mtime_ns
    again = subprocess.run([*command, "--only", name], check=True, capture_output=True, text=True)
    assert f"{whole}: done" not in again.stdout
    assert (tmp_path / "results.json").stat().st_mtime_ns == before
