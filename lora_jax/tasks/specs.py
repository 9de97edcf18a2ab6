"""The library's own specs of a config: how the base is stored, and what its adapter is."""

from __future__ import annotations

from dataclasses import replace

from lora_jax.config import Config, QuantConfig, built
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.quantize import QuantSpec


def quant_spec(config: Config) -> QuantSpec:
    """How the configuration stores the frozen base."""
    return built(QuantSpec, config.quant, without=("kernel",))


def lora_spec(config: Config) -> LoraSpec:
    """The adapter that the configuration asks for at each of its targets."""
    return built(LoraSpec, config.lora)


def unquantised(config: Config) -> Config:
    """The same run, its base taken as it is; for methods with adapters."""
    return replace(config, method="lora", quant=QuantConfig())
