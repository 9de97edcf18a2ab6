"""Runs on a mesh of eight devices are those of one device; what travels between the devices."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import lora_jax
from lora_jax.config import OptimConfig
from lora_jax.core.mesh import make_mesh
from lora_jax.core.paths import flatten
from lora_jax.models import Decoder, DecoderConfig
from lora_jax.models.decoder_config import Experts
from lora_jax.tasks.language_loss import language_loss
from lora_jax.training import adam8bit

LINEAR = r"layers/.*/(q|k|v|o|gate|up|down)/kernel"


@dataclass(frozen=True)
class Case:
    """A tiny language model on a mesh: sizes of the model, what is quantised, factors, optimiser."""

    mesh: tuple[int, int, int] = (1, 1, 1)
    sizes: dict[str, Any] = field(default_factory=dict)
    quant: lora_jax.QuantSpec | None = None
    head: bool = False  # quantised as well
    lora: dict[str, Any] = field(default_factory=dict)
    optim: str = "adamw"
    rows: int = 8

    def made(self) -> tuple[Any, Any, Any, Any]:
        sizes = dict(
            vocab_size=96,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            intermediate_size=48,
            max_positions=32,
        )
        model = Decoder(DecoderConfig(**(sizes | self.sizes)), remat=True)
        tokens = jnp.zeros((1, 4), jnp.int32)
        params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        frozen, trainable = lora_jax.adapt(
            model,
            params,
            (tokens,),
            lora=[(LINEAR, lora_jax.LoraSpec(rank=4, **self.lora))],
            quant=[(LINEAR + ("|head/kernel" if self.head else ""), self.quant)]
            if self.quant
            else (),
            key=jax.random.key(1),
        )
        # An adapter that has moved from its start: all factors have a gradient.
        moved = lambda path, leaf: leaf.replace(
            b=0.1 * jax.random.normal(jax.random.key(len(path)), leaf.b.shape)
        )
        trainable = {path: moved(path, leaf) for path, leaf in trainable.items()}
        return model, frozen, trainable, lora_jax.make_optimizer(OptimConfig(name=self.optim), 10)

    def batch(self, seed: int) -> dict[str, Any]:
        random = np.random.default_rng(seed)
        vocab = self.sizes.get("vocab_size", 96)
        tokens = random.integers(0, vocab, (self.rows, 8)).astype(np.int32)
        segments = np.ones_like(tokens)
        segments[:, -2:] = 0
        weight = (random.random(tokens.shape) < 0.7) * (segments > 0)
        labels = np.roll(tokens, -1, 1)
        return dict(
            tokens=tokens, segments=segments, labels=labels, loss_weight=weight.astype(np.float32)
        )


CASES = {
    "data, int8, DoRA, dropout, tied": Case(
        (8, 1, 1),
        sizes=dict(tied=True),
        quant=lora_jax.QuantSpec("int8", block_size=16, double=False),
        lora=dict(dora=True, dropout=0.2),
    ),
    "fsdp, nf4, adamw8bit": Case(
        (1, 8, 1), quant=lora_jax.QuantSpec("nf4", block_size=8), optim="adamw8bit"
    ),
    "model, nf4, quantised head": Case(
        (1, 1, 8), quant=lora_jax.QuantSpec("nf4", block_size=16), head=True
    ),
    "all, float32, odd sizes": Case(
        (2, 2, 2),
        sizes=dict(vocab_size=101, hidden_size=36, num_heads=3, num_kv_heads=1, head_dim=6),
        rows=6,
    ),
}


# What a mesh might get wrong, in as few models as hold all of it; each is trained on every mesh.
FORMS = {
    "nf4 double, DoRA, dropout, tied, odd sizes": Case(
        sizes=dict(vocab_size=1001, hidden_size=56, num_heads=7, num_kv_heads=1, tied=True),
        quant=lora_jax.QuantSpec("nf4", block_size=8),
        lora=dict(dora=True, dropout=0.1),
    ),
    "int8, adamw8bit, quantised head": Case(
        sizes=dict(num_kv_heads=1),
        quant=lora_jax.QuantSpec("int8", block_size=16),
        head=True,
        optim="adamw8bit",
    ),
    "float32, experts, rows that do not divide": Case(
        sizes=dict(experts=Experts(count=4, per_token=2, intermediate_size=24)), rows=6
    ),
    "int4 with zeros, logarithms, softcap": Case(
        sizes=dict(final_softcap=5.0, attention_softcap=8.0),
        quant=lora_jax.QuantSpec("int4_asym", block_size=16, second_level="log"),
    ),
}
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]


@dataclass
class Trained:
    """Losses of three steps, the compiled step, and what it was given and left."""

    losses: list[float]
    compiled: Any
    frozen: Any
    state: Any


def trained(case: Case, mesh: Mesh | None = None) -> Trained:
    model, frozen, trainable, tx = case.made()
    state = lora_jax.create_state(trainable, tx, jax.random.key(3))
    step, out = lora_jax.make_train_step(language_loss(model), tx), None
    if mesh is not None:
        frozen, state = lora_jax.shard(frozen, mesh), lora_jax.shard(state, mesh)
        out = (lora_jax.shardings(state, mesh), None)
    compiled = jax.jit(step, out_shardings=out).lower(state, frozen, case.batch(0)).compile()
    losses = []
    for seed in range(3):
        state, metrics = compiled(state, frozen, case.batch(seed))
        losses.append(float(metrics["loss"]))
    return Trained(losses, compiled, frozen, state)


@pytest.fixture(scope="module")
def on_mesh() -> Iterator[Callable[[str], Trained]]:
    """The cases on their meshes, each compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adam8bit, "MIN_SIZE", 64)
        yield functools.cache(lambda name: trained(CASES[name], make_mesh(*CASES[name].mesh)))


@pytest.mark.parametrize("name", CASES)
def test_a_step_on_a_mesh_is_that_of_one_device(
    name: str, on_mesh: Callable[[str], Trained]
) -> None:
    eight = on_mesh(name)
    # Sums over devices in another order.
    assert eight.losses == pytest.approx(trained(CASES[name]).losses, rel=1e-5)


# Each compiles five steps.
@pytest.mark.long
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_model_is_on_every_mesh_what_it_is_on_one_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adam8bit, "MIN_SIZE", 64)
    one = trained(FORMS[name]).losses
    for mesh in MESHES:
        assert trained(FORMS[name], make_mesh(*mesh)).losses == pytest.approx(one, rel=1e-5), mesh


# A collective of the compiled program: its kind, whether it is in the loop over layers, and the
# dtype and shape of one of its results.
_COLLECTIVE = re.compile(
    r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def collectives(compiled: Any) -> Counter[tuple[str, bool, str, tuple[int, ...]]]:
    found: Counter[tuple[str, bool, str, tuple[int, ...]]] = Counter()
    for line in compiled.as_text().splitlines():
        if match := _COLLECTIVE.search(line):
            for dtype, sizes in re.findall(r"([a-z]\w*)\[([\d,]*)\]", match[1]):
                shape = tuple(int(n) for n in sizes.split(",") if n)
                found[match[2], "while/body" in line, dtype, shape] += 1
    return found


def test_under_fsdp_codes_travel_and_no_dense_weight(on_mesh: Callable[[str], Trained]) -> None:
    run = on_mesh("fsdp, nf4, adamw8bit")
    layers = [
        leaf
        for leaf in flatten(run.frozen).values()
        if isinstance(leaf, lora_jax.core.QuantizedArray)
    ]
    dense = {math.prod(leaf.kernel_shape) for leaf in layers}
    stacks = {leaf.codes.shape for leaf in layers}
    gathers = {key: n for key, n in collectives(run.compiled).items() if key[0] == "all-gather"}
    in_loop = [(dtype, shape) for _, loop, dtype, shape in gathers if loop]

    for leaf in layers:
        assert ("u8", leaf.codes.shape[1:]) in in_loop
    assert not [key for key in in_loop if key[0] != "u8" and math.prod(key[1]) in dense]
    assert not [key for key in gathers if key[3] in stacks]
    # Of an embedding what is looked up travels; a head that is not quantised is gathered once.
    assert sum(n for key, n in gathers.items() if math.prod(key[3]) == 96 * 32) == 1
    # Nor do activations of the whole batch: (tokens, features) of 64 tokens.
    assert not [key for key in collectives(run.compiled) if key[1] and key[3][:1] == (64,)]


def test_under_model_no_weight_travels_but_codes_whose_blocks_two_devices_share(
    on_mesh: Callable[[str], Trained],
) -> None:
    run = on_mesh("model, nf4, quantised head")
    layers = [leaf for leaf in flatten(run.frozen).values() if hasattr(leaf, "codes")]
    plain = {leaf.kernel_shape for leaf in layers}
    blocked = {(leaf.rows // 16, 16, leaf.codes.shape[-1]) for leaf in layers}
    dense = [
        (dtype, shape)
        for kind, _, dtype, shape in collectives(run.compiled)
        if kind == "all-gather" and tuple(n for n in shape if n > 1) in plain | blocked
    ]
    assert not dense


def test_each_device_stores_its_part(on_mesh: Callable[[str], Trained]) -> None:
    run = on_mesh("fsdp, nf4, adamw8bit")
    part = lambda x: x.addressable_shards[0].data.nbytes / x.nbytes
    for path, leaf in flatten(run.frozen).items():
        if isinstance(leaf, lora_jax.core.QuantizedArray):
            assert part(leaf.codes) == part(leaf.scale.codes) == 1 / 8, path
    for leaf in run.state.trainable.values():
        assert part(leaf.a) == part(leaf.b) == 1 / 8
    # Moments lie as what they are moments of, also after a step.
    moments = [x for x in jax.tree.leaves(run.state.opt_state) if x.ndim == 3 and x.shape[1] > 1]
    assert moments and all(part(x) == 1 / 8 for x in moments if x.size > 256)


def test_a_frozen_head_has_its_own_tokens_and_words(on_mesh: Callable[[str], Trained]) -> None:
    """No logits of all tokens, and none of all words, on any device."""
    text = on_mesh("fsdp, nf4, adamw8bit").compiled.as_text()
    assert "f32[8,96]" in text and "f32[64,96]" not in text


def test_a_program_of_one_device_holds_nothing_of_a_mesh() -> None:
    case = CASES["fsdp, nf4, adamw8bit"]
    model, frozen, trainable, tx = case.made()
    state = lora_jax.create_state(trainable, tx, jax.random.key(3))
    step = lora_jax.make_train_step(language_loss(model), tx)
    text = str(jax.make_jaxpr(step)(state, frozen, case.batch(0)))
    assert not re.search(r"sharding_constraint|shard_map|psum|pmax", text)
