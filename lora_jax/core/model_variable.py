"""What a model changes itself while it is trained: running statistics of batch norms and the like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import struct
from jaxtyping import Array

from lora_jax.core.paths import flatten, unflatten
from lora_jax.core.trainable import Trainable, Trainables, refuse_gradients_of_data


class ModelVariable(Trainable, struct.PyTreeNode, repr=False):
    """A Linen model's own variable, `collection:path` in a trainable tree; no gradient moves it.

    It stands among what is trained, so that it is carried, checkpointed, chosen and saved with it;
    `lora_jax.apply` gives it to the model.
    """

    value: Array
    kind = "variable"

    def trained_fields(self) -> tuple[str, ...]:
        """None."""
        return ()

    def onto(self, base: Any, path: str, key: Any = None) -> Any:
        """Refused: it is no weight.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{path!r} is a variable of the model (batch statistics, say), and no weight: it can "
            "be neither joined nor merged. Take it out first: trainable, collections = "
            "lora_jax.core.take_variables(trainable); the model takes the collections beside "
            "its params."
        )


def give_variables(collections: Mapping[str, Any]) -> dict[str, ModelVariable]:
    """A model's collections besides its params, as entries of a trainable tree."""
    return {
        f"{name}:{path}": ModelVariable(value=value)
        for name, tree in collections.items()
        for path, value in flatten(tree).items()
    }


def take_variables(trainable: Trainables) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is trained without the model's own variables, and these as Linen's collections."""
    weights: dict[str, Any] = {}
    flat: dict[str, dict[str, Any]] = {}
    for name, leaf in trainable.items():
        if isinstance(leaf, ModelVariable):
            leaf = refuse_gradients_of_data(name, leaf)
            collection, _, path = name.partition(":")
            flat.setdefault(collection, {})[path] = leaf.value
        else:
            weights[name] = leaf
    return weights, {name: unflatten(paths) for name, paths in flat.items()}
