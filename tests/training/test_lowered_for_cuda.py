"""Whole training steps of a 7B model are lowered for CUDA without a GPU, with a GPU's kernels."""

import jax
import pytest

from lora_jax.config import from_config_dict
from lora_jax.models.sizes import SIZES
from lora_jax.tasks.losses import Summed
from lora_jax.tasks.shapes import batch_shapes, shapes_task
from lora_jax.training.mesh import mesh_of, on_mesh, train_step_on
from lora_jax.training.optim import make_optimizer
from lora_jax.training.run import abstract_state
from lora_jax.training.step import make_train_step

FUSED, FLASH = "@__gpu$xla.gpu.triton", "@__cudnn$fmha"
# What stands for cuDNN's kernel until XLA has divided it among devices.
DIVIDED = "@CustomSPMDPartitioning"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "attention", "mesh", "fused"),
    [
        (64, "cudnn", {}, True),
        (512, "xla", {}, False),
        # XLA cannot divide a kernel of ours among devices, and can cuDNN's.
        (64, "cudnn", dict(fsdp=4, model=2), False),
    ],
)
def test_a_QLoRA_step_of_7B_is_lowered_with_the_kernels_of_a_gpu(
    tokens, attention, mesh, fused, hopper, monkeypatch
):
    monkeypatch.setenv("LORA_JAX_ATTENTION", attention)
    config = from_config_dict(
        dict(
            model=dict(
                name="llama-7b", remat=True, compute_dtype="bfloat16", base_dtype="bfloat16"
            ),
            data=dict(task="completion", max_length=tokens),
            method="qlora",
            lora=dict(rank=64),
            quant=dict(format="nf4"),
            train=dict(batch_size=4 if mesh else 1, total_steps=1),
            mesh=mesh,
        )
    )
    task = shapes_task(config, SIZES["huggyllama/llama-7b"])
    frozen, state = on_mesh(config.mesh, *abstract_state(config, task))
    step = make_train_step(Summed(task.per_example), make_optimizer(config.optim, 1))
    if mesh:
        step = train_step_on(mesh_of(config.mesh), step)
    # By its weight a mesh counts a batch's rows.
    rows = jax.ShapeDtypeStruct((config.train.batch_size,), "float32")
    batch = {"weight": rows, **batch_shapes(config, task)}

    # Not `jax.export`, which has no form for what divides cuDNN's kernel among devices.
    lowered = jax.jit(step).trace(state, frozen, batch).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert (FUSED in text) == fused
    # Forward, once more where its block is rematerialised, and backward.
    assert text.count(DIVIDED if mesh else FLASH) == (3 if attention == "cudnn" else 0)
    assert ("num_partitions = 8" in text) == bool(mesh)
