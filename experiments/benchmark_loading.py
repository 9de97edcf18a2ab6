"""What loading a quantised base holds beside its result, and what it reads of the disk.

  python experiments/benchmark_loading.py --layers 1
  python experiments/benchmark_loading.py --width 4096 --inner 11008 --layers 3 --as-task

Writes a folder of random bfloat16 weights in shards of 0.5 GB, of LLaMA-65B's widths by default, takes
it out of the page cache, and loads it in a process of its own as nf4 with double quantisation, what
is not quantised in bfloat16. Anonymous memory is sampled every 5 ms: pages of mapped files are not
counted. With --as-task the base's fingerprint is made of the same reading, as commands do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from lora_jax.core.quantize import QuantSpec, bytes_of
from lora_jax.io import safetensors
from lora_jax.io.families import FAMILIES
from lora_jax.io.weights import names_of, open_model
from lora_jax.models.decoder_config import DecoderConfig

_SHARD = 500_000_000
_LAYERS = r"layers/.*/kernel"


def write(folder: Path, given: argparse.Namespace) -> None:
    """The folder of a model with random weights."""
    config = DecoderConfig(
        vocab_size=32_000,
        hidden_size=given.width,
        num_layers=given.layers,
        num_heads=given.width // 128,
        num_kv_heads=given.width // 128,
        head_dim=128,
        intermediate_size=given.inner,
        max_positions=2048,
    )
    (folder / "config.json").write_text(json.dumps(FAMILIES["llama"].to_json(config)))
    some = np.random.default_rng(0).standard_normal(1 << 22).astype(ml_dtypes.bfloat16)
    weight_map: dict[str, str] = {}
    shard: dict[str, np.ndarray] = {}
    places = [
        (parameter, name.their_shape())
        for name in names_of(config).values()
        for _, parameter in name.layers()
    ]
    for number, (parameter, shape) in enumerate(places, 1):
        shard[parameter] = np.resize(some, shape)
        if number == len(places) or sum(x.nbytes for x in shard.values()) > _SHARD:
            file = f"model-{number:05d}.safetensors"
            safetensors.write(folder / file, shard)
            weight_map |= dict.fromkeys(shard, file)
            shard = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def load(folder: Path, as_task: bool) -> dict[str, float]:
    """What a process holds and reads while it loads the folder."""
    import jax

    jax.block_until_ready(jax.numpy.ones(8) + 1)
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before, read = _status("RssAnon"), _read_bytes()
    peak, over = [before], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            peak.append(max(peak.pop(), _status("RssAnon")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.process_time()
    stored = open_model(folder, dtype=ml_dtypes.bfloat16)
    stored = stored.fingerprinted() if as_task else stored
    params = stored.read([(_LAYERS, QuantSpec())])
    if as_task:
        stored.fingerprint()
    seconds = time.process_time() - began
    over.set()
    watcher.join()
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {
        "files_gb": files / 1e9,
        "result_gb": bytes_of(params) / 1e9,
        "peak_beside_result_gb": (peak[0] - before - bytes_of(params)) / 1e9,
        "left_beside_result_gb": (_status("RssAnon") - before - bytes_of(params)) / 1e9,
        "read_from_disk": (_read_bytes() - read) / files,
        "processor_seconds": seconds,
    }


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def _read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split("\nread_bytes: ")[1].split()[0])


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--inner", type=int, default=22_016)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--as-task", action="store_true")
    parser.add_argument("--folder", type=Path, help="load this folder, and print what it took")
    given = parser.parse_args()
    if given.folder is not None:
        print(json.dumps(load(given.folder, given.as_task)))
        return
    with tempfile.TemporaryDirectory() as made:
        write(Path(made), given)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--folder", made], check=True)


if __name__ == "__main__":
    main()
