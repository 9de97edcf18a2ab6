"""Factored products, one rule a module kind: `base(x) + ((x @ a) * scale) @ b` without ever forming
the dense update.

With DoRA the sum's columns are rescaled; a bias is added after that. In training with dropout the
base term sees the whole input, as the paper has it; PEFT drops the input there, too, in the part of
the base that the magnitude adds or takes away.

A module without a rule still works: it reads the dense adapted weight through its box. Rules only
make it cheaper, and they let dropout act on the adapter's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array

from lora_jax.adapters.recording import Recorded, record
from lora_jax.core.lowrank import Adapted, LowRank
from lora_jax.core.rows import WithRows
from lora_jax.kernels.matmul import frozen_matmul, head_matmul, lowrank_matmul


@dataclass(frozen=True)
class Call:
    """The arguments of an intercepted method."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """A factored product. `weight` is the parameter's name in the module; `fits` says whether the
    rule covers this use of it.

    plain: computes with a weight that is in no box, where that is worth doing otherwise than the
        module does; None if it is not.
    """

    weight: str
    product: Callable[[nn.Module, Any, Call], Array]
    fits: Callable[[nn.Module, Call], bool] = lambda module, call: True
    plain: Callable[[nn.Module, Array, Call], Array | None] = lambda module, weight, call: None


def find_rule(module: nn.Module, method: str, weight: str | None, call: Call) -> Rule | None:
    """The rule for this method of this module, if there is one; for `weight` only, if given.

    Subclasses have none: they may compute something else.
    """
    rule = RULES.get((type(module), method))
    if (
        rule is None
        or (weight is not None and weight != rule.weight)
        or not rule.fits(module, call)
    ):
        return None
    return rule


def input_axes(module: nn.Module, name: str, shape: tuple[int, ...], call: Call) -> tuple[int, ...]:
    """Which axes of a weight are inputs: as its module kind has it, else all but the last. None for
    vectors and biases.
    """
    kernel = next((rule.weight for (kind, _), rule in RULES.items() if kind is type(module)), name)
    if len(shape) < 2 or name != kernel:
        return ()
    if type(module) is nn.DenseGeneral and name == "kernel":
        batch, count = len(_as_tuple(module.batch_dims)), len(_as_tuple(module.axis))
        return tuple(range(batch, batch + count))
    if type(module) is nn.Einsum and name == "kernel":
        equation = _equation(module, call)
        axes = tuple(
            i
            for i, letter in enumerate(equation.kernel)
            if letter in equation.input and letter not in equation.output
        )
        return axes if 0 < len(axes) < len(shape) else tuple(range(len(shape) - 1))
    return tuple(range(len(shape) - 1))


# --- Products. Each gets the module, the leaf in place of its weight (quantised, adapted or both), and the call.


def _dense(module: nn.Module, leaf: Any, call: Call) -> Array:
    (x,) = call.args
    bias = _bias(module)
    x = x.astype(_dtype(module, x, leaf, bias))
    y = _product(x.reshape(-1, x.shape[-1]), leaf).reshape(*x.shape[:-1], module.features)
    return y if bias is None else y + bias.astype(y.dtype)


def _dense_general(module: nn.Module, leaf: Any, call: Call) -> Array:
    (x,) = call.args
    bias = _bias(module)
    axes = sorted(
        axis % x.ndim for axis in _as_tuple(module.axis)
    )  # Linen sorts them, whatever order they are given in.
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    features = _as_tuple(module.features)
    flat = x.transpose(*kept, *axes).astype(_dtype(module, x, leaf, bias))
    rows = _size(x.shape[axis] for axis in axes)
    y = _product(flat.reshape(-1, rows), leaf).reshape(*(x.shape[axis] for axis in kept), *features)
    return y if bias is None else y + bias.astype(y.dtype)


def _einsum(module: nn.Module, leaf: Any, call: Call) -> Array:
    if not isinstance(leaf, Adapted):
        return _frozen_call(module, leaf, call)
    factors = leaf.factors()
    y = _frozen_call(module, leaf, call, bias=factors is None)
    equation, x = _equation(module, call), call.args[0]
    contracted = "".join(letter for letter in equation.kernel if letter not in equation.output)
    kept = "".join(letter for letter in equation.input if letter not in contracted)
    made = "".join(letter for letter in equation.kernel if letter in equation.output)
    flat = jnp.einsum(f"{equation.input}->{kept}{contracted}", x).astype(y.dtype)
    delta = _update(flat.reshape(_size(flat.shape[: len(kept)]), -1), leaf)
    sizes = dict(zip(equation.kernel, leaf.shape[-len(equation.kernel) :], strict=True))
    delta = delta.reshape(*flat.shape[: len(kept)], *(sizes[letter] for letter in made))
    y = y + jnp.einsum(f"{kept}{made}->{equation.output}", delta)
    if factors is None:
        return y
    factors = factors.reshape(*(sizes[letter] for letter in made))
    y = jnp.einsum(
        f"{equation.output},{made}->{equation.output}", y.astype(jnp.float32), factors
    ).astype(y.dtype)
    return y + _einsum_bias(module, equation, sizes).astype(y.dtype) if module.use_bias else y


def _einsum_bias(module: nn.Module, equation: _Equation, sizes: dict[str, int]) -> Array:
    """The bias in the shape that it is added in: Linen's has those of the kernel's axes that the
    output has, in its order.
    """
    return _bias(module).reshape(
        [sizes[letter] if letter in equation.kernel else 1 for letter in equation.output]
    )


def experts_product(module: nn.Module, leaf: Adapted, call: Call) -> Array:
    """The factored product of an einsum whose kernel holds a stack of adapted matrices, such as
    'etd,edo->eto'.

    Each expert's factors act on what that expert's kernel acts on, and no dense update is formed.
    `fits_experts` says where.
    """
    equation, low, x = _equation(module, call), leaf.lora, call.args[0]
    shared, rest = equation.kernel[: low.a.ndim - 2], equation.kernel[low.a.ndim - 2 :]
    sizes = dict(zip(equation.kernel, leaf.shape, strict=True))
    contracted = "".join(letter for letter in rest if letter not in equation.output)
    made = "".join(letter for letter in rest if letter in equation.output)
    kept = "".join(letter for letter in equation.input if letter not in contracted)
    rank = next(
        letter
        for letter in "RSTUVW"
        if letter not in equation.input + equation.kernel + equation.output
    )
    factors = leaf.factors()
    y = _frozen_call(module, leaf, call, bias=factors is None)
    x = x.astype(y.dtype)

    def update(low: LowRank) -> Array:
        a = (low.a * low.scale[..., None, :]).reshape(
            *low.a.shape[:-2], *(sizes[letter] for letter in contracted), low.rank
        )
        b = low.b.reshape(*low.b.shape[:-1], *(sizes[letter] for letter in made))
        hidden = jnp.einsum(
            f"{equation.input},{shared}{contracted}{rank}->{kept}{rank}", x, a.astype(y.dtype)
        )
        return jnp.einsum(
            f"{kept}{rank},{shared}{rank}{made}->{equation.output}", hidden, b.astype(y.dtype)
        )

    y = y + _over_terms(update, leaf)
    if factors is None:
        return y
    factors = factors.reshape([sizes[letter] for letter in shared + made])
    y = jnp.einsum(
        f"{equation.output},{shared}{made}->{equation.output}", y.astype(jnp.float32), factors
    ).astype(y.dtype)
    return y + _einsum_bias(module, equation, sizes).astype(y.dtype) if module.use_bias else y


def fits_experts(module: nn.Module, leaf: Any, method: str, call: Call) -> bool:
    """Whether `experts_product` covers this use of a weight: a plain einsum over matrices that its
    first letters tell apart.
    """
    if (
        not isinstance(leaf, Adapted)
        or leaf.lora.a.ndim < 3
        or (leaf.key is not None and leaf.lora.dropout is not None)
    ):
        return False
    if (
        type(module) is not nn.Einsum
        or method != "__call__"
        or module.precision is not None
        or not call.args
    ):
        return False
    equation, count = _equation(module, call), leaf.lora.a.ndim - 2
    shared, rest = equation.kernel[:count], equation.kernel[count:]
    plain = len(leaf.shape) == len(equation.kernel) and not any(
        len(set(part)) != len(part) for part in equation.parts
    )
    inner = all((letter in equation.input) != (letter in equation.output) for letter in rest)
    return (
        plain
        and inner
        and all(letter in equation.input and letter in equation.output for letter in shared)
        and not equation.lost
    )


def _conv(module: nn.Module, leaf: Any, call: Call) -> Array:
    if not isinstance(leaf, Adapted):
        return _frozen_call(module, leaf, call)
    factors = leaf.factors()
    y = _frozen_call(module, leaf, call, bias=factors is None)
    x = _drop(call.args[0], leaf).astype(y.dtype)

    def update(low: LowRank) -> Array:
        kernel = low.a.reshape(*leaf.kernel_shape[:-1], low.rank)
        into = module.clone(features=low.rank, use_bias=False, parent=None)
        hidden = into.apply({"params": {"kernel": kernel.astype(y.dtype)}}, x) * low.scale.astype(
            y.dtype
        )
        return hidden @ low.b.astype(y.dtype)

    y = _rescaled(y + _over_terms(update, leaf), factors)
    return y if factors is None or not module.use_bias else y + _bias(module).astype(y.dtype)


def _embed(module: nn.Module, leaf: Any, call: Call) -> Array:
    y = _frozen_call(module, leaf, call)
    if isinstance(leaf, WithRows):
        return leaf.look_up(call.args[0], y)
    if not isinstance(leaf, Adapted):
        return y

    def update(low: LowRank) -> Array:
        return (jnp.take(low.a, call.args[0], axis=0) * low.scale) @ low.b

    return _rescaled(y + _over_terms(update, leaf).astype(y.dtype), leaf.factors())


def _plain_attend(module: nn.Module, embedding: Array, call: Call) -> Array | None:
    """`attend` as a product with the embedding as it lies. (`embedding.T` of one row of float32 is
    copied by XLA before it is multiplied, of 16 bits to float32.)
    """
    if not _one_input(module, call):
        return None
    query, embedding = promote_dtype(call.args[0], embedding, dtype=module.dtype, inexact=False)
    if query.dtype.itemsize == 2:
        return head_matmul(query, embedding).astype(query.dtype)
    return jax.lax.dot_general(query, embedding, (((query.ndim - 1,), (1,)), ((), ())))


def _attend(module: nn.Module, leaf: Any, call: Call) -> Array:
    if isinstance(leaf, WithRows):
        return leaf.logits(call.args[0], _frozen_call(module, leaf, call, method="attend"))
    if not isinstance(leaf, Adapted):
        return _frozen_call(module, leaf, call, method="attend")
    # Columns of the embedding are inputs here, so their factors act on the query.
    query = _rescaled(call.args[0], leaf.factors())
    y = _frozen_call(module, leaf, Call((query,), call.kwargs), method="attend")
    query = query.astype(y.dtype)

    def update(low: LowRank) -> Array:
        return ((query @ low.b.T.astype(y.dtype)) * low.scale.astype(y.dtype)) @ low.a.T.astype(
            y.dtype
        )

    return y + _over_terms(update, leaf)


def _plain_products(module: nn.Module, call: Call) -> bool:
    return (
        module.dot_general is None
        and module.dot_general_cls is None
        and module.precision is None
        and _one_input(module, call)
    )


def _plain_conv(module: nn.Module, call: Call) -> bool:
    own = module.conv_general_dilated is None and module.conv_general_dilated_cls is None
    return (
        own and module.feature_group_count == 1 and module.mask is None and _one_input(module, call)
    )


def _one_input(module: nn.Module, call: Call) -> bool:
    return len(call.args) == 1 and not call.kwargs and _promotes_plainly(module)


def _promotes_plainly(module: nn.Module) -> bool:
    return module.promote_dtype is promote_dtype


RULES: dict[tuple[type, str], Rule] = {
    (nn.Dense, "__call__"): Rule("kernel", _dense, _plain_products),
    (nn.DenseGeneral, "__call__"): Rule(
        "kernel",
        _dense_general,
        lambda module, call: _plain_products(module, call) and not _as_tuple(module.batch_dims),
    ),
    (nn.Einsum, "__call__"): Rule(
        "kernel",
        _einsum,
        lambda module, call: (
            module.precision is None
            and _promotes_plainly(module)
            and len(call.args) > 0
            and _equation(module, call).is_matmul
        ),
    ),
    (nn.Conv, "__call__"): Rule("kernel", _conv, _plain_conv),
    (nn.Embed, "__call__"): Rule("embedding", _embed, _one_input),
    (nn.Embed, "attend"): Rule("embedding", _attend, _one_input, _plain_attend),
}
RULED_KINDS = {kind for kind, _ in RULES}


# --- Pieces.


def _product(x: Array, leaf: Any) -> Array:
    if isinstance(leaf, Recorded):
        return frozen_matmul(record(x, leaf.probe), leaf.base)
    if not isinstance(leaf, Adapted):
        return frozen_matmul(x, leaf)
    return _rescaled(frozen_matmul(x, leaf.base) + _update(x, leaf), leaf.factors())


def _update(x: Array, leaf: Adapted) -> Array:
    x = _drop(x, leaf)
    return _over_terms(lambda low: lowrank_matmul(x, low.a, low.b, low.scale), leaf)


def _over_terms(update: Callable[[LowRank], Array], leaf: Adapted) -> Array:
    """The update's product, less that of the start that an initialiser took out of the base."""
    low, start = leaf.lora.moving(), leaf.lora.start()
    # Two products, not one of twice the rank: equal factors cancel exactly, and step 0 is the base
    # bit for bit.
    return update(low) if start is None else update(low) - update(start)


def _rescaled(y: Array, factors: Array | None) -> Array:
    """`y * factors` along the last axis, in float32: a magnitude that has moved by less than
    bfloat16's grain must count.
    """
    return y if factors is None else (y.astype(jnp.float32) * factors).astype(y.dtype)


def _drop(x: Array, leaf: Adapted) -> Array:
    rate = leaf.lora.dropout
    if leaf.key is None or rate is None:
        return x
    keep = 1 - rate
    return jnp.where(
        jax.random.bernoulli(leaf.key, keep, x.shape),
        x / keep.astype(x.dtype),
        jnp.zeros((), x.dtype),
    )


def _frozen_call(
    module: nn.Module, leaf: Any, call: Call, method: str = "__call__", bias: bool = True
) -> Array:
    """The module's own computation on the frozen weight, which is dequantised again in the backward
    pass, not saved.
    """
    name = RULES[(type(module), method)].weight
    base = leaf.base if isinstance(leaf, (Adapted, WithRows)) else leaf
    others = {
        key: meta.unbox(value)
        for key, value in module.variables["params"].items()
        if key != name and (bias or key != "bias")
    }
    detached = module.clone(parent=None) if bias else module.clone(parent=None, use_bias=False)
    x, *static = call.args  # What may follow x is an einsum's equation.

    def run(weight: Any, rest: dict[str, Array], x: Array) -> Array:
        return detached.apply(
            {"params": {**rest, name: meta.unbox(weight)}}, x, *static, method=method, **call.kwargs
        )

    return jax.checkpoint(run)(base, others, x)


def _bias(module: nn.Module) -> Array | None:
    return meta.unbox(module.get_variable("params", "bias")) if module.use_bias else None


def _dtype(module: nn.Module, x: Array, leaf: Any, bias: Array | None) -> Any:
    """The dtype that Linen would compute in: the module's, else what its operands promote to."""
    return module.dtype or jnp.result_type(
        x.dtype, leaf.dtype, *([] if bias is None else [bias.dtype])
    )


@dataclass(frozen=True)
class _Equation:
    input: str
    kernel: str
    output: str

    @property
    def parts(self) -> tuple[str, str, str]:
        """Its three terms."""
        return self.input, self.kernel, self.output

    @property
    def lost(self) -> set[str]:
        """Letters of one operand alone that are summed away."""
        return (
            (set(self.input) | set(self.kernel))
            - set(self.output)
            - (set(self.input) & set(self.kernel))
        )

    @property
    def is_matmul(self) -> bool:
        """Every kernel letter is either contracted or made, and nothing else is summed: a matrix
        product after reshaping.
        """
        shared = set(self.kernel) & set(self.input) & set(self.output)
        repeated = any(len(set(part)) != len(part) for part in self.parts)
        return (
            not shared
            and not self.lost
            and not repeated
            and bool(set(self.kernel) & set(self.output))
        )


def _equation(module: nn.Einsum, call: Call) -> _Equation:
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("einsum_str")
    text = (given or module.einsum_str).replace(" ", "")
    left, output = text.split("->")
    given_input, kernel = left.split(",")
    named = len(given_input.replace("...", ""))
    unused = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in text]
    dots = "".join(unused[: call.args[0].ndim - named]) if "..." in text else ""
    return _Equation(given_input.replace("...", dots), kernel, output.replace("...", dots))


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _size(shape: Any) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
