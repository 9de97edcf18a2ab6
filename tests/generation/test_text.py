"""Texts: stop strings, streaming, chats, and adapters that come and go without compiling."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from tiny_language import write_tiny_model

from lora_jax import cli
from lora_jax.adapters.surgery import adapt
from lora_jax.core.fingerprint import fingerprint
from lora_jax.core.lowrank import LoraSpec
from lora_jax.generation.text import TextGenerator
from lora_jax.io.adapter import save_adapter
from lora_jax.io.gguf_tokenizer import load_text_tokenizer
from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    config, params = load_decoder(folder)
    # Without end tokens, which a random model makes early.
    return (
        folder,
        Decoder(config),
        params,
        dataclasses.replace(load_text_tokenizer(folder), eos_ids=()),
    )


@pytest.fixture(scope="module")
def plain(parts):
    _, model, params, tokenizer = parts
    return TextGenerator(model, params, tokenizer)


def factors(model, params, seed, rank):
    _, trainable = adapt(
        model,
        params,
        (jax.ShapeDtypeStruct((1, 4), jnp.int32),),
        lora=[("layers/.*kernel", LoraSpec(rank))],
        key=jax.random.key(seed),
    )
    return {
        path: low.replace(b=0.3 * jax.random.normal(jax.random.key(seed + len(path)), low.b.shape))
        for path, low in trainable.items()
    }


def test_a_stop_string_ends_a_text_and_is_never_shown(plain):
    (whole,) = plain.generate(["abc"], max_new=12)
    stop = whole[3:5]
    pieces = [piece for (piece,) in plain.stream(["abc"], max_new=12, stop=[stop, "never"])]
    assert (
        "".join(pieces)
        == whole[: whole.index(stop)]
        == plain.generate(["abc"], max_new=12, stop=[stop])[0]
    )
    assert len(pieces) < 12
    # Of two that are found at once the one that begins first ends the text.
    for stops in ([whole[3:5], whole[2:5]], [whole[2:5], whole[3:5]]):
        first = min(map(whole.index, stops))
        assert plain.generate(["abc"], max_new=12, stop=stops) == [whole[:first]]
    with pytest.raises(ValueError, match="empty"):
        plain.generate(["abc"], max_new=1, stop=[""])


def test_streamed_pieces_add_up_for_every_text_of_a_batch(plain):
    whole = plain.generate(["abc", "hello"], max_new=8)
    streamed = ["".join(pieces) for pieces in zip(*plain.stream(["abc", "hello"], max_new=8))]
    assert streamed == whole


def test_a_chat_is_written_by_the_template(plain, parts):
    tokenizer = parts[3]
    messages = [{"role": "user", "content": " hi "}]
    assert tokenizer.chat(messages) == "<bos>u hi\na "
    assert tokenizer.encode_chat(messages) == tokenizer.encode("u hi\na ")
    assert plain.generate([messages], max_new=5) == plain.generate(["u hi\na "], max_new=5)


def test_adapters_come_and_go_without_compiling(parts):
    _, model, params, tokenizer = parts
    first, second = factors(model, params, 1, 2), factors(model, params, 2, 1)
    texts = TextGenerator(model, params, tokenizer, max_adapters=2, max_rank=3, like=first)
    texts.add("first", first)
    texts.add("second", second)
    prompts = ["abc", "abc", "abc"]
    made = texts.generate(prompts, max_new=6, adapters=["second", None, "first"])
    assert len(set(made)) == 3
    assert made[1] == TextGenerator(model, params, tokenizer).generate(["abc"], max_new=6)[0]
    assert made[2] == TextGenerator(model, params, tokenizer, first).generate(["abc"], max_new=6)[0]
    compiled = texts.engine._advance._cache_size(), texts.engine._start._cache_size()
    with pytest.raises(ValueError, match="places are taken"):
        texts.add("third", first)
    texts.remove("first")
    texts.add("third", second)
    assert texts.generate(prompts, max_new=6, adapters=["third", "second", None]) == [
        made[0],
        made[0],
        made[1],
    ]
    assert (
        (texts.engine._advance._cache_size(), texts.engine._start._cache_size())
        == compiled
        == (1, 1)
    )
    with pytest.raises(KeyError, match="Nearest: 'third'"):
        texts.generate(["a"], max_new=1, adapters=["thrid"])
    with pytest.raises(ValueError, match="rank"):
        texts.add("second", factors(model, params, 3, 4))


def test_the_command_continues_prompts(parts, tmp_path, capsys):
    folder, model, params, _ = parts
    save_adapter(
        tmp_path / "x", factors(model, params, 1, 2), base=fingerprint(params), model="tiny"
    )
    save_adapter(tmp_path / "other", factors(model, params, 1, 2), base="0", model="tiny")
    assert cli.main(["generate", str(folder), "--prompt", "abc", "--max-new", "5"]) == 0
    alone = capsys.readouterr().out.strip("\n")
    given = [
        "--adapter",
        f"x={tmp_path / 'x'}",
        "--prompt",
        "x: abc",
        "--prompt",
        "abc",
        "--max-new",
        "5",
    ]
    assert cli.main(["generate", str(folder), *given]) == 0
    with_adapter, without = capsys.readouterr().out.split("\n---\n")[:2]
    assert without.strip("\n") == alone != with_adapter.strip("\n")
    assert cli.main(["generate", str(folder), "--adapter", "x", "--prompt", "a"]) == 2
    assert "NAME=PATH" in capsys.readouterr().err
    assert (
        cli.main(["generate", str(folder), "--adapter", f"o={tmp_path / 'other'}", "--prompt", "a"])
        == 2
    )
    assert "on base 0 (tiny)" in capsys.readouterr().err
