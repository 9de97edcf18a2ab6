"""Plans from config.json alone: what is planned is what the step with real arrays compiles to, and
what it then takes.
"""

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from lora_jax import cli
from lora_jax.analysis import footprint, memory_plan, plan
from lora_jax.analysis.devices import DEVICES, USABLE, Device
from lora_jax.analysis.memory_plan import changes, sizes_of
from lora_jax.config import MeshConfig, from_config_dict, with_value
from lora_jax.core.fake_devices import with_devices
from lora_jax.core.mesh import make_mesh
from lora_jax.data.batches import Batch
from lora_jax.data.token_packing import PackedBatch
from lora_jax.models.sizes import SIZES
from lora_jax.tasks.shapes import batch_shapes, shapes_task
from lora_jax.training import offload, optim
from lora_jax.training.collectives import Collective, collectives_of
from lora_jax.training.compile import _signature
from lora_jax.training.mesh import mesh_of
from lora_jax.training.programs import programs_for
from lora_jax.training.run import abstract_state, initial_state

GOLDEN = Path(__file__).parents[1] / "golden"


def config_json(folder: Path, kind: str) -> str:
    """A folder with nothing but the config.json of a tiny model."""
    source = GOLDEN / ("roberta" if kind == "encoder" else "decoders/llama3")
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    return str(folder)


def settings(name: str, kind: str, **more):
    data = {"max_length": 16} | ({} if kind == "encoder" else {"task": "completion"})
    found = dict(
        model=dict(name=name, remat=kind == "decoder"),
        data=data,
        lora=dict(rank=2),
        train=dict(batch_size=4, total_steps=2),
    )
    return from_config_dict(found | more)


def bytes_of_shards(tree) -> int:
    """Of what lies on the first device, from the arrays themselves."""
    leaves = [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return sum(x.addressable_shards[0].data.nbytes for x in leaves)


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [("encoder", {}), ("decoder", {}), ("decoder", dict(data=2, fsdp=2, model=2))],
    ids=["encoder", "decoder", "decoder on 8 devices"],
)
def test_a_plan_of_config_json_is_of_the_program_that_trains(kind, mesh, tmp_path):
    qlora = dict(method="qlora", quant=dict(format="nf4", block_size=8, double=False))
    name = config_json(tmp_path / "model", kind)
    config = settings(name, kind, mesh=mesh, **(qlora if kind == "decoder" else {}))
    made = plan(config)
    task = shapes_task(config, sizes_of(name))
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
    frozen, state = initial_state(config, replace(task, params=zeros(task.params)), 2)
    shapes = batch_shapes(config, task)
    assert shapes.keys() == (Batch if kind == "encoder" else PackedBatch).__annotations__.keys()
    batch = zeros(shapes)
    program = programs_for(task.per_example, config, 2).train
    assert program.compilations == 1 and program.knows(state, frozen, batch)

    found = made.footprint
    base = found.codes + found.scales + found.embeddings + found.head + found.other
    assert base == bytes_of_shards(frozen)
    assert (found.factors, found.optimiser) == tuple(
        bytes_of_shards(one) for one in (state.trainable, state.opt_state)
    )
    given = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
    # Padding, the random key, and what a step never reads.
    assert abs(made.memory.arguments - found.arguments - given) < 1024
    assert made.peak == sum(made.memory) == program.peak_bytes(state, frozen, batch)
    assert bool(made.collectives) == bool(mesh)


def test_a_mesh_of_more_devices_than_there_are_is_planned_in_a_process_that_has_them(tmp_path):
    with pytest.raises(ValueError, match="mesh.*needs 32 devices, and jax sees 16"):
        with_devices(16, mesh_of, MeshConfig(fsdp=32))


def test_moments_in_host_memory_are_what_is_there_and_two_weights_of_them_here(
    tmp_path, monkeypatch
):
    for module in (footprint, offload):
        monkeypatch.setattr(module, "MIN_SIZE", 32)  # of so small a model, some do not wait
    # Of one row there are no parts.
    away = dict(optim=dict(offload=True), train=dict(batch_size=1, total_steps=2))
    config = settings(config_json(tmp_path / "model", "decoder"), "decoder", **away)
    found = plan(config, compiled=False).footprint
    alone = plan(with_value(config, "optim.offload", False), compiled=False)
    # The CPU backend has a memory of this kind, too.
    monkeypatch.setattr(optim, "can_offload", lambda: True)
    task = shapes_task(config, sizes_of(config.model.name))
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
    _, state = initial_state(config, replace(task, params=zeros(task.params)), 2)
    leaves = jax.tree.leaves(state.opt_state)
    away = sorted(x.nbytes for x in leaves if x.sharding.memory_kind == "pinned_host")
    assert found.away == sum(away) > 0
    assert found.optimiser == bytes_of_shards(leaves) - sum(away[:-4])
    # A program that is compiled by shapes is the one for such a state.
    assert _signature(abstract_state(config, task)[1]) == _signature(state)

    assert memory_plan._offloaded(alone, Device("any", 1)) == {"optim.offload": True}
    assert alone.footprint.total - found.total == sum(away[:-4])


def test_collectives_are_counted_through_loops_in_what_each_device_receives():
    """By hand, of a program whose collectives are known."""
    mesh = make_mesh(data=2, fsdp=4)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P("fsdp"), P(("data", "fsdp"))),
        out_specs=P(),
        check_vma=False,
    )
    def step(codes, x):
        def turn(x, number):
            gathered = jax.lax.all_gather(codes + number, "fsdp", tiled=True)
            return jax.lax.psum(x * gathered.sum(), "data"), None

        x, _ = jax.lax.scan(turn, x, jnp.arange(5, dtype=jnp.uint8))
        return jax.lax.ppermute(x, "fsdp", [(n, (n + 1) % 4) for n in range(4)])

    codes, x = jnp.ones(64, jnp.uint8), jnp.ones((8, 100))
    compiled = jax.jit(step).lower(codes, x).compile()
    assert sorted(collectives_of(compiled)) == [
        Collective("all-gather", "u8", 4, 5, 5 * 48),  # three parts of 16 bytes
        Collective("all-reduce", "f32", 2, 5, 5 * 400),  # once around two devices
        Collective("collective-permute", "f32", 2, 1, 400),
    ]


def test_what_does_not_fit_is_told_the_cheapest_change_that_does(tmp_path):
    small = dict(method="lora", optim=dict(name="adamw8bit"))
    name = config_json(tmp_path / "model", "decoder")
    before = plan(settings(name, "decoder", **small), compiled=False)
    assert before.memory is None and before.peak == before.footprint.total
    device = lambda size: Device("tiny", int(size / USABLE) + 1)
    assert changes(before, device(before.peak)) == []
    parts = changes(before, device(0.99 * before.peak))
    assert [one.settings for one in parts] == [("train.accumulate=4",)]
    assert parts[0].plan.peak == plan(parts[0].plan.config, compiled=False).peak < before.peak
    none = changes(before, device(1))
    tried = [one.settings for one in none]
    assert tried[-1][0] == "train.accumulate=4" and "lora.rank=1" in tried[-1]
    assert not any(one.plan.fits(device(1)) for one in none)
    assert none[-1].plan.peak == min(one.plan.peak for one in none)


def test_a_size_is_a_name_of_a_paper_or_a_folder_and_else_near_ones_are_named(tmp_path):
    assert sizes_of("llama-65b") == sizes_of("huggyllama/llama-65b").__class__(
        **vars(SIZES["huggyllama/llama-65b"])
    )
    with pytest.raises(FileNotFoundError, match="Nearest sizes: huggyllama/llama-7b"):
        sizes_of("llama-9b")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match="model_type 'mamba' is not supported"):
        sizes_of(str(tmp_path))
    long = settings("llama-7b", "decoder", data=dict(task="completion", max_length=4096))
    with pytest.raises(ValueError, match="4096 tokens, and llama-7b has positions for 2048"):
        plan(long)
    assert list(DEVICES) == sorted(DEVICES, key=lambda name: DEVICES[name].memory)


def test_the_command_prints_parts_and_devices_and_refuses_in_words(capsys):
    asked = ["plan", "llama-7b", "--method", "qlora", "--rank", "64", "--batch", "1x512"]
    assert cli.main([*asked, "--arithmetic", "--device", "t4-16"]) == 0
    said = capsys.readouterr().out
    assert "llama-7b: qlora nf4, rank 64, 1 x 512 tokens, adamw, blocks recomputed" in said
    # 4 bits of 6.476e9 weights; factors of 159.9e6 numbers.
    assert "3.24" in said and "0.64" in said and "It fits on Tesla T4 16 GB as it is." in said
    for wrong, words in (
        (["--mesh", "fsdp=8,tensor=2"], "--mesh reads data=N, fsdp=N and model=N"),
        (["--batch", "512"], "--batch reads ROWSxTOKENS"),
        (["--device", "h100"], "--device is one of t4-16"),
        (["--config.lora.rnak=3"], "rnak"),
    ):
        assert cli.main([*asked, "--arithmetic", *wrong]) == 2
        assert words in capsys.readouterr().err


# A step of a random model of some megabytes, or of Gemma-3-270M's own weights; peaks are the system's own figures for the process.
MEASURE = """
import sys, time
from dataclasses import replace
import jax, jax.numpy as jnp, numpy as np
from lora_jax.analysis import plan
from lora_jax.analysis.memory_plan import sizes_of
from lora_jax.io.hub import resolve
from lora_jax.io.weights import load_model
from lora_jax.config import MeshConfig, from_config_dict, with_value
from lora_jax.core.fake_devices import with_devices
from lora_jax.core.mesh import make_mesh
from lora_jax.data.batches import Batch
from lora_jax.data.token_packing import PackedBatch
from lora_jax.models import DecoderConfig, EncoderConfig
from lora_jax.tasks.shapes import batch_shapes, shapes_task
from lora_jax.training.allocator import release_freed_memory
from lora_jax.training.programs import programs_for
from lora_jax.training.run import initial_state

sizes = dict(vocab_size=2000, hidden_size=256, num_layers=3, num_heads=4, intermediate_size=1024, max_positions=256)
if sys.argv[1] == "encoder":
    model, more = EncoderConfig(**sizes), dict(model=dict(scan=False), data=dict(max_length=128), train=dict(batch_size=48, total_steps=9))
elif sys.argv[1] == "gemma3-270m":
    model = sizes_of("gemma3-270m")
    more = dict(model=dict(name="gemma3-270m", remat=True), data=dict(task="completion", max_length=256), method="qlora", quant=dict(format="nf4"), train=dict(batch_size=2, total_steps=9))
else:
    model = DecoderConfig(**sizes, num_kv_heads=2, head_dim=64)
    more = dict(model=dict(remat=True), data=dict(task="completion", max_length=256), method="qlora", quant=dict(format="nf4"), train=dict(batch_size=24, total_steps=9))
config = from_config_dict(dict(lora=dict(rank=16)) | more)
made, task = plan(config, model), shapes_task(config, model)
random = lambda x: jnp.asarray(np.random.default_rng(0).normal(0, 0.05, x.shape), x.dtype)
if sys.argv[1] == "gemma3-270m":
    params = load_model(resolve("gemma3-270m"))[1]
else:
    params = jax.tree.map(random, task.params)
frozen, state = initial_state(config, replace(task, params=params), 9)
del params
frozen = jax.tree.map(jnp.array, frozen)
batch = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), batch_shapes(config, task))
program = programs_for(task.per_example, config, 9).train
state, _ = jax.block_until_ready(program(state, frozen, batch))


def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

taken = []
for _ in range(3):
    time.sleep(1.0)
    release_freed_memory()
    before = kilobytes("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    state, _ = jax.block_until_ready(program(state, frozen, batch))
    taken.append(kilobytes("VmHWM") - before)
print(made.memory.arguments + max(taken) * 1024, made.peak)
"""


@pytest.mark.long  # beside other tests freed memory is given back late: 4 % were missing
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="needs Linux' account of a process's peak memory",
)
@pytest.mark.parametrize("kind", ["encoder", "decoder", "gemma3-270m"])
def test_a_step_takes_what_is_planned_to_3_percent(kind):
    """XLA's own code alone: the CPU library that multiplies for it by default (YNNPACK) has scratch
    space besides, 5 % of the encoder's step and 9 % of the decoder's, of which XLA's account does
    not know.
    """
    # Every large buffer is a mapping of its own, which the C library gives back as soon as it is
    # freed.
    # Not the tests' own flags, whose devices have threads and buffers each.
    flags = "--xla_cpu_experimental_ynn_fusion_type="
    mapped = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", MEASURE, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=mapped)
    assert done.returncode == 0, done.stderr[-2000:]
    measured, planned = map(int, done.stdout.split())
    print(f"{kind}: measured {measured:,}, planned {planned:,}")
    assert planned > 200e6 and planned == pytest.approx(measured, rel=0.03)
