"""Workers share a store: every run is trained once, a killed worker loses only steps, and failures
are told.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_jax import cli
from lora_jax.config import Config, load_config
from lora_jax.metrics.score import Score
from lora_jax.sweeps.executors import launching, processes, ray_cluster, slurm
from lora_jax.sweeps.executors.launching import run_on
from lora_jax.sweeps.executors.work import Launch, share, unfinished
from lora_jax.sweeps.executors.worker import Part
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.lock import Lock
from lora_jax.sweeps.runner import Outcome
from lora_jax.sweeps.store import RunStore
from lora_jax.training.result import RunResult

ROOT = Path(__file__).parents[3]
GRID = {
    "config.sweep.rank": "1,2",
    "config.sweep.format": "none",
    "config.sweep.targets": "query+value",
    "config.sweep.baselines": "",
}


def tiny_sweep(tiny: dict[str, str], out: Path, **more: str):
    values = {**tiny, **GRID, "config.out": str(out), **more}
    return load_config(
        str(ROOT / "configs" / "default.py"), [f"{key}={value}" for key, value in values.items()]
    )


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Workers import the library that is tested."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def starts(store: RunStore) -> dict[str, int]:
    """How often each run was started."""
    found: dict[str, int] = {}
    for line in store.history():
        if line["status"] == "running":
            found[line["run_id"]] = found.get(line["run_id"], 0) + 1
    return found


def test_shares_are_disjoint_and_whole(tiny, tmp_path):
    config = tiny_sweep(
        tiny,
        tmp_path,
        **{
            "config.sweep.rank": "1,2,4",
            "config.sweep.format": "none,nf4",
            "config.sweep.baselines": "head",
        },
    )
    for workers in (1, 2, 3, 10):
        launch = Launch(config, workers, time.time(), (), str(tmp_path))
        parts = [run_id(run) for number in range(workers) for run in share(launch, number)]
        assert sorted(parts) == sorted(run_id(run) for run in expand(config))
    assert len(unfinished(launch)) == 7


def test_runs_that_failed_in_this_launch_are_not_left_and_those_before_are(tiny, tmp_path):
    config = tiny_sweep(tiny, tmp_path)
    first, second = expand(config)
    store = RunStore(tmp_path)
    for run in (first, second):
        store.start(run_id(run), run, {})
    store.fail(run_id(first), ValueError("no"))
    before = Launch(config, 1, time.time() + 5, (), str(tmp_path))
    after = Launch(config, 1, time.time() - 60, (), str(tmp_path))
    assert [run_id(run) for run in unfinished(before)] == [run_id(first)]
    assert unfinished(after) == []  # the second is running
    store.release(run_id(second))
    assert [run_id(run) for run in unfinished(after)] == [run_id(second)]
    # Done, but for the scores of the test split.
    store.start(run_id(second), second, {})
    untested = {"validation": {"loss": Score("loss", 0.5, higher_is_better=False)}}
    store.finish(run_id(second), RunResult(untested, primary="accuracy"))
    assert [run_id(run) for run in unfinished(after)] == [run_id(second)]
    assert unfinished(replace(after, score_test=False)) == []


def test_one_run_is_trained_by_an_executor_in_place_of_here(monkeypatch, tmp_path, capsys):
    asked = {}

    def instead(config, executor, workers, **more):
        asked.update(executor=executor, workers=workers, runs=len(expand(config)), **more)
        (run,) = expand(config)
        store = RunStore(config.out)
        store.start(run_id(run), run, {})
        store.fail(run_id(run), ValueError("no such machine"))
        return Outcome((), (), (run_id(run),), ())

    monkeypatch.setattr(launching, "run_on", instead)
    command = ["train", "--config", "rotten_tomatoes:lora", "--quiet", "--executor", "slurm"]
    command += [f"--config.out={tmp_path}", "--executor-option", "nodes=2"]
    assert cli.main(command) == 1
    assert (asked["executor"], asked["workers"], asked["runs"]) == ("slurm", 1, 1)
    assert asked["options"] == {"nodes": "2"} and asked["score_test"]
    for more in ("--config.memory_budget=2GB", "--hosts=node:7000,2,0"):
        capsys.readouterr()
        assert cli.main([*command, more]) == 2
        assert "--executor trains elsewhere" in capsys.readouterr().err


def test_cores_and_gpus_are_divided():
    assert [processes.cores_of(number, 2, [0, 1, 2, 3]) for number in (0, 1)] == [[0, 2], [1, 3]]
    assert processes.cores_of(0, 8, [0, 1]) == [] and processes.cores_of(0, 1, [0, 1]) == []
    assert processes.device_settings(1, 2, ["0", "1"], {}) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert processes.device_settings(3, 4, ["4", "7"], {}) == {
        "CUDA_VISIBLE_DEVICES": "7",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45",
    }
    assert processes.device_settings(0, 2, [], {}) == {}


def test_two_workers_train_every_run_once(tiny, tmp_path):
    said: list[str] = []
    config = tiny_sweep(tiny, tmp_path, **{"config.sweep.seeds": "0,1"})
    outcome = run_on(config, "processes", 2, say=said.append, command=("a", "command"))
    store = RunStore(tmp_path)
    assert len(outcome.done) == 4 and outcome.failed == () and outcome.elsewhere == ()
    assert set(starts(store).values()) == {1}
    assert {record.environment["command"] for record in store.runs()} == {"a command"}
    assert {line.split(":")[0] for line in said} == {"worker 0", "worker 1"}
    again = run_on(config, "processes", 2, say=said.append)
    assert len(again.kept) == 4 and again.done == () and set(starts(store).values()) == {1}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_is_asked_to_stop_while_it_imports_says_no_traceback(number, tmp_path):
    said: list[str] = []
    process = processes._spawn(tmp_path / "no order yet", 0, 1, said.append)
    status, terminates = Path(f"/proc/{process.pid}/status"), 1 << (signal.SIGTERM - 1)

    def answers() -> bool:
        caught = next(line for line in status.read_text().splitlines() if "SigCgt" in line)
        return bool(int(caught.split()[1], 16) & terminates)

    while not answers():
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait(60) == 128 + number and not any("Traceback" in line for line in said)


def test_a_worker_that_is_killed_is_replaced_and_only_its_steps_are_lost(tiny, tmp_path):
    """The worker is killed in mid-run, after a checkpoint; the curve is that of a run without
    it.
    """
    config = tiny_sweep(
        tiny,
        tmp_path / "killed",
        **{"config.train.total_steps": "40000", "config.train.checkpoint_every": "20"},
    )
    config = replace(config, sweep=replace(config.sweep, rank=(2,)))
    (run,) = expand(config)
    store = RunStore(config.out)
    folder = store.folder(run_id(run))
    said: list[str] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (folder / "checkpoints" / "20").is_dir():
            time.sleep(0.05)
        os.kill(Lock(folder / "lock").owner()["pid"], signal.SIGKILL)
        # The next one goes on from the checkpoint; it is stopped politely long before the 40,000
        # steps.
        reached = len(store.metrics(run_id(run)))
        while time.monotonic() < deadline and (
            starts(store)[run_id(run)] < 2 or len(store.metrics(run_id(run))) < reached + 20
        ):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        run_on(config, "processes", 1, say=said.append)
    killer.join()
    assert "was killed by signal 9" in " ".join(said) and starts(store) == {run_id(run): 2}
    assert store.status(run_id(run)) == "interrupted"
    steps = [row["step"] for row in store.metrics(run_id(run)) if row["split"] == "train"]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 20


def test_two_launchers_on_one_store_never_run_the_same_run_twice(tiny, tmp_path):
    config = tiny_sweep(tiny, tmp_path, **{"config.sweep.seeds": "0,1,2"})
    overrides = {**tiny, **GRID, "config.sweep.seeds": "0,1,2", "config.out": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "lora_jax",
        "sweep",
        "--config",
        str(ROOT / "configs" / "default.py"),
        "--quiet",
        "--no-report",
    ]
    command += [f"--{key}={value}" for key, value in overrides.items()]
    launchers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [launcher.communicate()[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], told
    store = RunStore(tmp_path)
    assert len(expand(config)) == 6 and all(record.status == "done" for record in store.runs())
    assert starts(store) == dict.fromkeys([run_id(run) for run in expand(config)], 1)


def test_a_failing_run_is_tried_once_however_many_workers_there_are(tiny, tmp_path):
    config = tiny_sweep(
        tiny, tmp_path, **{"config.sweep.rank": "20,1"}
    )  # rank 20 is too large for the tiny model
    outcome = run_on(config, "processes", 2, say=lambda text: None)
    assert len(outcome.failed) == 1 and len(outcome.done) == 1
    assert set(starts(RunStore(tmp_path)).values()) == {1}


def test_what_there_is_not_is_an_error(tiny, tmp_path, capsys):
    config = tiny_sweep(tiny, tmp_path)
    with pytest.raises(ValueError, match="Nearest: 'processes'"):
        run_on(config, "process", 2)
    with pytest.raises(ValueError, match="at least one worker"):
        run_on(config, "processes", 0)
    with pytest.raises(ValueError, match="no option 'gpus'"):
        run_on(config, "processes", 1, options={"gpus": "1"})
    arguments = [
        "sweep",
        "--config",
        str(ROOT / "configs" / "default.py"),
        "--quiet",
        f"--config.out={tmp_path}",
    ]
    assert cli.main([*arguments, "--executor", "ray", "--executor-option", "cpus"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def fake_slurm(results, refused=None, stop=None):
    """submitit, whose jobs give these results or raise them; with `stop`, a signal, which comes
    when they have been submitted.
    """
    cancelled = []

    class Job:
        def __init__(self, number):
            self.job_id, self._result = f"7_{number}", results[number]

        def done(self):
            return True

        def cancel(self, check):
            cancelled.append(self.job_id)

        def results(self):
            """One of each task of the job: of several, `result` is refused."""
            if isinstance(self._result, Exception):
                raise self._result
            return [self._result, 0]

    class Executor:
        def __init__(self, folder, cluster):
            self.folder, self.cluster = folder, cluster

        def update_parameters(self, **chosen):
            if refused:
                raise refused

        def map_array(self, work, numbers):
            if stop:
                signal.raise_signal(stop)
            return [Job(number) for number in numbers]

    return SimpleNamespace(AutoExecutor=Executor, cancelled=cancelled)


def fake_ray(results, stop=None):
    """ray, whose tasks give these results or raise them; with `stop` as `fake_slurm`."""
    errors = SimpleNamespace(RayError=RuntimeError)
    called = {}

    def get(number):
        if isinstance(results[number], Exception):
            raise results[number]
        return results[number]

    def init(**settings):
        called.update(settings)
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))

    def remote(order, number):
        if stop and number == len(results) - 1:
            signal.raise_signal(stop)
        return number

    task = SimpleNamespace(remote=remote)
    return SimpleNamespace(
        is_initialized=lambda: False,
        init=init,
        cancel=lambda number: called.setdefault("cancelled", []).append(number),
        remote=lambda **settings: called.update(settings) or (lambda function: task),
        wait=lambda tasks, num_returns, timeout: (tasks[:1], tasks[1:]),
        get=get,
        shutdown=lambda: called.update(down=True),
        exceptions=errors,
        called=called,
    )


ENDS = [3, RuntimeError("a traceback\n  of lines\nStoreError: the disk is full"), ValueError("")]


def test_what_became_of_slurm_jobs_is_said(tmp_path, monkeypatch):
    launch, said = Launch(replace(Config(), out=str(tmp_path)), 3, 0.0, (), "/"), []
    monkeypatch.setitem(sys.modules, "submitit", fake_slurm(ENDS))
    assert slurm.start(launch, {"timeout_min": "5"}, said.append) == 2
    assert said == [
        f"submitted jobs 7_0, 7_1, 7_2; logs in {tmp_path / 'slurm'}",
        "worker 0 (job 7_0): 3 runs finished",
        "worker 1 (job 7_1) ended with: StoreError: the disk is full",
        "worker 2 (job 7_2) ended with: ValueError",
    ]
    refused = fake_slurm([], NameError("no colour"))
    monkeypatch.setitem(sys.modules, "submitit", refused)
    with pytest.raises(ValueError, match="submitit does not take these options: no colour"):
        slurm.start(launch, {"colour": "red"}, said.append)


def test_what_became_of_ray_tasks_is_said(tmp_path, monkeypatch):
    launch, said = Launch(replace(Config(), out=str(tmp_path)), 3, 0.0, (), "/"), []
    ends = [ENDS[0], ENDS[1], RuntimeError("")]
    monkeypatch.setitem(sys.modules, "ray", ray := fake_ray(ends))
    assert ray_cluster.start(launch, {"cpus": "2"}, said.append) == 2
    assert said == [
        "worker 0: 3 runs finished",
        "worker 1 ended with: StoreError: the disk is full",
        "worker 2 ended with: RuntimeError",
    ]
    # A cluster that was started here is of the size that is asked for, and ends with the sweep.
    assert ray.called["num_cpus"] == 2 and ray.called["max_calls"] == 1 and ray.called["down"]
    with pytest.raises(ValueError, match="Executor ray has no option 'colour'. Its options"):
        ray_cluster.start(launch, {"colour": "red"}, said.append)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launcher_that_is_asked_to_stop_cancels_its_jobs_and_tasks(tmp_path, monkeypatch, number):
    launch, said = Launch(replace(Config(), out=str(tmp_path)), 2, 0.0, (), "/"), []
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setitem(sys.modules, "submitit", submitit := fake_slurm([1, 1], stop=number))
    with pytest.raises(KeyboardInterrupt):
        slurm.start(launch, {}, said.append)
    assert submitit.cancelled == ["7_0", "7_1"] and said[-1] == "cancelled the jobs"
    monkeypatch.setitem(sys.modules, "ray", ray := fake_ray([1, 1], stop=number))
    with pytest.raises(KeyboardInterrupt):
        ray_cluster.start(launch, {}, said.append)
    assert ray.called["cancelled"] == [0, 1] and ray.called["down"]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


WORKER = """
import importlib, sys
name, order = sys.argv[1:]
executor = importlib.import_module("lora_jax.sweeps.executors." + name)
work = executor.Work({"config": 5}) if order == "job" else executor._work
assert not {"jax", "numpy", "ml_collections"} & set(sys.modules)
class Stops:  # in the midst of an import of the worker's
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            import signal
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Stops())
work(0) if order == "job" else work({"config": 5}, 0)
"""


@pytest.mark.parametrize(("name", "order"), [("slurm", "job"), ("ray_cluster", "task")])
def test_a_job_or_task_that_is_asked_to_stop_while_it_imports_says_no_traceback(name, order):
    done = subprocess.run(
        [sys.executable, "-c", WORKER, name, order], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "lora-jax: stopped.\n")


def test_a_task_of_a_job_knows_its_part():
    slurm_job = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}
    assert slurm.part_of(slurm_job) == Part(1, 2, "slurm-7-0")
    assert slurm.part_of(slurm_job | {"SLURM_RESTART_COUNT": "3"}).name == "slurm-7-3"
    local = {"GLOBALID": "0", "NTASKS": "2", "JOB_ID": "5"}
    local = {f"SUBMITIT_LOCAL_{name}": value for name, value in local.items()}
    assert slurm.part_of(slurm_job | local) == Part(0, 2, "slurm-5-0")
    assert slurm.part_of({}).count == 1


TASK = """
import json, sys
from lora_jax.sweeps.executors.slurm import Work
print(Work(json.loads(open(sys.argv[1]).read()))(0), "finished")
"""
MESH = {"config.mesh.data": "2", "config.mesh.fsdp": "2", "config.sweep.stack": "1"}
TWO_DEVICES = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")


def check_trained_once(config: Config) -> None:
    store = RunStore(config.out)
    assert [record.status for record in store.runs()] == ["done"] * len(expand(config))
    assert starts(store) == dict.fromkeys([run_id(run) for run in expand(config)], 1)
    assert not any((Path(config.out) / ".meetings").iterdir())


@pytest.mark.long
def test_two_tasks_of_a_job_are_one_worker(tiny, tmp_path):
    """The tasks of a SLURM job of two nodes, as processes here."""
    config = tiny_sweep(tiny, tmp_path / "runs", **MESH)
    launch = Launch(config, 1, time.time(), ("a", "command"), str(tmp_path))
    (tmp_path / "order.json").write_text(json.dumps(launch.order()))
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "XLA_FLAGS": TWO_DEVICES}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", TASK, str(tmp_path / "order.json")],
            env=os.environ | job | {"SLURM_PROCID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "2 finished" in said[0][0] and "0 finished" in said[1][0]
    check_trained_once(config)


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
from lora_jax import cli
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
options = [f"address={cluster.address}", "nodes=2"]
status = cli.main([*sys.argv[1:], *(f"--executor-option={one}" for one in options)])
cluster.shutdown()
sys.exit(status)
"""


@pytest.mark.long
def test_a_worker_on_two_nodes_of_a_ray_cluster(tiny, tmp_path):
    pytest.importorskip("ray", reason="the ray executor needs Ray")
    config = tiny_sweep(tiny, tmp_path, **MESH)
    values = {**tiny, **GRID, **MESH, "config.out": str(tmp_path)}
    command = [sys.executable, "-c", CLUSTER, "sweep", "--quiet", "--no-report"]
    command += ["--config", str(ROOT / "configs" / "default.py"), "--executor", "ray"]
    command += [f"--{key}={value}" for key, value in values.items()]
    environment = os.environ | {"XLA_FLAGS": TWO_DEVICES}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "2 runs trained" in done.stderr, done.stderr
    check_trained_once(config)


@pytest.mark.long
def test_ray_workers_share_the_store(tiny, tmp_path):
    """As a command: Ray forks, and JAX, which other tests have started in this process, warns of
    that.
    """
    pytest.importorskip("ray", reason="the ray executor needs Ray")
    config = tiny_sweep(tiny, tmp_path, **{"config.sweep.seeds": "0,1"})
    values = {**tiny, **GRID, "config.sweep.seeds": "0,1", "config.out": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "lora_jax",
        "sweep",
        "--config",
        str(ROOT / "configs" / "default.py"),
        "--quiet",
        "--no-report",
    ]
    command += [
        "--executor",
        "ray",
        "--workers",
        "2",
        *(f"--{key}={value}" for key, value in values.items()),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "4 runs trained" in done.stderr, done.stderr
    assert starts(RunStore(tmp_path)) == dict.fromkeys([run_id(run) for run in expand(config)], 1)


@pytest.mark.long
def test_slurm_workers_share_the_store(tiny, tmp_path):
    pytest.importorskip("submitit", reason="the slurm executor needs submitit")
    said: list[str] = []
    config = tiny_sweep(tiny, tmp_path, **{"config.sweep.seeds": "0,1"})
    outcome = run_on(
        config, "slurm", 2, options={"cluster": "local", "timeout_min": "5"}, say=said.append
    )
    assert (
        len(outcome.done) == 4
        and outcome.failed == ()
        and set(starts(RunStore(tmp_path)).values()) == {1}
    ), said
    with pytest.raises(ValueError, match="does not take"):
        run_on(
            replace(config, out=str(tmp_path / "other")),
            "slurm",
            1,
            options={"cluster": "local", "colour": "red"},
        )
