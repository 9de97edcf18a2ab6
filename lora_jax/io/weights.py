"""Weights of Hugging Face encoders, into the tree of `lora_jax.models.encoder` and back. Every
tensor is used exactly once.

BERT and RoBERTa are read here, DeBERTa by `lora_jax.io.deberta` behind the same functions.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.core.host import filled
from lora_jax.core.paths import flatten, nearest, unflatten
from lora_jax.io import safetensors
from lora_jax.io.deberta import MODEL_TYPE as DEBERTA
from lora_jax.io.deberta import deberta_config, deberta_json, deberta_names, load_deberta
from lora_jax.io.named_weights import named_tensors
from lora_jax.io.names import Name
from lora_jax.models.deberta import DebertaConfig
from lora_jax.models.encoder import EncoderConfig

# Ours, theirs, whether theirs is (out, in). '{}' stands for the layer.
_OUTSIDE = (
    ("embeddings/word/embedding", "embeddings.word_embeddings.weight", False),
    ("embeddings/position/embedding", "embeddings.position_embeddings.weight", False),
    ("embeddings/type/embedding", "embeddings.token_type_embeddings.weight", False),
    ("embeddings/norm/scale", "embeddings.LayerNorm.weight", False),
    ("embeddings/norm/bias", "embeddings.LayerNorm.bias", False),
    ("pooler/kernel", "pooler.dense.weight", True),
    ("pooler/bias", "pooler.dense.bias", False),
)
_HEAD = (
    ("classifier/kernel", "classifier.weight", True),
    ("classifier/bias", "classifier.bias", False),
)
# RoBERTa's classification head is a tanh layer, our pooler, and a projection; its pretrained files
# often have no pooler.
_ROBERTA_HEAD = (
    ("pooler/kernel", "classifier.dense.weight", True),
    ("pooler/bias", "classifier.dense.bias", False),
    ("classifier/kernel", "classifier.out_proj.weight", True),
    ("classifier/bias", "classifier.out_proj.bias", False),
)
_PRETRAINING = {
    "roberta": "lm_head."
}  # tensors of the pretraining task, which files of that family carry and nothing here reads
_MODULES = (
    ("attn/q", "attention.self.query"),
    ("attn/k", "attention.self.key"),
    ("attn/v", "attention.self.value"),
    ("attn/o", "attention.output.dense"),
    ("mlp/up", "intermediate.dense"),
    ("mlp/down", "output.dense"),
)
_NORMS = (("attn_norm", "attention.output.LayerNorm"), ("mlp_norm", "output.LayerNorm"))
_BLOCK = tuple(
    (f"{ours}/{part}", f"encoder.layer.{{}}.{theirs}.{name}", part == "kernel")
    for table, parts in (
        (_MODULES, (("kernel", "weight"), ("bias", "bias"))),
        (_NORMS, (("scale", "weight"), ("bias", "bias"))),
    )
    for ours, theirs in table
    for part, name in parts
)
_BUFFERS = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
)  # constants that older files carry
_PREFIXES = {"bert": "bert.", "roberta": "roberta."}
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_new", "relu": "relu"}


def load_encoder(
    folder: Path | str,
    *,
    num_classes: int | None = None,
    key: jax.Array | None = None,
    scan: bool = True,
) -> tuple[EncoderConfig, dict[str, Any]]:
    """The configuration and the weights of an encoder in a Hugging Face folder, as host arrays in
    float32. Most are closed to
    writing: copy one to change it.

    Args:
        num_classes: adds a classifier of that size: the file's own if it has one, else a new one
        from `key`.
        scan: whether the layers are stacked, as `Encoder(scan=...)` wants them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the file is damaged, the architecture is unknown, or tensors are missing, left
            over or of a wrong shape; all of them are listed.
    """
    folder = Path(folder)
    raw = _read_json(folder)
    if raw.get("model_type") == DEBERTA:
        with _named_errors(folder / "config.json"):
            deberta_config(raw, num_classes)
        return load_deberta(folder, raw, num_classes=num_classes, key=key, scan=scan)
    config = _read_config(folder, raw, num_classes)
    tensors = safetensors.read_folder(folder)
    prefix = _PREFIXES[config.family]
    unread = _PRETRAINING.get(config.family)
    stored = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if unread is None or not name.startswith(unread)
    }
    if twice := sorted(
        name for name in tensors if name.startswith(prefix) and name.removeprefix(prefix) in tensors
    ):
        raise ValueError(
            f"{folder} holds {len(twice)} tensors both with and without the prefix {prefix!r}, "
            f"such as {twice[0]!r}: which is meant is not "
            "known. Remove one of them."
        )
    wanted = {theirs: (ours, transposed) for ours, theirs, transposed in _names(config)}
    has_head = num_classes is not None and any(
        theirs.startswith("classifier.") and theirs in stored for theirs in wanted
    )
    if not has_head:
        wanted = {
            theirs: entry
            for theirs, entry in wanted.items()
            if not theirs.startswith("classifier.")
        }
        if (
            config.family == "roberta" and num_classes is not None
        ):  # The new head has a tanh layer of its own.
            stored = {
                name: tensor for name, tensor in stored.items() if not name.startswith("pooler.")
            }
    _check_names(folder, set(stored) - set(_BUFFERS), set(wanted))
    flat = {}
    for theirs, (ours, transposed) in wanted.items():
        # Layer weights are stacked below; the copy is made there, so no weight is held twice.
        flat[ours] = (
            np.asarray(stored[theirs], np.float32).T
            if transposed
            else np.asarray(stored[theirs], np.float32)
        )
    if num_classes is not None and not has_head:
        if key is None:
            raise ValueError(
                f"{folder} has no classifier, and a new one needs a random key: pass "
                "key=jax.random.key(seed)."
            )
        flat["classifier/kernel"] = 0.02 * np.asarray(
            jax.random.normal(key, (config.hidden_size, num_classes)), np.float32
        )
        flat["classifier/bias"] = np.zeros(num_classes, np.float32)
        if config.family == "roberta":
            square = (config.hidden_size, config.hidden_size)
            flat["pooler/kernel"] = 0.02 * np.asarray(
                jax.random.normal(jax.random.fold_in(key, 1), square), np.float32
            )
            flat["pooler/bias"] = np.zeros(config.hidden_size, np.float32)
    _check_shapes(folder, flat, config)
    return config, unflatten(_stacked(flat, config.num_layers) if scan else flat)


def save_encoder(
    folder: Path | str, config: EncoderConfig, params: Mapping[str, Any], *, scan: bool = True
) -> None:
    """Writes the folder that `load_encoder`, and transformers, read: config.json and
    model.safetensors in float32.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat = flatten(params)
    if isinstance(config, DebertaConfig):
        safetensors.write(
            folder / "model.safetensors",
            named_tensors(deberta_names(config, scan=scan), flat),
            {"format": "pt"},
        )
        (folder / "config.json").write_text(json.dumps(deberta_json(config), indent=2) + "\n")
        return
    tensors = {}
    for ours, theirs, transposed in _names(config):
        array = _layer_of(flat, ours) if scan and ours.startswith("layers_") else flat[ours]
        host = np.asarray(array, np.float32)
        name = (
            theirs
            if theirs.startswith("classifier.") or config.num_classes is None
            else _PREFIXES[config.family] + theirs
        )
        tensors[name] = np.ascontiguousarray(host.T if transposed else host)
    safetensors.write(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config_json(config), indent=2) + "\n")


def encoder_names(config: EncoderConfig, *, scan: bool = True) -> dict[str, Name]:
    """How transformers names every weight of an encoder: `BertModel`'s, `RobertaModel`'s or
    `DebertaV2Model`'s names, or with a classifier those of its `...ForSequenceClassification`.
    """
    if isinstance(config, DebertaConfig):
        return deberta_names(config, scan=scan)
    names = {}
    prefix = "" if config.num_classes is None else _PREFIXES[config.family]
    inside = [(f"layers/{ours}", theirs) for ours, theirs, _ in _BLOCK]
    if not scan:
        inside = [
            (path.replace("layers/", f"layers_{i}/", 1), theirs.format(i))
            for i in range(config.num_layers)
            for path, theirs in inside
        ]
    outside = [(ours, theirs) for ours, theirs, _ in _outside(config)]
    for ours, theirs in [*outside, *inside]:
        shape = _shape(ours, config)
        kind = (
            "embedding" if ours.endswith("embedding") else "linear" if len(shape) == 2 else "vector"
        )
        stack = (config.num_layers,) if "{}" in theirs else ()
        names[ours] = Name(prefix + theirs, shape, kind, stack)
    if config.num_classes is not None:
        for ours, theirs, transposed in _head(config):
            names[ours] = Name(theirs, _shape(ours, config), "linear" if transposed else "vector")
    return names


def _names(config: EncoderConfig) -> Iterator[tuple[str, str, bool]]:
    yield from _outside(config)
    for layer in range(config.num_layers):
        for ours, theirs, transposed in _BLOCK:
            yield f"layers_{layer}/{ours}", theirs.format(layer), transposed
    if config.num_classes is not None:
        yield from _head(config)


def _head(config: EncoderConfig) -> tuple[tuple[str, str, bool], ...]:
    return _ROBERTA_HEAD if config.family == "roberta" else _HEAD


def _outside(config: EncoderConfig) -> tuple[tuple[str, str, bool], ...]:
    inside_head = config.family == "roberta" and config.num_classes is not None
    return tuple(
        entry for entry in _OUTSIDE if not (inside_head and entry[0].startswith("pooler/"))
    )


def _stacked(flat: Mapping[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    out = {
        path: np.ascontiguousarray(array)
        for path, array in flat.items()
        if not path.startswith("layers_")
    }
    for ours, _, _ in _BLOCK:
        parts = [flat[f"layers_{layer}/{ours}"] for layer in range(layers)]
        out[f"layers/{ours}"] = filled((layers, *parts[0].shape), np.float32, enumerate(parts))
    return out


def _layer_of(flat: Mapping[str, Any], ours: str) -> Any:
    layer, _, rest = ours.removeprefix("layers_").partition("/")
    return flat[f"layers/{rest}"][int(layer)]


def _check_names(folder: Path, stored: set[str], wanted: set[str]) -> None:
    missing, extra = sorted(wanted - stored), sorted(stored - wanted)
    if missing or extra:
        lines = [f"  missing    {name}{_near(name, extra)}" for name in missing] + [
            f"  left over  {name}" for name in extra
        ]
        raise ValueError(
            f"The tensors in {folder} are not those of this encoder: {len(missing)} missing, "
            f"{len(extra)} left over. Every tensor must be "
            "used exactly once. Check that config.json belongs to the file, and that the model is "
            "of the BERT family.\n" + "\n".join(lines[:60])
        )


def _near(name: str, extra: list[str]) -> str:
    close = nearest(name, extra, 1) if extra else []
    return f"  (perhaps {close[0]!r})" if close else ""


def _check_shapes(folder: Path, flat: Mapping[str, np.ndarray], config: EncoderConfig) -> None:
    wrong = []
    for path, array in flat.items():
        expected = _shape(path, config)
        if array.shape != expected:
            wrong.append(f"  {path}: {array.shape}, config.json says {expected}")
    if wrong:
        raise ValueError(
            f"{len(wrong)} tensors in {folder} do not have the shapes that config.json gives (ours, inputs first):\n"
            + "\n".join(wrong)
        )


def _shape(path: str, config: EncoderConfig) -> tuple[int, ...]:
    hidden, wide = config.hidden_size, config.intermediate_size
    for ending, shape in {
        "word/embedding": (config.vocab_size, hidden),
        "position/embedding": (config.max_positions + config.first_position, hidden),
        "type/embedding": (config.type_vocab_size, hidden),
        "mlp/up/kernel": (hidden, wide),
        "mlp/up/bias": (wide,),
        "mlp/down/kernel": (wide, hidden),
        "classifier/kernel": (hidden, config.num_classes),
        "classifier/bias": (config.num_classes,),
        "kernel": (hidden, hidden),
    }.items():
        if path.endswith(ending):
            return shape
    return (hidden,)


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} needs a config.json next to its weights, and there is none. Give a Hugging "
            "Face model folder."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Fetch the model again.") from None
    if not isinstance(raw, dict):
        raise ValueError(
            f"{path} does not describe an encoder that can be loaded: it is not a JSON object."
        )
    return raw


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Inside, what is wrong with a parsed config.json becomes an error that names the file."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"{path} lacks the field {error}. Give the config.json that belongs to the weights."
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not describe an encoder that can be loaded: {error}."
        ) from None


def _read_config(folder: Path, raw: Mapping[str, Any], num_classes: int | None) -> EncoderConfig:
    with _named_errors(folder / "config.json"):
        activation = raw.get("hidden_act", "gelu")
        family = raw.get("model_type", "bert")
        if family == "t5":
            raise ValueError(
                "model_type 't5' is an encoder-decoder, which writes text: set config.data.task to "
                "'completion', or use load_t5"
            )
        if family not in _PREFIXES or activation not in _ACTIVATIONS:
            raise ValueError(
                f"model_type {raw.get('model_type')!r} with hidden_act {activation!r} is not "
                "supported; needed "
                f"{', '.join(map(repr, _PREFIXES))} or {DEBERTA!r} with {', '.join(_ACTIVATIONS)}"
            )
        if family == "roberta" and raw.get("pad_token_id", 1) != 1:
            raise ValueError(
                f"pad_token_id {raw['pad_token_id']!r} of a 'roberta' is not supported; needed 1, "
                "from which its positions count"
            )
        for name, supported in (("position_embedding_type", "absolute"), ("is_decoder", False)):
            if raw.get(name, supported) != supported:
                raise ValueError(f"{name} {raw[name]!r} is not supported; needed {supported!r}")
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        ):
            if not isinstance(raw[name], int):
                raise ValueError(f"{name} must be a whole number, and is {raw[name]!r}")
        return EncoderConfig(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=raw["num_attention_heads"],
            intermediate_size=raw["intermediate_size"],
            max_positions=raw["max_position_embeddings"] - (2 if family == "roberta" else 0),
            type_vocab_size=raw["type_vocab_size"],
            norm_eps=raw["layer_norm_eps"],
            activation=activation,
            num_classes=num_classes,
            family=family,
        )


def _config_json(config: EncoderConfig) -> dict[str, Any]:
    head = config.num_classes is not None
    return {
        "architectures": [
            f"{config.family.capitalize()}{'ForSequenceClassification' if head else 'Model'}"
        ],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions + config.first_position,
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": config.activation,
        "position_embedding_type": "absolute",
        "pad_token_id": 1 if config.family == "roberta" else 0,
    } | ({"num_labels": config.num_classes} if head else {})
