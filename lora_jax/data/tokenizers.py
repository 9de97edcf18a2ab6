"""The tokenizer of an encoder's folder, through the tokenizers package."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from lora_jax.core.extras import needs

from .records import held_by, near_names

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer with its special ids; it pads and truncates nothing by itself, whatever its file
    says.

    `fingerprint` is the sha256 (hex) of the tokenizer's whole definition: equal fingerprints give
    equal ids.
    """

    backend: tokenizers.Tokenizer
    pad_id: int
    cls_id: int
    sep_id: int
    vocab_size: int
    fingerprint: str

    def decode(self, tokens: Int[np.ndarray, " tokens"]) -> str:
        """The text of token ids, without special tokens."""
        return self.backend.decode([int(token) for token in tokens], skip_special_tokens=True)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer of a model folder: tokenizer.json, or else BERT's WordPiece over vocab.txt.

    Padding and truncation that tokenizer.json asks for are switched off: `encode` sets the one,
    batches the other. With vocab.txt, letter case and accents follow tokenizer_config.json
    (`do_lower_case`, `strip_accents`, `tokenize_chinese_chars`), with BERT's defaults.

    Raises:
        FileNotFoundError: neither file is there. ValueError: a file does not parse or lacks [PAD],
            [CLS] or [SEP] (RoBERTa: <pad>, <s> or </s>).
    """
    with needs("data"):
        import tokenizers

    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The package raises bare Exception.
            raise ValueError(
                f"{str(path)!r} needs to be a tokenizer definition, but it does not parse: "
                f"{error}. Fetch the model's files again."
            ) from error
    elif (folder / "vocab.txt").is_file():
        path = folder / "vocab.txt"
        backend = _from_vocabulary(path)
    else:
        raise FileNotFoundError(
            f"Model folder {str(folder)!r} needs tokenizer.json or vocab.txt, but holds neither "
            f"({held_by(folder)}). Give a folder with the model's tokenizer files."
        )
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(
        backend,
        *special_ids(backend, path).values(),
        backend.get_vocab_size(),
        tokenizer_fingerprint(backend),
    )


def special_ids(backend: tokenizers.Tokenizer, path: Path) -> dict[str, int]:
    """The ids of the tokens for padding, beginning and end, by their names: BERT's and DeBERTa's,
    or RoBERTa's.

    Raises:
        ValueError: one is not there; the text names the file at `path`.
    """
    names = ("[PAD]", "[CLS]", "[SEP]")
    if backend.token_to_id("[CLS]") is None and backend.token_to_id("<s>") is not None:
        names = ("<pad>", "<s>", "</s>")
    special = {token: backend.token_to_id(token) for token in names}
    missing = [token for token, token_id in special.items() if token_id is None]
    if missing:
        near = near_names(
            missing[0], [token for token in backend.get_vocab() if token.startswith(("[", "<"))]
        )
        raise ValueError(
            f"{str(path)!r} needs the tokens {', '.join(names[:2])} and {names[2]} of a "
            f"BERT-family model, but {', '.join(missing)} is not in its vocabulary. {near}Give "
            "the tokenizer of the encoder that is adapted."
        )
    return special


def tokenizer_fingerprint(tokenizer: Tokenizer | tokenizers.Tokenizer) -> str:
    """The sha256 (hex) of the tokenizer's definition as JSON: vocabulary, normaliser, splitting,
    special tokens.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.fingerprint
    # Truncation and padding are set per call, and keys are sorted, so that only what changes ids
    # counts.
    definition = json.loads(tokenizer.to_str()) | {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()


def _from_vocabulary(path: Path) -> tokenizers.Tokenizer:
    """BERT's WordPiece tokenizer over a vocab.txt, a token a line; its line number is its id."""
    with needs("data"):
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    try:
        # Not splitlines: that cuts at U+2028 and U+0085 too, and moves the ids of all that follow.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} needs to be UTF-8 text with a token a line, but it does not decode "
            f"({error.reason}). Fetch the model's files again."
        ) from error
    vocabulary = {token: i for i, token in enumerate(lines)}
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if token not in vocabulary]
    if missing:
        raise ValueError(
            f"{str(path)!r} needs the tokens [UNK], [CLS], [SEP] and [PAD], but "
            f"{', '.join(missing)} is not among its {len(lines)} lines. Fetch the model's files "
            "again."
        )
    settings = path.with_name("tokenizer_config.json")
    options = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    backend.add_special_tokens([token for token in special if token in vocabulary])
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    backend.decoder = decoders.WordPiece()
    return backend
