"""Convert an adapter of PEFT's to ours.

  lora-jax convert peft_folder out/ours --model minilm-l6

It becomes one for a model whose layers are stacked (model.scan=True), or with --loop for one with
model.scan=False. Everything in it is converted, or the reason why it cannot be is said. The other
way, ours to PEFT's, is `lora-jax export peft`; this command does that, too, as it used to.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_jax.commands import export_peft
from lora_jax.commands.adapter import new_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax convert`."""
    parser.add_argument("adapter", metavar="ADAPTER", help="the folder of PEFT's adapter")
    parser.add_argument("out", metavar="OUT", help="the new folder")
    parser.add_argument(
        "--model", required=True, help="the base: a folder, a known name or a Hugging Face id"
    )
    parser.add_argument(
        "--loop",
        action="store_true",
        help="for a model with scan=False, whose layers are layers_0, layers_1, ...",
    )
    export_peft.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder and prints what was written."""
    from lora_jax.commands.adapter import open_base
    from lora_jax.io.adapter import save_adapter
    from lora_jax.io.card import Card, base_id_of, licence_of
    from lora_jax.io.peft import is_peft, load_peft
    from lora_jax.io.weights import adapter_names

    out, model, scan = new_folder(arguments.out), arguments.model, not arguments.loop
    if not is_peft(arguments.adapter):
        adapter = Path(arguments.adapter)
        export_peft.write(adapter, out, model, arguments.task_type, arguments.dropout)
        return 0
    stored = open_base(model, arguments.adapter, scan=scan)
    names, own = adapter_names(stored.config, scan=scan), stored.fingerprint()
    trainable, found = load_peft(arguments.adapter, names, frozen=stored.read())
    base = found.recorded.get("base", "")
    if base and base not in (
        own,
        open_base(model, arguments.adapter, scan=not scan).fingerprint(),
    ):
        raise ValueError(
            f"{arguments.adapter} was trained on base {base}, and {model} is {own}. Give the base "
            "that it was trained on."
        )
    card = Card(base_id=base_id_of(model), base_licence=licence_of(model))
    save_adapter(out, trainable, base=own, model=model, card=card)
    print(f"{out}: {len(trainable)} sites, for base {own}")
    return 0
