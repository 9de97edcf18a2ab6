"""Write an adapter of ours as PEFT has it: adapter_config.json and adapter_model.safetensors.

  lora-jax export peft runs/default/lora-fp32-r4-all_linear-s0-1a2b3c4d out/peft
  lora-jax export peft my_adapter out/peft --model minilm-l6

The adapter is a run's folder, whose base is that of the run, or an adapter's own, with --model.
Everything in it is converted, or the reason why it cannot be is said. The other way, PEFT's to
ours, is `lora-jax convert`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_jax.commands.adapter import new_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax export peft`."""
    parser.add_argument(
        "adapter", metavar="RUN|ADAPTER", help="the folder of a run, or of an adapter of ours"
    )
    parser.add_argument("out", metavar="OUT", help="the new folder")
    parser.add_argument(
        "--model", help="the base: a folder, a known name or a Hugging Face id; of a run, its own"
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What PEFT's files say besides."""
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
    """Writes the folder and prints what was written."""
    from lora_jax.core.json_files import read_json

    out, adapter, model = new_folder(arguments.out), Path(arguments.adapter), arguments.model
    if (adapter / "config.json").is_file() and (adapter / "adapter").is_dir():
        model = model or read_json(adapter / "config.json")["model"]["name"]
        adapter = adapter / "adapter"
    if model is None:
        raise ValueError(
            f"{adapter} is an adapter by itself, and PEFT's names belong to a model: give it with "
            "--model, or give the run's folder."
        )
    write(adapter, out, model, arguments.task_type, arguments.dropout)
    return 0


def write(
    adapter: Path, out: Path, model: str, task_type: str | None, dropout: float | None
) -> None:
    """Writes an adapter of ours for the base `model`, and prints what was written."""
    from lora_jax.commands.adapter import classes_in, is_stacked, open_base
    from lora_jax.io.adapter import load_adapter
    from lora_jax.io.card import Card, base_id_of, licence_of
    from lora_jax.io.peft import is_peft, save_peft
    from lora_jax.io.safetensors import read
    from lora_jax.io.weights import adapter_names

    if is_peft(adapter):
        raise ValueError(
            f"{adapter} is an adapter of PEFT's already. To read it here: lora-jax convert {adapter} "
            f"OUT --model {model}."
        )
    scan = is_stacked(adapter)
    stored = open_base(model, adapter, scan=scan)
    names, own = adapter_names(stored.config, scan=scan), stored.fingerprint()
    trainable, _ = load_adapter(adapter, base=own)
    head = classes_in(read(next(adapter.glob("*.safetensors"))))
    language = (
        "SEQ_2_SEQ_LM"
        if "encoder/relative/embedding" in names
        else "CAUSAL_LM"
        if "embed/embedding" in names
        else None
    )
    made = save_peft(
        out,
        trainable,
        names,
        base_model=model,
        task_type=task_type or language or (None if head is None else "SEQ_CLS"),
        base=own,
        dropout=dropout,
        card=Card(base_id=base_id_of(model), base_licence=licence_of(model)),
    )
    print(
        f"{out}: {len(made.tensors)} tensors, target_modules "
        f"{', '.join(made.config['target_modules'])}, for base {own}"
    )
    for note in made.notes:
        print(f"note: {note}")
