"""Tokenizers of language models: special tokens, chats in a sandbox, and folders that are written
and read.
"""

import json

import pytest
from tiny_language import TEMPLATE, write_tiny_model

from lora_jax.data.text_tokenizers import read_text_tokenizer, render_chat, save_text_tokenizer


@pytest.fixture
def folder(tmp_path):
    return write_tiny_model(tmp_path / "tiny")


def test_special_tokens_are_where_the_settings_say(folder):
    tokenizer = read_text_tokenizer(folder)
    assert tokenizer.encode("ab") == [1, 4, 5] and tokenizer.encode("ab", special=False) == [4, 5]
    assert tokenizer.encode("a<eos>b") == [1, 4, 2, 5]
    assert (
        tokenizer.decode([1, 4, 2, 5]) == "ab"
        and tokenizer.decode([1, 4], special=True) == "<bos>a"
    )
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id, tokenizer.vocab_size) == (
        1,
        (2, 31),
        0,
        40,
    )


def test_a_folder_that_is_written_is_read_back(folder, tmp_path):
    tokenizer = read_text_tokenizer(folder)
    save_text_tokenizer(tmp_path / "new", tokenizer)
    again = read_text_tokenizer(tmp_path / "new")
    assert again.encode("hello") == tokenizer.encode("hello") and again.chat_template == TEMPLATE
    # Whoever reads tokenizer.json alone gets the first token from its post-processor.
    assert again.backend.encode("hello").ids == tokenizer.encode("hello")
    assert (again.bos_id, again.eos_ids, again.pad_id, again.add_bos) == (1, (2,), 0, True)


def test_a_template_refuses_in_its_own_words_and_reaches_nothing():
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(ValueError, match="roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", messages)
    for escape in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.__init__.__globals__ }}",
    ):
        with pytest.raises(ValueError, match="chat template"):
            render_chat(escape, messages)
    with pytest.raises(ValueError, match="chat template"):
        render_chat("{% for %}", messages)
    assert (
        render_chat("{% for m in messages %}\n{{ m | tojson }}{% break %}\n{% endfor %}", messages)
        == '{"role": "user", "content": "a"}'
    )


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer.json, but holds no such folder"):
        read_text_tokenizer(tmp_path / "nothing")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "eos_token": "<end>",
        "chat_template": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no token '<end>'"):
        read_text_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<eos>"}))
    with pytest.raises(ValueError, match="no chat template"):
        read_text_tokenizer(folder).chat([])
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="does not parse"):
        read_text_tokenizer(folder)
