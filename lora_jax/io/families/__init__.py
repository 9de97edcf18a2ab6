"""One file a family of models: every `Family` that a file of this folder lists in its FAMILIES is
known.
"""

from __future__ import annotations

import importlib
import pkgutil

from lora_jax.io.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in pkgutil.iter_modules(__path__)
    for family in importlib.import_module(f"{__name__}.{module.name}").FAMILIES
}
