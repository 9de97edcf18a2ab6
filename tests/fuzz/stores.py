"""Settings, stores of runs and checkpoints: valid ones, and what reads them."""

import json
from pathlib import Path
from typing import Any

import jax
import mutations as of
from made_up_sweep import ENVIRONMENT, result_of
from mutations import Kind

import lora_jax


def overrides(folder: Path) -> Kind:
    from lora_jax.sweeps.grid import expand, run_id

    folder.mkdir()
    (folder / "config.py").write_text("def get_config():\n    return dict(out='x')\n")
    words = [
        *("config.method=qlora", "config.lora.rank=4", "config.sweep.rank=1,2,4"),
        *("config.optim.learning_rate=1e-3", "config.quant.format=nf4", "config.out=runs/x"),
        *("config.data.label_names=a,b", "config.train.eval_every=None"),
        "config.sweep.axes='lora.alpha = 8, 16'",
    ]
    (folder / "words.txt").write_text("\n".join(words))

    def read(folder: Path) -> list[str]:
        text = (folder / "words.txt").read_bytes().decode("utf-8", "surrogateescape")
        config = lora_jax.load_config(str(folder / "config.py"), text.split("\n"))
        return [run_id(run) for run in expand(config)]

    return Kind({"words.txt": of.of_overrides}, read)


def _runs(root: Path) -> list[Any]:
    from lora_jax.config import from_config_dict
    from lora_jax.sweeps.grid import expand

    sweep = {"rank": [1], "format": ["none", "nf4"], "targets": ["query+value"], "seeds": [0, 1]}
    where = {"data": {"name": "x.csv"}, "sweep": {**sweep, "baselines": []}, "out": str(root)}
    return expand(from_config_dict(where))


def _made_store(root: Path) -> list[str]:
    """A store of a run that is done, one that failed, one that was let go; the first one's files."""
    from lora_jax.sweeps.grid import run_id
    from lora_jax.sweeps.store import RunStore

    store, runs = RunStore(root), _runs(root)
    store.write_plan([run_id(run) for run in runs])
    for number, run in enumerate(runs[:3]):
        folder = store.start(run_id(run), run, ENVIRONMENT)
        rows = ({"step": n, "split": "train", "loss": 1 / n, "time": 1e9 + n} for n in range(1, 9))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if number == 0:
            store.finish(run_id(run), result_of(run))
        elif number == 1:
            store.fail(run_id(run), RuntimeError("made up"))
        else:
            store.release(run_id(run))
    return [run_id(run) for run in runs[:3]]


def _store_files(name: str) -> dict[str, of.Mutator]:
    of_run = ("status.json", "result.json", "config.json", "environment.json")
    files = {f"{name}/{file}": of.of_json for file in of_run} | {"store.json": of.of_json}
    return files | {f"{name}/metrics.jsonl": of.of_lines, "index.jsonl": of.of_lines}


def store(folder: Path) -> Kind:
    """All that lists a store and shows it."""
    from lora_jax.sweeps.export import export_runs
    from lora_jax.sweeps.store import RunStore
    from lora_jax.sweeps.watch import frame, look

    def read(folder: Path) -> Any:
        store = RunStore(folder)
        records = store.runs()
        for record in records:
            store.metrics(record.run_id), store.status(record.run_id)
        store.planned(), store.history()
        export_runs(folder, folder / "out.csv")
        frame(look(folder))
        return [(record.run_id, record.status, record.error) for record in records]

    names = _made_store(folder)
    return Kind(_store_files(names[0]) | {"plan.json": of.of_json}, read, writes=True)


def resume(folder: Path) -> Kind:
    """What a launcher does to a store that is there: plan, claim every run, open its log."""
    from lora_jax.sweeps.grid import run_id
    from lora_jax.sweeps.leases import Leases
    from lora_jax.sweeps.store import RunStore
    from lora_jax.training.metrics import MetricsLog

    def read(folder: Path) -> Any:
        runs, store = _runs(folder), RunStore(folder)
        store.write_plan([run_id(run) for run in runs])
        leases = Leases(store, ENVIRONMENT, lambda text: None)
        for run in runs:
            where = leases.claim(run_id(run), run, "t")
            if where is not None:
                log = MetricsLog(where)
                log.resume(4, 8)
                log.close()
                leases.store.release(run_id(run))
        return len(leases.kept), len(leases.failed)

    names = _made_store(folder)
    files = _store_files(names[2]) | _store_files(names[0]) | {"plan.json": of.of_json}
    del files[f"{names[2]}/result.json"]
    return Kind(files, read, writes=True)


def saved_run(folder: Path) -> Kind:
    """The settings of a run as they are read when it is loaded again."""
    from lora_jax.config import config_hash, from_config_dict, to_dict
    from lora_jax.core.json_files import read_json

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(_runs(folder)[0])))

    def read(folder: Path) -> str:
        return config_hash(from_config_dict(read_json(folder / "config.json")))

    return Kind({"config.json": of.of_json}, read)


def checkpoint(folder: Path) -> Kind:
    from small_task import PLAIN, make

    from lora_jax.training.checkpoint import Checkpoints

    state = lora_jax.create_state(make()[1], lora_jax.make_optimizer(PLAIN, 9), jax.random.key(0))
    saving = Checkpoints(folder, base="b", run="r")
    saving.save(state, {"at": 3})
    saving.close()

    def read(folder: Path) -> Any:
        reading = Checkpoints(folder, base="b", run="r")
        try:
            restored, data = reading.restore(state)
            return restored.replace(key=jax.random.key_data(restored.key)), data
        finally:
            reading.close()

    inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {str(path.relative_to(folder)): of.of_anything for path in inside}
    return Kind({name: how for name, how in files.items() if (folder / name).stat().st_size}, read)
