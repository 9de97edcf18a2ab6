"""Accelerators: how much memory they have, and how fast they multiply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Device:
    """An accelerator: its memory in bytes, and operations a second of dense products by dtype."""

    name: str
    memory: int
    rate: Mapping[str, float] = field(default_factory=dict)


# Share of a device's memory that a program may take: the driver's context, cuDNN's and cuBLAS's
# workspaces and holes between buffers take the rest. jax itself takes 0.75 unless
# XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise. An assumption: no GPU has been measured.
USABLE = 0.95

# NVIDIA's data sheet; float32 products run as TF32 there, which is jax's default.
A100 = Device("A100 80 GB", 80 * 2**30, {"float32": 156e12, "bfloat16": 312e12})
# Memory as nvidia-smi reports it, in MiB; the name's figure is the vendor's.
_MIB = {
    "t4-16": ("Tesla T4 16 GB", 15_360),
    "rtx4090-24": ("GeForce RTX 4090 24 GB", 24_564),
    "l4-24": ("L4 24 GB", 23_034),
    "rtx5090-32": ("GeForce RTX 5090 32 GB", 32_607),
    "a100-40": ("A100 40 GB", 40_960),
    "l40s-48": ("L40S 48 GB", 46_068),
    "a6000-48": ("RTX A6000 48 GB", 49_140),
    "h100-80": ("H100 80 GB", 81_559),
    "h200-141": ("H200 141 GB", 143_771),
    "b200-180": ("B200 180 GB", 183_359),
}
# By the name that a user gives, the smallest first.
DEVICES: dict[str, Device] = dict(
    sorted(
        [
            ("a100-80", A100),
            *((key, Device(name, mib * 2**20)) for key, (name, mib) in _MIB.items()),
        ],
        key=lambda row: row[1].memory,
    )
)
