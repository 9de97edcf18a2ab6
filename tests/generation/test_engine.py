"""Generated tokens equal transformers', alone and in a batch, with adapters applied, merged and
stacked.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.merge import merge
from lora_jax.adapters.stacking import stack
from lora_jax.adapters.surgery import adapt
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.quantize import QuantSpec, bytes_of
from lora_jax.generation.engine import Generator
from lora_jax.generation.sampling import Sampling
from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
ARRAYS = np.load(GOLDEN / "logits.npz")


def prompts_of(name):
    return [
        row[mask].tolist() for row, mask in zip(ARRAYS[f"{name}/tokens"], ARRAYS[f"{name}/mask"])
    ]


def generator(name, **kwargs):
    config, params = load_decoder(GOLDEN / name)
    return Generator(Decoder(config), params, **{"prompt_multiple": 4, **kwargs})


def adapted(name="llama3", seed=1, rank=2, quant=()):
    """A model with adapters that change its output: b is random, not 0."""
    config, params = load_decoder(GOLDEN / name)
    model = Decoder(config)
    rules = [("layers/.*kernel", LoraSpec(rank=rank))]
    frozen, trainable = adapt(
        model,
        params,
        (jax.ShapeDtypeStruct((1, 4), jnp.int32),),
        lora=rules,
        quant=quant,
        key=jax.random.key(seed),
    )
    grow = lambda path, low: low.replace(
        b=0.2 * jax.random.normal(jax.random.key(seed + len(path)), low.b.shape)
    )
    return model, frozen, {path: grow(path, low) for path, low in trainable.items()}


@pytest.mark.parametrize("name", ["llama3", "gemma3", "gpt2", "mixtral"])
def test_greedy_tokens_equal_transformers_for_left_padded_texts(name):
    made = generator(name).generate(prompts_of(name), max_new=12)
    assert made == ARRAYS[f"{name}/greedy"].tolist()


def test_a_text_is_continued_alike_alone_and_in_a_batch():
    model = generator("gemma3")
    prompts, sampling, key = (
        prompts_of("gemma3"),
        Sampling(temperature=1.0, top_k=20),
        jax.random.key(3),
    )
    together = model.generate(prompts, max_new=8, sampling=sampling, key=key)
    alone = model.generate(prompts[:1], max_new=8, sampling=sampling, key=key)
    greedy = model.generate(prompts[1:], max_new=8)
    assert greedy[0] == model.generate(prompts, max_new=8)[1]
    assert len(together[0]) == len(alone[0]) == 8


def test_streaming_gives_the_same_tokens_and_compiles_once():
    model = generator("llama3")
    made = model.generate(prompts_of("llama3"), max_new=6)
    streamed = list(zip(*model.stream(prompts_of("llama3"), max_new=6)))
    assert [list(row) for row in streamed] == made
    assert model._advance._cache_size() == 1 and model._start._cache_size() == 1


def test_a_text_ends_at_an_end_token_and_the_others_go_on():
    whole = generator("llama3").generate(prompts_of("llama3"), max_new=8)
    end = whole[0][3]
    made = generator("llama3", eos_ids=(end,)).generate(prompts_of("llama3"), max_new=8)
    cut = [row[: row.index(end) + 1] if end in row else row for row in whole]
    assert made == cut and len(made[0]) <= 4


@pytest.mark.parametrize(
    "quant", [(), [("layers/.*kernel", QuantSpec("nf4", 8))]], ids=["dense", "nf4"]
)
def test_adapters_give_the_same_tokens_applied_and_merged(quant):
    model, frozen, trainable = adapted(quant=quant)
    applied = Generator(model, frozen, trainable).generate(prompts_of("llama3"), max_new=10)
    merged = Generator(model, merge(frozen, trainable)[0]).generate(
        prompts_of("llama3"), max_new=10
    )
    assert applied == merged
    assert applied != Generator(model, frozen).generate(prompts_of("llama3"), max_new=10)


@pytest.mark.parametrize(
    "quant", [(), [("layers/.*kernel", QuantSpec("nf4", 8))]], ids=["dense", "nf4"]
)
def test_layers_taken_apart_give_the_same_tokens(quant):
    model, frozen, trainable = adapted(quant=quant)
    apart, whole = (Generator(model, frozen, trainable, unroll=unroll) for unroll in (True, False))
    assert {"layers_0", "layers_1"} <= set(apart.frozen) and "layers" in whole.frozen
    assert bytes_of(apart.frozen) == bytes_of(whole.frozen)
    assert apart.generate(prompts_of("llama3"), max_new=8) == whole.generate(
        prompts_of("llama3"), max_new=8
    )
    each = stack([trainable, {path: low.replace(b=-low.b) for path, low in trainable.items()}])
    both = [
        Generator(model, frozen, each, unroll=unroll).generate(
            prompts_of("llama3"), max_new=8, adapters=[1, 0]
        )
        for unroll in (True, False)
    ]
    assert both[0] == both[1]


def test_every_text_of_a_batch_has_its_own_adapter():
    model, frozen, first = adapted(seed=1, rank=2)
    _, _, second = adapted(seed=2, rank=2)
    nothing = {path: low.replace(b=jnp.zeros_like(low.b)) for path, low in first.items()}
    prompts = [prompts_of("llama3")[0]] * 3
    together = Generator(model, frozen, stack([nothing, first, second])).generate(
        prompts, max_new=6, adapters=[2, 0, 1]
    )
    one = Generator(model, frozen)
    for row, trainable in enumerate((second, nothing, first)):
        one.trainable = trainable
        assert together[row] == one.generate(prompts[:1], max_new=6)[0]
    assert len({tuple(row) for row in together}) == 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (dict(prompts=[[1] * 60], max_new=5), "65 positions, and the window has 64"),
        (dict(prompts=[[]], max_new=5), "bos"),
        (dict(prompts=[[1]], max_new=0), "max_new"),
        (dict(prompts=[[1]], max_new=1, sampling=Sampling(1.0)), "needs a key"),
    ],
)
def test_impossible_requests_are_errors(call, said):
    model = generator("llama3")
    with pytest.raises(ValueError, match=said):
        model.generate(call.pop("prompts"), **call)


@pytest.mark.parametrize("unroll", [True, False])
def test_an_index_that_is_none_of_a_stack_is_refused(unroll):
    model, frozen, one = adapted(seed=1, rank=2)
    prompts = [prompts_of("llama3")[0]] * 2
    # The layers' axis is not one of adapters.
    alone = Generator(model, frozen, one, unroll=unroll)
    with pytest.raises(ValueError, match="adapters"):
        alone.generate(prompts, max_new=1, adapters=[0, 1])
    two = Generator(model, frozen, stack([one, one]), unroll=unroll)
    for wrong in ([0, 2], [0, -1], [0], [0, 1, 1]):
        with pytest.raises(ValueError, match="from 0 to 1 for each of 2 prompts"):
            two.generate(prompts, max_new=1, adapters=wrong)
    with pytest.raises(ValueError, match="for each of 2 prompts"):
        Generator(model, frozen, unroll=unroll).generate(prompts, max_new=1, adapters=[0, 0])
