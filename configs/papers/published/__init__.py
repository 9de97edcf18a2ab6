"""A published row as settings: what to run, what the paper got, and where the paper and its
released scripts differ.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_collections

# Of models whose repositories may have no safetensors, which cannot be seen without a network.
CONVERT = (
    "weights as safetensors (of a repository with pytorch_model.bin alone nothing is read: convert "
    "it with transformers' save_pretrained, and set --config.model.name to that folder)"
)


@dataclass(frozen=True)
class Preset:
    """One row and column of a published table.

    settings: what a config file returns. metric, value, spread: the published figure, and what the
    paper prints after it (None where it prints none). source: paper and table. differs: setting to
    (paper, released script). needs: what has to be brought to a run of it (weights that are not
    public, files); empty if nothing. measure: the command that gives the published metric of a
    finished run. beyond: why a run may still not reach the figure; empty if nothing is known.
    examples, tokens: how many training examples there are, and their mean length, which is assumed
    (texts could not be counted here): for estimates of time.
    """

    settings: Mapping[str, Any]
    metric: str
    value: float
    spread: float | None
    source: str
    differs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    needs: str = ""
    measure: str = ""
    beyond: str = ""
    examples: int | None = None
    tokens: int | None = None

    def lines(self, name: str, side: str) -> list[str]:
        """What is printed when a run of it starts."""
        spread = "" if self.spread is None else f" +- {self.spread}"
        lines = [f"{name}: {self.source}, {self.metric} {self.value}{spread} published"]
        for setting, (paper, script) in self.differs.items():
            mark = ("<- used", "") if side == "paper" else ("", "<- used")
            lines.append(
                f"  {setting}: paper {paper} {mark[0]}  released script {script} {mark[1]}".rstrip()
            )
        told = {"needs": self.needs, "measure": self.measure, "beyond": self.beyond}
        return lines + [f"  {word}: {text}" for word, text in told.items() if text]


def choose(presets: Mapping[str, Mapping[str, Preset]], argument: str) -> tuple[str, str, Preset]:
    """(name, side, preset) of 'name', 'name:paper' or 'name:script'; without a side, the paper's.

    Raises:
        ValueError: there is no such preset or side; near names are listed.
    """
    name, _, side = argument.partition(":")
    if name not in presets:
        near = difflib.get_close_matches(name, presets, 5, 0.4) or list(presets)[:5]
        raise ValueError(
            f"there is no preset {name!r}. Nearest: {', '.join(near)}. All: {', '.join(presets)}."
        )
    sides = presets[name]
    if (side or "paper") not in sides:
        raise ValueError(f"preset {name!r} has {' and '.join(sides)}, got {side!r}.")
    return name, side or "paper", sides[side or "paper"]


def config_of(
    presets: Mapping[str, Mapping[str, Preset]], argument: str
) -> ml_collections.ConfigDict:
    """The settings of a preset; prints the published figure and the differences between paper and
    script.
    """
    name, side, preset = choose(presets, argument)
    print("\n".join(preset.lines(name, side)), file=sys.stderr)
    return ml_collections.ConfigDict(dict(preset.settings))
