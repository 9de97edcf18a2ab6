"""Prompts with completions: rendered from examples, and turned into token ids of which only the
completion counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from .examples import Dataset, read_examples
from .recipes import Recipe, recipe_named, references, render
from .records import Example
from .text_tokenizers import TextTokenizer


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

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of all texts, in their order."""
        parts = (self.prompts, self.completions, self.references, self.tasks)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def fingerprint_of(splits: Mapping[str, Completions]) -> str:
    """The sha256 (hex) of the texts of every split."""
    parts = {split: part.fingerprint for split, part in splits.items()}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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
        return np.fromiter(map(len, self.tokens), np.int32, len(self.tokens))

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of all ids and lengths."""
        digest = hashlib.sha256(repr((self.max_length, self.pad_id)).encode())
        if self.groups is not None:
            digest.update(repr(self.temperature).encode())
            digest.update(np.ascontiguousarray(self.groups, np.int32).tobytes())
        for part in (self.lengths, self.prompt_lengths, *self.tokens):
            digest.update(np.ascontiguousarray(part, np.int32).tobytes())
        return digest.hexdigest()


def to_completions(
    data: Dataset, *, prompt: str | None = None, completion: str | None = None
) -> dict[str, Completions]:
    """Prompts with completions of every split, by the recipe's templates or those given, with all
    references.
    """
    note = " ".join(filter(None, (data.note, data.left_out)))
    return {
        split: _rendered(data.recipe, examples, prompt, completion, note)
        for split, examples in data.splits.items()
    }


def read_completions(
    name: str, recipe: str = "completion", *, columns: Mapping[str, str] | None = None
) -> Completions:
    """All prompts and completions of a data set, in their order: nothing is split or left out.

    Raises:
        FileNotFoundError, OSError, ValueError: as `load`.
    """
    return _rendered(recipe_named(recipe), read_examples(name, recipe, columns=columns))


def _rendered(
    recipe: Recipe,
    examples: Sequence[Example],
    prompt: str | None = None,
    completion: str | None = None,
    note: str = "",
) -> Completions:
    asked = recipe.prompt if prompt is None else prompt  # "" is a template, too: no prompt
    said = recipe.completion if completion is None else completion
    prompts = tuple(render(asked, example.values) for example in examples)
    answers = tuple(render(said, example.values) for example in examples)
    right = tuple(
        references(recipe, example.values, answer)
        for example, answer in zip(examples, answers, strict=True)
    )
    return Completions(prompts, answers, note, right)


def encode_completions(
    records: Completions, tokenizer: TextTokenizer, max_length: int, *, temperature: float = 1.0
) -> EncodedCompletions:
    """Token ids of every example: bos, prompt, newline, completion, eos.

    An example that is too long loses tokens at the start of its prompt, after bos; then at the end
    of its completion.
    """

    def encode(prompt: str, completion: str) -> tuple[list[int], list[int]]:
        first = tokenizer.encode(prompt_text(prompt))
        return first, tokenizer.encode(completion, special=False) + list(tokenizer.eos_ids[:1])

    def cut(first: list[int], last: list[int]) -> tuple[list[int], list[int]]:
        bos = first[:1] if tokenizer.add_bos else []
        kept = max(max_length - len(last) - len(bos), 1 - len(bos), 0)
        first = bos + (first[-kept:] if kept else [])
        return first, last[: max_length - len(first)]

    fields = encoded_fields(records, tokenizer, max_length, encode, cut)
    return EncodedCompletions(**fields, temperature=temperature)


def encoded_fields(
    records: Completions,
    tokenizer: TextTokenizer,
    max_length: int,
    encode: Callable[[str, str], tuple[list[int], list[int]]],
    cut: Callable[[list[int], list[int]], tuple[list[int], list[int]]],
) -> dict[str, Any]:
    """What `EncodedCompletions` holds of these records. `encode` gives the ids of a prompt and of
    its completion; `cut` shortens those that together are longer than `max_length`.
    """
    tokens, lengths, truncated = [], [], 0
    for prompt, completion in zip(records.prompts, records.completions, strict=True):
        first, last = encode(prompt, completion)
        if len(first) + len(last) > max_length:
            truncated += 1
            first, last = cut(first, last)
        tokens.append(np.asarray(first + last, np.int32))
        lengths.append(len(first))

    return dict(
        tokens=tokens,
        prompt_lengths=np.asarray(lengths, np.int32),
        max_length=max_length,
        pad_id=tokenizer.pad_id,
        truncated=truncated,
        groups=group_numbers(records.tasks),
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


def mixture_rates(sizes: Sequence[int], temperature: float) -> Float[np.ndarray, " tasks"]:
    """The probability of drawing each task: its size to the power 1 / temperature, normalised
    (Raffel et al. 2020, T5, section 3.5.2).

    1 draws examples alike, whatever their task; infinity draws tasks alike.

    >>> mixture_rates([900, 100], 2.0).round(2).tolist()
    [0.75, 0.25]

    Raises:
        ValueError: a task is empty, or the temperature is below 1.
    """
    if min(sizes, default=0) < 1 or not temperature >= 1:
        raise ValueError(
            "A mixture needs tasks that are not empty and a temperature of 1 or more, got sizes "
            f"{list(sizes)} and {temperature}."
        )
    weights = np.asarray(sizes, float) ** (1 / temperature)
    return weights / weights.sum()


def mixture_order(
    groups: Int[np.ndarray, " examples"], temperature: float, *, seed: int, epoch: int
) -> Int[np.ndarray, " examples"]:
    """The examples of an epoch of a mixture: as many as there are, drawn by `mixture_rates`.

    Within a task every example comes once before any comes again, over epochs too: each pass
    through a task is shuffled by itself.
    """
    count = len(groups)
    sizes = np.bincount(groups)
    rates = mixture_rates(sizes.tolist(), temperature)
    # The draws of earlier epochs are made again: which pass through its task a draw falls into
    # depends on them.
    drawn = [
        np.random.default_rng((seed, n)).choice(len(rates), count, p=rates)
        for n in range(epoch + 1)
    ]
    order = np.empty(count, np.int64)
    for task, size in enumerate(sizes):
        members = np.flatnonzero(groups == task)
        before = sum(int((past == task).sum()) for past in drawn[:-1])
        places = np.flatnonzero(drawn[-1] == task)
        numbers = before + np.arange(len(places))
        for turn in np.unique(numbers // size):
            shuffled = np.random.default_rng((seed, task, int(turn))).permutation(members)
            chosen = numbers // size == turn
            order[places[chosen]] = shuffled[numbers[chosen] % size]
    return order


def join_completions(parts: Mapping[str, Completions]) -> Completions:
    """The examples of all tasks, one task after the other, with the name of each example's task."""
    note = " ".join(
        f"{name}: {part.note}" if part.note else f"{name}: {len(part)} examples."
        for name, part in parts.items()
    )
    return Completions(
        tuple(prompt for part in parts.values() for prompt in part.prompts),
        tuple(completion for part in parts.values() for completion in part.completions),
        note,
        tuple(
            right
            for part in parts.values()
            for right in (part.references or tuple((text,) for text in part.completions))
        ),
        tuple(name for name, part in parts.items() for _ in range(len(part))),
    )
