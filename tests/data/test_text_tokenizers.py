"""Tokenizers of language models: special tokens, chats in a sandbox, and folders that are written
and read.
"""

import json

import pytest
from tiny_language import TEMPLATE, write_tiny_model

from lora_jax.data.chat import render_chat
from lora_jax.data.text_tokenizers import read_text_tokenizer, save_text_tokenizer


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


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("tokenizer_config.json", {"bos_token": 5}, "bos_token needs to be a text"),
        ("tokenizer_config.json", {"eos_token": {"content": 5}}, "eos_token needs to be a text"),
        ("tokenizer_config.json", {"pad_token": ["<pad>"]}, "pad_token needs to be a text"),
        ("tokenizer_config.json", {"add_bos_token": "yes"}, "add_bos_token needs to be true or"),
        ("tokenizer_config.json", {"add_eos_token": 1}, "add_eos_token needs to be true or false"),
        ("tokenizer_config.json", {"chat_template": 7}, "chat_template needs to be a text, or a"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}, "chat_template needs"),
        ("tokenizer_config.json", {"chat_template": [7]}, "chat_template needs to be a text"),
        ("special_tokens_map.json", {"unk_token": 1.5}, "unk_token needs to be a text"),
        ("generation_config.json", {"eos_token_id": "2"}, "eos_token_id needs to be a token id"),
        ("generation_config.json", {"eos_token_id": [2, None]}, "eos_token_id needs to be a"),
        ("generation_config.json", {"eos_token_id": True}, "eos_token_id needs to be a token id"),
        ("generation_config.json", {"eos_token_id": -1}, "eos_token_id needs to be a token id"),
    ],
)
def test_a_setting_of_another_type_is_an_error_that_names_file_and_field(
    file, changes, words, folder
):
    path = folder / file
    told = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(told | changes))
    with pytest.raises(ValueError, match=f"{file}.*: {words}"):
        read_text_tokenizer(folder)


def test_a_switch_whose_name_ends_like_a_tokens_is_no_token(folder):
    told = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"legacy_token": False, "use_image_token": True, "image_token": "a", "add_x_token": 1}
    (folder / "tokenizer_config.json").write_text(json.dumps(told | own))
    named = read_text_tokenizer(folder).named_tokens
    assert named["image_token"] == "a" and not {*own, "x"} & {*named} - {"image_token"}


def test_settings_that_are_null_are_as_if_not_there(folder):
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told |= {"add_bos_token": None, "unk_token": None, "extra_special_tokens": ["<x>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "generation_config.json").write_text('{"eos_token_id": null}')
    tokenizer = read_text_tokenizer(folder)
    assert tokenizer.encode("a") == [4] and tokenizer.eos_ids == (2,)


def test_what_rust_raises_and_where_it_panics_is_an_error_that_names_the_file(folder):
    """A merge shorter than its prefix makes the package panic: a BaseException, which would end a
    sweep and leave its lock.
    """
    damaged = json.loads((folder / "tokenizer.json").read_text())
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    damaged |= {"model": model | {"continuing_subword_prefix": "#" * 9}}
    (folder / "tokenizer.json").write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match="tokenizer.json' needs to be a tokenizer definition"):
        read_text_tokenizer(folder)
    # Texts that it has no tokens for, and no unknown token, are met after loading.
    damaged["model"] = {"type": "WordLevel", "vocab": {"a": 0, "<pad>": 1}, "unk_token": "none"}
    damaged["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(damaged))
    (folder / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(ValueError, match=f"{folder}' needs to be a tokenizer .*Missing .UNK"):
        read_text_tokenizer(folder).encode("b")
