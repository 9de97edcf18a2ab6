"""`lora-jax export merged`: what is left of an adapter's gain, and a run that learns it for its last steps."""

import json

import jax
import numpy as np
import pytest

import lora_jax
from lora_jax import cli
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray
from lora_jax.io.quantized import load_quantized
from lora_jax.io.weights import load_encoder
from lora_jax.sweeps.store import RunStore
from lora_jax.training.recovery import Recovery
from lora_jax.training.saved import load_run
from tests.test_cli import ROTTEN, arguments, complaint


def test_recovery_is_the_share_of_the_gain_that_is_left():
    assert Recovery("validation", base=2.0, adapter=1.0, merged=1.25).share == 0.75
    assert Recovery("validation", base=2.0, adapter=1.0, merged=2.5).share == -0.5
    assert np.isnan(Recovery("validation", base=1.0, adapter=1.0, merged=1.0).share)


def test_a_merge_that_loses_the_gain_is_refused_and_last_steps_merge_aware_keep_all_of_it(
    tiny, tmp_path, capsys
):
    # Two bits, and steps so small that they move no code.
    few = {"config.quant.format": "nf2", "config.optim.learning_rate": "0.002"}
    assert cli.main(arguments("train", tiny, tmp_path / "a", f"{ROTTEN}:qlora", **few)) == 0
    (plain,) = RunStore(tmp_path / "a").runs()
    capsys.readouterr()
    out = tmp_path / "merged"
    assert cli.main(["export", "merged", str(plain.folder), str(out), "--least", "0.999999"]) == 2
    assert "Nothing was written" in complaint(capsys) and not out.exists()

    # Dense, in files of a size, which the loader finds by their index.
    dense = ["export", "merged", str(plain.folder), str(tmp_path / "dense"), "--format", "none"]
    assert cli.main([*dense, "--max-shard-size", "lots"]) == 2
    assert "--max-shard-size needs a size such as 2GiB" in complaint(capsys)
    assert cli.main([*dense, "--split", "test"]) == 2
    assert "of a model that is quantised again" in complaint(capsys)
    assert cli.main([*dense, "--max-shard-size", "20KB"]) == 0
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 1
    run = load_run(plain.folder)
    exact = flatten(lora_jax.merge(run.frozen, run.trainable)[0])
    scan = run.config.model.scan
    read = flatten(load_encoder(tmp_path / "dense", num_classes=2, scan=scan)[1])
    assert {path: x.shape for path, x in read.items()} == {p: x.shape for p, x in exact.items()}
    assert all(np.array_equal(read[path], x) for path, x in exact.items())
    capsys.readouterr()

    # Into more bits, with the errors of rounding fed back by the inputs of one batch.
    finer = ["--format", "nf8", "--feedback", "1", "--split", "train", "--anyway"]
    assert cli.main(["export", "merged", str(plain.folder), str(tmp_path / "nf8"), *finer]) == 0
    fed = json.loads(capsys.readouterr().out)
    assert fed["split"] == "train" and fed["merged"] == pytest.approx(fed["adapter"], rel=1e-2)
    stored, _ = load_quantized(tmp_path / "nf8")
    boxes = jax.tree.leaves(stored, is_leaf=lambda x: isinstance(x, QuantizedArray))
    formats = {x.spec.format for x in boxes if isinstance(x, QuantizedArray)}
    assert formats == {"nf8"}
    # The same without feedback is another rounding.
    assert (
        cli.main(
            ["export", "merged", str(plain.folder), str(tmp_path / "near"), *finer[:2], "--anyway"]
        )
        == 0
    )
    near, _ = load_quantized(tmp_path / "near")
    differ = jax.tree.map(lambda x, y: np.any(np.asarray(x) != np.asarray(y)), stored, near)
    assert any(jax.tree.leaves(differ))
    capsys.readouterr()

    last = few | {
        "config.lora.merge_aware": "true",
        "config.lora.init_from": str(plain.folder / "adapter"),
    }
    assert cli.main(arguments("train", tiny, tmp_path / "b", f"{ROTTEN}:qlora", **last)) == 0
    (aware,) = RunStore(tmp_path / "b").runs()
    capsys.readouterr()
    assert cli.main(["export", "merged", str(aware.folder), str(out), "--anyway"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["merged"] == pytest.approx(said["adapter"], rel=1e-6)
    assert all(site["rounding"] == 0 for site in said["worst"].values())
    tree, metadata = load_quantized(out)
    assert metadata["model"] and len(jax.tree.leaves(tree)) > 10
    assert json.loads((out / "merge.json").read_text())["sites"]
