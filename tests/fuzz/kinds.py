"""A small valid file of every kind that the library reads, and what reads it."""

import dataclasses
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mutations as of
import numpy as np
import stores
from mutations import Kind
from tiny_encoder import CONFIG, WORDS, save_tiny_encoder
from tiny_language import SPECIAL_TOKENS

import lora_jax
from lora_jax.core import LowRank, TrainedWeight
from lora_jax.data.tokenizers import backend_errors
from lora_jax.io import bitsandbytes, safetensors
from lora_jax.io.gguf_splits import SPLITS
from lora_jax.io.weights import load_model, open_model, save_model

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
BASE = "b" * 16


def _model(source: str, folder: Path, shard_bytes: int = 0, **options: Any) -> Kind:
    """A model's folder, read as a base is; of several shards, the index and the first of them."""
    if shard_bytes:
        save_model(folder, *load_model(GOLDEN / source), shard_bytes=shard_bytes)
    else:
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(GOLDEN / source / name, folder / name)
    tensors = sorted(path.name for path in folder.glob("*.safetensors"))[:1]
    index = [path.name for path in folder.glob("*.index.json")]
    files = dict.fromkeys(tensors, of.of_safetensors) | dict.fromkeys(index, of.of_json)
    return Kind(
        files | {"config.json": of.of_json},
        lambda folder: load_model(folder, scan=False, **options),
    )


def _t5(folder: Path) -> Kind:
    kind = _model("t5/v1_1", folder)

    def mutate(content: bytes, rng: random.Random) -> of.Mutation:
        made = of.of_safetensors(content, rng)
        # Its config.json says that the head is tied: without one, it is, to transformers as well.
        return made._replace(explains=made.explains or made.what == "without lm_head.weight")

    return dataclasses.replace(kind, files=kind.files | {"model.safetensors": mutate})


def _bert(folder: Path) -> Kind:
    save_tiny_encoder(folder)
    (folder / "vocab.txt").unlink()
    files = {"model.safetensors": of.of_safetensors, "config.json": of.of_json}
    return Kind(files, load_model)


def _gguf(folder: Path) -> Kind:
    folder.mkdir()
    config, params = load_model(GOLDEN / "decoders" / "llama")
    _byte_tokenizer(folder / "tokenizer", config.vocab_size)
    lora_jax.io.export_gguf(
        folder / "model.gguf", config, params, folder / "tokenizer", format="F32"
    )
    shutil.rmtree(folder / "tokenizer")

    def read(folder: Path) -> Any:
        tokenizer = lora_jax.io.load_text_tokenizer(folder)
        said = tokenizer.encode("the"), tokenizer.eos_ids, tokenizer.chat_template
        return load_model(folder, scan=False), said

    return Kind({"model.gguf": of.of_gguf}, read)


def _gguf_splits(folder: Path) -> Kind:
    """A vocabulary alone, and how it says that texts are split."""
    import gguf

    _byte_tokenizer(folder)
    told = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    writer = gguf.GGUFWriter(folder / "vocabulary.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(list(told["vocab"]))
    writer.add_token_merges([" ".join(pair) for pair in told["merges"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    def mutate(content: bytes, rng: random.Random) -> of.Mutation:
        if rng.random() < 0.4:
            return of.of_gguf(content, rng)
        name = rng.choice([*SPLITS, "", "x", "GPT-2", "llama-bpe\0", "é" * 99, *SPLITS]).encode()
        at = content.index(b"tokenizer.ggml.pre") + len(b"tokenizer.ggml.pre") + 4
        size = struct.unpack("<Q", content[at : at + 8])[0]
        new = content[:at] + struct.pack("<Q", len(name)) + name + content[at + 8 + size :]
        return of.Mutation(f"split {name!r}", new, name.decode() in SPLITS)

    def read(folder: Path) -> Any:
        tokenizer = lora_jax.io.load_text_tokenizer(folder / "vocabulary.gguf")
        said = tokenizer.encode("the 12345 fi\n\n'll x"), tokenizer.decode([4, 5])
        return said, tokenizer.eos_ids, tokenizer.add_bos

    return Kind({"vocabulary.gguf": mutate}, read)


def _adapter_leaves() -> dict[str, Any]:
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    out: dict[str, Any] = {
        f"layers/attn/{name}/kernel": LowRank(
            a=draw(2, 16, 2), b=draw(2, 2, 16), scale=jnp.full((2, 2), 2.0), in_axes=(0,)
        )
        for name in "qv"
    }
    return out | {f"layers/attn/{name}/bias": TrainedWeight(value=draw(2, 16)) for name in "qv"}


def _adapter(folder: Path) -> Kind:
    lora_jax.save_adapter(folder, _adapter_leaves(), base=BASE, model="x", label_names=("a", "b"))
    files = {"adapter.safetensors": of.of_safetensors}
    return Kind(files, lambda folder: lora_jax.load_adapter(folder, base=BASE)[0], checked=True)


def _adapter_1(folder: Path) -> Kind:
    """As it was saved before it had a checksum."""
    _adapter(folder)
    file = folder / "adapter.safetensors"
    said = safetensors.read_metadata(file) | {"format": "lora_jax-adapter-1"}
    said = {key: text for key, text in said.items() if key not in ("checksum", "tensors")}
    safetensors.write(file, safetensors.read(file), said)
    # A weight less, trained whole, is what cannot be seen there.
    return Kind(
        {"adapter.safetensors": lambda c, rng: of.of_safetensors(c, rng)._replace(explains=True)},
        lambda folder: lora_jax.load_adapter(folder, base=BASE)[0],
    )


def _peft(folder: Path) -> Kind:
    names = lora_jax.io.encoder_names(CONFIG)
    lora_jax.save_peft(folder, _adapter_leaves(), names, base=BASE)
    files = {"adapter_config.json": of.of_json, "adapter_model.safetensors": of.of_safetensors}
    return Kind(files, lambda folder: lora_jax.load_peft(folder, names)[0])


def _peft_of_theirs(folder: Path) -> Kind:
    shutil.copytree(GOLDEN / "peft" / "bert_patterns", folder)
    config = open_model(GOLDEN / "peft" / "bert_cls", num_classes=2).config
    names = lora_jax.io.encoder_names(config)
    files = {"adapter_config.json": of.of_json, "adapter_model.safetensors": of.of_safetensors}
    return Kind(files, lambda folder: lora_jax.load_peft(folder, names)[0])


def _loralib(folder: Path) -> Kind:
    folder.mkdir()
    names = lora_jax.io.encoder_names(CONFIG)
    theirs = {}
    for part in ("query", "value"):
        for layer in range(2):
            stem = f"encoder.layer.{layer}.attention.self.{part}"
            theirs[f"{stem}.lora_A"] = np.ones((2, 16), np.float32) * (layer + 1)
            theirs[f"{stem}.lora_B"] = np.ones((16, 2), np.float32)
    safetensors.write(folder / "lora.safetensors", theirs)
    load = lora_jax.io.load_loralib
    return Kind(
        {"lora.safetensors": of.of_safetensors},
        lambda folder: load(folder / "lora.safetensors", names, alpha=4.0),
    )


def _weight() -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).standard_normal((64, 32)), jnp.float32)


def _quantized(folder: Path) -> Kind:
    w = _weight()
    tree = {
        "a": {"kernel": lora_jax.quantize(w, lora_jax.QuantSpec("nf4", 64))},
        "b": {"kernel": lora_jax.quantize(w, lora_jax.QuantSpec("int4", 32, double=False))},
        "c": {"bias": w[0]},
    }
    lora_jax.io.save_quantized(folder, tree, {"model": "x"})
    files = {"quantized.safetensors": of.of_safetensors}
    return Kind(files, lora_jax.io.load_quantized, checked=True)


def _bitsandbytes(folder: Path) -> Kind:
    folder.mkdir()
    w = _weight()
    boxes = {
        "fc1.weight": bitsandbytes.quantize_4bit(w),
        "fc2.weight": lora_jax.quantize(w, lora_jax.QuantSpec("int8", None, double=False)),
        "fc3.weight": bitsandbytes.quantize_4bit(w[:40, :31], "fp4", 64, False),
        "bias": w[0],
    }
    bitsandbytes.write(folder / "model.safetensors", boxes)

    def mutate(content: bytes, rng: random.Random) -> of.Mutation:
        made = of.of_safetensors(content, rng)
        # A plain tensor may have any name, shape and type there, and the format's number none.
        plain = made.what.removeprefix("without ").startswith(("bias", "fc2.weight_format"))
        return made._replace(explains=made.explains or plain)

    return Kind(
        {"model.safetensors": mutate},
        lambda folder: bitsandbytes.read(folder / "model.safetensors"),
    )


# --- tokenizers ----------------------------------------------------------------------------------


def _encoder_tokens(folder: Path) -> Any:
    tokenizer = lora_jax.io.load_tokenizer(folder)
    with backend_errors(tokenizer.source):  # as data/encoding.py reads texts
        ids = tokenizer.backend.encode("the good film", "a plot").ids
    return tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.pad_id, ids


def _vocabulary(folder: Path) -> Kind:
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    settings = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Kind({"vocab.txt": of.of_text, "tokenizer_config.json": of.of_json}, _encoder_tokens)


def _tokenizer(folder: Path) -> Kind:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    backend = Tokenizer(models.WordLevel({w: n for n, w in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(names[:5])
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.save(str(folder / "tokenizer.json"))
    return Kind({"tokenizer.json": of.of_json}, _encoder_tokens)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)


def _byte_tokenizer(folder: Path, size: int | None = None) -> None:
    """A byte-level BPE with a few merges, as Hugging Face folders have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = letters if size is None else [x for x in letters if x.isalpha() and x.isascii()]
    names = ["<pad>", "<bos>", "<eos>", *letters, "th", "the", "fi"]
    names = names if size is None else [*names[:3], *letters[-size + 6 :], *names[-3:]]
    merges = [("t", "h"), ("th", "e"), ("f", "i")]
    backend = Tokenizer(models.BPE({w: n for n, w in enumerate(names)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL_TOKENS))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))


def _text_tokens(folder: Path) -> Any:
    tokenizer = lora_jax.io.load_text_tokenizer(folder)
    said = tokenizer.encode("the fi"), tokenizer.decode([4, 5, 6]), tokenizer.chat_template
    return said, tokenizer.eos_ids, tokenizer.pad_id, tokenizer.bos_id, tokenizer.add_bos


def _text_tokenizer(folder: Path) -> Kind:
    _byte_tokenizer(folder)
    files = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    return Kind(dict.fromkeys(files, of.of_json), _text_tokens)


def _sentencepiece(folder: Path) -> Kind:
    folder.mkdir()
    shutil.copy(GOLDEN / "sentencepiece" / "unigram.model", folder / "tokenizer.model")
    return Kind({"tokenizer.model": of.of_anything}, _text_tokens)


def _template(folder: Path) -> Kind:
    _byte_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    chat = [{"role": "user", "content": "the film"}]

    def read(folder: Path) -> str:
        return lora_jax.io.load_text_tokenizer(folder).chat(chat)

    return Kind({"chat_template.jinja": of.of_template}, read)


# --- data ----------------------------------------------------------------------------------------


def _rows(count: int = 40) -> list[tuple[str, str]]:
    rng = random.Random(0)
    texts = (" ".join(rng.choice(WORDS) for _ in range(4)) for _ in range(count))
    return [(f"{text} {n}", ("neg", "pos")[n % 2]) for n, text in enumerate(texts)]


def _data(folder: Path, suffix: str, head: str, line: Callable[[Any], str], mutate: Any) -> Kind:
    folder.mkdir()
    name = f"data.{suffix}"
    (folder / name).write_text("\n".join([*head.splitlines(), *map(line, _rows())]) + "\n")

    def read(folder: Path) -> Any:
        found = lora_jax.data.load(str(folder / name), "classification", on_error="stop")
        skipped = lora_jax.data.load(str(folder / name), "classification", on_error="skip")
        return found.splits, found.label_names, skipped.fingerprint

    return Kind({name: mutate}, read)


def _object(row: tuple[str, str]) -> str:
    return json.dumps({"text": row[0], "label": row[1]})


def _json_data(folder: Path) -> Kind:
    kind = _data(folder, "json", "", _object, of.of_json)
    rows = [json.loads(_object(row)) for row in _rows()]
    (folder / "data.json").write_text(json.dumps(rows))
    return kind


def _completions(folder: Path) -> Kind:
    from lora_jax.data.completions import read_completions

    folder.mkdir()
    lines = (json.dumps({"prompt": text, "completion": word}) for text, word in _rows())
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    read = lambda folder: read_completions(str(folder / "data.jsonl")).fingerprint
    return Kind({"data.jsonl": of.of_lines}, read)


def _predictions(folder: Path) -> Kind:
    from lora_jax.metrics.predictions import (
        Prediction,
        Predictions,
        load_predictions,
        save_predictions,
    )

    rows = tuple(Prediction(f"{n}", 0.5, 1.0, 1.0, "a", "b") for n in range(5))
    save_predictions(folder / "test.jsonl", Predictions("test", ("accuracy",), rows))
    return Kind({"test.jsonl": of.of_lines}, lambda folder: load_predictions(folder / "test.jsonl"))


BUILDERS: dict[str, Callable[[Path], Kind]] = {
    "bert": _bert,
    "roberta": lambda folder: _model("roberta", folder, num_classes=3),
    "deberta": lambda folder: _model("deberta/v3", folder, num_classes=3),
    "t5": _t5,
    "llama in shards": lambda folder: _model("decoders/llama", folder, shard_bytes=6000),
    "gemma3": lambda folder: _model("decoders/gemma3", folder),
    "gpt2": lambda folder: _model("decoders/gpt2", folder),
    "qwen2_moe": lambda folder: _model("decoders/qwen2_moe", folder),
    "gguf": _gguf,
    "gguf splits": _gguf_splits,
    "adapter": _adapter,
    "adapter without checksum": _adapter_1,
    "peft": _peft,
    "peft of theirs": _peft_of_theirs,
    "loralib": _loralib,
    "quantised": _quantized,
    "bitsandbytes": _bitsandbytes,
    "vocab.txt": _vocabulary,
    "tokenizer": _tokenizer,
    "text tokenizer": _text_tokenizer,
    "sentencepiece": _sentencepiece,
    "chat template": _template,
    "csv": lambda folder: _data(
        folder, "csv", "text,label", lambda row: f'"{row[0]}",{row[1]}', of.of_text
    ),
    "tsv": lambda folder: _data(folder, "tsv", "text\tlabel", "\t".join, of.of_text),
    "jsonl": lambda folder: _data(folder, "jsonl", "", _object, of.of_lines),
    "json": _json_data,
    "completions": _completions,
    "predictions": _predictions,
    "overrides": stores.overrides,
    "settings": stores.saved_run,
    "store": stores.store,
    "resume": stores.resume,
    "checkpoint": stores.checkpoint,
}
