"""How byte-level vocabularies split a text before merging: llama.cpp's names (tokenizer.ggml.pre)
and what is behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_jax.core.extras import needs

with needs("data"):
    from tokenizers import Regex, normalizers, pre_tokenizers


_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# Patterns as the tokenizer.json files of the models have them.
_LLAMA3 = (
    rf"{_TAIL}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
)
_QWEN2 = rf"{_TAIL}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}*{_SMALL}+|[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}+{_SMALL}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}*{_SMALL}+{_TAIL}?|[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}+{_SMALL}*{_TAIL}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)


@dataclass(frozen=True)
class Split:
    """How a text is cut into the pieces that are merged.

    pattern: of the pieces; None is GPT-2's, which the byte-level step has built in.
    digits: each stands alone, before that.
    whole: a piece that is in the vocabulary is not merged (its merges may not lead there).
    bos: a text begins with bos unless the file says otherwise.
    composed: characters are composed first (NFC).
    """

    pattern: str | None = None
    digits: bool = False
    whole: bool = False
    bos: bool = False
    composed: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        """What is done to a text first."""
        return normalizers.NFC() if self.composed else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Cuts a text into pieces, spelled in the byte alphabet."""
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None)
        if self.digits:
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])
        if self.pattern is None:
            return bytes_
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(self.pattern), "isolated"), bytes_]
        )


_NAMES = {
    Split(): ("gpt-2", "default", "mpt", "olmo", "jais", "phi-2", "trillion"),
    Split(digits=True): ("smollm", "starcoder", "refact", "command-r", "codeshell"),
    Split(_LLAMA3, whole=True, bos=True): (
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
        "pixtral",
        "lfm2",
    ),
    Split(_LLAMA3): ("dbrx", "smaug-bpe"),
    Split(_QWEN2, composed=True): ("qwen2", "deepseek-r1-qwen", "megrez"),
    Split(_TEKKEN, whole=True, bos=True): ("tekken",),
    Split(_GPT4O): ("gpt-4o",),
}
SPLITS = {name: split for split, names in _NAMES.items() for name in names}
