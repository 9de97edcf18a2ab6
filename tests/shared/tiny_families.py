"""Tiny random models of other families in folders, with tokenizers: RoBERTa, DeBERTa-v3, T5; made
of the golden ones.
"""

import dataclasses
import json
import shutil
from pathlib import Path

from tiny_encoder import WORDS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from lora_jax.io.weights import load_encoder, save_encoder

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LETTERS = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789", " ", "\n"]


def write_encoder(folder: Path, family: str) -> Path:
    """The golden 'roberta', or a form of 'deberta' ('deberta/v3'), without its head, and a
    tokenizer of whole words.
    """
    config, params = load_encoder(GOLDEN / family, num_classes=3)
    dropped = ("classifier",) if family == "roberta" else ("classifier", "pooler")
    save_encoder(
        folder,
        dataclasses.replace(config, num_classes=None),
        {name: leaf for name, leaf in params.items() if name not in dropped},
    )
    special = (
        ["<s>", "<pad>", "</s>", "<unk>"]
        if family == "roberta"
        else ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    )
    backend = Tokenizer(
        models.WordLevel(
            {word: n for n, word in enumerate([*special, *WORDS])}, unk_token=special[-1]
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if family == "roberta":
        backend.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
        )
    else:
        backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    backend.save(str(folder / "tokenizer.json"))
    return folder


def write_t5(folder: Path, form: str = "v1_1") -> Path:
    """The golden T5 of a form, and a tokenizer of single letters that ends texts with </s>."""
    shutil.copytree(GOLDEN / "t5" / form, folder)
    backend = Tokenizer(
        models.WordLevel({letter: n for n, letter in enumerate(LETTERS)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(LETTERS[:3])
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})
    )
    return folder
