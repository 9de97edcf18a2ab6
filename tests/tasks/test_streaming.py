"""A task's base stays in its files: what a run makes of it is what `adapt` makes of the loaded
weights, runs share the arrays that they hold, and the dense weights never are in memory together.
"""

import weakref
from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny_encoder import save_tiny_encoder
from tiny_families import write_encoder, write_t5
from tiny_language import write_completions, write_tiny_model
from tiny_tasks import write_task

from lora_jax import fingerprint
from lora_jax.config import MeshConfig, from_config_dict
from lora_jax.core.host import StoredWeight
from lora_jax.core.mesh import make_mesh
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray
from lora_jax.core.sharding import shardings
from lora_jax.io import stored_model
from lora_jax.io.stored_model import StoredModel
from lora_jax.tasks.opening import LastTask, open_task
from lora_jax.training.mesh import place_on

NF4 = {"format": "nf4", "block_size": 8, "double": True}
KINDS = ("encoder", "roberta", "decoder", "pairs")


def settings(kind, folder, scan):
    model, data = folder / "model", folder / "data.jsonl"
    if kind in ("encoder", "roberta"):
        model.mkdir()
        save_tiny_encoder(model) if kind == "encoder" else write_encoder(model, "roberta")
        write_task(data, "classification")
        fields = {"recipe": "classification", "max_length": 20}
    else:
        write_tiny_model(model) if kind == "decoder" else write_t5(model)
        write_completions(data)
        fields = {"task": "completion", "text": "input", "label": "ideal", "max_length": 40}
    return {
        "model": {"name": str(model), "scan": scan},
        "data": {"name": str(data), **fields},
        "lora": {"rank": 2, "targets": "query+value"},
    }


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_streamed_base_is_what_adapt_makes_of_loaded_weights(kind, scan, tmp_path, monkeypatch):
    """And its fingerprint is made of the same reading: no weight is read twice."""
    read, parts_of = [], stored_model.parts_of
    monkeypatch.setattr(
        stored_model, "parts_of", lambda name, tensors: read.append(name) or parts_of(name, tensors)
    )
    plain = settings(kind, tmp_path, scan)
    config = from_config_dict(plain | {"method": "qlora", "quant": NF4})
    task = open_task(config)
    streamed = task.trainable(config, jax.random.key(0))
    assert len(task.base) == 16 and len(read) == len(set(read))
    kernels = [leaf for leaf in flatten(streamed[0]).values() if isinstance(leaf, QuantizedArray)]
    assert kernels
    loaded = task._select(config, task.read(), jax.random.key(0))
    same(streamed, loaded)
    shapes = task.shapes(config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), streamed) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    known = {name: part for name, part in task.read().items() if name != "classifier"}
    assert kind == "encoder" or kind == "roberta" or fingerprint(known) == task.base


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_base_of_a_run_on_a_mesh_is_read_to_its_devices(method, tmp_path):
    quant = {"quant": NF4} if method == "qlora" else {}
    config = from_config_dict(settings("decoder", tmp_path, True) | {"method": method} | quant)
    task, key = open_task(config), jax.random.key(0)
    place = place_on(MeshConfig(fsdp=2), lambda: task.shapes(config))
    placed = task.trainable(config, key, place=place)
    assert len(task.base) == 16
    read = placed[0] if method == "qlora" else placed[1]
    laid = shardings(read, make_mesh(fsdp=2))
    for x, to in zip(jax.tree.leaves(read), jax.tree.leaves(laid), strict=True):
        assert x.sharding == to
    assert any(not to.is_fully_replicated for to in jax.tree.leaves(laid))
    same(placed, task.trainable(config, key))
    assert place_on(MeshConfig(), lambda: task.shapes(config)) is None


def test_runs_share_what_they_hold_and_nobody_else_holds_it(tmp_path):
    config = from_config_dict(settings("encoder", tmp_path, True))
    tasks = LastTask()
    task = tasks.of(config)
    first, second = (task.trainable(config, jax.random.key(seed))[0] for seed in (0, 1))
    path = "layers/mlp/up/kernel"
    one, two = (flatten(frozen)[path] for frozen in (first, second))
    assert one is two and isinstance(flatten(task.params)[path], StoredWeight)
    gone = weakref.ref(one)
    del first, second, one, two
    assert gone() is None
    other = replace(config, data=replace(config.data, max_length=16))
    assert tasks.of(config) is task and tasks.of(other) is not task


@pytest.mark.parametrize("init", ["kaiming", "pissa", "loftq"])
def test_of_a_quantised_weight_the_dense_form_is_read_for_its_initialiser_alone(
    init, tmp_path, monkeypatch
):
    read = []
    leaf = StoredModel.leaf
    noted = lambda self, path, spec=None, **where: (
        read.append((path, spec is None)) or leaf(self, path, spec, **where)
    )
    monkeypatch.setattr(StoredModel, "leaf", noted)
    plain = settings("decoder", tmp_path, True) | {"method": "qlora", "quant": NF4}
    config = from_config_dict(plain | {"lora": plain["lora"] | {"init": init}})
    task = open_task(config)
    assert read == []
    frozen, trainable = task.trainable(config, jax.random.key(0))
    quantised = {p for p, leaf in flatten(frozen).items() if isinstance(leaf, QuantizedArray)}
    dense = {path for path, whole in read if whole and path in quantised}
    assert len(quantised) > len(trainable) and dense == (
        set() if init == "kaiming" else set(trainable)
    )
