"""kill -9 at random moments of a command: what the same command then makes is, bit for bit, what it
would have made undisturbed.

    pytest -m long -n 0 -s tests/fuzz/test_kill.py --fuzz 20   # 20 kills a kind, in place of 3
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_language import write_completions, write_tiny_model

from lora_jax.sweeps.store import RunStore

CONFIGS = Path(__file__).parents[2] / "configs"
# Figures of time and memory, which no two runs share.
MEASURED = {
    "tokens_per_second", "compile_seconds", "training_seconds", "seconds", "peak_rss_bytes", "time",
}  # fmt: skip
STEPS = {
    "train.total_steps": "9", "train.checkpoint_every": "2", "train.eval_every": "3",
    "train.log_every": "1", "train.eval_batch_size": "64",
}  # fmt: skip
GRID = {
    "sweep.rank": "1,2", "sweep.format": "none,int8", "sweep.targets": "query+value",
    "sweep.baselines": "head", "sweep.seeds": "0",
}  # fmt: skip
PLAIN = dict.fromkeys(("sweep.rank", "sweep.format", "sweep.targets", "sweep.baselines"), "()")
SEARCH = {
    "sweep.seeds": "0", "sweep.search.trials": "4", "sweep.stack": "2",
    "sweep.search.space": "('optim.learning_rate = log 1e-3 .. 1e-1', 'lora.rank = 1, 2')",
}  # fmt: skip
KINDS = {
    "train": ("train", STEPS),
    "sweep": ("sweep", STEPS | GRID),
    "stacked": ("sweep", STEPS | GRID | {"sweep.stack": "2"}),
    "search": ("sweep", STEPS | PLAIN | SEARCH),
    "decoder": ("train", STEPS | {"data.task": "completion", "lora.targets": "all-linear"}),
}
LIMIT = 300  # seconds that any command may take


class Lab:
    """One kind of command in a folder, with a cache of compiled programs that all of its processes
    share.
    """

    def __init__(self, kind: str, tiny: dict[str, str], folder: Path) -> None:
        self.folder, (self.command, settings) = folder, KINDS[kind]
        settings = {**tiny, **{f"config.{key}": value for key, value in settings.items()}}
        if kind == "decoder":
            settings["config.model.name"] = str(write_tiny_model(folder / "model"))
            settings["config.data.name"] = str(write_completions(folder / "pairs.jsonl"))
            settings |= {"config.data.text": "input", "config.data.label": "ideal"}
        self.settings = [f"--{key}={value}" for key, value in settings.items()]

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "lora_jax", self.command, "--quiet"]
        words += ["--config", str(CONFIGS / "default.py"), *self.settings, f"--config.out={out}"]
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        with (self.folder / "said.txt").open("wb") as said:
            return subprocess.Popen(
                [*words, *(["--no-report"] if self.command == "sweep" else [])],
                stdout=said, stderr=said, env=os.environ | cache, start_new_session=True,
            )  # fmt: skip

    def run(self, out: Path) -> float:
        """Runs the command to its end; the seconds from its first run's start on."""
        process = self.start(out)
        begun(process, out)
        start = time.monotonic()
        code = process.wait(LIMIT)
        said = (self.folder / "said.txt").read_text()
        assert code == 0 and "Traceback" not in said, f"{out}: status {code}: {said[-2000:]}"
        return time.monotonic() - start

    def kill(self, out: Path, wait: float, from_start: bool) -> bool:
        """Whether the command was killed: at `wait` seconds from its own start, or its first run's."""
        process = self.start(out)
        if not from_start:
            begun(process, out)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        return False


def begun(process: subprocess.Popen[bytes], out: Path) -> None:
    """Waits until a run of the process is claimed."""
    end = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < end:
        if any(RunStore(out).status(name) == "running" for name in names(out)):
            return
        time.sleep(0.02)


def names(out: Path) -> list[str]:
    return sorted(file.parent.name for file in out.glob("*/status.json"))


def content(folder: Path) -> dict[str, object]:
    """All of a run that must not depend on interruptions."""

    def kept(row: dict[str, object]) -> dict[str, object]:
        return {key: value for key, value in row.items() if key not in MEASURED}

    rows = (folder / "metrics.jsonl").read_text().splitlines()
    return {
        "rows": [kept(json.loads(row)) for row in rows],
        "result": kept(json.loads((folder / "result.json").read_text())),
        "adapter": (folder / "adapter" / "adapter.safetensors").read_bytes(),
    }


def different(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Which parts of two contents differ, and which figures of the result."""
    found = [part for part in ("rows", "adapter") if one[part] != other[part]]
    ours, theirs = one["result"], other["result"]
    for key in {*ours, *theirs}:
        if ours.get(key) != theirs.get(key):
            found.append(f"{key}: {ours.get(key)} for {theirs.get(key)}")
    return found


def trials(out: Path) -> list[tuple[object, ...]]:
    """What a search asked and was told, in this order."""
    if not (out / "search.journal").exists():
        return []
    from lora_jax.sweeps.search import open_study

    told = [trial for trial in open_study(out).get_trials() if trial.value is not None]
    return [(trial.params, trial.value) for trial in told]


def finished(out: Path) -> dict[str, bytes]:
    return {
        name: (out / name / "result.json").read_bytes()
        for name in names(out)
        if RunStore(out).status(name) == "done"
    }


@pytest.fixture
def lab(request, tiny, tmp_path) -> Iterator[tuple[Lab, Path, float]]:
    """A lab, what its command makes undisturbed, and the seconds that it takes."""
    lab = Lab(request.param, tiny, tmp_path)
    lab.run(tmp_path / "compiling")
    seconds = lab.run(tmp_path / "whole")
    assert names(tmp_path / "compiling") == names(tmp_path / "whole")
    yield lab, tmp_path / "whole", seconds


@pytest.mark.long
@pytest.mark.parametrize("lab", KINDS, indirect=True, ids=list(KINDS))
def test_a_killed_command_makes_what_it_would_have_made(lab, request, pytestconfig):
    lab, whole, seconds = lab
    draw = random.Random(request.node.name)
    expected = {name: content(whole / name) for name in names(whole)}
    killed = stores = 0
    while killed < (pytestconfig.getoption("--fuzz") or 3):
        out = lab.folder / f"killed_{stores}"
        stores += 1
        before: dict[str, bytes] = {}
        # Three processes that die without a checkpoint are a run that failed.
        for _ in range(draw.randint(1, 2)):
            early = draw.random() < 0.1
            killed += lab.kill(out, draw.uniform(0, 1) * (4 if early else seconds), early)
            now = finished(out)
            assert {name: now.get(name) for name in before} == before, "a finished run was lost"
            before = now
            RunStore(out).runs()
        lab.run(out)
        where = f"store {stores - 1} after {killed} kills"
        assert names(out) == list(expected), where
        for name, want in expected.items():
            assert not different(content(out / name), want), f"{where}: {name}"
        assert trials(out) == trials(whole), where
    print(f"{request.node.name}: {killed} kills, {stores} stores, all equal")
