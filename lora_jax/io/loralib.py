"""LoRA checkpoints of microsoft/LoRA (loralib): `lora_A` and `lora_B` beside the weights, no
configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lora_jax.core.paths import nearest
from lora_jax.core.trainable import Trainable
from lora_jax.io import safetensors
from lora_jax.io.config_json import in_file
from lora_jax.io.names import Index, Name, Names
from lora_jax.io.trained_layers import (
    check_numbers,
    fitted,
    low_rank,
    renamed,
    trained_weight,
)


def load_loralib(
    path: Path | str, names: Names, *, alpha: float, enabled: Sequence[bool] = (True, False, True)
) -> dict[str, Trainable]:
    """The adapter in a loralib checkpoint, converted to safetensors; scale alpha / r, as loralib
    computes it.

    Its checkpoints are pickled, which can run code, and are not read: convert one where you trust
    it, with `save_file(torch.load(path, weights_only=True), "lora.safetensors")`.

    Args:
        names: torch names of all of the model's weights. A fused module (loralib's MergedLinear,
        GPT-2's c_attn) has one path a part.
        alpha: loralib's `lora_alpha`, which its files do not hold.
        enabled: which parts of fused modules were adapted (loralib's `enable_lora`), the same in
            all.

    Raises:
        FileNotFoundError: there is no such file, or it is pickled.
        ValueError: a factor belongs to no module, lacks its other half, does not fit, or holds a
            NaN; or nothing is changed.
    """
    path = Path(path)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise FileNotFoundError(
            f"{path} is pickled, and is not read, since loading it can run code. Convert it where "
            "you trust it: "
            'safetensors.torch.save_file(torch.load(path, weights_only=True), "lora.safetensors").'
        )
    tensors = safetensors.read(path)
    with in_file(path):
        return from_loralib(tensors, names, alpha=alpha, enabled=enabled)


def from_loralib(
    tensors: Mapping[str, np.ndarray],
    names: Names,
    *,
    alpha: float,
    enabled: Sequence[bool] = (True, False, True),
) -> dict[str, Trainable]:
    """`load_loralib` of tensors by name."""
    check_numbers(tensors)
    module_of = renamed(names, tensors)
    read: set[str] = set()
    trainable: dict[str, Trainable] = {}
    for path, name in names.items():
        layers: dict[Index, tuple[np.ndarray, np.ndarray, float]] = {}
        whole: dict[Index, np.ndarray] = {}
        for index, parameter in name.layers():
            module, _, last = parameter.rpartition(".")
            module = module_of[module]
            parameter = f"{module}.{last}"
            if name.kind != "vector" and f"{module}.lora_A" in tensors:
                a, b = _factors(module, name, tensors, enabled)
                read |= {f"{module}.lora_A", f"{module}.lora_B"}
                if b.size:
                    layers[index] = (a, b, alpha / b.shape[0])
            if parameter in tensors:
                whole[index] = fitted(parameter, tensors[parameter], name.from_theirs)
                read.add(parameter)
        if layers:
            trainable[path] = low_rank(name, layers)
        elif whole:
            trainable[path] = trained_weight(path, name, whole)

    if left := set(tensors) - read:
        known = [parameter for name in names.values() for _, parameter in name.layers()]
        raise ValueError(
            f"{len(left)} tensors belong to no weight of the model, such as {min(left)!r}. "
            f"Nearest: {', '.join(nearest(min(left), known))}."
        )

    low = [leaf for leaf in trainable.values() if leaf.rank]
    if not low or not any(np.any(leaf.a) and np.any(leaf.b) for leaf in low):
        raise ValueError(
            f"The checkpoint has {len(low)} sites with factors, and they change nothing."
        )
    return trainable


def _factors(
    module: str, name: Name, tensors: Mapping[str, np.ndarray], enabled: Sequence[bool]
) -> tuple[np.ndarray, np.ndarray]:
    """(in, r) and (r, out) of one module; of a fused one, of our part, empty where that part was
    not adapted.
    """
    if f"{module}.lora_B" not in tensors:
        raise ValueError(
            f"{module}.lora_A has no {module}.lora_B beside it. The checkpoint is incomplete."
        )
    a, b = (np.asarray(tensors[f"{module}.lora_{half}"], np.float32) for half in "AB")
    if name.part is None:
        return (
            fitted(f"{module}.lora_A", a, name.a_from_theirs),
            fitted(f"{module}.lora_B", b, name.b_from_theirs),
        )

    part, sizes = name.part
    if len(set(sizes)) > 1 or name.heads is not None:
        raise ValueError(
            f"{module} is fused of parts of {sizes} outputs; loralib's merged layers have equal "
            "parts, one after the other."
        )
    if len(enabled) != len(sizes) or a.shape[0] % max(sum(enabled), 1):
        raise ValueError(
            f"{module}.lora_A of shape {a.shape} is no stack of {sum(enabled)} factors: set "
            f"enabled, with {len(sizes)} entries."
        )
    rank = a.shape[0] // sum(enabled)
    if not enabled[part]:
        return np.zeros((name.rows, 0), np.float32), np.zeros((0, name.columns), np.float32)
    # A is (r * adapted parts, in) and B (outputs of the adapted parts, r): a grouped convolution,
    # each part with factors of its own.
    place = sum(enabled[:part])
    if a.shape[1] != name.rows or b.shape != (name.columns * sum(enabled), rank):
        raise ValueError(
            f"{module}: factors {a.shape} and {b.shape} do not fit {sum(enabled)} parts of "
            f"{name.rows} x {name.columns}."
        )
    own_a = a[place * rank : (place + 1) * rank]
    own_b = b[place * name.columns : (place + 1) * name.columns]
    return np.ascontiguousarray(own_a.T), np.ascontiguousarray(own_b.T)
