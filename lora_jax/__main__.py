"""The first lines of `lora-jax` and of `python -m lora_jax`."""

import signal
import sys


def main() -> int:
    """The exit status of the command line (`lora_jax.cli.main`)."""
    # Until the command line answers signals itself: an end without a traceback out of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lora_jax.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
