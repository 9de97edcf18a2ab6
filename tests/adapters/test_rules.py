"""What the rules that choose weights refuse, and how an einsum is seen as a matrix product."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from user_models import build

from lora_jax import LoraSpec, QuantSpec, adapt
from lora_jax.adapters.einsum import equation_of
from lora_jax.adapters.products import Call

UP = r"block_\d/up/kernel"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a rule that matches nothing": (
        dict(lora=[(r"block_\d/attn/(q|v)_proj/kernel", LoraSpec())]),
        r"lora rule 'block_.*_proj/kernel' matches none of 49 sites\. Nearest: 'block_\d/attn/.*Rules are full-match",
    ),
    "a rule behind a wider one": (
        dict(lora=[(".*up/kernel", LoraSpec(2)), ("block_0/up/kernel", LoraSpec(1))]),
        (
            "lora rule 'block_0/up/kernel' is never reached: earlier rules match all that it "
            "matches. Put it before them"
        ),
    ),
    "a pattern that is no regex": (
        dict(lora=[("*kernel", LoraSpec(2))]),
        r"lora rule '\*kernel' is not a regular expression: nothing to repeat",
    ),
    "a rank above the smaller side": (
        dict(lora=[(UP, LoraSpec(9))]),
        "block_0/up/kernel: Rank 9 is larger than the smaller side of a 8 x 12",
    ),
    "an adapted bias": (
        dict(lora=[("block_0/up/bias", LoraSpec(1))]),
        r"'block_0/up/bias' of shape \(12,\) cannot be adapted: it is no matrix.*up/kernel",
    ),
    "a quantised norm": (
        dict(lora=[(UP, LoraSpec(1))], quant=[(".*norm/scale", QuantSpec())]),
        r"/scale' of shape \(8,\) cannot be quantised: it is no matrix",
    ),
    "adapted and trained whole": (
        dict(lora=[(UP, LoraSpec(1))], whole=["block_1/.*"]),
        "'block_1/up/kernel' is to be both adapted and trained whole",
    ),
    "quantised and trained whole": (
        dict(quant=[(UP, QuantSpec(block_size=4))], whole=[UP]),
        "'block_0/up/kernel' is to be both quantised and trained whole",
    ),
    "a whole rule that matches nothing": (
        dict(whole=["clasifier/.*"]),
        "whole rule 'clasifier/.*' matches none of 49 sites",
    ),
    "nothing to train": (
        dict(quant=[(UP, QuantSpec(block_size=4))]),
        "Nothing would be trained: no lora or whole rule matches any of 49 sites",
    ),
    "only rules that say leave alone": (dict(lora=[(UP, None)]), "Nothing would be trained"),
    "layers where there is no stack": (
        dict(lora=[(UP, LoraSpec(1, layers=(0,)))]),
        r"up/kernel: layers=\(0,\) needs a site with a stack of layers",
    ),
    "an unknown initialiser": (
        dict(lora=[(UP, LoraSpec(1, init="kaimin"))]),
        "Unknown LoRA init 'kaimin'.*nearest: 'kaiming'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_selection_is_an_error_that_says_what_to_do(name: str) -> None:
    selection, message = WRONG[name]
    built = build("loop")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        adapt(built.model, built.params, built.inputs, key=jax.random.key(0), **selection)


@pytest.mark.parametrize("layers", [(2,), (-1,), ()])
def test_layers_out_of_range_are_an_error(layers: tuple[int, ...]) -> None:
    built = build("scan")
    with pytest.raises(
        ValueError, match=r"blocks/up/kernel: layers=.* must name some of the layers 0 to 1"
    ):
        adapt(
            built.model,
            built.params,
            built.inputs,
            lora=[("blocks/up/kernel", LoraSpec(1, layers=layers))],
            key=jax.random.key(0),
        )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rank", 0, "rank must be at least 1, got 0"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0"),
        ("alpha", 0.0, "at 0 the adapter would change nothing"),
        ("alpha", float("nan"), "must be finite and not 0, got nan"),
    ],
)
def test_a_wrong_specification_is_an_error(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraSpec(**{field: value})


@pytest.mark.parametrize(
    ("text", "is_matmul"),
    [
        ("btd,df->btf", True),
        ("...d,df->...f", True),
        ("bqtd,fdg->bgtfq", True),
        ("btd,tdf->btf", False),  # t is batched over, not contracted
        ("btd,df->bf", False),  # t is summed
        ("btd,dfg->btf", False),  # g is summed
        ("btd,td->b", False),  # nothing is made
        ("bdd,df->bf", False),  # a diagonal
        (
            "bt,df->btdf",
            True,
        ),  # an outer product: nothing is contracted, and the kernel is all output
    ],
)
def test_an_einsum_is_a_matrix_product_or_is_left_alone(text: str, is_matmul: bool) -> None:
    ndim = text.index(",") if "..." not in text else 3
    call = Call((jnp.zeros((2,) * ndim),), {})
    equation = equation_of(nn.Einsum((2,), text), call)
    assert equation.is_matmul == is_matmul


class Gated(nn.Module):
    """A module kind of the user's own, with one weight: `tanh(x @ kernel) * x.mean()`."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        return jnp.tanh(x @ kernel) * x.mean(-1, keepdims=True)


class OwnKind(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Gated(6, name="gated")(x)


def test_a_module_kind_of_ones_own_gets_a_factored_product(monkeypatch) -> None:
    import lora_jax
    from lora_jax.adapters import rules

    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    model = OwnKind()
    params = model.init(jax.random.key(1), x)["params"]
    make = lambda dropout: adapt(
        model, params, (x,), lora=[("gated/kernel", LoraSpec(2, dropout=dropout))],
        quant=[("gated/kernel", QuantSpec("nf4", 8, double=False))], key=jax.random.key(2),
    )  # fmt: skip
    with pytest.raises(ValueError, match="no factored product to drop the input of"):
        make(0.5)

    def product(module, leaf, call):
        (x,) = call.args
        return jnp.tanh(lora_jax.adapters.factored_product(x, leaf)) * x.mean(-1, keepdims=True)

    lora_jax.adapters.register_rule(Gated, "kernel", product)
    assert lora_jax.find_sites(model, x)["gated/kernel"].has_rule
    frozen, trainable = make(0.5)
    low = trainable["gated/kernel"]
    trainable = {"gated/kernel": low.replace(b=low.b + 0.3)}
    dense = model.apply({"params": lora_jax.join(frozen, trainable)}, x)
    run = lambda key=None: lora_jax.apply(model, frozen, trainable, x, key=key)
    assert jnp.allclose(run(), dense, atol=1e-6)
    assert float(jnp.abs(run(jax.random.key(3)) - dense).max()) > 1e-2  # Dropout acts.
    # Two thin products and the frozen one, and none of the update's size.
    assert str(jax.make_jaxpr(run)()).count("dot_general[") == 3
    with pytest.raises(ValueError, match="Gated.__call__ has a factored product already"):
        lora_jax.adapters.register_rule(Gated, "kernel", product)
