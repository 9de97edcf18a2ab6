"""Look at a config's data before training on it: records, prompts as the model reads them, lengths,
what the splits share.

  lora-jax data preview --config configs/domains/finance.py --records 3
  lora-jax data preview --config configs/tasks/my_data.py:classification \\
      --config.data.name=reviews.csv --config.data.fields.text=review

Between « and » stand the tokens that the loss counts. The model's tokenizer is loaded, its weights
are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from lora_jax.commands.settings import add_config, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax data`."""
    parser.add_argument("action", choices=("preview",), help="what to do")
    add_config(parser)
    parser.add_argument(
        "--records", type=int, default=3, help="how many to show of the training split (3)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the preview."""
    from lora_jax.data.preview import histogram, label_counts, mark_loss, overlaps, show_records

    config = read_config(arguments)
    records, encoded, names, decode, note = _load(config)
    print(
        f"{config.data.title}: "
        + ", ".join(f"{split} {len(part)}" for split, part in records.items())
    )
    if note:
        print(note)
    if counts := label_counts(records["train"], names):
        print(f"classes of train: {counts}")
    print(f"\n--- records of train (first {arguments.records})")
    for number, text in enumerate(show_records(records["train"], arguments.records)):
        print(text)
        if decode is not None:
            print(f"as the model reads it:\n{mark_loss(encoded['train'], number, decode)}")
        print()
    print("--- lengths of train")
    print("\n".join(histogram(encoded["train"].lengths, cap=config.data.max_length)))
    cut = {split: part.truncated for split, part in encoded.items() if part.truncated}
    print(
        "cut to max_length: "
        f"{', '.join(f'{count} of {split}' for split, count in cut.items()) or 'none'}"
    )
    print("\n--- repeated and shared inputs")
    print("\n".join(overlaps(records)))
    return 0


def _load(config: Any) -> tuple[Mapping[str, Any], dict[str, Any], tuple[str, ...], Any, str]:
    """Records, encoded splits, class names, how to decode a language model's tokens (or None), and
    a note.
    """
    from lora_jax.data import encode
    from lora_jax.data.completions import encode_completions
    from lora_jax.data.pairs import encode_pairs
    from lora_jax.io.encoder_tokenizer import load_tokenizer
    from lora_jax.io.gguf_tokenizer import load_text_tokenizer
    from lora_jax.io.hub import resolve
    from lora_jax.io.weights import kind_of
    from lora_jax.tasks.reading import completions_of, examples_of

    data, folder = config.data, resolve(config.model.name, revision=config.model.revision)
    if data.task == "completion":
        texts, letters = completions_of(data), load_text_tokenizer(folder)
        pairs = kind_of(folder) == "encoder-decoder"
        encode_texts = encode_pairs if pairs else encode_completions
        encoded = {
            split: encode_texts(part, letters, data.max_length) for split, part in texts.items()
        }
        return (
            texts,
            encoded,
            (),
            lambda ids: letters.decode(ids, special=True),
            texts["train"].note,
        )

    examples = examples_of(data)
    note = " ".join(filter(None, (examples.note, examples.left_out)))
    encoded = encode(examples, load_tokenizer(folder), data.max_length)
    return examples.splits, encoded, examples.label_names, None, note
