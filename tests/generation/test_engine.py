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
from lora_jax.core.mesh import make_mesh
from lora_jax.core.quantize import QuantSpec, bytes_of
from lora_jax.core.sharding import shard
from lora_jax.generation.beam import BeamSearch, beam_search
from lora_jax.generation.engine import Generator
from lora_jax.generation.sampling import Sampling
from lora_jax.generation.seq2seq import generator_for
from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.kinds import example_inputs
from lora_jax.models.rotary import Rotary
from lora_jax.models.t5 import T5, T5Config

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
# What transformers 5.23 generates greedily after the prompts of the longrope test, each alone.
TRANSFORMERS = [
    [30, 27, 2, 36, 18, 28, 0, 25],
    [28, 38, 30, 14, 38, 21, 29, 29],
    [18, 17, 30, 18, 5, 0, 0, 0],
    [16, 30, 21, 39, 21, 11, 0, 11],
    [38, 39, 29, 18, 29, 29, 18, 28],
]
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
    assert together[0] == alone[0] and len(together[0]) == 8


def test_draws_differ_by_key_step_and_text():
    model, prompts = generator("llama3"), [prompts_of("llama3")[0]] * 3
    # So hot that all of 40 tokens are about as likely: what is drawn shows the noise alone.
    draw = lambda seed: model.generate(
        prompts, max_new=8, sampling=Sampling(temperature=1e6), key=jax.random.key(seed)
    )
    first = draw(0)
    assert first == draw(0) and first != draw(1)
    assert len({tuple(row) for row in first}) == 3
    assert min(len(set(row)) for row in first) > 4
    # Batches of any number of prompts draw apart, too.
    options = dict(batch_size=3, max_new=8, sampling=Sampling(temperature=1e6))
    many = model.generate_all((prompts * 2)[:5], key=jax.random.key(0), **options)
    assert len({tuple(row) for row in many}) == 5 and all(len(row) == 8 for row in many)


def test_repetition_is_penalised_in_prompt_and_answer_and_not_in_padding():
    """By CTRL's formula on logits of the whole text, without a cache."""
    config, params = load_decoder(GOLDEN / "gpt2")
    prompts, penalty, new = [[5, 9, 30, 7, 11], [8, 3]], 1.6, 10
    logits_of = jax.jit(lambda tokens: Decoder(config).apply({"params": params}, tokens))
    expected = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(new):
            padded = np.asarray([text + [0] * (len(prompts[0]) + new - len(text))])
            row = np.array(logits_of(padded)[0, len(text) - 1])
            for token in set(text):
                row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
            text.append(int(row.argmax()))
        expected.append(text[len(prompt) :])
    sampling = Sampling(repetition_penalty=penalty)
    plain = generator("gpt2").generate(prompts, max_new=new)
    # The shorter text's padding is the token that it writes first.
    made = generator("gpt2", pad_id=expected[1][0]).generate(
        prompts, max_new=new, sampling=sampling
    )
    assert made == expected and made != plain


def longrope_model():
    """A decoder that outgrows its first angles at 16 tokens; weights that make argmax sharp."""
    rotary = Rotary(
        scaling="longrope",
        factor=4.0,
        original_positions=16,
        short_factors=(1.0, 1.1, 1.2, 1.3),
        long_factors=(2.0, 3.0, 4.0, 5.0),
    )
    config = DecoderConfig(
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=24,
        max_positions=64,
        family="phi3",
        rotary=rotary,
    )
    model = Decoder(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    return model, jax.tree.map(lambda x: x * 4 if x.ndim > 2 else x, params)


def test_texts_that_outgrow_longropes_first_angles_are_read_anew_each_for_itself():
    model, params = longrope_model()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 40, n).tolist() for n in (14, 5, 16, 17, 11)]
    logits_of = jax.jit(lambda tokens, mask: model.apply({"params": params}, tokens, mask))
    full = np.zeros((5, 32), np.int32)
    lengths = np.array([len(prompt) for prompt in prompts])
    for row, prompt in zip(full, prompts):
        row[: len(prompt)] = prompt
    for _ in range(8):  # The right value: whole texts at every step, no cache.
        logits = logits_of(full, (np.arange(32) < lengths[:, None]).astype(np.int32))
        full[np.arange(5), lengths] = np.asarray(logits)[np.arange(5), lengths - 1].argmax(-1)
        lengths += 1
    expected = [row[len(p) : len(p) + 8].tolist() for row, p in zip(full, prompts)]
    made = Generator(model, params, prompt_multiple=8)
    assert made.generate(prompts, max_new=8) == expected
    streamed = zip(*made.stream(prompts, max_new=8))
    assert [list(row) for row in streamed] == expected
    # transformers' own generate, a text at a time, of this model as save_decoder writes it.
    assert expected == TRANSFORMERS
    best = beam_search(
        model, params, {}, prompts[0], max_new=8, eos_ids=(39,), search=BeamSearch(1)
    )
    assert best[0] == expected[0]


def test_a_text_has_longropes_angles_of_its_own_length():
    """Neither padding, nor another text of the batch or of the row, changes them."""
    model, params = longrope_model()
    apply = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))
    tokens = np.random.default_rng(1).integers(1, 40, (1, 28)).astype(np.int32)
    short, long = tokens[:, :8], tokens[:, 8:]
    packed = apply(tokens, np.asarray([[1] * 8 + [2] * 20]))
    both = apply(
        np.concatenate([np.pad(short, ((0, 0), (0, 20))), np.pad(long, ((0, 0), (0, 8)))]),
        (np.arange(28) < np.array([[8], [20]])).astype(np.int32),
    )
    # The same sums over other lengths of padding: float32 rounding of logits of order 1.
    for found in (packed[0, :8], both[0, :8]):
        np.testing.assert_allclose(found, apply(short)[0], atol=1e-5)
    for found in (packed[0, 8:], both[1, :20]):
        np.testing.assert_allclose(found, apply(long)[0], atol=1e-5)


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


@pytest.mark.parametrize("kind", ["decoder", "t5", pytest.param("many", marks=pytest.mark.slow)])
def test_on_a_mesh_the_same_tokens_are_generated(kind):
    """Of a decoder in a scan, of one taken apart whose texts have an adapter each, and of T5."""
    chosen, prompts, layers = {}, prompts_of("llama3"), [(".*layers/.*kernel", QuantSpec("nf4", 8))]
    if kind == "t5":
        config = T5Config(40, 16, 1, 1, num_heads=2, head_dim=8, intermediate_size=24)
        model, inputs = T5(config), example_inputs(config)
        params = jax.jit(model.init)(jax.random.key(0), *inputs)["params"]
        low = [(".*layers/.*kernel", LoraSpec(rank=2, init="gaussian"))]
        frozen, trainable = adapt(
            model, params, inputs, lora=low, quant=layers, key=jax.random.key(1)
        )
        trainable = {path: x.replace(b=x.b + 0.5) for path, x in trainable.items()}
    else:
        model, frozen, trainable = adapted(quant=layers)
    if kind == "many":
        trainable = stack([trainable, adapted(seed=2)[2]])
        chosen["adapters"] = [n % 2 for n in range(len(prompts))]
    mesh, made = make_mesh(2, 2, 2), generator_for(model)
    on = lambda *trees: made(model, *trees, unroll=kind == "many")
    # A stack of adapters lies where it is put.
    held = trainable if kind == "many" else shard(trainable, mesh)
    found = on(shard(frozen, mesh), held).generate(prompts, max_new=4, **chosen)
    assert found == on(frozen, trainable).generate(prompts, max_new=4, **chosen)


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
        (dict(prompts=[[1], [1, 40]], max_new=1), "from 0 to 39, and 40 came"),
        (dict(prompts=[[-1]], max_new=1), "from 0 to 39, and -1 came"),
        (dict(prompts=[[1.0]], max_new=1), "from 0 to 39, and 1.0 came"),
        (dict(prompts=[1, 2], max_new=1), "a list of token ids for each prompt"),
        (dict(prompts=["ab"], max_new=1), "a list of token ids for each prompt"),
        (dict(prompts=[[1]], max_new=1.5), "max_new=1.5"),
    ],
)
def test_impossible_requests_are_errors(call, said):
    model = generator("llama3")
    with pytest.raises((ValueError, TypeError), match=said):
        model.generate(call.pop("prompts"), **call)


def test_an_end_token_that_the_vocabulary_has_not_is_refused():
    with pytest.raises(ValueError, match="from 0 to 39, and 99 came"):
        generator("llama3", eos_ids=(2, 99))


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
