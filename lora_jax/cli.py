"""`lora-jax COMMAND ...`: finds the command, turns what a user can mend into one paragraph and an
exit status.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import textwrap
import traceback
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from lora_jax.core.cache import cache_dir
from lora_jax.core.extras import needs
from lora_jax.training.allocator import keep_freed_memory
from lora_jax.training.interrupted import Interrupted, ended_by_signals

COMMANDS: dict[str, str] = {
    "configs": "the configs that come with the package, by name, a line each",
    "train": "train one run: full, head, lora or qlora",
    "plan": "what a run needs of a device, from config.json alone, and what makes it fit",
    "sweep": "train a grid over rank, bit-width, targets and seeds; finished runs are kept",
    "report": "tables, tests and pictures of finished runs, as HTML and Markdown",
    "watch": "a sweep while it runs: running, done, failed, best so far, time left",
    "data": "show a config's records, prompts, lengths and repeated texts",
    "evaluate": "score a trained run, with intervals, alone or against another",
    "quantize": "write a model's weights in few bits, with a table of what that loses",
    "allocate": "bits and ranks by layer under a memory budget, by what each layer loses",
    "harness": "score a language model on tasks of lm-evaluation-harness",
    "inspect": "what a model, a run, an adapter or a quantised checkpoint is",
    "export merged": "a run's adapter in its base: dense for other tools, GGUF, or quantised again",
    "export peft": "an adapter of ours as PEFT has it",
    "export runs": "every run of a store as one flat table, CSV or Parquet",
    "convert": "an adapter of PEFT's to ours",
    "push": "an adapter with its model card to the Hugging Face hub",
    "generate": "continue prompts with a language model and adapters",
    "claims": "test published claims again: list, run, verify, report",
}

# What a command was called before.
FORMER = {"merge": "export merged"}

_EPILOG = """\
The main job, under ten minutes on two CPU cores:
  lora-jax sweep --config default:tuned              tune, train, and write the report
  lora-jax sweep --config default:tuned --dry-run    only show what it would do and need

Any setting can be given on the command line, as often as needed:
  lora-jax sweep --config default --config.sweep.rank=1,2,4 --config.out=runs/ranks

A config is a file or the name of a shipped one: lora-jax configs lists those.
lora-jax COMMAND --help says more about a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 a run failed, 2 something to mend in the input, 130 stopped by a
    signal (143 by SIGTERM, where no training had to be brought to an end).
    """
    came: list[int] = []
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    try:
        with ended_by_signals() as came:
            return _main(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print("lora-jax: stopped.", file=sys.stderr)
        return 128 + came[-1] if came else 130
    except BrokenPipeError:  # The reader of a pipe, such as head, has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0 if given else 2
    if given[0] == "--version":
        from importlib.metadata import version  # slow: a signal should find its handler

        print(f"lora-jax {version('lora-jax')}")
        return 0
    name, _ = split_name(given)
    if name not in COMMANDS:
        return _not_a_command(given)
    _prepare_process()
    command, parsed = parse(given)
    if parsed.overrides and not hasattr(parsed, "config"):
        return _complain(
            f"lora-jax {name} takes no settings, but {parsed.overrides[0]!r} came. See lora-jax "
            f"{name} --help."
        )
    keep_freed_memory()  # Not before: it imports JAX, and a command's help need not wait for that.
    return _guarded(command.run, parsed)


def parse(given: Sequence[str]) -> tuple[ModuleType, argparse.Namespace]:
    """The command's module and its options, `overrides` with them.

    Raises:
        SystemExit: After --help, and with status 2 when the command has no such option.
    """
    name, rest = split_name(given)
    command = importlib.import_module(f"lora_jax.commands.{name.replace(' ', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"lora-jax {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.add_arguments(parser)
    overrides, rest = _split_overrides(rest)
    # Intermixed: `claims run --again C3` as well as `claims run C3 --again`.
    parsed = parser.parse_intermixed_args(rest)
    parsed.overrides = overrides
    return command, parsed


def split_name(given: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name, of two words in a family such as `export`, and what follows it."""
    words = [*FORMER.get(given[0], given[0]).split(), *given[1:]]
    two = " ".join(words[:2])
    return (two, words[2:]) if two in COMMANDS else (words[0], words[1:])


def _not_a_command(given: Sequence[str]) -> int:
    """The help of a family of commands, or a complaint; the exit status."""
    name, *rest = given
    family = [command for command in COMMANDS if command.startswith(f"{name} ")]
    if family and rest[:1] in ([], ["-h"], ["--help"]):
        print(f"usage: lora-jax {name} KIND [options]\n\n{_listed(family)}")
        return 0 if rest else 2
    if family:
        moved = " What was lora-jax export STORE is lora-jax export runs STORE." * (
            name == "export"
        )
        kinds = ", ".join(command.partition(" ")[2] for command in family)
        return _complain(f"lora-jax {name} needs one of {kinds} next, got {rest[0]!r}.{moved}")
    near = difflib.get_close_matches(name, COMMANDS, 1)
    return _complain(
        f"There is no command {name!r}. {f'Nearest: {near[0]!r}. ' if near else ''}Commands: "
        f"{', '.join(COMMANDS)}."
    )


def _complete() -> None:
    """Answers the shell, which argcomplete's function has asked for words, and ends the process."""
    with needs("completion"):
        import argcomplete

    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    argcomplete.autocomplete(_parser_of_all(line.split()[1:]), always_complete_options="long")


def _parser_of_all(words: Sequence[str]) -> argparse.ArgumentParser:
    """A parser of all commands, of which the one that these words name has its options: the others
    are not imported.
    """
    root = argparse.ArgumentParser("lora-jax", allow_abbrev=False)
    groups: dict[str, Any] = {"": root.add_subparsers()}
    for name in COMMANDS:
        family, _, kind = name.rpartition(" ")
        if family not in groups:
            groups[family] = groups[""].add_parser(family).add_subparsers()
        parser = groups[family].add_parser(kind, help=COMMANDS[name])
        if words and split_name(words)[0] == name:
            parser.add_argument("--debug", action="store_true")
            module = importlib.import_module(f"lora_jax.commands.{name.replace(' ', '_')}")
            module.add_arguments(parser)
    return root


def _prepare_process() -> None:
    """Settings that have to stand before JAX is imported; what the user has set already stays."""
    # TFDS and absl log at a level that is meant for their developers.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # The second start of a command finds its programs compiled.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def _guarded(run: object, parsed: argparse.Namespace) -> int:
    try:
        return run(parsed)
    except Interrupted as stop:
        print(f"lora-jax: {stop}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (
        ValueError,
        TypeError,
        KeyError,
        OSError,
        RuntimeError,
        ArithmeticError,
        ImportError,
    ) as error:
        if parsed.debug:
            traceback.print_exc()
        # str() of a KeyError puts quotes around its text.
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        return _complain(str(text) or type(error).__name__)


def _split_overrides(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """(overrides `--config.a.b=value`, everything else); `--config.a.b value` is understood as
    well.
    """
    overrides: list[str] = []
    rest: list[str] = []
    waiting = iter(given)
    for word in waiting:
        if not word.startswith("--config."):
            rest.append(word)
        elif "=" in word:
            overrides.append(word)
        else:
            overrides.append(f"{word}={next(waiting, '')}")
    return overrides, rest


def _complain(message: str) -> int:
    """Prints one paragraph; lists in it keep their lines."""
    width = 100
    lines = [
        textwrap.fill(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for line in message.splitlines()
    ]
    print("lora-jax: error: " + "\n".join(lines), file=sys.stderr)
    return 2


def _help() -> str:
    return f"usage: lora-jax COMMAND [options]\n\nLoRA and QLoRA fine-tuning in JAX and Flax.\n\ncommands:\n{_listed(COMMANDS)}\n\n{_EPILOG}"


def _listed(names: Iterable[str]) -> str:
    return "\n".join(f"  {name:<14} {COMMANDS[name]}" for name in names)
