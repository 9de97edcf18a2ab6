"""Chats equal transformers' apply_chat_template, letter by letter and token by token, and no
template takes more time, memory or letters than a chat needs.
"""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from chats import (
    CONVERSATIONS,
    FAMILIES,
    FEATURES,
    GOLDEN,
    arguments,
    cases,
    dated,
    write_chat_tokenizer,
)

from lora_jax.data import chat
from lora_jax.data.chat import render_chat
from lora_jax.data.text_tokenizers import read_text_tokenizer, save_text_tokenizer

STORED = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return read_text_tokenizer(write_chat_tokenizer(tmp_path_factory.mktemp("chat")))


@pytest.mark.parametrize("name", [*FAMILIES, *FEATURES])
def test_chats_are_transformers(name, tokenizer):
    for key, (template, text, given, variables, end) in cases().items():
        if template != name:
            continue
        ours = dataclasses.replace(tokenizer, chat_template=text)
        asked = CONVERSATIONS[given], arguments(end, variables)
        if key in STORED["refused"]:
            with pytest.raises(ValueError, match="chat template of .* does not take these"):
                ours.chat(asked[0], **asked[1])
        else:
            assert dated(ours.chat(asked[0], **asked[1])) == STORED["texts"][key], key
        if key in STORED["ids"]:
            assert ours.encode_chat(asked[0], **asked[1]) == STORED["ids"][key], key


def test_every_chat_is_stored_and_most_are_written():
    assert {*STORED["texts"], *STORED["refused"]} == set(cases())
    assert len(STORED["texts"]) > 3 * len(STORED["refused"]) and len(FAMILIES) >= 20
    assert len(STORED["ids"]) >= 20


@pytest.mark.peer
def test_transformers_still_says_so(tmp_path):
    script = Path(__file__).parents[2] / "experiments" / "make_golden_chat.py"
    python = os.environ.get("LORA_JAX_PEER_PYTHON", sys.executable)
    done = subprocess.run(
        [python, str(script), str(tmp_path / "again.json")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "again.json").read_text(encoding="utf-8")) == STORED


# {what: (template, why it is refused)}: each takes all the memory or the time there is, where
# nothing stops it.
GREEDY = {
    "a power of letters": ("{{ 'x' * 10**9 }}", "more than 512 MiB"),
    "padding": ("{{ 'x'.ljust(5 * 10**9) }}", "more than 512 MiB"),
    "a filter": ("{{ 'x' | center(10**10) }}", "more than 512 MiB"),
    "a format": ("{{ '%1000000000s' % 'x' }}", "more than 512 MiB"),
    "doubling": (
        "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        # Touching the pages takes a slow machine its second: which limit it meets first is open.
        "(more than 512 MiB|more than 1 s of processor time)",
    ),
    "many letters": ("{{ 'x' * 10**7 }}", "10,000,000 letters, and 8,388,608 are the most"),
    "loops in loops": (
        "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}",
        "more than 1 s of processor time",
    ),
    "filler": ("{{ lipsum(n=10**7) }}", "more than 1 s of processor time"),
    "one huge number": ("{{ (10**(10**8)) % 7 }}", "more than 1 s of processor time"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "brackets": ("{{ " + "(" * 10**4 + ")" * 10**4 + " }}", "RecursionError"),
    "a range": ("{% for i in range(10**6) %}{% endfor %}", "Range too big"),
    "nothing": ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    "types": ("{{ 1 + 'a' }}", "TypeError: unsupported operand"),
    "overflow": ("{{ 2.0 ** 5000 }}", "OverflowError"),
    "another file": ("{% include 'x' %}", "no loader"),
}


@pytest.mark.parametrize(("template", "reason"), GREEDY.values(), ids=GREEDY)
def test_a_greedy_or_broken_template_is_an_error_that_names_file_and_cause(
    template, reason, tokenizer
):
    ours = dataclasses.replace(tokenizer, chat_template=template)
    start = time.monotonic()
    said = rf"chat template of {tokenizer.source} does not take these 1 messages: .*{reason}"
    with pytest.raises(ValueError, match=said):
        ours.chat(CHAT)
    # A second of processor time; several, where others have the processor as well.
    assert time.monotonic() - start < 30
    # The next chat has a process that is none the worse.
    sound = dataclasses.replace(ours, chat_template=FAMILIES["chatml"])
    assert sound.chat(CHAT).endswith("assistant\n")


def test_messages_that_are_none_are_refused():
    for messages, words in (
        ([], "at least one message"),
        ([{"role": "user", "content": object()}], "JSON"),
    ):
        with pytest.raises(ValueError, match=words):
            render_chat("x", messages)
    with pytest.raises(ValueError, match="a text as its content"):
        render_chat("x", [{"role": "user", "content": [1]}], continued=True)
    with pytest.raises(ValueError, match="leaves out the end"):
        render_chat("x", CHAT, continued=True)


def test_threads_get_their_own_answers():
    found = {}

    def ask(n):
        found[n] = [
            render_chat("{{ messages[0].content }}", [{"content": f"{n} {i}"}]) for i in range(50)
        ]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [f"{n} {i}" for i in range(50)] for n in range(4)}


def test_templates_by_name_and_tokens_of_older_files_are_found(tmp_path):
    folder = write_chat_tokenizer(tmp_path / "a")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = [
        {"name": "default", "template": "plain {{ mask_token }}"},
        {"name": "tool_use", "template": "tools {{ tools | length }}"},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": named}))
    (folder / "special_tokens_map.json").write_text('{"mask_token": {"content": "<think>"}}')
    ours = read_text_tokenizer(folder)
    assert ours.chat(CHAT) == "plain <think>" and ours.chat(CHAT, tools=[{}]) == "tools 1"
    # What is written is read back, by name.
    save_text_tokenizer(tmp_path / "b", ours)
    again = read_text_tokenizer(tmp_path / "b")
    assert again.chat(CHAT, tools=[{}]) == "tools 1" and again.chat(CHAT) == "plain <think>"
    assert again.named_tokens == ours.named_tokens
    # Settings that list their added tokens are the whole.
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": named, "added_tokens_decoder": {}})
    )
    assert read_text_tokenizer(folder).chat(CHAT) == "plain "


def test_a_forked_process_ends_and_leaves_the_other_its_renderer():
    code = """
import multiprocessing.util, os, sys
from lora_jax.data.chat import render_chat
say = lambda: render_chat("{{ messages[0].content }}", [{"role": "user", "content": "hi"}])
assert say() == "hi"
if (child := os.fork()) == 0:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0 and say() == "hi"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_refusal_is_as_short_as_any_error():
    with pytest.raises(ValueError, match="éé") as caught:
        render_chat("{{ raise_exception('é' * 100000) }}", [{"role": "user", "content": "hi"}])
    assert len(str(caught.value)) < 1000


def test_a_process_that_cannot_start_is_not_said_to_want_memory(tokenizer, monkeypatch):
    renderer = chat._Renderer()
    monkeypatch.setattr(chat, "_renderer", lambda: renderer)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    ours = dataclasses.replace(tokenizer, chat_template="x")
    with pytest.raises(OSError, match="/bin/false could not start it: it ended with 1 and said "):
        ours.chat(CHAT)
    monkeypatch.undo()
    assert ours.chat(CHAT) == "x"


def test_a_chat_is_asked_once_more_where_its_process_was_ended_from_outside(monkeypatch):
    renderer, start = chat._Renderer(), chat._start
    monkeypatch.setattr(chat, "_renderer", lambda: renderer)
    assert render_chat("x", CHAT) == "x"
    renderer._process.kill()
    assert render_chat("x", CHAT) == "x"

    def killed():
        process = start()
        process.kill()
        return process

    renderer.stop()
    monkeypatch.setattr(chat, "_start", killed)
    with pytest.raises(ValueError, match=r"ended from outside \(SIGKILL\), and so was another"):
        render_chat("x", CHAT)
