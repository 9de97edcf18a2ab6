"""Weights of decoders, from Hugging Face folders and GGUF files into the tree of
`lora_jax.models.decoder`, and back.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.core.host import filled
from lora_jax.core.paths import Rules, flatten, match, nearest, unflatten
from lora_jax.core.quantize import QuantizedArray, QuantSpec, quantize
from lora_jax.io import safetensors
from lora_jax.io.decoder_configs import read_config
from lora_jax.io.decoder_json import json_of
from lora_jax.io.decoder_names import Source, names_of, sources_by_tensor
from lora_jax.io.gguf import GgufFile
from lora_jax.io.gguf_decoder import IGNORED, gguf_config, gguf_names
from lora_jax.io.gguf_tables import ExpertsApart
from lora_jax.io.names import Name
from lora_jax.io.tensor_files import ModelFolder
from lora_jax.models.decoder import Decoder
from lora_jax.models.decoder_config import DecoderConfig

# Constants that older files carry, and the head beside the embedding that it is tied to.
_BUFFERS = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)
_HEADS = ("lm_head.weight", "embed_out.weight")
# Written out: readers would take the family's defaults instead, which need not be in the
# vocabulary.
_NO_IDS = types.MappingProxyType({"bos_token_id": None, "eos_token_id": None, "pad_token_id": None})


class Tensors(Protocol):
    """What weights are loaded from: tensors by name, whose shapes are known before they are
    read.
    """

    def __getitem__(self, name: str) -> np.ndarray: ...
    def __iter__(self) -> Iterator[str]: ...
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        ...


def load_decoder(
    path: Path | str, *, dtype: Any = np.float32, quant: Rules[QuantSpec] = (), scan: bool = True
) -> tuple[DecoderConfig, dict[str, Any]]:
    """The configuration and the weights of a decoder in a Hugging Face folder or a GGUF file.

    Matrices are host arrays of `dtype`, or quantised where a rule of `quant` matches their path;
    they are made one by one, so the peak is the result plus one matrix. Norms and biases stay
    float32. Host arrays are closed to writing, so that jax on a CPU
    can share them: copy one to change it.

    Args:
        path: a folder with config.json and safetensors, a .gguf file, or a folder that holds one.
        quant: rules as `lora_jax.adapt` takes them; paths are those of the model
        (`layers/attn/q/kernel`).
        scan: whether the layers are stacked, as `Decoder(scan=...)` wants them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, the architecture is not supported, a quantisation rule
            matches nothing, or tensors are missing, left over or of a wrong shape; all of them are
            listed.
    """
    path = Path(path)
    file = gguf_file(path)
    if file is not None:
        whole = GgufFile(file)
        config = gguf_config(whole)
        table = gguf_names(config, whole)
        return config, read_weights(
            config, ExpertsApart(whole), table, ignored=IGNORED, dtype=dtype, quant=quant, scan=scan
        )
    config = read_config(path)
    tensors = ModelFolder(path)
    table = _with_their_prefix(names_of(config), tensors)
    ignored = [name for name in tensors if name.endswith(_BUFFERS)]
    if config.tied:
        ignored += [
            name
            for name in tensors
            if name in _HEADS and _equals_embedding(tensors, name, table["embed/embedding"].name)
        ]
    return config, read_weights(
        config, tensors, table, ignored=ignored, dtype=dtype, quant=quant, scan=scan
    )


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` is or holds; None if it is a folder of another kind.

    Raises:
        FileNotFoundError: there is no such path. ValueError: a folder holds several GGUF files.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no file or folder {path}. Give a Hugging Face model folder or a .gguf file."
        )
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1 and not (path / "config.json").is_file():
        raise ValueError(
            f"{path} holds {len(files)} GGUF files; give one of them: "
            f"{', '.join(file.name for file in files[:6])}."
        )
    return files[0] if files and not (path / "config.json").is_file() else None


def read_weights(
    config: DecoderConfig,
    tensors: Tensors,
    table: Mapping[str, Source],
    *,
    ignored: Sequence[str] = (),
    dtype: Any = np.float32,
    quant: Rules[QuantSpec] = (),
    scan: bool = True,
) -> dict[str, Any]:
    """The params of `Decoder(config, scan=scan)`, each tensor used exactly once.

    Raises:
        ValueError: as `load_decoder`.
    """
    shapes = shapes_of(config)
    _check(config, tensors, table, shapes, set(ignored))
    counts = _Counts(config)
    paths = list(shapes) if scan else [ours for path in shapes for ours in counts.unstacked(path)]
    formats = match(
        quant,
        [path for path in paths if path.endswith(("kernel", "embedding"))],
        what="quant",
        among="weights",
    )
    flat: dict[str, Any] = {}
    for path in shapes:
        source = table[path]
        if scan or not path.startswith("layers/"):
            read = lambda where, source=source: source.take(tensors[source.name.format(**where)])
            flat[path] = _read(counts.stack(path), shapes[path], read, formats.get(path), dtype)
            continue
        for layer, ours in enumerate(counts.unstacked(path)):
            read = lambda where, source=source, layer=layer: source.take(
                tensors[source.name.format(layer=layer, **where)]
            )
            flat[ours] = _read(counts.stack(path)[1:], shapes[path], read, formats.get(ours), dtype)
    return unflatten(flat)


def save_decoder(
    folder: Path | str,
    config: DecoderConfig,
    params: Mapping[str, Any],
    *,
    dtype: Any = np.float32,
    shard_bytes: int = 5_000_000_000,
    special_ids: Mapping[str, Any] = _NO_IDS,
) -> None:
    """Writes config.json and safetensors as Hugging Face's class of the family has them; boxes are
    an error, merge first.

    Args:
        dtype: of the matrices in the file; norms and biases as well.
        shard_bytes: the file is cut into shards of at most about this size, with an index.
        special_ids: bos_token_id, eos_token_id and pad_token_id for config.json; by default there
            are none.

    Raises:
        ValueError: the params are not this model's, hold a box, or a NaN.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in hugging_face_tensors(config, params, dtype=dtype):
        if size + tensor.nbytes > shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    (folder / "config.json").write_text(
        json.dumps(json_of(config) | {"dtype": np.dtype(dtype).name} | dict(special_ids), indent=2)
        + "\n"
    )
    if len(shards) == 1:
        safetensors.write(folder / "model.safetensors", shards[0], {"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        safetensors.write(folder / file, shard, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def hugging_face_tensors(
    config: DecoderConfig, params: Mapping[str, Any], *, dtype: Any = np.float32
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the family's file by its name, made one by one.

    Raises:
        ValueError: as `save_decoder`.
    """
    yield from tensors_by_table(config, params, names_of(config), dtype=dtype)


def tensors_by_table(
    config: DecoderConfig, params: Mapping[str, Any], table: Mapping[str, Source], *, dtype: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor that a table names, out of params in either layout (scan or loop)."""
    flat, shapes, counts = flatten(params), shapes_of(config), _Counts(config)
    scan = any(path.startswith("layers/") for path in flat)
    needed = set(shapes) if scan else {ours for path in shapes for ours in counts.unstacked(path)}
    if needed != set(flat):
        missing, extra = sorted(needed - set(flat)), sorted(set(flat) - needed)
        raise ValueError(
            f"The params are not this decoder's: missing {missing[:4] or 'none'}, unexpected "
            f"{extra[:4] or 'none'}."
        )
    for path, leaf in flat.items():
        if not isinstance(leaf, (np.ndarray, jax.Array)):
            raise ValueError(
                f"{path} is a {type(leaf).__name__}: files hold plain weights. Use the first "
                "result of lora_jax.merge."
            )
    for name, paths in sources_by_tensor(table).items():
        for where in _places(counts.stack(paths[0])):
            parts = [_slice(flat, path, where, scan=scan) for path in paths]
            tensor = table[paths[0]].join(parts)
            if not np.isfinite(tensor).all():
                raise ValueError(
                    f"{name.format(**where)} holds a NaN or an infinity; nothing was written."
                )
            yield name.format(**where), np.ascontiguousarray(tensor.astype(dtype))


def shapes_of(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every weight without stack axes, by its path in the scanned layout."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    params = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)["params"]
    counts = _Counts(config)
    return {path: leaf.shape[len(counts.stack(path)) :] for path, leaf in flatten(params).items()}


def decoder_names(config: DecoderConfig, *, scan: bool = True) -> dict[str, Name]:
    """How transformers names every weight of a decoder, as `lora_jax.save_peft` and `load_peft`
    take it.

    Left out are experts and their routers: transformers keeps them as bare parameters of several
    matrices, which an adapter in PEFT's layout cannot name.
    """
    shapes, counts, names = shapes_of(config), _Counts(config), {}
    for path, source in names_of(config).items():
        if "/experts/" in path or "/router/" in path:
            continue
        kind = "linear" if source.transpose else "conv1d"
        if path.endswith("embedding") or len(shapes[path]) == 1:
            kind = "embedding" if path.endswith("embedding") else "vector"
        shared = dict(
            kind=kind,
            part=source.part,
            heads=source.heads,
            added=source.added,
            tied=config.tied and path == "embed/embedding",
        )
        if scan or not path.startswith("layers/"):
            stack = tuple(count for _, count in counts.stack(path))
            names[path] = Name(
                source.name.replace("{layer}", "{}"), shapes[path], stack=stack, **shared
            )
            continue
        for layer, ours in enumerate(counts.unstacked(path)):
            names[ours] = Name(source.name.format(layer=layer), shapes[path], **shared)
    return names


class _Counts:
    """How often a path of the scanned layout stands in the model, and where."""

    def __init__(self, config: DecoderConfig) -> None:
        self._layers = config.num_layers
        self._experts = config.experts.count if config.experts else 0

    def stack(self, path: str) -> tuple[tuple[str, int], ...]:
        """The stack axes of a path: (what it counts, how many)."""
        axes = (("layer", self._layers),) if path.startswith("layers/") else ()
        return (*axes, ("expert", self._experts)) if "/experts/" in path else axes

    def unstacked(self, path: str) -> list[str]:
        """The paths of the layout without scan."""
        return (
            [path.replace("layers/", f"layers_{n}/", 1) for n in range(self._layers)]
            if path.startswith("layers/")
            else [path]
        )


def _places(stack: tuple[tuple[str, int], ...]) -> Iterator[dict[str, int]]:
    if not stack:
        yield {}
        return
    (name, count), rest = stack[0], stack[1:]
    for n in range(count):
        for inner in _places(rest):
            yield {name: n, **inner}


def _read(
    stack: tuple[tuple[str, int], ...],
    shape: tuple[int, ...],
    read: Callable[[dict[str, int]], np.ndarray],
    spec: QuantSpec | None,
    dtype: Any,
) -> np.ndarray | QuantizedArray:
    """A weight of `shape`, its matrices joined by layer and by expert. Each is quantised, or put
    where it belongs, as soon as it is read.
    """
    lead = tuple(count for _, count in stack)
    if spec is not None:
        made = [
            quantize(jnp.asarray(np.asarray(read(where), np.float32)), spec).replace(
                dtype=jnp.dtype(dtype)
            )
            for where in _places(stack)
        ]
        return (
            jax.tree.map(lambda *leaves: jnp.stack(leaves).reshape(*lead, *leaves[0].shape), *made)
            if stack
            else made[0]
        )
    parts = ((tuple(where.values()), read(where)) for where in _places(stack))
    return filled((*lead, *shape), dtype if len(shape) > 1 else np.float32, parts)


def _slice(
    flat: Mapping[str, Any], path: str, where: Mapping[str, int], *, scan: bool
) -> np.ndarray:
    if not scan and "layer" in where:
        path = path.replace("layers/", f"layers_{where['layer']}/", 1)
        where = {name: n for name, n in where.items() if name != "layer"}
    return np.asarray(flat[path][tuple(where.values())], np.float32)


def _check(
    config: DecoderConfig,
    tensors: Tensors,
    table: Mapping[str, Source],
    shapes: Mapping[str, tuple[int, ...]],
    ignored: set[str],
) -> None:
    """Every tensor of the file has a place and every weight a tensor, of the right shape."""
    if set(table) != set(shapes):
        odd = sorted(set(table) ^ set(shapes))
        raise ValueError(
            f"The family {config.family!r} has no tensors for this configuration: "
            f"{', '.join(odd[:6])}."
        )
    counts = _Counts(config)
    wanted: dict[str, tuple[int, ...]] = {}
    for path, source in table.items():
        wanted |= {
            source.name.format(**where): source.shape_of(shapes[path])
            for where in _places(counts.stack(path))
        }
    stored = set(tensors) - ignored
    missing, extra = sorted(set(wanted) - stored), sorted(stored - set(wanted))
    wrong = [
        name for name in wanted if name in stored and tuple(tensors.shape(name)) != wanted[name]
    ]
    if missing or extra or wrong:
        lines = [f"  missing    {name}{_near(name, extra)}" for name in missing] + [
            f"  left over  {name}" for name in extra
        ]
        lines += [
            f"  shape      {name}: {tuple(tensors.shape(name))}, the configuration says {wanted[name]}"
            for name in wrong
        ]
        raise ValueError(
            f"The tensors of the file are not those of this {config.family} decoder: "
            f"{len(missing)} missing, {len(extra)} left over, "
            f"{len(wrong)} of another shape. Every tensor must be used exactly once. Check that "
            "the configuration belongs to the file.\n" + "\n".join(lines[:60])
        )


def _near(name: str, extra: list[str]) -> str:
    close = nearest(name, extra, 1) if extra else []
    return f"  (perhaps {close[0]!r})" if close else ""


def _with_their_prefix(table: Mapping[str, Source], tensors: Tensors) -> Mapping[str, Source]:
    """The table for a file of the bare model, whose names lack the first word ('transformer.',
    'model.').
    """
    name = table["embed/embedding"].name
    prefix = name.split(".")[0] + "."
    if name in tensors or name.removeprefix(prefix) not in tensors:
        return table
    return {
        path: dataclasses.replace(source, name=source.name.removeprefix(prefix))
        for path, source in table.items()
    }


def _equals_embedding(tensors: Tensors, head: str, embedding: str) -> bool:
    return embedding in set(tensors) and np.array_equal(tensors[head], tensors[embedding])
