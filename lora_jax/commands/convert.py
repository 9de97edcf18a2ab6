"""Convert an adapter of ours to PEFT's format, or one of PEFT's to ours.

  lora-jax convert runs/default/lora-r4-all_linear-s0-1a2b3c4d/adapter out/peft --model minilm-l6
  lora-jax convert peft_folder out/ours --model minilm-l6

The direction follows from what the folder holds. Everything in it is converted, or the reason why it cannot be is said. Layers
are stacked in our format (scan).
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax convert`."""
    parser.add_argument("adapter", metavar="ADAPTER", help="the folder of an adapter, ours or PEFT's")
    parser.add_argument("out", metavar="OUT", help="the new folder")
    parser.add_argument("--model", required=True, help="the base: a folder, a known name or a Hugging Face id")
    parser.add_argument("--task-type", help="PEFT's task type, by default SEQ_CLS for an adapter with a classifier")
    parser.add_argument("--dropout", type=float, help="the one dropout rate that PEFT's file has room for, where sites differ")


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder and prints what was written, and in which other form."""
    from lora_jax.commands.adapter import classes_in, names_of_model, read_any
    from lora_jax.core.fingerprint import fingerprint
    from lora_jax.io.adapter import load_adapter, save_adapter
    from lora_jax.io.peft import is_peft, save_peft
    from lora_jax.io.safetensors import read

    out = Path(arguments.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} must be a new or empty folder: it holds {len(list(out.iterdir()))} files. Choose another.")
    names, params = names_of_model(arguments.model, arguments.adapter)
    own = fingerprint({name: leaf for name, leaf in params.items() if name != "classifier"})
    if is_peft(arguments.adapter):
        lora, base = read_any(arguments.adapter, arguments.model)
        if base and base != own:
            raise ValueError(
                f"{arguments.adapter} was trained on base {base}, and {arguments.model} is {own}. Give the base that it was trained on."
            )
        save_adapter(out, lora, base=own, model=arguments.model)
        print(f"{out}: {len(lora)} sites, for base {own}")
        return 0
    lora, _ = load_adapter(arguments.adapter, base=own)
    head = classes_in(read(next(Path(arguments.adapter).glob("*.safetensors"))))
    task = arguments.task_type or (None if head is None else "SEQ_CLS")
    made = save_peft(out, lora, names, base_model=arguments.model, task_type=task, base=own, dropout=arguments.dropout)
    print(f"{out}: {len(made.tensors)} tensors, target_modules {', '.join(made.config['target_modules'])}, for base {own}")
    for note in made.notes:
        print(f"note: {note}")
    return 0
