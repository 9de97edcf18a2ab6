"""Files that are replaced in one step: a kill or a full disk leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. Where the block ends, its bytes are brought to the disk and
    it takes the name; where the block raises, it goes and the old file is kept.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield new
        with new.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
