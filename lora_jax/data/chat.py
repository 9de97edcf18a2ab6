"""Chats as a model's Jinja template writes them, equal to transformers' apply_chat_template.

A template is a program that comes with a model's files. Jinja's sandbox lets it reach nothing but
its arguments, yet cannot bound what it costs: one expression ('x' * 10**9) or two loops are enough.
So templates run in a process of their own, whose memory and processor time the system limits.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_jax.core.extras import needs

Message = Mapping[str, Any]

_SECONDS = 1.0  # of processor time for a chat
_MEMORY = 2**29  # bytes of address space, the interpreter's included
_LETTERS = 2**23  # of a rendered chat
_READY = "ready\n"
# What ends a process from outside: another may answer.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
# Names that a message's reasoning has; templates read the first, gpt-oss's the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    source: str = "The chat template",
    continued: bool = False,
    **variables: Any,
) -> str:
    """What a Jinja chat template writes.

    Args:
        messages: as `TextTokenizer.chat` takes them.
        source: which template it is, for errors.
        continued: ends where the last message's content does, so that a model goes on with it.
        variables: further names for the template; `tools` and `documents` are None by default.

    Raises:
        ValueError: the template is broken, refuses the messages (its own words are given), takes
            more than a second or half a gigabyte, or leaves out a message that is to be continued.
        OSError: the process in which templates run cannot be started.
    """
    with needs("data"):
        import jinja2  # noqa: F401 - what the other process needs
    if not messages:
        raise ValueError("A chat needs at least one message, and none came.")
    given, mark = [_filled(message) for message in messages], ""
    if continued:
        mark = f"<|{os.urandom(16).hex()}|>"
        if not isinstance(given[-1].get("content"), str):
            raise ValueError("A message that is to be continued needs a text as its content.")
        # A template that trims takes the space away, too.
        given[-1] |= {"content": given[-1]["content"] + mark + " "}
    names = {"tools": None, "documents": None, "add_generation_prompt": False}
    try:
        request = json.dumps([template, names | variables | {"messages": given}])
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"A chat needs messages and variables that JSON has (texts, numbers, lists, objects): "
            f"{error}. Give tools as JSON schemas."
        ) from None

    text, reason = _renderer().answer(request)
    if text is not None and mark not in text:
        reason = "it leaves out the end of the last message, which is to be continued"
    if text is None or reason:
        raise ValueError(f"{source} does not take these {len(messages)} messages: {reason}")
    if not mark:
        return text
    before, _, after = text.rpartition(mark)
    return before if after.startswith(" ") else before.rstrip()


def _filled(message: Message) -> dict[str, Any]:
    """A message without names that are None, its reasoning under the names that templates read."""
    if not isinstance(message, Mapping):
        raise ValueError(
            f"A message needs to be a mapping such as {{'role': 'user', 'content': 'Hi'}}, and "
            f"{message!r:.80} came."
        )
    kept = {name: value for name, value in message.items() if value is not None}
    said = next((kept[name] for name in _REASONING if name in kept), None)
    return kept if said is None else {"thinking": said, **kept, "reasoning_content": said}


class _Renderer:
    """The process that renders: started at the first chat, and anew after a chat that ended it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def answer(self, request: str) -> tuple[str | None, str]:
        """(the text, "") or (None, why there is none).

        Raises:
            OSError: no process can be started.
        """
        with self._turn:
            answer, code = self._asked(request)
            if code in _FROM_OUTSIDE:
                answer, code = self._asked(request)
        if code is None:
            return tuple(json.loads(answer))
        if code == -signal.SIGPROF:
            return None, f"it needs more than {_SECONDS:g} s of processor time"
        if code in _FROM_OUTSIDE:
            name = signal.Signals(-code).name
            return None, f"its process was ended from outside ({name}), and so was another"
        return None, f"its process ended with {code}; most likely it wanted too much memory"

    def _asked(self, request: str) -> tuple[str, int | None]:
        """The line that is answered and None, or the exit status of the process if it has ended."""
        try:
            self._process = self._process or _start()
            answer = _ask(self._process, request)
        except BaseException:
            # An interrupt: the answer that is still to come would be taken for the next one's.
            self.stop()
            raise
        return answer, None if answer.endswith("\n") else self.end()

    def end(self) -> int | None:
        """Lets the process end, and gives its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.communicate()
        return process.returncode

    def stop(self) -> None:
        """Ends the process without waiting for it to see that nothing more comes: another child of
        ours may hold the way to it open.
        """
        if self._process is not None:
            self._process.kill()
        self.end()


@functools.lru_cache(maxsize=1)
def _renderer() -> _Renderer:
    renderer = _Renderer()
    atexit.register(renderer.stop)

    def forget() -> None:
        # A forked process would read the other's answers, and end what is not its own.
        atexit.unregister(renderer.stop)
        _renderer.cache_clear()

    os.register_at_fork(after_in_child=forget)
    return renderer


def _start() -> subprocess.Popen[str]:
    program = (
        "import sys; sys.path[:] = sys.argv[1:]; import lora_jax.data.chat as chat; chat.serve()"
    )
    # Without `site` it starts in half the time; an editable install is found by its own path.
    paths = [*sys.path, str(Path(__file__).parents[2])]
    # Its own session: an interrupt from the keyboard is for us alone.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        if (said := process.stdout.readline()) == _READY:
            return process
        written, errors = process.communicate()
    except BaseException:
        process.kill()
        process.communicate()
        raise
    last = (errors.strip() or said + written).strip().splitlines()[-1:] or ["nothing"]
    raise OSError(
        f"Chat templates run in a process of their own, and {sys.executable} could not start it: "
        f"it ended with {process.returncode} and said {last[0]:.300}. Repair that installation."
    )


def _ask(process: subprocess.Popen[str], request: str) -> str:
    """The line that the process answers; empty if it has ended."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(request + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    return ""


def serve() -> None:
    """Answers each line of standard input, [template, variables], with a line: [text, ""] or [null,
    why].
    """
    import resource

    make = functools.lru_cache(maxsize=8)(_environment().from_string)
    # Where the system has no such limit, or a lower one, time and letters still are limited.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody reads it from here on
    print(_READY, end="", flush=True)
    for line in sys.stdin:
        # Where time is up, the signal ends this process, also in the middle of an expression.
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        answer = json.dumps(_rendered(make, line))
        signal.setitimer(signal.ITIMER_PROF, 0)  # before it is sent: the next chat has its own time
        print(answer, flush=True)


def _rendered(make: Any, request: str) -> tuple[str | None, str]:
    with needs("data"):
        from jinja2 import TemplateError
    try:
        template, variables = json.loads(request)
        text = make(template).render(variables)
    except TemplateError as error:
        return None, str(error)[:500]
    except MemoryError:
        return None, f"it needs more than {_MEMORY / 2**20:g} MiB of memory"
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error)[:500]}"
    if len(text) > _LETTERS:
        return None, f"it writes {len(text):,} letters, and {_LETTERS:,} are the most"
    return text, ""


def _environment() -> Any:
    """Jinja as transformers sets it up: what templates of chats may count on."""
    with needs("data"):
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.nodes import CallBlock
        from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: marks what the model says, and writes what stands in it."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("written"), [], [], body).set_lineno(line)

        def written(self, caller: Any) -> str:
            return caller()

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    # Jinja's own filter writes entities, for HTML.
    def as_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
