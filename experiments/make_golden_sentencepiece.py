"""Writes tests/golden/sentencepiece/: two small SentencePiece models, and what the sentencepiece
package makes of some texts.

Run in an environment with the package sentencepiece, from anywhere; texts are those of this
repository:

    python experiments/make_golden_sentencepiece.py
"""

import json
from pathlib import Path

import sentencepiece

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "tests" / "golden" / "sentencepiece"
TEXTS = [
    "Hello world",
    "low-rank adapters of a frozen base",
    "  two  spaces ",
    "naïve café 中文 🙂",
    "x = y @ W + 1.5",
    "ﬁne １２３",
    "a",
]
KINDS = {
    "bpe": dict(
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        vocab_size=400,
    ),
    "unigram": dict(model_type="unigram", normalization_rule_name="identity", vocab_size=200),
}


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    lines = [
        line.strip()
        for file in sorted((ROOT / "lora_jax" / "core").glob("*.py"))
        for line in file.read_text().splitlines()
    ]
    golden = {}
    for name, options in KINDS.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([line for line in lines if line]),
            model_prefix=str(TARGET / name),
            minloglevel=2,
            num_threads=1,
            **options,
        )
        (TARGET / f"{name}.vocab").unlink()
        processor = sentencepiece.SentencePieceProcessor(model_file=str(TARGET / f"{name}.model"))
        golden[name] = [
            [text, processor.encode(text), processor.decode(processor.encode(text))]
            for text in TEXTS
        ]
    (TARGET / "golden.json").write_text(
        json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    print({file.name: file.stat().st_size for file in TARGET.iterdir()})


if __name__ == "__main__":
    main()
