"""Prompts with completions: read from .jsonl, split, and turned into token ids of which only the
completion counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from .records import near_names
from .text_tokenizers import TextTokenizer

_SPLIT_SEED = 0
_HELD_OUT = 0.1  # of the examples in each of validation and test


@dataclasses.dataclass(frozen=True)
class Completions:
    """Prompts and what should follow them, example by example.

    `references` are all right texts of each, if known; `tasks` names the task of each in a mixture.
    """

    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    note: str = ""
    references: tuple[tuple[str, ...], ...] = ()
    tasks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedCompletions:
    """Token ids of a split. `prompt_lengths[i]` of `tokens[i]` are the prompt's, and do not count
    in the loss.

    `truncated` counts the examples that lost tokens. `groups` numbers the task of each example in a
    mixture, of which tasks are drawn at `temperature`. `fingerprint` covers all but `truncated`.
    """

    tokens: list[np.ndarray]
    prompt_lengths: Int[np.ndarray, " examples"]
    max_length: int
    pad_id: int
    truncated: int
    groups: Int[np.ndarray, " examples"] | None = None
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def lengths(self) -> Int[np.ndarray, " examples"]:
        """Tokens of each example."""
        return np.fromiter((len(tokens) for tokens in self.tokens), np.int32, len(self.tokens))

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of all ids and lengths."""
        digest = hashlib.sha256(repr((self.max_length, self.pad_id)).encode())
        if self.groups is not None:
            digest.update(
                repr(self.temperature).encode()
                + np.ascontiguousarray(self.groups, np.int32).tobytes()
            )
        for part in (self.lengths, self.prompt_lengths, *self.tokens):
            digest.update(np.ascontiguousarray(part, np.int32).tobytes())
        return digest.hexdigest()


def read_completions(
    path: Path | str, *, prompt: str = "prompt", completion: str = "completion"
) -> Completions:
    """The examples of a .jsonl file, or of the only one in a folder.

    A prompt is a text or a list of chat messages, whose contents are joined with newlines; a
    completion is a text or a list of right ones, of which the first is taken (OpenAI's evals have
    both). A newline stands between prompt and completion.

    Raises:
        FileNotFoundError: there is no such file. ValueError: a line is not JSON, or lacks a field.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.jsonl"))
        if len(files) != 1:
            raise FileNotFoundError(
                f"{str(path)!r} holds {len(files)} .jsonl files; name one of "
                f"{[file.name for file in files][:6]}."
            )
        path = files[0]
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {str(path)!r}. Give a .jsonl file of prompts and completions."
        )
    prompts, completions = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            prompts.append(_prompt(record[prompt]))
            completions.append(_completion(record[completion]))
        except KeyError as error:
            near = (
                near_names(str(error.args[0]), list(record)) if isinstance(record, Mapping) else ""
            )
            raise ValueError(
                f"{str(path)!r} line {number} needs the field {error}, but has {list(record)[:8]}. "
                f"{near}"
            ) from None
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{str(path)!r} line {number} needs a prompt and a completion as text, but: "
                f"{error}."
            ) from None
    return Completions(
        tuple(prompts), tuple(completions), note=f"{path.name}: {len(prompts)} examples"
    )


def split_completions(records: Completions) -> dict[str, Completions]:
    """Training, validation and test examples: 80, 10 and 10 percent, drawn once and for all. Equal
    prompts stay together.

    Raises:
        ValueError: there are too few for each split to have one.
    """
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(records.prompts):
        groups.setdefault(prompt, []).append(index)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(groups))
    held = int(len(groups) * _HELD_OUT)
    if held < 1:
        raise ValueError(
            f"There are {len(groups)} different prompts; 10 or more are needed, so that some can "
            "be held out."
        )
    members = list(groups.values())
    cut = {"validation": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}
    out = {}
    for name, chosen in cut.items():
        rows = sorted(row for group in chosen for row in members[group])
        out[name] = Completions(
            tuple(records.prompts[r] for r in rows),
            tuple(records.completions[r] for r in rows),
            records.note,
        )
    return out


def encode_completions(
    records: Completions, tokenizer: TextTokenizer, max_length: int, *, temperature: float = 1.0
) -> EncodedCompletions:
    """Token ids of every example: bos, prompt, newline, completion, eos.

    An example that is too long loses tokens at the start of its prompt, after bos; then at the end
    of its completion.
    """
    tokens, lengths, truncated = [], [], 0
    for prompt, completion in zip(records.prompts, records.completions, strict=True):
        first = tokenizer.encode(prompt_text(prompt))
        last = tokenizer.encode(completion, special=False) + list(tokenizer.eos_ids[:1])
        room = max_length - len(last)
        if len(first) > room:
            truncated += 1
            bos = first[:1] if tokenizer.add_bos else []
            kept = max(room - len(bos), 1 - len(bos), 0)
            first = bos + (first[-kept:] if kept else [])
            last = last[: max_length - len(first)]
        tokens.append(np.asarray(first + last, np.int32))
        lengths.append(len(first))
    groups = group_numbers(records.tasks)
    return EncodedCompletions(
        tokens,
        np.asarray(lengths, np.int32),
        max_length,
        tokenizer.pad_id,
        truncated,
        groups,
        temperature,
    )


def group_numbers(tasks: tuple[str, ...]) -> Int[np.ndarray, " examples"] | None:
    """The number of each example's task, in the order in which the tasks come; None outside a
    mixture.
    """
    numbers = {name: n for n, name in enumerate(dict.fromkeys(tasks))}
    return np.array([numbers[name] for name in tasks], np.int32) if tasks else None


def prompt_text(prompt: str) -> str:
    """The text that a completion follows, in training and in use."""
    return prompt.rstrip() + "\n"


def _prompt(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return "\n".join(_text(message["content"]) for message in value)
    raise ValueError(f"the prompt is {str(value)[:60]!r}")


def _completion(value: Any) -> str:
    return _text(value[0] if isinstance(value, list) and value else value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text is {str(value)[:60]!r}")
    return value
