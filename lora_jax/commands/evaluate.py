"""Score a trained run on a split, from its saved adapter and the pretrained base.

  lora-jax evaluate runs/default/qlora-nf4-r4-all_linear-s0-1a2b3c4d --split validation

The base is loaded as the run's config names it, quantised as it was in training, and its fingerprint is checked.
"""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax evaluate`."""
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--split", default="test", help="train, validation or test (default)")


def run(arguments: argparse.Namespace) -> int:
    """Prints loss (nats), accuracy and number of examples as JSON."""
    from lora_jax.train.saved import load_run

    print(json.dumps(load_run(arguments.run).evaluate(arguments.split), indent=2))
    return 0
