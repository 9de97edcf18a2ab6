"""Byte-level BPE in GGUF files: the ids of the tokenizer that the vocabulary came from; special
tokens and chats from metadata.
"""

import dataclasses
import json
from pathlib import Path

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer, models, trainers

from lora_jax.data.text_tokenizers import TextTokenizer, save_text_tokenizer
from lora_jax.io.export import export_gguf
from lora_jax.io.gguf_tokenizer import gguf_tokenizer, load_text_tokenizer
from lora_jax.io.gguf_tokenizer_keys import tokenizer_keys
from lora_jax.io.merges import merges_of
from lora_jax.io.weights import load_decoder

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}
# As the tokenizer.json of Llama 3 and of Qwen 2 have them.
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def split_by(pattern):
    return {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            },
            BYTES,
        ],
    }


# Of each name: how texts are cut, whether whole pieces of the vocabulary are taken unmerged, and
# what is done to a text first.
KINDS = {
    "gpt-2": (GPT2, False, None),
    "smollm": (
        {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2],
        },
        False,
        None,
    ),
    "llama-bpe": (split_by(LLAMA3), True, None),
    "dbrx": (split_by(LLAMA3), False, None),
    "qwen2": (split_by(QWEN2), False, {"type": "NFC"}),
}
LESSON = (
    "The ship was late again, and the captain's dog wasn't pleased. I'LL say it's 1999, or 12345 "
    "and 3.14!\n\n  def f(x):\n\treturn x+1  # naïve café"
    " 日本語 日本 the the there they're we've 2024-11-24 <=> != --> e\u0301 \r\n end of it."
)
TEXTS = [
    "The captain's dog", "  two  leading spaces", "we've I'LL they'RE", "12345678 and 3.14", "a\n\n\n b\t\tc\r\n", "x=[1,2];//...!?", "naïve cafe\u0301 é",
    "日本語のテキスト", "🙂👩‍👩‍👧 zwj", "\x00\x07 control", "mixed<|im_start|>user\nHi<|im_end|><tool>", " ", "",
]  # fmt: skip
ADDED = [("<|begin|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<tool>", False)]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def reference(kind):
    """A tokenizer of 340 words with the settings that models of this kind have in
    tokenizer.json.
    """
    cut, whole, first = KINDS[kind]
    trainer = trainers.BpeTrainer(
        vocab_size=336, initial_alphabet=sorted(alphabet()), show_progress=False
    )
    tokenizer = configured(Tokenizer(models.BPE()), cut, first)
    tokenizer.train_from_iterator([LESSON] * 3, trainer)
    told = json.loads(tokenizer.to_str())
    told["model"]["ignore_merges"] = whole
    # The merges of this word's pieces are not there, so it is only ever found whole, as some of
    # Llama 3's are.
    if whole:
        del told["model"]["vocab"][max(told["model"]["vocab"], key=told["model"]["vocab"].get)]
        del told["model"]["merges"][-1]
        told["model"]["vocab"]["Ġtwo"] = 335
    tokenizer = configured(Tokenizer.from_str(json.dumps(told)), cut, first)
    for text, special in ADDED:
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(
            [AddedToken(text, special=special, normalized=False)]
        )
    assert tokenizer.get_vocab_size() == 340
    return tokenizer


def alphabet():
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


def configured(tokenizer, cut, first):
    told = json.loads(tokenizer.to_str())
    told |= {"pre_tokenizer": cut, "normalizer": first, "decoder": BYTES}
    return Tokenizer.from_str(json.dumps(told))


def file_of(tokenizer, kind, path, **more):
    """A GGUF file with the vocabulary of a tokenizer, as llama.cpp's converter writes it."""
    told = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    types = {token["id"]: 3 if token["special"] else 4 for token in told["added_tokens"]}
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("gpt2")
    if kind is not None:
        writer.add_tokenizer_pre(kind)
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([types.get(n, 1) for n in range(len(vocabulary))])
    writer.add_token_merges([" ".join(merge) for merge in told["model"]["merges"]])
    writer.add_bos_token_id(vocabulary["<|begin|>"])
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    for name, value in more.items():
        getattr(writer, name)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_the_tokenizer_that_the_vocabulary_came_from(kind, tmp_path):
    theirs = reference(kind)
    ours = load_text_tokenizer(
        file_of(theirs, kind, tmp_path / "model.gguf", add_add_bos_token=False)
    )
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, text
        assert ours.decode(ids, special=True) == theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.vocab_size == 340 and ours.bos_id == 336 and ours.eos_ids == (338,)


def test_every_kind_cuts_some_text_in_its_own_way(tmp_path):
    spelled = {
        kind: tuple(tuple(reference(kind).encode(text).tokens) for text in TEXTS) for kind in KINDS
    }
    assert len(set(spelled.values())) == len(KINDS)


def test_a_file_that_does_not_say_wants_a_bos_only_of_llama_3(tmp_path):
    for kind, wanted in (("llama-bpe", True), ("qwen2", False), (None, False)):
        tokenizer = load_text_tokenizer(
            file_of(reference(kind or "gpt-2"), kind, tmp_path / "model.gguf")
        )
        assert (tokenizer.encode("a")[0] == 336) == wanted == tokenizer.add_bos


def test_a_chat_template_of_the_metadata_writes_special_tokens_that_become_their_ids(tmp_path):
    theirs = reference("qwen2")
    ours = load_text_tokenizer(
        file_of(
            theirs,
            "qwen2",
            tmp_path / "model.gguf",
            add_chat_template=TEMPLATE,
            add_eos_token_id=336,
        )
    )
    messages = [{"role": "user", "content": "Hi <tool>"}]
    written = "<|begin|><|im_start|>user\nHi <tool><|im_end|>\n<|im_start|>assistant\n"
    assert ours.chat(messages) == written
    assert ours.encode_chat(messages) == theirs.encode(written, add_special_tokens=False).ids
    assert {336, 337, 338, 339} <= set(ours.encode_chat(messages))
    # The token that ends a turn ends the answer, beside the one that the file names.
    assert ours.eos_ids == (336, 338)


def test_an_unknown_way_to_split_is_named(tmp_path):
    with pytest.raises(ValueError, match="splits texts as 'qwen-two'.*Nearest: 'qwen2'"):
        load_text_tokenizer(file_of(reference("qwen2"), "qwen-two", tmp_path / "model.gguf"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_level_tokenizer_of_a_folder_is_written_with_the_model(kind, tmp_path):
    from dataclasses import replace

    import jax
    import numpy as np

    from lora_jax.models.decoder import Decoder

    theirs = TextTokenizer(reference(kind), 336, (338,), 338, add_bos=True, chat_template=TEMPLATE)
    save_text_tokenizer(tmp_path / "folder", theirs)
    config = replace(load_decoder(GOLDEN / "llama")[0], vocab_size=345)
    params = Decoder(config).init(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    export_gguf(tmp_path / "model.gguf", config, params, tmp_path / "folder")
    ours = load_text_tokenizer(tmp_path / "model.gguf")
    assert all(ours.encode(text) == theirs.encode(text) for text in TEXTS)
    # The model has five rows more than the tokenizer has words; they get names, and are never made.
    assert ours.vocab_size == 345 and ours.backend.id_to_token(344) == "[PAD344]"
    assert (ours.bos_id, ours.eos_ids, ours.add_bos, ours.chat_template) == (
        336,
        (338,),
        True,
        TEMPLATE,
    )


PLAIN = [
    "the quick brown fox",
    "a  b   c",
    "naïve café",
    "日本語 🙂",
    "12 + 3.5",
    "tabs\tand\nlines",
    "the<s>the</s>",
]


@pytest.mark.parametrize("arch", ["llama", "phi3", "gemma3"])
def test_a_sentencepiece_bpe_is_written_with_scores_that_give_its_merges(arch, tmp_path):
    theirs = byte_fallback_bpe(arch)
    keys = tokenizer_keys(theirs, arch, theirs.vocab_size)
    ours = gguf_tokenizer(keys | {"general.architecture": arch}, "x")
    for text in [*PLAIN, *TEXTS[:5]]:
        assert ours.encode(text) == theirs.encode(text), text
    assert keys["tokenizer.ggml.add_space_prefix"] == (arch != "gemma3")


def test_keys_of_another_type_are_named_and_templates_for_tools_come_back():
    theirs = byte_fallback_bpe("llama")
    templates = dict(chat_template="{{ bos_token }}{{ unk_token }}", tool_template="with tools")
    theirs = dataclasses.replace(theirs, **templates)
    keys = tokenizer_keys(theirs, "llama", theirs.vocab_size)
    ours = gguf_tokenizer(keys, "x.gguf")
    chat = [{"role": "user", "content": "a"}]
    assert ours.chat(chat) == "<s><unk>" and ours.chat(chat, tools=[{}]) == "with tools"
    for name, value, words in (
        ("tokenizer.ggml.add_bos_token", "yes", "add_bos_token needs to be true or false"),
        ("tokenizer.ggml.add_space_prefix", 1, "add_space_prefix needs to be true or false"),
        ("tokenizer.ggml.token_type", 5, "token_type needs to be a list of numbers"),
        ("tokenizer.ggml.scores", ["a"] * theirs.vocab_size, "needs a score for each of"),
        ("tokenizer.chat_template", 7, "chat_template needs to be a text"),
        ("tokenizer.ggml.bos_token_id", 1.5, "gives the bos token the id 1.5"),
    ):
        with pytest.raises(ValueError, match=f"x.gguf.*{words}"):
            gguf_tokenizer(keys | {name: value}, "x.gguf")


def byte_fallback_bpe(arch):
    """A SentencePiece BPE with the settings that the tokenizer.json files of these architectures
    have.
    """
    from tokenizers import decoders, normalizers, pre_tokenizers

    words = ["th", "he", "▁the", "▁th", "qu", "ck", "ow", "▁a", "fo", "ox", "▁▁", "▁▁▁", "the"]
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyz0123456789+."))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *letters, *words]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    rank = (
        {token: -n for n, token in enumerate(tokens)}
        if arch == "gemma3"
        else {token: -n for n, token in enumerate(words)}
    )
    model = models.BPE(
        vocabulary,
        merges_of(vocabulary, rank),
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    if arch == "gemma3":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif arch == "phi3":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    return TextTokenizer(backend, 1, (2,), 2, add_bos=True)


def test_of_merges_to_one_token_the_longer_beginning_is_tried_first():
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
    rank = {"abc": -1.0, "ab": -2.0, "bc": -2.0}
    # As transformers 5.23 has it (convert_slow_tokenizer.generate_merges).
    wanted = [("ab", "c"), ("a", "bc"), ("a", "b"), ("b", "c")]
    assert merges_of(vocabulary, rank) == wanted


def test_merges_that_the_vocabulary_does_not_imply_are_refused():
    theirs = byte_fallback_bpe("llama")
    told = json.loads(theirs.backend.to_str())
    told["model"]["merges"] = [merge for merge in told["model"]["merges"] if merge != ["▁th", "e"]]
    changed = TextTokenizer(Tokenizer.from_str(json.dumps(told)), 1, (2,), 2, add_bos=True)
    with pytest.raises(ValueError, match="merges of this tokenizer are not all those"):
        tokenizer_keys(changed, "llama", changed.vocab_size)


def test_a_tokenizer_that_gguf_cannot_say_is_refused(tmp_path):
    split = TextTokenizer(
        configured(reference("qwen2"), split_by(r"\p{L}+|\s+"), None),
        336,
        (338,),
        338,
        add_bos=True,
    )
    with pytest.raises(
        ValueError,
        match=r"of type 'BPE' with the pre-tokenizer \['Split', 'ByteLevel'\], cannot be written",
    ):
        tokenizer_keys(split, "llama", 340)
    own = TextTokenizer(reference("qwen2"), 336, (338,), 338, add_bos=True)
    with pytest.raises(ValueError, match="has 340 words and the model's embedding 339"):
        tokenizer_keys(own, "llama", 339)
