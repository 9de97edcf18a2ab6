"""Made-up outcomes in which a claim's effect is not there: on them its rule must not say
"reproduced".

Worlds, by what is true in them:
  'equal'   settings do not differ, whatever they are; a claimed effect is absent.
  'apart'   settings differ by `APART` of the gain or more, in an order that chance made; a claimed equality is absent. 'mirrored' is the same world with the order
            turned round: a claim that one side is better can hold in one of the two alone.
In all of them updates are random matrices, and pretrained weights are Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from lab.inside import Matrix
from lab.protocol import LORA_GUESS, SEEDS, TUNING_SEEDS, Arms, Change, Losses
from lab.setting import Run, Setting
from lora_jax.analysis.spectra import Svd

World = Literal["equal", "apart", "mirrored"]

GAIN = 0.3  # nats that the best arm gains on the untuned model
APART = 0.15  # of the gain, from one setting to the next: more than a margin of a tenth
PLACES = 5  # settings that are apart; the sixth stands where the first does
EXAMPLES = 160
CURVATURE = 0.02  # nats for a rate that is a factor of 2 off
SIZES = {"q": (32, 32), "k": (32, 32), "v": (32, 32), "o": (32, 32)}
SIZES |= {"gate": (32, 96), "up": (32, 96), "down": (96, 32)}
LAYERS = 4
ENCODER = {f"attn/{name}": (64, 64) for name in "qkvo"}
ENCODER |= {"mlp/up": (64, 256), "mlp/down": (256, 64)}


@dataclass(frozen=True)
class NullRun(Run):
    """A run that nobody trained."""

    said: Any = None

    @property
    def config(self) -> Any:
        """Nobody may ask for it."""
        raise AssertionError("A claim asks the lab, not the configuration of a run.")


class NullLab(Arms):
    """A lab that makes its outcomes up from a seed, in one of the worlds."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.seed = world, seed
        self.seeds, self.tuning_seeds = SEEDS, TUNING_SEEDS
        self._order: dict[Any, int] = {}
        self._places = np.random.default_rng(seed).permutation(PLACES)

    def run(self, setting: Setting, seed: int, rate: float, *, scored: bool = True) -> NullRun:
        """A run whose loss has a parabola in log rate, and noise."""
        dice = self._dice("run", setting, seed, round(rate, 12))
        off = np.log2(rate / self._best_rate(setting)) ** 2 * CURVATURE
        level = self._level(setting) + off + dice.normal(0, 0.004)
        loss = 3.4 + level + self._dice("seed", seed).normal(0, 0.01)
        result = SimpleNamespace(
            value=lambda split, name: loss, trainable_parameters=1000, is_tested=scored, seconds=1.0
        )
        before, _ = self._before(setting, seed)
        losses = before - GAIN + level + dice.normal(0, 0.03, len(before))
        right = (dice.random(len(before)) < 0.75 - level / 2).astype(float)
        said = losses, right if isinstance(setting.base, str) else None
        return NullRun("null", setting, seed, rate, Path("null"), result, None, said)

    def answers(self, run: Run) -> tuple[np.ndarray, np.ndarray | None]:
        """What the run was made up with."""
        return run.said

    def untuned(self, setting: Setting, seed: int) -> Losses:
        """Losses of examples that differ in difficulty, the same for every arm."""
        losses, weights = self._before(setting, seed)
        return losses + self._stored(setting), weights

    def _before(self, setting: Setting, seed: int) -> Losses:
        # A classifier's losses lie around the one at which an answer turns right.
        typical = 0.7 if isinstance(setting.base, str) else 3.7
        texts = {"both": ("B", "backwards"), "backwards": ("backwards",)}
        each = [self._examples(of, typical) for of in texts.get(setting.get("data.name"), ("B",))]
        hard, weights = map(np.concatenate, zip(*each))
        shift = self._dice("base", seed % setting.bases).normal(0, 0.01)
        return hard + shift, weights.astype(float)

    def losses(
        self, of: Run | tuple[Setting, int], domain: str, change: Change | None = None
    ) -> Losses:
        """Losses that a change of the weights leaves as they are, up to noise."""
        setting, seed = (of.setting, of.seed) if isinstance(of, Run) else of
        kind = "change", change is None, getattr(change, "name", None), domain
        dice = self._dice(kind, setting, seed)
        before, weights = self._before(setting, seed)
        level = self._level(setting) if isinstance(of, Run) else self._stored(setting)
        trained = (-GAIN if domain == "B" else GAIN / 3) if isinstance(of, Run) else 0.0
        same = self.world == "equal" or change is None
        moved = 0.0 if same else self._away((kind, setting.base))
        noise = dice.normal(0, 0.004) + dice.normal(0, 0.01, len(before))
        losses = before + trained + level + noise
        if isinstance(setting.base, str) and moved:
            # Losses move and answers stay: all keep their side of the loss at which one is right.
            side = losses - np.log(2)
            return np.log(2) + side * (1 + moved / max(abs(side.mean()), 0.2)), weights
        return losses + moved, weights

    def updates(
        self, run: Run, paths: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    ) -> list[Matrix]:
        """Gaussian weights, and an update of Gaussian factors, or a Gaussian one under full
        fine-tuning.
        """
        found = []
        for name in paths:
            rows, columns = SIZES[name]
            for layer in range(LAYERS):
                weights = self._dice("weight", name, layer, run.setting.base_of(run.seed))
                weight = weights.normal(0, rows**-0.5, (rows, columns))
                dice = self._dice("update", name, layer, run.setting, run.seed)
                rank = min(int(run.setting.get("lora.rank", 8)), rows, columns)
                if run.setting.get("lora.variant") == "adalora":  # what a budget left, by chance
                    kept = self._dice("kept", name, layer, run.setting, run.seed)
                    rank = int(kept.integers(1, rank + 1))
                if run.setting.method == "full":
                    a, update = None, dice.normal(0, 1, (rows, columns))
                else:
                    a = dice.normal(0, 1, (rows, rank))
                    update = a @ dice.normal(0, 1, (rank, columns))
                u, s, vt = np.linalg.svd(update / np.linalg.norm(update), full_matrices=False)
                keep = len(s) if a is None else rank
                start = None if a is None else self._dice("start", name, layer, run.seed)
                found.append(
                    Matrix(
                        f"layers/{'attn' if name in 'qkvo' else 'mlp'}/{name}/kernel",
                        layer,
                        weight,
                        Svd(u[:, :keep], s[:keep], vt[:keep]),
                        a,
                        None if start is None else start.normal(0, 1, (rows, rank)),
                    )
                )
        return found

    def trace(self, run: Run) -> list[tuple[int, float]]:
        """Training losses that fall at one pace in every arm, or at a pace of its own."""
        dice = self._dice("trace", run.setting, run.seed)
        pace = 30 if self.world == "equal" else 15 * (1 + self._place(run.setting))
        return [(n, 3.4 + np.exp(-n / pace) + dice.normal(0, 0.02)) for n in range(1, 101)]

    def matrices_of(self, model: str) -> dict[str, np.ndarray]:
        """Gaussian weights by the names of an encoder of six layers."""
        return {
            f"layers/{name}/kernel": self._dice("matrix", name).normal(0, 0.05, (6, *shape))
            for name, shape in ENCODER.items()
        }

    def together(self, setting: Setting, pairs: Any) -> list[list[tuple[int, float]]]:
        """Traces of runs alone, up to rounding, or off by `APART` of the gain."""
        off = 1e-6 if self.world == "equal" else APART * GAIN
        alone = [self.trace(self.run(setting, seed, rate)) for seed, rate in pairs]
        return [[(step, loss + off) for step, loss in trace] for trace in alone]

    def mixed(self, runs: Any) -> float:
        """Rounding, or `APART`."""
        return 1e-6 if self.world == "equal" else APART

    def _examples(self, domain: str, typical: float) -> tuple[np.ndarray, np.ndarray]:
        dice = self._dice("examples") if domain == "B" else self._dice("examples", domain)
        return dice.normal(typical, 0.5, EXAMPLES), dice.integers(10, 40, EXAMPLES)

    def _level(self, setting: Setting) -> float:
        return 0.0 if self.world == "equal" else self._offset(setting)

    def _stored(self, setting: Setting) -> float:
        """What the format of the base costs before training."""
        if setting.method != "qlora" or self.world == "equal":
            return 0.0
        stored = tuple((k, v) for k, v in setting.changes if k.startswith("quant."))
        return self._away((setting.base, stored))

    def _best_rate(self, setting: Setting) -> float:
        shift = 0 if self.world == "equal" else self._place(setting) - PLACES // 2
        return LORA_GUESS / 2 * 2.0**shift

    def _offset(self, of: Any) -> float:
        """Nats by which everything that is asked about is worse than the best there could be."""
        return APART * GAIN * self._place(of)

    def _away(self, of: Any) -> float:
        """Nats by which a change of the base moves its losses: up or down, never by nothing."""
        place = int(self._places[self._order.setdefault(of, len(self._order)) % PLACES])
        sign = -1 if self.world == "mirrored" else 1
        return sign * APART * GAIN * (-2, -1, 1, 2, 3)[place]

    def _place(self, of: Any) -> int:
        place = int(self._places[self._order.setdefault(of, len(self._order)) % PLACES])
        return PLACES - 1 - place if self.world == "mirrored" else place

    def _dice(self, *of: Any) -> np.random.Generator:
        import hashlib

        digest = hashlib.sha256(repr((self.seed, of)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))
