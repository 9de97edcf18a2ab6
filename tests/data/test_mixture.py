"""A mixture draws tasks by temperature, every example of a task once before any comes again, and
the same after a restart.
"""

import json

import numpy as np
import pytest
from tiny_language import write_completions, write_tiny_model

from lora_jax.data.completions import EncodedCompletions, mixture_order, mixture_rates
from lora_jax.data.token_packing import PackedBatches


def test_rates_go_from_sizes_to_equal():
    np.testing.assert_allclose(mixture_rates([800, 200], 1.0), [0.8, 0.2])
    np.testing.assert_allclose(mixture_rates([800, 200], 2.0), [2 / 3, 1 / 3])
    np.testing.assert_allclose(mixture_rates([800, 200], 1e9), [0.5, 0.5], atol=1e-6)
    for sizes, temperature in (([0, 5], 1.0), ([5], 0.5)):
        with pytest.raises(ValueError, match="not empty and a temperature of 1 or more"):
            mixture_rates(sizes, temperature)


def test_every_example_comes_once_before_any_comes_again_over_epochs():
    groups = np.repeat([0, 1], [90, 10])
    epochs = [mixture_order(groups, 1e9, seed=0, epoch=n) for n in range(3)]
    assert all(len(order) == 100 for order in epochs)
    drawn = np.concatenate(epochs)
    small, large = drawn[groups[drawn] == 1], drawn[groups[drawn] == 0]
    # Half of 300 draws each, three binomial deviations.
    assert 124 <= len(small) <= 176
    assert all(len(set(small[n : n + 10])) == 10 for n in range(0, len(small) - 9, 10))
    assert len(set(large[:90])) == min(90, len(large))
    np.testing.assert_array_equal(epochs[2], mixture_order(groups, 1e9, seed=0, epoch=2))
    assert not np.array_equal(epochs[0], mixture_order(groups, 1e9, seed=1, epoch=0))


def test_padding_counts_the_examples_that_are_drawn():
    lengths = np.repeat([50, 4], [100, 10])
    encoded = EncodedCompletions(
        [np.full(length, 7, np.int32) for length in lengths],
        np.ones(110, np.int32),
        max_length=50,
        pad_id=0,
        truncated=0,
        groups=np.repeat([0, 1], [100, 10]),
        temperature=1e9,
    )
    batches = PackedBatches(encoded, 10, seed=0)
    first = [batches[n] for n in range(len(batches.plan(0)))]
    filled, slots = (sum(int(f(b["mask"])) for b in first) for f in (np.sum, np.size))
    assert batches.padding_fraction == pytest.approx(1 - filled / slots)
    apart = PackedBatches(encoded, 10, seed=0, packed=False)
    assert apart.fingerprint() != batches.fingerprint() == PackedBatches(encoded, 10).fingerprint()


def test_a_run_on_a_mixture_trains_and_scores_each_task(tmp_path, capsys):
    from lora_jax import cli

    write_completions(tmp_path / "a.jsonl", 60)
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"{n}", "completion": "zz"}) for n in range(30))
    )
    config = tmp_path / "config.py"
    config.write_text(
        f"""
def get_config():
    parts = (dict(name={str(tmp_path / "a.jsonl")!r}, fields=dict(prompt="input", completion="ideal")), dict(name={str(tmp_path / "b.jsonl")!r}))
    return dict(model=dict(name={str(write_tiny_model(tmp_path / "model"))!r}), method="lora", lora=dict(rank=2),
        data=dict(task="completion", mixture=parts, mixture_temperature=2.0, max_length=24),
        train=dict(total_steps=4, batch_size=8, eval_batch_size=8), out={str(tmp_path / "runs")!r})
"""
    )
    assert cli.main(["data", "preview", "--config", str(config)]) == 0
    assert f"{tmp_path}/a.jsonl + {tmp_path}/b.jsonl: train " in capsys.readouterr().out
    assert cli.main(["train", "--quiet", "--config", str(config)]) == 0
    (run,) = [path.parent for path in (tmp_path / "runs").glob("*/result.json")]
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--resamples", "20", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert {name.rpartition("/")[2] for name in out["tasks"]} == {"a.jsonl", "b.jsonl"}
    assert sum(part["examples"] for part in out["tasks"].values()) == out["examples"]


@pytest.mark.parametrize("names", [("a.jsonl", "a.jsonl"), ("a.jsonl", "")])
def test_tasks_without_a_name_of_their_own_are_an_error(names):
    from lora_jax.config import from_config_dict

    with pytest.raises(ValueError, match="name of its own"):
        from_config_dict(
            dict(data=dict(task="completion", mixture=[dict(name=name) for name in names]))
        )
