"""The real Gemma-3-270M with an adapter, out by every door, and read back by transformers and PEFT:
logits and token ids.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from transformers_peer import ask_transformers

from lora_jax.adapters.apply import apply
from lora_jax.adapters.merge import merge
from lora_jax.adapters.surgery import adapt
from lora_jax.core.lowrank import LoraSpec
from lora_jax.io.export import export_gguf, export_merged
from lora_jax.io.gguf_tokenizer import load_text_tokenizer
from lora_jax.io.hub import resolve
from lora_jax.io.peft import save_peft
from lora_jax.io.weights import decoder_names, load_decoder, save_decoder
from lora_jax.models.decoder import Decoder

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("default")]
TEXTS = [
    "Hello, world!", "  two spaces", "tabs\tand\n\n\nlines\r\n", "naïve cafe\u0301 ÅÅ", "日本語のテキスト。", "🙂👩‍👩‍👧‍👦 flags 🇩🇪", "x = [1, 2]; // 3.14e-10",
    "<start_of_turn>user\nHi<end_of_turn>\n", "a" * 40 + " " * 17 + "b", "\x00\x07 نص עברית Ελλάδα",
]  # fmt: skip
PROSE = (
    (
        "The harbour was quiet when the first ship came in; nobody had expected her before the "
        "morning, and the pilot"
    ),
    (
        "def area(r):\n    return 3.14159 * r * r\n\nprint(area(2), area(3))  # two circles, and "
        "then a third one of"
    ),
)


@pytest.fixture(scope="module")
def gemma():
    """(config, frozen, trainable, merged, tokenizer, path); the adapter moves logits by more than
    one.
    """
    path = resolve("gemma3-270m")
    config, params = load_decoder(path)
    inputs = (np.ones((1, 8), np.int32),)
    frozen, trainable = adapt(
        Decoder(config),
        params,
        inputs,
        lora=[("layers/.*kernel", LoraSpec(rank=8, alpha=16.0))],
        key=jax.random.key(0),
    )
    trainable = {
        site: leaf.replace(b=2e-3 * jax.random.normal(jax.random.key(n), leaf.b.shape))
        for n, (site, leaf) in enumerate(sorted(trainable.items()))
    }
    return config, frozen, trainable, merge(frozen, trainable)[0], load_text_tokenizer(path), path


def tokens():
    tokenizer = load_text_tokenizer(resolve("gemma3-270m"))
    return np.array([tokenizer.encode(text)[:22] for text in PROSE])


def ours(config, params, trainable=None):
    run = lambda params, trainable: apply(Decoder(config), params, trainable, tokens())
    return np.asarray(jax.jit(run)(params, trainable or {}))


def theirs(folder, **job):
    (logits,), (said,) = ask_transformers(
        Path(folder) / "said", [{"folder": folder, "tokens": tokens(), **job}]
    )
    return logits, said


def report(what, a, b):
    print(
        f"\n{what}: largest difference of logits {np.abs(a - b).max():.2e}, root mean square "
        f"{np.sqrt(np.mean((a - b) ** 2)):.2e}"
    )


def test_the_adapter_matters(gemma):
    config, frozen, trainable, merged, *_ = gemma
    base, adapted = ours(config, frozen), ours(config, frozen, trainable)
    assert np.abs(base - adapted).max() > 1
    report("merged and separate", ours(config, merged), adapted)
    # float32: the delta is rounded into the weight, logits up to 30.
    np.testing.assert_allclose(ours(config, merged), adapted, atol=1e-3)


def test_a_merged_folder(gemma, tmp_path):
    config, _, _, merged, tokenizer, _ = gemma
    export_merged(tmp_path, config, merged, tokenizer)
    a, (b, said) = ours(config, merged), theirs(tmp_path, texts=TEXTS)
    report("merged folder", a, b)
    np.testing.assert_allclose(a, b, atol=1e-3)
    assert said["ids"] == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("format", ["F16", "Q8_0"])
def test_a_merged_gguf(gemma, tmp_path, format):
    config, _, _, merged, tokenizer, path = gemma
    export_gguf(tmp_path / "model.gguf", config, merged, path, format=format)
    again, rounded = load_decoder(tmp_path)
    assert again == config
    exact, a = ours(config, merged), ours(config, rounded)
    b, said = theirs(tmp_path, gguf="model.gguf", texts=TEXTS)
    report(f"{format}: transformers and ours on the same rounded weights", a, b)
    report(f"{format}: transformers on the file, ours on the weights before rounding", exact, b)
    np.testing.assert_allclose(a, b, atol=1e-3)
    # What the format itself costs: our own logits before and after rounding, and no more than that.
    assert np.abs(exact - b).max() <= np.abs(exact - a).max() + 1e-3
    assert said["ids"] == [tokenizer.encode(text) for text in TEXTS]


def test_an_adapter_for_peft(gemma, tmp_path):
    config, frozen, trainable, _, _, _ = gemma
    save_decoder(tmp_path / "base", config, frozen)
    save_peft(
        tmp_path / "adapter",
        trainable,
        decoder_names(config),
        base_model=str(tmp_path / "base"),
        task_type="CAUSAL_LM",
    )
    a, (b, _) = (
        ours(config, frozen, trainable),
        theirs(tmp_path / "base", adapter=tmp_path / "adapter"),
    )
    report("adapter for PEFT", a, b)
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_the_folder_of_a_base_alone_is_smaller_than_two_of_them(gemma, tmp_path):
    """Nothing of the base is in an adapter's folder: 3.8 million factors in float32."""
    config, _, trainable, *_ = gemma
    save_peft(tmp_path, trainable, decoder_names(config), task_type="CAUSAL_LM")
    assert sum(file.stat().st_size for file in Path(tmp_path).iterdir()) < 20e6
