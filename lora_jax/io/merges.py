"""SentencePiece's BPE as the package tokenizers has it, and the merges, which its files leave out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lora_jax.core.extras import needs

with needs("data"):
    from tokenizers import AddedToken, Tokenizer, decoders, models


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens


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


def merged_model(
    vocabulary: Mapping[str, int],
    rank: Mapping[str, float],
    unknown: str,
    *,
    byte_fallback: bool = True,
) -> models.BPE:
    """The BPE of a vocabulary with the merges that it allows."""
    return models.BPE(
        dict(vocabulary),
        merges_of(vocabulary, rank),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=byte_fallback,
    )


def joined_pieces(*, prefix: bool) -> decoders.Decoder:
    """Pieces to a text; without the space before it that `prefix` put there."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])


def add_tokens(backend: Tokenizer, types: Iterable[tuple[str, int]]) -> None:
    """Says which tokens, given with their types, are found in a text before it is split."""
    types = list(types)
    for wanted, add in ((CONTROL, backend.add_special_tokens), (USER_DEFINED, backend.add_tokens)):
        special = wanted == CONTROL
        chosen = [token for token, type_ in types if type_ == wanted]
        add([AddedToken(token, normalized=False, special=special) for token in chosen])
