"""Writes tests/golden/chat/golden.json: what transformers' apply_chat_template makes of every chat of
tests/shared/chats.py, and the token ids of some.

Run in an environment with transformers 5.23 (the extra `peer`):

    python experiments/make_golden_chat.py [FILE]
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "shared"))

from chats import CONVERSATIONS, FAMILIES, GOLDEN, cases, dated, write_chat_tokenizer  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402


def main() -> None:
    texts, ids, refused = {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(write_chat_tokenizer(Path(folder)))
        for key, (name, template, chat, variables, end) in cases().items():
            tokenizer.chat_template = template
            options = dict(
                add_generation_prompt=end == "answer",
                continue_final_message=end == "continued",
                **variables,
            )
            try:
                text = tokenizer.apply_chat_template(CONVERSATIONS[chat], tokenize=False, **options)
            except Exception:  # Whatever Jinja and the template raise.
                refused.append(key)
                continue
            texts[key] = dated(text)
            if name in FAMILIES and (chat, end) == ("one", "answer") and dated(text) == text:
                ids[key] = tokenizer.apply_chat_template(
                    CONVERSATIONS[chat], return_dict=False, **options
                )
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN / "golden.json"
    content = json.dumps(
        {"texts": texts, "refused": refused, "ids": ids}, ensure_ascii=False, indent=0
    )
    out.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
