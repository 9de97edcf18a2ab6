"""Two processes on one mesh, which meet over gloo: they are one run, agree, stop together, and
notice when one of them is gone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_task import make
from tiny_language import write_completions, write_tiny_model

from lora_jax import LoraSpec
from lora_jax.core import hosts
from lora_jax.core.fingerprint import fingerprint
from lora_jax.core.hosts import Seat, seat_of
from lora_jax.core.link import Link, OutOfStep
from lora_jax.core.own_gpus import own_gpus, seen
from lora_jax.training.mesh import check_same_start

ROOT = Path(__file__).parents[2]
STEPS = 60
CONFIG = """
import ml_collections

def get_config():
    return ml_collections.ConfigDict(dict(
        model=dict(name={model!r}),
        data=dict(name={data!r}, task="completion", text="input", label="ideal", max_length=24),
        method="qlora", quant=dict(format="nf4", block_size=8), lora=dict(rank=2),
        optim=dict(learning_rate=0.002), mesh=dict(data=2, model=2),
        train=dict(total_steps={steps}, batch_size=10, eval_batch_size=10, log_every=1,
                   checkpoint_every=5),
    ))
"""


def free_port() -> int:
    with socket.create_server(("", 0)) as probe:
        return probe.getsockname()[1]


def together(*others: dict[str, Any], within: float = 20.0) -> list[Any]:
    """The links of process 0 and of others in threads, or their errors."""
    address, found = f"127.0.0.1:{free_port()}", [None] * len(others)

    def come(place: int, given: dict[str, Any]) -> None:
        settings = {"count": 2, "number": place, "alike": {"config.lora.rank": 4}} | given
        try:
            found[place] = Link(address=address, within=within, **settings)
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=come, args=entry) for entry in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_processes_that_disagree_are_told_in_what() -> None:
    found = together({}, {"alike": {"config.lora.rank": 8, "digest of code": "5a"}})
    for error in found:
        assert isinstance(error, ValueError)
        for said in (
            "config.lora.rank is 4 in process 0 and 8 in process 1",
            "digest of code is 'not set' in process 0 and '5a' in",
            "with the same command",
        ):
            assert said in str(error)
    for error in together({}, {"number": 0, "count": 2}, within=1.0)[:1]:
        # Two that believe to be process 0 cannot both listen.
        assert isinstance(error, OSError)


def test_processes_that_do_not_come_are_named() -> None:
    for alone, said in (
        ([{"count": 3}], "and processes 1, 2 did not"),
        ([{"count": 3}, {"count": 3}], "and process 2 did not"),
        ([{"number": 1}], "this one, process 1, did not reach it"),
    ):
        found = together(*alone, within=1.0)
        assert all(isinstance(error, TimeoutError) and said in str(error) for error in found)


def test_what_is_said_over_a_link() -> None:
    first, second = together({}, {})
    other = threading.Thread(target=lambda: second.meet("a", 2))
    other.start()
    assert first.meet("a", 1) == [1, 2]
    other.join()
    first.tell({"run": 5})
    assert second.hear() == {"run": 5} and "process 1" in first.name_of(1)
    apart = threading.Thread(target=lambda: pytest.raises(OutOfStep, second.meet, "b", 2))
    apart.start()
    with pytest.raises(OutOfStep, match="process 0 is at 'c', process 1 is at 'b'|process 1 is"):
        first.meet("c", 1)
    apart.join()
    with pytest.raises(TimeoutError, match="did not come to 'd'"):
        first.meet("d", 1, within=0.1)
    first.ending = second.ending = True
    first.close()
    second.close()


PEER = """
import sys, time
from lora_jax.core.link import Link
number = int(sys.argv[2])
link = Link(sys.argv[1], 2, number, {}, 20.0)
print("there", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_whose_peer_is_killed_ends_and_says_so(dead: int) -> None:
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    peers = [
        subprocess.Popen(
            [sys.executable, "-c", PEER, address, str(number)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    assert [peer.stdout.readline() for peer in peers] == ["there\n", "there\n"]
    peers[dead].kill()
    _, said = peers[1 - dead].communicate(timeout=60)
    peers[dead].communicate()
    assert peers[1 - dead].returncode == 1
    assert f"error: process {dead} (" in said and "of 2 ended without a word" in said


def test_starts_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainable = make(LoraSpec(2))
    peer = SimpleNamespace(count=2, number=0, meet=lambda label, value, **_: [value, theirs])
    monkeypatch.setattr(hosts, "_link", peer)
    theirs = fingerprint(trainable)
    check_same_start(trainable)
    trainable["up/kernel"] = trainable["up/kernel"].replace(a=-trainable["up/kernel"].a)
    with pytest.raises(ValueError, match="other first values of what is trained"):
        check_same_start(trainable)


def test_one_that_fails_while_the_others_are_in_a_collective_ends_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def meet(label: str, value: Any, within: float | None = None) -> list[Any]:
        assert within is not None, "would wait for ever"
        raise TimeoutError

    def ended(error: Exception) -> None:
        raise SystemExit(str(error))

    monkeypatch.setattr(hosts, "_link", SimpleNamespace(count=2, number=1, meet=meet))
    monkeypatch.setattr(hosts, "_end_with", ended)
    with pytest.raises(SystemExit, match="disk is full"), hosts.agreeing("save"):
        raise OSError("disk is full")


def test_processes_that_see_the_same_gpus_take_an_equal_part_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without GPUs: what JAX is told that each process may use, as names of them say."""
    told: dict[int, Any] = {}
    initialize = lambda address, count, number, own, **_: told.update({number: own})
    fake = SimpleNamespace(initialize=initialize)
    config = SimpleNamespace(update=lambda *_: None)
    monkeypatch.setattr(
        hosts, "jax", SimpleNamespace(config=config, distributed=fake, devices=list)
    )
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.delenv("SLURM_GPUS_PER_TASK", raising=False)
    for visible, wanted in (("2,3,5,7", {0: [0, 1], 1: [2, 3]}), ("4", {0: None, 1: None})):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        threads = [threading.Thread(target=hosts._start_jax, args=[x]) for x in together({}, {})]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told == wanted

    a, b = ["a", "", [], ["0", "1"]], ["b", "", [], ["0", "1"]]
    assert [own_gpus([a, b, a, b], n) for n in range(4)] == [[0], [0], [1], [1]]
    of = lambda tres: seen({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_TRES_PER_TASK": tres})[-1]
    assert of("cpu=4") == ["0", "1"] and of("cpu=4,gres/gpu:1") == []
    assert own_gpus([a, b], 0) is own_gpus([["c", "", [], []]] * 3, 2) is None
    with pytest.raises(ValueError, match="3 processes of a run see the same 2 GPUs of a"):
        own_gpus([a, a, b, a], 3)
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "2")
    assert seen()[-1] == []


def test_where_a_process_is_told_its_seat() -> None:
    assert seat_of("node1:7000,2,1", {}) == Seat("node1:7000", 2, 1)
    assert seat_of(None, {}) is None and seat_of("node1:7000,1,0", {}) is None
    slurm = dict(SLURM_JOB_ID="8191", SLURM_NTASKS="4", SLURM_PROCID="3")
    for nodes, first in (("a7", "a7"), ("a[07-09],b2", "a07"), ("x,y", "x"), ("n-[3,5]", "n-3")):
        seat = seat_of("slurm", slurm | dict(SLURM_STEP_NODELIST=nodes))
        assert seat == Seat(f"{first}:65535", 4, 3)
    given = dict(JAX_COORDINATOR_ADDRESS="[::1]:80", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="0")
    assert seat_of(None, given) == Seat("[::1]:80", 2, 0)
    for text, environment, said in (
        ("node1", {}, "HOST:PORT,COUNT,NUMBER"),
        ("node1:7000,2,2", {}, "its own number from 0 on"),
        ("slurm", {}, "under srun needs the environment variables SLURM_JOB_ID"),
        (None, dict(JAX_COORDINATOR_ADDRESS="a:1"), "JAX_NUM_PROCESSES, JAX_PROCESS_ID as well"),
    ):
        with pytest.raises(ValueError, match=said):
            seat_of(text, environment)


# --- Whole runs.


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    model, data = write_tiny_model(folder / "decoder"), write_completions(folder / "a.jsonl", 64)
    (folder / "config.py").write_text(CONFIG.format(model=str(model), data=str(data), steps=STEPS))
    return folder / "config.py"


def start(config: Path, out: Path, count: int, *more: str, devices: int = 4) -> list[Any]:
    """The processes of `lora-jax train`."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices // count}")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "lora_jax", "train", "--config", str(config), "--quiet"]
    command += [f"--config.out={out}", *more]
    address = f"127.0.0.1:{free_port()}"
    seats = [[f"--hosts={address},{count},{number}"] for number in range(count)]
    return [
        subprocess.Popen(
            [*command, *seat], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for seat in seats
    ]  # fmt: skip


def ended(processes: list[Any]) -> tuple[list[int], list[str]]:
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], said


def folder_of(out: Path) -> Path:
    (folder,) = (path.parent for path in out.glob("*/config.json"))
    return folder


def losses(out: Path, split: str = "train") -> list[float]:
    lines = (folder_of(out) / "metrics.jsonl").read_text().splitlines()
    rows = map(json.loads, lines)
    return [row["loss"] for row in rows if row["split"] == split]


def wait_for_rows(out: Path, count: int, processes: list[Any]) -> None:
    while all(process.poll() is None for process in processes):
        if any(len(p.read_bytes().splitlines()) >= count for p in out.glob("*/metrics.jsonl")):
            return
        time.sleep(0.05)
    raise AssertionError(ended(processes))


@pytest.fixture(scope="module")
def alone(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one process on a mesh of the same shape."""
    out = tmp_path_factory.mktemp("one")
    assert ended(start(config, out, 1))[0] == [0]
    return out


@pytest.mark.slow
def test_two_processes_stop_as_one_and_are_one_run_to_the_last_digit(
    config: Path, alone: Path, tmp_path: Path
) -> None:
    processes = start(config, tmp_path, 2)
    wait_for_rows(tmp_path, 7, processes)
    processes[1].send_signal(signal.SIGTERM)  # to one of them
    statuses, said = ended(processes)
    assert statuses == [130, 130], said
    last = max(int(path.name) for path in (folder_of(tmp_path) / "checkpoints").iterdir())
    assert 7 <= last < STEPS and len(losses(tmp_path)) == last
    assert f"Stopped at step {last}" in said[0] and "Stopped" in said[1]

    statuses, said = ended(start(config, tmp_path, 2))
    assert statuses == [0, 0], said
    # On this mesh every sum over devices has two terms; of more terms gloo chooses the order.
    for split, count in (("train", STEPS), ("validation", 1), ("test", 1)):
        assert losses(tmp_path, split) == losses(alone, split)
        assert len(losses(alone, split)) == count
    folders = [folder_of(out) for out in (alone, tmp_path)]
    adapters = [(folder / "adapter" / "adapter.safetensors").read_bytes() for folder in folders]
    assert adapters[0] == adapters[1]
    wrote = [{path.relative_to(one).parts[0] for path in one.rglob("*")} for one in folders]
    assert wrote[0] == wrote[1]


@pytest.mark.long
def test_a_killed_process_ends_the_other_and_any_mesh_goes_on(
    config: Path, alone: Path, tmp_path: Path
) -> None:
    processes = start(config, tmp_path, 2)
    wait_for_rows(tmp_path, 7, processes)
    processes[1].kill()
    began = time.monotonic()
    statuses, said = ended(processes)
    assert statuses == [1, -9] and time.monotonic() - began < 60
    assert "error: process 1 (" in said[0] and "the same command goes on" in said[0]

    # On one device for a while, and on a mesh of another shape to the end.
    processes = start(config, tmp_path, 1, "--config.mesh.data=1", "--config.mesh.model=1")
    wait_for_rows(tmp_path, 20, processes)
    processes[0].send_signal(signal.SIGTERM)
    assert ended(processes)[0] == [130]
    before = len(losses(tmp_path))
    sharded = [f"--config.mesh.{key}" for key in ("data=1", "model=1", "fsdp=4")]
    statuses, said = ended(start(config, tmp_path, 2, *sharded))
    assert statuses == [0, 0], said
    assert 20 <= before < STEPS == len(losses(tmp_path))
    for split in ("train", "validation", "test"):
        assert losses(tmp_path, split) == pytest.approx(losses(alone, split), rel=1e-5)
