"""The factored product of `nn.Einsum`, whose equation is seen as a matrix product, or as one for
each expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from lora_jax.adapters.products import (
    Call,
    bias_of,
    frozen_call,
    has_update,
    product_of,
    seen_by_update,
    with_update,
)
from lora_jax.core.adapted import Adapted
from lora_jax.core.lowrank import LowRank


def einsum(module: nn.Module, leaf: Any, call: Call) -> Array:
    """`nn.Einsum` with an equation that `is_matmul`."""
    if not has_update(leaf):
        return frozen_call(module, leaf, call)
    factors = leaf.factors()
    y = frozen_call(module, leaf, call, bias=factors is None)

    # The einsum as a matrix product: letters of the kernel that the output lacks are contracted,
    # the others are made, and the rest of the input is rows.
    equation, x = equation_of(module, call), call.args[0]
    contracted = "".join(letter for letter in equation.kernel if letter not in equation.output)
    kept = "".join(letter for letter in equation.input if letter not in contracted)
    made = "".join(letter for letter in equation.kernel if letter in equation.output)
    flat = jnp.einsum(f"{equation.input}->{kept}{contracted}", x).astype(y.dtype)
    product = product_of(flat.reshape(math.prod(flat.shape[: len(kept)]), -1), leaf)
    sizes = dict(zip(equation.kernel, leaf.shape[-len(equation.kernel) :], strict=True))
    shape = (*flat.shape[: len(kept)], *(sizes[letter] for letter in made))

    def update(low: LowRank) -> Array:
        return jnp.einsum(f"{kept}{made}->{equation.output}", product(low).reshape(shape))

    y = with_update(y, update, leaf)
    return _rescaled(module, y, factors, equation, made, sizes)


def _rescaled(
    module: nn.Module,
    y: Array,
    factors: Array | None,
    equation: Equation,
    made: str,
    sizes: dict[str, int],
) -> Array:
    """DoRA's magnitudes over the sum, and the bias added to what they made; without them, `y`."""
    if factors is None:
        return y
    factors = factors.reshape([sizes[letter] for letter in made])
    letters = f"{equation.output},{made}->{equation.output}"
    y = jnp.einsum(letters, y.astype(jnp.float32), factors).astype(y.dtype)
    if not module.use_bias:
        return y

    # Linen's bias has those of the kernel's axes that the output has, in its order.
    shape = [sizes[letter] if letter in equation.kernel else 1 for letter in equation.output]
    return y + bias_of(module).reshape(shape).astype(y.dtype)


def experts_product(module: nn.Module, leaf: Adapted, call: Call) -> Array:
    """The factored product of an einsum whose kernel holds a stack of adapted matrices, such as
    'etd,edo->eto'.

    Each expert's factors act on what that expert's kernel acts on, and no dense update is formed.
    `fits_experts` says where.
    """
    equation, stack, x = equation_of(module, call), leaf.lora.a.ndim - 2, call.args[0]
    sizes = dict(zip(equation.kernel, leaf.shape, strict=True))

    # In 'etd,edo->eto' the experts e are shared by all three terms, d is contracted and o made; et
    # is what the input keeps. The update is two einsums of the same form, 'etd,edR->etR' and
    # 'etR,eRo->eto', with a letter for the rank that the equation does not use.
    shared, rest = equation.kernel[:stack], equation.kernel[stack:]
    contracted = "".join(letter for letter in rest if letter not in equation.output)
    made = "".join(letter for letter in rest if letter in equation.output)
    kept = "".join(letter for letter in equation.input if letter not in contracted)
    rank = next(letter for letter in "RSTUVW" if letter not in "".join(equation.parts))

    factors = leaf.factors()
    y = frozen_call(module, leaf, call, bias=factors is None)
    x = seen_by_update(x, leaf).astype(y.dtype)

    def update(low: LowRank) -> Array:
        # The scale goes into the smaller factor: the hidden states are a batch times as large.
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

    y = with_update(y, update, leaf)
    return _rescaled(module, y, factors, equation, shared + made, sizes)


def fits_experts(module: nn.Module, leaf: Any, method: str, call: Call) -> bool:
    """Whether `experts_product` covers this use of a weight: a plain einsum over matrices that its
    first letters tell apart.
    """
    stacked = has_update(leaf) and leaf.lora.a.ndim > 2
    if not stacked or type(module) is not nn.Einsum or method != "__call__":
        return False
    drops = leaf.key is not None and leaf.lora.dropout is not None
    if drops or module.precision is not None or not call.args:
        return False

    equation, count = equation_of(module, call), leaf.lora.a.ndim - 2
    shared, rest = equation.kernel[:count], equation.kernel[count:]
    return (
        len(leaf.shape) == len(equation.kernel)
        and not equation.repeated
        and not equation.lost
        and all((letter in equation.input) != (letter in equation.output) for letter in rest)
        and all(letter in equation.input and letter in equation.output for letter in shared)
    )


@dataclass(frozen=True)
class Equation:
    """The letters of an einsum's terms, those of an ellipsis written out."""

    input: str
    kernel: str
    output: str

    @property
    def parts(self) -> tuple[str, str, str]:
        """Its three terms."""
        return self.input, self.kernel, self.output

    @property
    def repeated(self) -> bool:
        """Whether a term has a letter twice."""
        return any(len(set(part)) != len(part) for part in self.parts)

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
        made = set(self.kernel) & set(self.output)
        return bool(made) and not (made & set(self.input) or self.lost or self.repeated)


def equation_of(module: nn.Einsum, call: Call) -> Equation:
    """The equation of a call, from the call or from the module."""
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("einsum_str")
    text = (given or module.einsum_str).replace(" ", "")
    left, output = text.split("->")
    given_input, kernel = left.split(",")
    named = len(given_input.replace("...", ""))
    unused = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in text]
    dots = "".join(unused[: call.args[0].ndim - named]) if "..." in text else ""
    return Equation(given_input.replace("...", dots), kernel, output.replace("...", dots))
