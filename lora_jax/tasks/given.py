"""A task whose base and adapters are a caller's, as `lora_jax.training.fit` trains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_jax.config import Config
from lora_jax.core.host import Place
from lora_jax.core.trainable import Trainables
from lora_jax.tasks.custom import CustomLosses, CustomTask
from lora_jax.tasks.task import Trees


@dataclass(eq=False)
class GivenTask(CustomTask):
    """Trains what it is given on the base that it is given, whatever the config says of both."""

    given: ClassVar[bool] = True
    trained: Trainables | None = None

    @property
    def per_example(self) -> CustomLosses:
        """See `Task`. An NNX model holds what programs were traced with: they are for this task."""
        of = None if isinstance(self.model, nn.Module) else self
        return CustomLosses(self.model, self.loss, of)

    def trainable(
        self,
        config: Config,
        key: jax.Array,
        *,
        frozen: Mapping[str, Any] | None = None,
        place: Place | None = None,
    ) -> Trees:
        """See `Task`; what is trained is copied, as steps reuse its memory."""
        copied = jax.tree.map(lambda x: jnp.array(x, copy=True), dict(self.trained))
        return dict(self.params if frozen is None else frozen), copied

    def shapes(self, config: Config, rules: Any = None) -> Trees:
        """See `Task`."""
        return jax.eval_shape(lambda *trees: trees, dict(self.params), dict(self.trained))
