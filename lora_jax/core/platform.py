"""The platform that programs are traced for: what is here, or another that they are lowered for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax


class _Target(NamedTuple):
    platform: str
    compute_capability: str | None


# Part of the keys of jax's caches: what was traced for one platform is not taken for another.
_target = jax.make_user_context(None)


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': by default jax's default backend, within `traced_for` what it says."""
    target = _target.value
    return jax.default_backend() if target is None else target.platform


def compute_capability() -> Any:
    """Of the NVIDIA GPU that programs are traced for, such as '9.0'; None elsewhere."""
    target = _target.value
    if target is None:
        return getattr(jax.devices()[0], "compute_capability", None)
    return target.compute_capability


@contextmanager
def traced_for(platform: str, *, compute_capability: str | None = "9.0") -> Iterator[None]:
    """Within it, kernels and orders are chosen as on another platform, which need not be here: what
    is traced can be lowered for it (`jax.export` with platforms=["cuda"]), not run.

    Args:
        platform: 'cpu', 'gpu' or 'tpu', in jax's words.
        compute_capability: of a GPU; by default that of an H100.

    >>> with traced_for("gpu"):
    ...     platform()
    'gpu'
    """
    known = ("cpu", "gpu", "tpu")
    if platform not in known:
        raise ValueError(f"Needed a platform of {', '.join(known)}, got {platform!r}.")
    capability = compute_capability if platform == "gpu" else None
    with _target(_Target(platform, capability)):
        yield
