"""What to install when a package is missing that only a part of the library needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Stands around the imports of packages that an extra of `lora-jax` installs.

    Raises:
        ModuleNotFoundError: one of them is missing; the message names it and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ModuleNotFoundError(
            f"This needs the package {package!r}, which is not installed: "
            f"pip install 'lora-jax[{extra}]'.",
            name=error.name,
        ) from error
