"""Texts in, texts out: prompts or chats, stop strings, streaming, and one base with many
adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from lora_jax.adapters.many import Bank, make_bank, replace_adapter
from lora_jax.core.paths import nearest
from lora_jax.data.text_tokenizers import Message, TextTokenizer
from lora_jax.generation.sampling import Sampling
from lora_jax.generation.seq2seq import generator_for
from lora_jax.models.decoder import Decoder
from lora_jax.models.t5 import T5

Prompt = str | Sequence[Message]
_REPLACEMENT = "\ufffd"  # what a tokenizer gives for a character of which a byte is still to come


class TextGenerator:
    """A language model with its tokenizer and any number of adapters; every prompt of a batch names
    its adapter, or none.

    Adapters are padded to `max_rank` and kept in `max_adapters` places of one stack, so adding and
    removing them compiles nothing. Without `max_adapters`, one adapter is given once as `trainable`.

    >>> texts = TextGenerator(model, frozen, tokenizer, max_adapters=3, max_rank=8, like=trainable)  # doctest: +SKIP
    >>> texts.add("sql", trainable)  # doctest: +SKIP
    >>> texts.generate(["List all singers", "Hello"], adapters=["sql", None], max_new=20)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Decoder | T5,
        frozen: Mapping[str, Any],
        tokenizer: TextTokenizer,
        trainable: Mapping[str, Any] | None = None,
        *,
        max_adapters: int = 0,
        max_rank: int = 0,
        like: Mapping[str, Any] | None = None,
        slots: int | None = None,
    ) -> None:
        """`like` is an adapter with all sites that any of them has; its values are not used.

        Raises:
            ValueError: the tokenizer has more words than the model, or both `trainable` and places
                for adapters are given.
        """
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"The tokenizer has {tokenizer.vocab_size} words and the model's embedding "
                f"{model.config.vocab_size}: they do not belong together. Use the tokenizer that "
                "the model was trained with."
            )
        if max_adapters and (trainable or not like or max_rank < 1):
            raise ValueError(
                "Places for adapters need max_rank and like, and no trainable: add each with "
                "add(name, lora)."
            )

        self.tokenizer = tokenizer
        self._names: dict[str, int] = {}
        self._bank: Bank | None = None
        if max_adapters:
            _check_factors_alone(like)
            self._bank = make_bank(like=like, places=max_adapters, rank=max_rank)
            self._free = list(range(max_adapters))[::-1]
            trainable = self._bank.trainable
        self.engine = generator_for(model)(
            model,
            frozen,
            trainable,
            eos_ids=tokenizer.eos_ids,
            pad_id=tokenizer.pad_id,
            slots=slots,
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that prompts may give."""
        return tuple(self._names)

    def add(self, name: str, trainable: Mapping[str, Any]) -> None:
        """Puts an adapter into a free place, or into its own if the name is known.

        Raises:
            ValueError: no place is free, or the adapter has a site or a rank that there is no room
                for.
        """
        if self._bank is None:
            raise ValueError(
                "This generator has no places for adapters. Make it with max_adapters, max_rank "
                "and like."
            )
        if name not in self._names and not self._free:
            raise ValueError(
                f"All {len(self._names)} places are taken by {', '.join(self._names)}. Remove one, "
                "or make max_adapters larger."
            )
        place = self._names.get(name, self._free[-1] if self._free else None)
        self._put(place, trainable)
        if name not in self._names:
            self._names[name] = self._free.pop()

    def remove(self, name: str) -> None:
        """Empties an adapter's place.

        Raises:
            KeyError: there is no adapter of that name.
        """
        self._put(self._place(name), {})
        self._free.append(self._names.pop(name))

    def _put(self, place: int, trainable: Mapping[str, Any]) -> None:
        self._bank = replace_adapter(self._bank, place, trainable)
        self.engine.trainable = self._bank.trainable

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new: int,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        key: jax.Array | None = None,
        stop: Sequence[str] = (),
        adapters: Sequence[str | None] | None = None,
    ) -> list[str]:
        """What follows each prompt, without special tokens, cut before the first stop string.

        Args:
            prompts: texts, or chats, which the model's chat template writes.
            adapters: a name for each prompt, or None; by default none has one.

        Raises:
            KeyError: an adapter is unknown. ValueError: as `Generator.generate`.
        """
        parts = [""] * len(prompts)
        for pieces in self.stream(
            prompts, max_new=max_new, sampling=sampling, key=key, stop=stop, adapters=adapters
        ):
            parts = [text + piece for text, piece in zip(parts, pieces)]
        return parts

    def stream(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new: int,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        key: jax.Array | None = None,
        stop: Sequence[str] = (),
        adapters: Sequence[str | None] | None = None,
    ) -> Iterator[list[str]]:
        """The next piece of every text, step by step; together they are what `generate` gives.

        A piece that may be the beginning of a stop string, or of a character whose bytes are not
        all there, is held back.
        """
        if any(not text for text in stop):
            raise ValueError(
                "A stop string is empty; it would stop every text at once. Leave it out."
            )
        ids = [self._encode(prompt) for prompt in prompts]
        places = (
            None
            if self._bank is None
            else [
                self._bank.count if name is None else self._place(name)
                for name in adapters or [None] * len(ids)
            ]
        )
        if self._bank is None and adapters is not None and any(adapters):
            raise ValueError(
                "This generator has no places for adapters. Make it with max_adapters, max_rank "
                "and like."
            )

        writers = [_Writer(self.tokenizer, stop) for _ in ids]
        steps = self.engine.stream(
            ids, max_new=max_new, sampling=sampling, key=key, adapters=places
        )
        for tokens in steps:
            yield [writer.write(token) for writer, token in zip(writers, tokens)]
            if all(writer.stopped or token is None for writer, token in zip(writers, tokens)):
                break
        yield [writer.finish() for writer in writers]

    def _encode(self, prompt: Prompt) -> list[int]:
        return (
            self.tokenizer.encode(prompt)
            if isinstance(prompt, str)
            else self.tokenizer.encode_chat(prompt)
        )

    def _place(self, name: str) -> int:
        if name not in self._names:
            close = nearest(name, self._names, 2) if self._names else []
            raise KeyError(
                f"There is no adapter {name!r}. Nearest: {', '.join(map(repr, close)) or 'none'}; "
                f"known: {', '.join(self._names)}."
            )
        return self._names[name]


class _Writer:
    """Turns tokens of one text into pieces of text, up to the first stop string."""

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._written = 0
        self.stopped = False

    def write(self, token: int | None) -> str:
        if self.stopped or token is None:
            return ""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if found := [at for stop in self._stop if (at := text.find(stop)) >= 0]:
            self.stopped = True
            return self._emit(text, min(found))
        held = max(
            (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        if not held and text.endswith(_REPLACEMENT):
            held = len(text) - len(text.rstrip(_REPLACEMENT))
        return self._emit(text, len(text) - held)

    def finish(self) -> str:
        if self.stopped:
            return ""
        text = self._tokenizer.decode(self._ids)
        return self._emit(text, len(text))

    def _emit(self, text: str, end: int) -> str:
        piece = text[self._written : end]
        self._written = max(self._written, end)
        return piece


def _check_factors_alone(like: Mapping[str, Any]) -> None:
    for path, leaf in like.items():
        if not leaf.rank:
            raise ValueError(
                f"{path!r} is trained whole; only adapters of factors alone share a base. Train "
                "without it, or merge it."
            )
