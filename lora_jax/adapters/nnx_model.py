"""An adapted NNX model as an NNX module: what nnx.Optimizer and nnx's transformations take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx
from flax.nnx import reprlib

from lora_jax.adapters.apply import apply
from lora_jax.adapters.nnx import without_params
from lora_jax.core.trainable import Trainables, given_fields, partition


class Trained(nnx.Variable):
    """What is trained of adapters: the filter `wrt` of nnx.Optimizer and of nnx.DiffState."""


class Frozen(nnx.Variable):
    """What is not trained: the base, alpha's scale, rates of dropout."""


class AdaptedModel(nnx.Module):
    """A model on a frozen base with adapters, whose call is `lora_jax.apply`.

    >>> adapted = AdaptedModel(model, frozen, trainable)  # doctest: +SKIP
    >>> optimizer = nnx.Optimizer(adapted, optax.adamw(1e-3), wrt=Trained)  # doctest: +SKIP
    >>> wrt = nnx.DiffState(0, Trained)  # doctest: +SKIP
    >>> loss, grads = nnx.value_and_grad(loss_fn, argnums=wrt)(adapted, batch)  # doctest: +SKIP
    >>> optimizer.update(adapted, grads)  # doctest: +SKIP

    The model is copied without its weights: they are in `frozen`, and nothing is held twice.
    `.train()` and `.eval()` act on it and on the adapters' dropout, whose keys come from the stream
    `dropout` of `rngs`.

    Raises:
        TypeError: the model is no NNX module.
        ValueError: an adapter has dropout, and there are no `rngs`.
    """

    def __init__(
        self,
        model: Any,
        frozen: Mapping[str, Any],
        trainable: Trainables,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        drops = any(getattr(leaf, "dropout", None) is not None for leaf in trainable.values())
        if rngs is None and drops:
            raise ValueError(
                "The adapters have dropout, which needs rngs=nnx.Rngs(dropout=0); or adapt with "
                "LoraSpec(dropout=0.0)."
            )
        trained, fixed = partition(trainable)
        self.model = without_params(model)
        self.base, self.fixed = Frozen(dict(frozen)), Frozen(fixed)
        each = lambda leaf: {name: Trained(getattr(leaf, name)) for name in given_fields(leaf)}
        self.trained = nnx.data({path: each(leaf) for path, leaf in trained.items()})
        self.rngs = nnx.data(rngs)
        self.deterministic = False

    @property
    def frozen(self) -> dict[str, Any]:
        """The base, as `adapt` gave it."""
        return self.base.get_value()

    @property
    def trainable(self) -> dict[str, Any]:
        """The adapters as they are now, for `merge` and `save_adapter`."""
        return {
            path: leaf.replace(
                **{name: one.get_value() for name, one in self.trained[path].items()}
            )
            for path, leaf in self.fixed.get_value().items()
        }

    def __nnx_repr__(self) -> Iterator[Any]:
        # NNX would print its arrays one by one.
        yield reprlib.Object(type=type(self).__name__)
        yield reprlib.Attr("model", type(self.model).__name__)
        yield reprlib.Attr("trained", sorted(self.trained))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives; `method=` names another of its methods."""
        drops = self.rngs is not None and not self.deterministic
        key = self.rngs.dropout() if drops else None
        return apply(self.model, self.frozen, self.trainable, *args, key=key, **kwargs)
