"""Bytes and operations from shapes: those of formulas, and of XLA's own account."""

import jax
import jax.numpy as jnp
import pytest

from lora_jax.analysis.devices import A100
from lora_jax.analysis.footprint import footprint_of, seconds
from lora_jax.config import from_config_dict
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.encoder_parts import EncoderConfig
from lora_jax.models.sizes import SIZES
from lora_jax.tasks.losses import Summed
from lora_jax.tasks.shapes import batch_shapes, shapes_task
from lora_jax.training.optim import make_optimizer
from lora_jax.training.run import abstract_state
from lora_jax.training.step import make_train_step


def test_QLoRA_of_LLaMA_7B_is_what_its_formulas_say():
    config = from_config_dict(
        dict(
            model=dict(name="huggyllama/llama-7b", remat=True, compute_dtype="bfloat16"),
            data=dict(task="completion", max_length=512),
            method="qlora",
            lora=dict(rank=64, targets="all-linear"),
            quant=dict(format="nf4"),
            train=dict(batch_size=16, accumulate=16),
        )
    )
    found = footprint_of(config, SIZES["huggyllama/llama-7b"])
    width, inner, layers, words = 4096, 11_008, 32, 32_000
    linear = layers * (4 * width**2 + 3 * width * inner)
    factors = layers * 64 * (4 * 2 * width + 3 * (width + inner))
    assert found.codes == linear // 2
    # 8 bits a block of 64 and 32 bits (with the mean, less than one more) for 256 of these.
    assert found.scales == pytest.approx(linear / 8 * (8 / 64 + 32 / (64 * 256)), rel=2e-3)
    assert found.embeddings == found.head == 4 * words * width
    assert found.factors == pytest.approx(4 * factors, rel=1e-3)  # and their scales
    assert found.optimiser == pytest.approx(2 * 4 * factors, rel=1e-3)
    assert found.gradients == 2 * 4 * factors  # of a part, and the sum of parts
    # A block's input for each layer at least.
    assert found.activations > 2 * layers * 512 * width
    assert found.total < 11e9 < A100.memory
    passes = 16 * 512 * (3 * 2 * linear + 3 * 4 * layers * 512 * width + 4 * words * width)
    assert found.flops == pytest.approx(passes)
    assert seconds(found, config, 10) == pytest.approx(10 * passes / 0.4 / 312e12)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_step_holds_and_computes_what_XLA_says(kind):
    """Arguments to the byte; what is kept for the backward pass, and products, to a third: elementwise
    operations are not counted, and some of what is kept is fused away.
    """
    sizes = dict(vocab_size=500, hidden_size=64, num_layers=3, num_heads=4, intermediate_size=256)
    if kind == "encoder":
        model, data = EncoderConfig(**sizes, max_positions=64), dict(max_length=64)
    else:
        heads = dict(num_kv_heads=4, head_dim=16, max_positions=64)
        model, data = DecoderConfig(**sizes, **heads), dict(task="completion", max_length=64)
    config = from_config_dict(
        dict(
            # XLA counts the operations of a loop's body once; a decoder's layers apart hold more.
            model=dict(scan=kind == "decoder"),
            data=data,
            lora=dict(rank=2, targets="all-linear"),
            train=dict(batch_size=16, total_steps=1),
        )
    )
    found = footprint_of(config, model)
    task = shapes_task(config, model)
    frozen, state = abstract_state(config, task)
    step = make_train_step(Summed(task.per_example), make_optimizer(config.optim, 1))
    batch = batch_shapes(config, task)
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    memory = compiled.memory_analysis()

    beside = found.arguments
    given = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
    # Padding and the random key.
    assert abs(memory.argument_size_in_bytes - beside - given) < 4096
    kept = found.activations + found.scores + found.dense + found.gradients
    assert memory.temp_size_in_bytes == pytest.approx(kept, rel=1 / 3)
    if kind == "encoder":  # of a decoder the words go through loops
        assert compiled.cost_analysis()["flops"] == pytest.approx(found.flops, rel=1 / 3)
    assert jnp.isfinite(found.flops)
