"""The tokenizer of an encoder's folder, through the tokenizers package."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from lora_jax.core.extras import needs
from lora_jax.core.json_files import read_json

from .records import held_by, near_names

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer with its special ids; it pads and truncates nothing by itself, whatever its file
    says.

    `fingerprint` is the sha256 (hex) of the tokenizer's whole definition: equal fingerprints give
    equal ids. `source` is the file that it was read from, for errors.
    """

    backend: tokenizers.Tokenizer
    pad_id: int
    cls_id: int
    sep_id: int
    vocab_size: int
    fingerprint: str
    source: str = ""

    def decode(self, tokens: Int[np.ndarray, " tokens"]) -> str:
        """The text of token ids, without special tokens."""
        with backend_errors(self.source):
            return self.backend.decode([int(token) for token in tokens], skip_special_tokens=True)


@contextlib.contextmanager
def backend_errors(source: Path | str) -> Iterator[None]:
    """Inside, what the tokenizers package raises is a ValueError that names the file `source`.

    It raises bare Exception, and where its Rust code panics, a BaseException that no caller expects
    and that is no wish to stop.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__module__ != "pyo3_runtime":
            raise
        raise ValueError(
            f"{str(source or 'the tokenizer')!r} needs to be a tokenizer definition, but it does "
            f"not parse, or cannot be used: {error}. Fetch the model's files again."
        ) from error


def read_backend(path: Path) -> tokenizers.Tokenizer:
    """The pipeline of a tokenizer.json, which pads and truncates nothing by itself.

    Raises:
        OSError: the file cannot be read. ValueError: it does not parse.
    """
    with needs("data"):
        import tokenizers

    with path.open("rb"):
        pass  # The package calls a file that it may not read one that does not parse.
    with backend_errors(path):
        backend = tokenizers.Tokenizer.from_file(str(path))
        backend.no_padding()
        backend.no_truncation()
        ids = backend.get_vocab().values()
    # The package makes a list of all ids that are left out.
    if max(ids, default=0) > 8 * len(ids) + 100_000:
        raise ValueError(
            f"{str(path)!r} has {len(ids):,} tokens with ids up to {max(ids):,}. Fetch the model's "
            "files again."
        )
    return backend


def switch(path: Path | str, settings: Mapping[str, Any], name: str) -> bool | None:
    """A setting of a file that is true or false; None if it is null or not there.

    Raises:
        ValueError: it is something else.
    """
    told = settings.get(name)
    if told is None or isinstance(told, bool):
        return told
    raise wrong_setting(path, name, "true or false", told)


def wrong_setting(path: Path | str, name: str, wanted: str, came: Any) -> ValueError:
    """The error of a setting that has another type in a tokenizer's file."""
    return ValueError(
        f"{str(path)!r}: {name} needs to be {wanted}, but {came!r:.80} came. Fetch the model's "
        "files again."
    )


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer of a model folder: tokenizer.json, or else BERT's WordPiece over vocab.txt.

    Padding and truncation that tokenizer.json asks for are switched off: `encode` sets the one,
    batches the other. With vocab.txt, letter case and accents follow tokenizer_config.json
    (`do_lower_case`, `strip_accents`, `tokenize_chinese_chars`), with BERT's defaults.

    Raises:
        FileNotFoundError: neither file is there. ValueError: a file does not parse or lacks [PAD],
            [CLS] or [SEP] (RoBERTa: <pad>, <s> or </s>).
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        backend = read_backend(path)
    elif (folder / "vocab.txt").is_file():
        path = folder / "vocab.txt"
        backend = _from_vocabulary(path)
    else:
        raise FileNotFoundError(
            f"Model folder {str(folder)!r} needs tokenizer.json or vocab.txt, but holds neither "
            f"({held_by(folder)}). Give a folder with the model's tokenizer files."
        )
    return Tokenizer(
        backend,
        *special_ids(backend, path).values(),
        backend.get_vocab_size(),
        tokenizer_fingerprint(backend),
        str(path),
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
        from tokenizers import decoders, models, normalizers, pre_tokenizers

    try:
        # Not splitlines: that cuts at U+2028 and U+0085 too, and moves the ids of all that follow.
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
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
    told = read_json(settings) if settings.is_file() else {}
    names = ("tokenize_chinese_chars", "do_lower_case", "strip_accents")
    chinese, lower, accents = (switch(settings, told, name) for name in names)
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    backend.add_special_tokens([token for token in special if token in vocabulary])
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese is not False,
        strip_accents=accents,
        lowercase=lower is not False,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    lay_out(backend, vocabulary)
    backend.decoder = decoders.WordPiece()
    return backend


def lay_out(backend: tokenizers.Tokenizer, ids: Mapping[str, int]) -> None:
    """Texts become [CLS] text [SEP], pairs [CLS] text [SEP] pair [SEP], with segments 0 and 1."""
    with needs("data"):
        from tokenizers import processors
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
