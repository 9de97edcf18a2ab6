"""Which module kinds have a factored product, one rule each, and a door for kinds of your own.

A module without a rule still works: it reads the dense adapted weight through its box. Rules only
make it cheaper, and they let dropout act on the adapter's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array

from lora_jax.adapters import products
from lora_jax.adapters.einsum import einsum, equation_of
from lora_jax.adapters.products import Call, as_tuple


@dataclass(frozen=True)
class Rule:
    """A factored product. `weight` is the parameter's name in the module; `fits` says whether the
    rule covers this use of it.

    plain: computes with a weight that is in no box, where that is worth doing otherwise than the
        module does.
    """

    weight: str
    product: Callable[[nn.Module, Any, Call], Array]
    fits: Callable[[nn.Module, Call], bool] = lambda module, call: True
    plain: Callable[[nn.Module, Array, Call], Array] | None = None


def _plain_products(module: nn.Module, call: Call) -> bool:
    return (
        module.dot_general is None
        and module.dot_general_cls is None
        and module.precision is None
        and _one_input(module, call)
    )


def _plain_general(module: nn.Module, call: Call) -> bool:
    return _plain_products(module, call) and not as_tuple(module.batch_dims)


def _plain_einsum(module: nn.Module, call: Call) -> bool:
    plain = module.precision is None and _promotes_plainly(module)
    return plain and len(call.args) > 0 and equation_of(module, call).is_matmul


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
    (nn.Dense, "__call__"): Rule("kernel", products.dense, _plain_products),
    (nn.DenseGeneral, "__call__"): Rule("kernel", products.dense, _plain_general),
    (nn.Einsum, "__call__"): Rule("kernel", einsum, _plain_einsum),
    (nn.Conv, "__call__"): Rule("kernel", products.conv, _plain_conv),
    (nn.Embed, "__call__"): Rule("embedding", products.embed, _one_input),
    (nn.Embed, "attend"): Rule("embedding", products.attend, _one_input, products.plain_attend),
}


def register_rule(
    kind: type,
    weight: str,
    product: Callable[[nn.Module, Any, Call], Array],
    *,
    method: str = "__call__",
    fits: Callable[[nn.Module, Call], bool] = lambda module, call: True,
) -> None:
    """Makes `lora_jax.apply` compute `method` of a module kind of your own with `product`.

    `product(module, leaf, call)` gets the bound module, what stands in place of its parameter
    `weight` (quantised, adapted or both), and the arguments in `call.args` and `call.kwargs`. It
    must return what the method returns for the dense weight; `lora_jax.adapters.factored_product`
    is the part that depends on the leaf. All axes of the weight but the last are taken to be
    inputs. Where `fits` says no, the method runs as it is, on the dense weight. Subclasses of
    `kind` have no rule.

    >>> def product(module, leaf, call):
    ...     return jnp.tanh(lora_jax.adapters.factored_product(call.args[0], leaf))
    >>> register_rule(TanhDense, "kernel", product)  # doctest: +SKIP

    Raises:
        TypeError: the kind is no Linen module.
        ValueError: this method of this kind has a rule.
    """
    if not issubclass(kind, nn.Module):
        raise TypeError(
            f"{kind.__name__} is no Linen module. Of an NNX module, say with "
            "lora_jax.adapters.register_twin which Linen module computes the same."
        )
    if (kind, method) in RULES:
        raise ValueError(
            f"{kind.__name__}.{method} has a factored product already, and programs may have been "
            "traced with it. Register a subclass of your own."
        )
    RULES[kind, method] = Rule(weight, product, fits)


def find_rule(module: nn.Module, method: str, weight: str, call: Call) -> Rule | None:
    """The rule for `weight` in this method of this module, if there is one.

    Subclasses have none: they may compute something else.
    """
    rule = RULES.get((type(module), method))
    covers = rule is not None and rule.weight == weight and rule.fits(module, call)
    return rule if covers else None


def input_axes(module: nn.Module, name: str, shape: tuple[int, ...], call: Call) -> tuple[int, ...]:
    """Which axes of a weight are inputs: as its module kind has it, else all but the last. None for
    vectors and biases.
    """
    kernel = next((rule.weight for (kind, _), rule in RULES.items() if kind is type(module)), name)
    if len(shape) < 2 or name != kernel:
        return ()
    if type(module) is nn.DenseGeneral and name == "kernel":
        batch, count = len(as_tuple(module.batch_dims)), len(as_tuple(module.axis))
        return tuple(range(batch, batch + count))
    if type(module) is nn.Einsum and name == "kernel":
        equation = equation_of(module, call)
        axes = tuple(
            i
            for i, letter in enumerate(equation.kernel)
            if letter in equation.input and letter not in equation.output
        )
        return axes if 0 < len(axes) < len(shape) else tuple(range(len(shape) - 1))
    return tuple(range(len(shape) - 1))
