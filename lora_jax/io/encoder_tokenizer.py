"""The tokenizer of an encoder's folder, whatever it is kept in."""

from __future__ import annotations

from pathlib import Path

from lora_jax.core.extras import needs
from lora_jax.data import tokenizers as plain
from lora_jax.io.sentencepiece import sentencepiece_tokenizer

with needs("data"):
    from tokenizers import AddedToken


_SPM = "spm.model"


def load_tokenizer(folder: Path | str) -> plain.Tokenizer:
    """The tokenizer of `data.tokenizers.load_tokenizer`; a folder with neither tokenizer.json nor
    vocab.txt may hold DeBERTa's SentencePiece model.

    Raises:
        FileNotFoundError: there is none of these. ValueError: a file does not parse, or lacks
            [PAD], [CLS] or [SEP].
    """
    folder = Path(folder)
    path = folder / _SPM
    if (
        (folder / "tokenizer.json").is_file()
        or (folder / "vocab.txt").is_file()
        or not path.is_file()
    ):
        return plain.load_tokenizer(folder)
    backend = sentencepiece_tokenizer(path).backend
    known = [
        token
        for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
        if backend.token_to_id(token) is not None
    ]
    # The mask is no piece of the file; its id is the next.
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (*known, "[MASK]")]
    )
    ids = plain.special_ids(backend, path)
    plain.lay_out(backend, ids)
    return plain.Tokenizer(
        backend,
        *ids.values(),
        backend.get_vocab_size(),
        plain.tokenizer_fingerprint(backend),
        str(path),
    )
