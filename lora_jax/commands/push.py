"""Upload an adapter, with its model card, to the Hugging Face hub.

  lora-jax push runs/default/RUN me/my-adapter --licence apache-2.0
  lora-jax push out/peft me/my-adapter --public

The repository is made if it is not there: a private one, unless --public says otherwise. Only the
adapter's files and its card go up, in one commit. The token is that of `hf auth login`,
or HF_TOKEN.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax push`."""
    parser.add_argument("folder", metavar="RUN|ADAPTER", help="a run, an adapter, or PEFT's")
    parser.add_argument("repository", metavar="OWNER/NAME", help="on the hub")
    parser.add_argument("--licence", help="of the adapter, for its card: apache-2.0, mit, ...")
    parser.add_argument("--public", action="store_true", help="a new repository is for everybody")
    parser.add_argument("--message", default="An adapter", help="of the commit (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Uploads, and prints where it is."""
    from pathlib import Path

    from lora_jax.io.push import push_adapter

    folder = Path(arguments.folder)
    place = push_adapter(
        folder / "adapter" if (folder / "adapter").is_dir() else folder,
        arguments.repository,
        licence=arguments.licence,
        public=arguments.public,
        message=arguments.message,
    )
    print(f"pushed: {place}")
    return 0
