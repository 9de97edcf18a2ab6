"""The merges of a SentencePiece BPE vocabulary, which its files leave out."""

from __future__ import annotations

from collections.abc import Mapping


def merges_of(vocabulary: Mapping[str, int], rank: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to put a token together from two others, the best-ranked token first; `rank` names
    the tokens that may be made.
    """
    merges = []
    for token, score in rank.items():
        pairs = [
            (token[:n], token[n:])
            for n in range(1, len(token))
            if token[:n] in vocabulary and token[n:] in vocabulary
        ]
        merges += [
            (pair, score)
            for pair in sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        ]
    merges.sort(key=lambda merge: (merge[1], len(merge[0][0]), len(merge[0][1])), reverse=True)
    return [pair for pair, _ in merges]
