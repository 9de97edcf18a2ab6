"""The library's own specs of a config: how the base is stored, and what its adapter is."""

from __future__ import annotations

from dataclasses import replace

from lora_jax.config import Config, QuantConfig
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.quantize import QuantSpec


def quant_spec(config: Config) -> QuantSpec:
    """How the configuration stores the frozen base."""
    quant = config.quant
    return QuantSpec(
        quant.format, quant.block_size, quant.double, quant.scale_dtype, quant.second_level
    )


def lora_spec(config: Config) -> LoraSpec:
    """The adapter that the configuration asks for at each of its targets."""
    lora = config.lora
    return LoraSpec(
        lora.rank,
        lora.alpha,
        lora.scaling,
        lora.dropout,
        lora.init,
        lora.layers,
        lora.dora,
        lora.variant,
        lora.group_size,
        lora.parts,
    )


def unquantised(config: Config) -> Config:
    """The same run, its base taken as it is; for methods with adapters."""
    return replace(config, method="lora", quant=QuantConfig())
