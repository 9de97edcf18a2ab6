"""A tiny language model in a folder, with a tokenizer of single letters, for tests that need
both.
"""

import json
import shutil
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
LETTERS = [
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    *"abcdefghijklmnopqrstuvwxyz",
    " ",
    "\n",
    *"0123456789",
][:40]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }} {{ m['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}a {% endif %}"
SPECIAL_TOKENS = {
    "bos_token": "<bos>",
    "eos_token": {"content": "<eos>"},
    "pad_token": "<pad>",
    "add_bos_token": True,
}


def write_tiny_model(folder: Path, name: str = "llama3") -> Path:
    """A folder as Hugging Face has them: the golden model `name`, tokenizer.json and
    tokenizer_config.json.
    """
    shutil.copytree(GOLDEN / name, folder)
    backend = Tokenizer(
        models.WordLevel({letter: n for n, letter in enumerate(LETTERS)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(LETTERS[:4])
    backend.save(str(folder / "tokenizer.json"))
    settings = SPECIAL_TOKENS | {"chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 31]}))
    return folder


def write_completions(path: Path, count: int = 60) -> Path:
    """Prompts 'ab' with completions 'ba': something that a small model learns."""
    letters = "abcdefgh"
    with path.open("w") as file:
        for n in range(count):
            a, b = letters[n % 8], letters[(n // 8) % 8]
            messages = [
                {"role": "system", "content": "turn"},
                {"role": "user", "content": f"{a}{b}{'x' * (n % 5)}"},
            ]
            file.write(json.dumps({"input": messages, "ideal": [f"{b}{a}"]}) + "\n")
    return path
