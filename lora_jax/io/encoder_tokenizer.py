"""The tokenizer of an encoder's folder, whatever it is kept in."""

from __future__ import annotations

from pathlib import Path

from lora_jax.core.extras import needs
from lora_jax.data import tokenizers as plain
from lora_jax.io.sentencepiece import sentencepiece_tokenizer

with needs("data"):
    from tokenizers import AddedToken, processors


_SPM = "spm.model"


def load_tokenizer(folder: Path | str) -> plain.Tokenizer:
    """The tokenizer of `data.tokenizers.load_tokenizer`; a folder with neither tokenizer.json nor
    vocab.txt may hold DeBERTa's SentencePiece model.

    Texts are then laid out as [CLS] text [SEP], pairs as [CLS] text [SEP] pair [SEP], the second
    text's segment being 1.

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
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return plain.Tokenizer(
        backend,
        *ids.values(),
        backend.get_vocab_size(),
        plain.tokenizer_fingerprint(backend),
        str(path),
    )
