"""Language models side by side: completions in an order each, and a plan before it."""

import json

import pytest
from tiny_language import write_completions, write_tiny_model

from lora_jax.config import from_config_dict, to_dict
from lora_jax.sweeps.grid import expand
from lora_jax.sweeps.plan import plan
from lora_jax.training import programs
from lora_jax.training.loop import fit, train
from lora_jax.training.run import Run
from lora_jax.training.sharing import widest


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    return from_config_dict(
        dict(
            model=dict(name=str(write_tiny_model(folder / "model"))),
            data=dict(
                task="completion",
                name=str(write_completions(folder / "a.jsonl")),
                text="input",
                label="ideal",
                max_length=24,
            ),
            method="qlora",
            lora=dict(rank=2, targets="all-linear"),
            quant=dict(format="nf4", block_size=16),
            optim=dict(learning_rate=1e-2),
            train=dict(total_steps=4, batch_size=12, eval_batch_size=12, log_every=2),
            sweep=dict(rank=(1, 2), stack=2),
            out=str(folder / "runs"),
        )
    )


@pytest.mark.parametrize(
    ("seeds", "lanes"), [((0, 1), 1), pytest.param((0, 0), 2, marks=pytest.mark.slow)]
)
def test_completions_side_by_side_equal_each_alone(config, tmp_path, seeds, lanes, monkeypatch):
    monkeypatch.setattr(programs, "lanes_for", lambda slots: lanes)
    values = [
        dict(lora=dict(rank=rank), train=dict(seed=seed))
        for rank, seed in zip((1, 2), seeds, strict=True)
    ]
    runs = [from_config_dict(merged(config, value)) for value in values]
    outcomes = {}
    jobs = [Run(run, tmp_path / str(n)) for n, run in enumerate(runs)]
    fit(
        jobs,
        lambda job, outcome: outcomes.update({job.folder.name: outcome}),
        wide=widest(runs),
        slots=2,
        quiet=True,
    )
    for n, run in enumerate(runs):
        result = train(run, tmp_path / f"alone{n}", wide=widest(runs), quiet=True)
        assert outcomes[str(n)].value("test", "loss") == pytest.approx(
            result.value("test", "loss"), rel=1e-5
        )
        losses = [
            [
                json.loads(line)["loss"]
                for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
            ]
            for name in (str(n), f"alone{n}")
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def merged(config, values):
    base = to_dict(config)
    return base | {group: base[group] | fields for group, fields in values.items()}


def test_a_sweep_of_completions_can_be_planned(config):
    (group,) = plan(config, compiled=True)
    assert group.pack.slots == 2 and len(group.pack.runs) == len(expand(config)) == 2
    needs = group.needs
    assert needs.peak_bytes > needs.base_bytes > 0 and group.seconds > 0 and needs.shapes == (32,)
