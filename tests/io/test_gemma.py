"""The real Gemma-3-270M from its GGUF file: tokens, logits and greedy texts equal transformers'."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.surgery import adapt
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.quantize import QuantizedArray, QuantSpec, bytes_of
from lora_jax.generation.engine import Generator
from lora_jax.io.gguf_tokenizer import load_text_tokenizer
from lora_jax.io.hub import resolve
from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder

pytestmark = pytest.mark.long  # fetches 240 MB once; a minute
ARRAYS = np.load(Path(__file__).resolve().parents[1] / "golden" / "gemma3_270m.npz")


@pytest.fixture(scope="module")
def gemma():
    return load_decoder(resolve("gemma3-270m"))


@pytest.fixture(scope="module")
def tokenizer():
    return load_text_tokenizer(resolve("gemma3-270m"))


def test_tokens_and_texts_equal_transformers(tokenizer):
    for n, text in enumerate(ARRAYS["texts"].tolist()):
        assert tokenizer.encode(text) == ARRAYS[f"text/{n}"].tolist(), text
        assert tokenizer.decode(ARRAYS[f"text/{n}"]) == str(ARRAYS[f"decoded/{n}"])


def test_logits_equal_transformers(gemma):
    config, params = gemma
    mask = ARRAYS["mask"]
    logits = jax.jit(Decoder(config).apply)({"params": params}, ARRAYS["tokens"], mask)
    # float32 sums of 640 to 2048 terms in another order, logits up to 30: worst measured 2e-4.
    np.testing.assert_allclose(
        logits[:, :, ARRAYS["words"]][mask], ARRAYS["logits"][mask], atol=1e-3
    )
    assert (np.asarray(logits.argmax(-1)) == ARRAYS["best"])[mask].all()
    np.testing.assert_allclose(
        jax.nn.logsumexp(logits, -1)[mask], ARRAYS["logsumexp"][mask], atol=1e-3
    )


def test_greedy_texts_equal_transformers(gemma, tokenizer):
    config, params = gemma
    prompts = [tokenizer.encode(text) for text in ARRAYS["prompts"].tolist()]
    made = Generator(Decoder(config), params, eos_ids=tokenizer.eos_ids).generate(
        prompts, max_new=24
    )
    assert made == ARRAYS["greedy"].tolist()


def test_a_quantised_base_decodes_as_its_dequantised_weights_do(tokenizer):
    config, params = load_decoder(
        resolve("gemma3-270m"), quant=[("layers/.*kernel", QuantSpec(second_level="log"))]
    )
    leaves = [
        leaf
        for leaf in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, QuantizedArray))
        if isinstance(leaf, QuantizedArray)
    ]
    bits = 8 * sum(map(bytes_of, leaves)) / sum(leaf.size for leaf in leaves)
    assert len(leaves) == 7 and bits == pytest.approx(4.127, abs=0.01)
    frozen, trainable = adapt(
        Decoder(config),
        params,
        (jax.ShapeDtypeStruct((1, 4), jnp.int32),),
        lora=[("layers/.*kernel", LoraSpec(4))],
        key=jax.random.key(0),
    )
    prompt = [tokenizer.encode("The capital of France is Paris, and the capital of Italy is")]
    with_adapter = Generator(Decoder(config), frozen, trainable).generate(prompt, max_new=4)
    assert with_adapter == Generator(Decoder(config), frozen).generate(prompt, max_new=4)
    assert "Rome" in tokenizer.decode(with_adapter[0])
