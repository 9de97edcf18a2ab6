"""Convert an adapter of ours to PEFT's format, or one of PEFT's to ours.

  lora-jax convert runs/default/lora-r4-all_linear-s0-1a2b3c4d/adapter out/peft --model minilm-l6
  lora-jax convert peft_folder out/ours --model minilm-l6

The direction follows from what the folder holds. Everything in it is converted, or the reason why
it cannot be is said. An adapter of PEFT's becomes one for a model whose layers are stacked
(model.scan=True), or with --loop for one with model.scan=False.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax convert`."""
    parser.add_argument(
        "adapter", metavar="ADAPTER", help="the folder of an adapter, ours or PEFT's"
    )
    parser.add_argument("out", metavar="OUT", help="the new folder")
    parser.add_argument(
        "--model", required=True, help="the base: a folder, a known name or a Hugging Face id"
    )

    parser.add_argument(
        "--loop",
        action="store_true",
        help="PEFT to ours: for a model with scan=False, whose layers are layers_0, layers_1, ...",
    )
    parser.add_argument(
        "--task-type",
        help="PEFT's task type, by default SEQ_CLS with a classifier and CAUSAL_LM for decoders",
    )
    parser.add_argument(
        "--dropout",
        type=float,
        help="the one dropout rate that PEFT's file has room for, where sites differ",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder and prints what was written, and in which other form."""
    from lora_jax.commands.adapter import classes_in, is_stacked, open_base
    from lora_jax.io.adapter import load_adapter, save_adapter
    from lora_jax.io.peft import is_peft, load_peft, save_peft
    from lora_jax.io.safetensors import read
    from lora_jax.io.weights import adapter_names

    out = Path(arguments.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(
            f"{out} must be a new or empty folder: it holds {len(list(out.iterdir()))} files. "
            "Choose another."
        )
    theirs = is_peft(arguments.adapter)
    scan = not arguments.loop if theirs else is_stacked(arguments.adapter)
    stored = open_base(arguments.model, arguments.adapter, scan=scan)
    names, own = adapter_names(stored.config, scan=scan), stored.fingerprint()
    if theirs:
        trainable, found = load_peft(arguments.adapter, names, frozen=stored.read())
        base = found.recorded.get("base", "")
        if base and base not in (
            own,
            open_base(arguments.model, arguments.adapter, scan=not scan).fingerprint(),
        ):
            raise ValueError(
                f"{arguments.adapter} was trained on base {base}, and {arguments.model} is {own}. "
                "Give the base that it was trained on."
            )
        save_adapter(out, trainable, base=own, model=arguments.model)
        print(f"{out}: {len(trainable)} sites, for base {own}")
        return 0
    trainable, _ = load_adapter(arguments.adapter, base=own)
    head = classes_in(read(next(Path(arguments.adapter).glob("*.safetensors"))))
    language = (
        "SEQ_2_SEQ_LM"
        if "encoder/relative/embedding" in names
        else "CAUSAL_LM"
        if "embed/embedding" in names
        else None
    )
    task = arguments.task_type or language or (None if head is None else "SEQ_CLS")
    made = save_peft(
        out,
        trainable,
        names,
        base_model=arguments.model,
        task_type=task,
        base=own,
        dropout=arguments.dropout,
    )
    print(
        f"{out}: {len(made.tensors)} tensors, target_modules "
        f"{', '.join(made.config['target_modules'])}, for base {own}"
    )
    for note in made.notes:
        print(f"note: {note}")
    return 0
