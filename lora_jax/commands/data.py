"""Look at a config's data before training on it: records, prompts as the model reads them, lengths,
what the splits share.

  lora-jax data preview --config domains/finance --records 3
  lora-jax data preview --config tasks/my_data:classification \\
      --config.data.name=reviews.csv --config.data.fields.text=review

Between « and » stand the tokens that the loss counts. The model's files are opened as for
training, its weights are not read.
"""

from __future__ import annotations

import argparse
import functools

from lora_jax.commands.shared import add_config, read_config


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
    from lora_jax.tasks.opening import open_task

    config = read_config(arguments)
    task = open_task(config)
    train = task.splits["train"]
    counted = ", ".join(f"{split} {len(part)}" for split, part in task.records.items())
    print(f"{config.data.title}: {counted}")
    if task.note:
        print(task.note)
    if counts := label_counts(task.records["train"], task.label_names):
        print(f"classes of train: {counts}")

    print(f"\n--- records of train (first {arguments.records})")
    for number, text in enumerate(show_records(task.records["train"], arguments.records)):
        print(text)
        if task.generator is not None:
            decode = functools.partial(task.tokenizer.decode, special=True)
            print(f"as the model reads it:\n{mark_loss(train, number, decode)}")
        print()
    print("--- lengths of train")
    print("\n".join(histogram(train.lengths, cap=config.data.max_length)))
    cut = {split: part.truncated for split, part in task.splits.items() if part.truncated}
    print(
        "cut to max_length: "
        f"{', '.join(f'{count} of {split}' for split, count in cut.items()) or 'none'}"
    )
    print("\n--- repeated and shared inputs")
    print("\n".join(overlaps(task.records)))
    return 0
