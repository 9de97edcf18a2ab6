"""Held-out records that training records hold too: equal after normalisation, or sharing long runs
of words.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Contamination:
    """`exact` and `near` are positions of held-out texts, ascending; a text in `exact` is not in
    `near`. `n` is the length of a run.
    """

    examples: int
    exact: tuple[int, ...]
    near: tuple[int, ...]
    n: int
    share: float

    @property
    def clean(self) -> tuple[int, ...]:
        """The positions of all other texts."""
        dirty = {*self.exact, *self.near}
        return tuple(n for n in range(self.examples) if n not in dirty)

    def __str__(self) -> str:
        return (
            f"{len(self.exact)} of {self.examples} held-out texts are in the training set, and "
            f"{len(self.near)} more share at least {self.share:.0%} of their runs of {self.n} "
            "words with it."
        )


def normalized(text: str) -> str:
    """The text as it is compared: NFKC, case folded, letters and digits alone, single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return _SPACE.sub(" ", "".join(letter if letter.isalnum() else " " for letter in text)).strip()


def find_contamination(
    train: Iterable[str], held_out: Sequence[str], *, n: int = 8, share: float = 0.5
) -> Contamination:
    """Which held-out texts the training texts hold.

    Near are those of whose runs of `n` words at least `share` occur in training texts (GPT-3's
    check, Brown et al. 2020, appendix C, took any run of 13; shorter records need shorter runs and
    a share). Texts shorter than a run can only be exact. Memory grows with the held-out texts
    alone.

    Raises:
        ValueError: `n` is below 1, or `share` not above 0 and at most 1.
    """
    if n < 1 or not 0 < share <= 1:
        raise ValueError(
            f"n must be 1 or more and share above 0 and at most 1, got {n} and {share}."
        )
    wanted = [normalized(text) for text in held_out]
    whole = {_digest(text) for text in wanted}
    runs_of = [{_digest(run) for run in _runs(text, n)} for text in wanted]
    asked = set().union(*runs_of) if runs_of else set()
    # Only what a held-out text asks for is kept: a training set of any size is read once.
    seen_texts: set[int] = set()
    seen_runs: set[int] = set()
    for text in map(normalized, train):
        if (digest := _digest(text)) in whole:
            seen_texts.add(digest)
        seen_runs |= asked.intersection(_digest(run) for run in _runs(text, n))
    exact = tuple(place for place, text in enumerate(wanted) if _digest(text) in seen_texts)
    near = tuple(
        place
        for place, runs in enumerate(runs_of)
        if runs and len(runs & seen_runs) >= share * len(runs) and place not in set(exact)
    )
    return Contamination(len(wanted), exact, near, n, share)


def _runs(text: str, n: int) -> Iterable[str]:
    words = text.split(" ")
    return (" ".join(words[start : start + n]) for start in range(len(words) - n + 1))


def _digest(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )
