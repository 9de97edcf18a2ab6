"""TensorFlow Datasets prepares catalogue data sets without TensorFlow."""

import contextlib
import importlib.resources
import importlib.util
import io
import os
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

from lora_jax.core.extras import needs


@contextlib.contextmanager
def plain_files() -> Iterator[None]:
    """Lets TFDS unpack archives and find its own resources with the standard library while it
    prepares a data set.

    TFDS 4.9 reads and writes archive members through `tf.io.gfile`, and names the package
    importlib_resources, which it does not require on Python >= 3.9. Both have an equal in the
    standard library for local files. Where TensorFlow is installed it is left in place.
    """
    with needs("data"):
        from tensorflow_datasets.core import dataset_builder
        from tensorflow_datasets.core.download import extractor

    gfile = SimpleNamespace(GFile=open)
    stand_ins: list[tuple[ModuleType, str, object]] = []
    if importlib.util.find_spec("tensorflow") is None:
        tensorflow = SimpleNamespace(
            io=SimpleNamespace(gfile=gfile), compat=SimpleNamespace(as_text=os.fsdecode)
        )
        stand_ins.append((extractor, "tf", tensorflow))
    if importlib.util.find_spec("importlib_resources") is None:
        stand_ins.append((dataset_builder, "importlib_resources", importlib.resources))
    before = [(module, name, getattr(module, name)) for module, name, _ in stand_ins]
    for module, name, stand_in in stand_ins:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name, original in before:
            setattr(module, name, original)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps TFDS from printing messages and progress bars, and leaves its progress setting as it
    was.
    """
    with needs("data"):
        from tensorflow_datasets.core.utils import tqdm_utils

    active = tqdm_utils._active  # TFDS has a setter for it, but no getter.
    tqdm_utils.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm_utils.display_progress_bar(active)
