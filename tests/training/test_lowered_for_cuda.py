"""Whole training steps of a 7B model are lowered for CUDA without a GPU, with a GPU's kernels."""

import jax
import pytest
from jax import export

from lora_jax.config import from_config_dict
from lora_jax.core.platform import traced_for
from lora_jax.models.sizes import SIZES
from lora_jax.tasks.losses import Summed
from lora_jax.tasks.shapes import batch_shapes, shapes_task
from lora_jax.training.optim import make_optimizer
from lora_jax.training.run import abstract_state
from lora_jax.training.step import make_train_step

# The text of such a kernel is no promise of compatibility between versions, which nobody needs
# here.
ANY = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "fused"), [(64, True), (512, False)])
def test_a_QLoRA_step_of_7B_is_lowered_with_the_kernels_of_a_gpu(tokens: int, fused: bool) -> None:
    config = from_config_dict(
        dict(
            model=dict(
                name="llama-7b", remat=True, compute_dtype="bfloat16", base_dtype="bfloat16"
            ),
            data=dict(task="completion", max_length=tokens),
            method="qlora",
            lora=dict(rank=64),
            quant=dict(format="nf4"),
            train=dict(batch_size=1, total_steps=1),
        )
    )
    task = shapes_task(config, SIZES["huggyllama/llama-7b"])
    frozen, state = abstract_state(config, task)
    step = make_train_step(Summed(task.per_example), make_optimizer(config.optim, 1))
    # A random key has no form in an exported program.
    plain = state.replace(key=jax.ShapeDtypeStruct((2,), "uint32"))

    def lowered(state, frozen, batch):
        new, metrics = step(state.replace(key=jax.random.wrap_key_data(state.key)), frozen, batch)
        return new.replace(key=jax.random.key_data(new.key)), metrics

    batch = batch_shapes(config, task)
    with traced_for("gpu"):
        text = export.export(jax.jit(lowered), platforms=["cuda"], disabled_checks=ANY)(
            plain, frozen, batch
        ).mlir_module()
    assert ("xla.gpu.triton" in text) == fused
