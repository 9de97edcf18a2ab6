"""What PEFT's settings say of many modules at once: the most frequent value and its exceptions, the
shortest endings of names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.io.names import is_suffix


def alpha_of(scale: float, rank: int) -> float:
    """The shortest alpha for which alpha / rank is `scale` in float32."""
    for digits in range(1, 18):
        alpha = float(f"{scale * rank:.{digits}g}")
        if np.float32(alpha / rank) == np.float32(scale):
            break
    return int(alpha) if alpha.is_integer() else alpha


def common(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent value (the smallest of equally frequent ones), and the others by full
    module name.
    """
    counts = Counter(values.values())
    most = min(counts, key=lambda value: (-counts[value], value))
    return most, {module: value for module, value in sorted(values.items()) if value != most}


def endings(adapted: set[str], known: set[str]) -> list[str]:
    """The shortest endings of names that select exactly the adapted modules among all known
    ones.
    """
    chosen: set[str] = set()
    for module in sorted(adapted):
        if not any(is_suffix(module, ending) for ending in chosen):
            pieces = module.split(".")
            endings = (".".join(pieces[start:]) for start in range(len(pieces) - 1, -1, -1))
            chosen.add(
                next(
                    end
                    for end in endings
                    if {m for m in known if is_suffix(m, end)} <= adapted or end == module
                )
            )
    return sorted(chosen)
