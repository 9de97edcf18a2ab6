"""A training step under scan and remat holds the quantised base and one layer's dense weights,
never the dense base.
"""

import jax
import jax.numpy as jnp
import pytest

from lora_jax.adapters.surgery import adapt
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantSpec, bytes_of
from lora_jax.core.trainable import combine, partition
from lora_jax.models.encoder import Encoder, EncoderConfig
from lora_jax.tasks.heads import classifier_loss
from lora_jax.training.compile import Program

CONFIG = EncoderConfig(
    vocab_size=32, hidden_size=256, num_layers=12, num_heads=4, intermediate_size=1024, max_positions=16, num_classes=2
)  # fmt: skip


@pytest.mark.parametrize(
    "spec", [QuantSpec(), QuantSpec("int8", None, double=False)], ids=["nf4", "int8"]
)
def test_step_holds_the_codes_and_one_dense_layer(spec):
    model = Encoder(CONFIG, scan=True, remat=True)
    shape = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    inputs = shape, jax.ShapeDtypeStruct((1, 8), jnp.bool_), shape
    batch = {
        "tokens": shape, "mask": inputs[1], "types": shape, "labels": jax.ShapeDtypeStruct((1,), jnp.int32),
        "weight": jax.ShapeDtypeStruct((1,), jnp.float32),
    }  # fmt: skip
    params = model.init(jax.random.key(0), *(jnp.ones(x.shape, x.dtype) for x in inputs))["params"]
    dense = {
        path: leaf
        for path, leaf in flatten(params).items()
        if path.startswith("layers/") and path.endswith("/kernel")
    }
    frozen, trainable = adapt(
        model,
        params,
        inputs,
        lora=[("layers/.*/kernel", LoraSpec(rank=2))],
        quant=[("layers/.*/kernel", spec)],
        key=jax.random.key(1),
    )
    loss = classifier_loss(model)

    def step(frozen, trainable, batch):
        trained, fixed = partition(trainable)
        gradients = jax.grad(lambda tree: loss(frozen, combine(tree, fixed), batch, None)[0])(
            trained
        )
        moved = jax.tree.map(lambda value, gradient: value - 0.1 * gradient, trained, gradients)
        return combine(moved, fixed)

    memory = Program(step, donate=(1,)).compile(frozen, trainable, batch).memory_analysis()
    base, layer = bytes_of(dense), bytes_of(dense) // CONFIG.num_layers
    stored = bytes_of([leaf for path, leaf in flatten(frozen).items() if path in dense])
    print(
        f"dense base {base:,}, stored {stored:,}, one dense layer {layer:,}, temporaries "
        f"{memory.temp_size_in_bytes:,}"
    )
    # One layer's dense weights at a time, and the activations of eight tokens (about 0.4 MB).
    assert memory.temp_size_in_bytes < layer + 2**20 < base / 8
    assert memory.argument_size_in_bytes < stored + base / 8
