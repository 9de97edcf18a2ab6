"""llama.cpp generates our text, greedily: from the real Gemma-3-270M with an adapter merged, and from
the base and the adapter as two GGUF files.
"""

import jax
import numpy as np
import pytest
from llama_cpp_peer import ask_llama_cpp, llama_cpp_python

from lora_jax.adapters.merge import merge
from lora_jax.adapters.surgery import adapt
from lora_jax.core.lowrank import LoraSpec
from lora_jax.generation.sampling import Sampling
from lora_jax.generation.text import TextGenerator
from lora_jax.io.export import export_gguf
from lora_jax.io.gguf_adapter import export_gguf_adapter
from lora_jax.io.gguf_tokenizer import load_text_tokenizer
from lora_jax.io.hub import resolve
from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder

pytestmark = [pytest.mark.peer, pytest.mark.long, pytest.mark.filterwarnings("default")]
TEXTS = [
    "The harbour was quiet when",
    "def area(r):\n    return",
    "Die Hauptstadt von Frankreich ist",
]
COUNT = 24


def test_llama_cpp_says_what_we_say(tmp_path):
    llama_cpp_python()
    path = resolve("gemma3-270m")
    config, params = load_decoder(path)
    tokenizer = load_text_tokenizer(path)
    spec = LoraSpec(rank=8, alpha=16.0)
    frozen, trainable = adapt(
        Decoder(config),
        params,
        (np.ones((1, 8), np.int32),),
        lora=[("layers/.*kernel", spec)],
        key=jax.random.key(0),
    )
    trainable = {
        site: leaf.replace(b=1e-3 * jax.random.normal(jax.random.key(n), leaf.b.shape))
        for n, (site, leaf) in enumerate(sorted(trainable.items()))
    }
    base, merged, adapter = (tmp_path / f"{name}.gguf" for name in ("base", "merged", "adapter"))
    export_gguf(base, config, frozen, path, format="F32")
    export_gguf(merged, config, merge(frozen, trainable)[0], path, format="F32")
    assert export_gguf_adapter(adapter, config, trainable) == ()

    ask = {"texts": TEXTS, "count": COUNT}
    (stored,) = [path] if path.is_file() else path.glob("*.gguf")
    jobs = [
        {"model": merged, **ask},
        {"model": base, "adapter": adapter, **ask},
        {"model": base, **ask},
        {"model": stored, "adapter": adapter, **ask},
    ]
    said = np.reshape(np.array(ask_llama_cpp(tmp_path, jobs), object), (4, len(TEXTS)))
    model = Decoder(config)
    greedy = {"max_new": COUNT, "sampling": Sampling(temperature=0.0)}
    ours = TextGenerator(model, frozen, tokenizer, trainable).generate(TEXTS, **greedy)
    plain = TextGenerator(model, frozen, tokenizer).generate(TEXTS, **greedy)
    for n, text in enumerate(TEXTS):
        print(f"\n{text!r}")
        for row, who in enumerate(("merged", "base + adapter", "base", "Q4_K_M + adapter")):
            print(f"  llama.cpp, {who}: {said[row, n]['text']!r}")
        print(f"  ours, adapted: {ours[n]!r}\n  ours, base: {plain[n]!r}")
        assert said[0, n]["prompt"] == tokenizer.encode(text)
    assert [one["text"] for one in said[0]] == ours
    assert [one["ids"] for one in said[1]] == [one["ids"] for one in said[0]]
    assert [one["text"] for one in said[2]] == plain
    # The adapter is seen in them: one text is the base's own.
    assert sum(one != other for one, other in zip(ours, plain)) == 2
