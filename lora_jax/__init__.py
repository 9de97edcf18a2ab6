"""LoRA and QLoRA fine-tuning for JAX and Flax: any Linen module, honest bytes, sweeps over rank,
bits and targets.

What is public stands in `__init__.pyi`, here and in each package, one line a name; a name is
imported when it is first used, so that `import lora_jax` is quick and touches no device.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
