"""What is trained: a pretrained model, and changes of the settings that claims on it share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lab import minilm, small_model
from lab.small_model import SmallModel
from lora_jax.config import Config
from lora_jax.sweeps.files import read_lines
from lora_jax.training.result import RunResult

BASES = 3  # pretraining seeds of S: a run with seed k stands on base k modulo this


@dataclass(frozen=True)
class Setting:
    """A base and changed settings by dotted key. `bases`: how many pretrainings of S its seeds
    spread over. `rewarded`: MiniLM learns from rewards (`lab.reward`), not from labels; its losses
    are 1 minus the expected reward.
    """

    base: SmallModel | Literal["minilm"] = SmallModel()
    changes: tuple[tuple[str, Any], ...] = ()
    bases: int = BASES
    rewarded: bool = False

    def with_(self, **changes: Any) -> Setting:
        """With more settings changed, as `with_(**{'lora.rank': 4})`."""
        return replace(self, changes=tuple(sorted({**dict(self.changes), **changes}.items())))

    def get(self, key: str, default: Any = None) -> Any:
        """A changed setting."""
        return dict(self.changes).get(key, default)

    def quantised(self, format: str, block_size: int | None = 64, double: bool = True) -> Setting:
        """Adapters over a base that is stored in a format."""
        quant = {"format": format, "block_size": block_size, "double": double}
        return self.with_(method="qlora", **{f"quant.{key}": value for key, value in quant.items()})

    @property
    def method(self) -> str:
        """Of training, as configurations name it."""
        return self.get("method", "lora")

    def base_of(self, seed: int) -> SmallModel | str:
        """The pretrained model that a run of this seed starts from."""
        if isinstance(self.base, str):
            return self.base
        return replace(self.base, seed=(self.base.seed + seed) % self.bases)

    def config(self, seed: int, rate: float | None = None) -> Config:
        """The run. The base is pretrained at the first call, minutes."""
        base = self.base_of(seed)
        changes = dict(self.changes) | {"train.seed": seed}
        if rate is not None:
            changes["optim.learning_rate"] = rate
        if isinstance(base, str):
            return minilm.tuning(**changes)
        return small_model.tuning(small_model.pretrained(base), **changes)


S = Setting()
MINILM = Setting("minilm")
# Full fine-tuning of the linear layers alone, the embedding frozen as under LoRA: the same weights
# move in both arms.
FULL = {"method": "full", "baseline.full_targets": "all-linear"}
# And of every weight, as the papers have it.
FULL_ALL = {"method": "full"}


@dataclass(frozen=True)
class Run:
    """One training run; `error` says how it diverged, if it did."""

    name: str
    setting: Setting
    seed: int
    rate: float
    folder: Path
    result: RunResult | None
    error: str | None = None

    @property
    def config(self) -> Config:
        """The run's."""
        return self.setting.config(self.seed, self.rate)

    @property
    def validation_loss(self) -> float:
        """Nats; infinite if the run diverged."""
        loss = np.inf if self.result is None else self.result.value("validation", "loss")
        return loss if np.isfinite(loss) else np.inf

    @property
    def trainable_parameters(self) -> int | None:
        """How many; None if it diverged."""
        return None if self.result is None else self.result.trainable_parameters

    def trace(self, split: str = "train") -> list[tuple[int, float]]:
        """(step, loss) of a split as it was logged."""
        return trace_of(self.folder, split)


def trace_of(folder: Path, split: str = "train") -> list[tuple[int, float]]:
    """(step, loss) of a split as the run in this folder logged it."""
    rows = read_lines(folder / "metrics.jsonl")[0]
    return [(row["step"], row["loss"]) for row in rows if row["split"] == split]
