"""What targets take of a model, known before one of its weights is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax

from lora_jax.adapters.sites import Site, find_sites
from lora_jax.config import TARGETS, name_of_targets, resolve_targets
from lora_jax.core.paths import match
from lora_jax.io.hub import resolve
from lora_jax.io.stored_model import StoredModel
from lora_jax.io.weights import classes_of, kind_of, open_model
from lora_jax.models.kinds import example_inputs, model_of

# The names of TARGETS in a model of two stacks: attention across them beside that within each.
_IN_TWO_STACKS = {
    "query+value": r"(encoder|decoder)/layers(_\d+)?/(attn|cross)/(q|v)/kernel",
    "attention": r"(encoder|decoder)/layers(_\d+)?/(attn|cross)/(q|k|v|o)/kernel",
    "mlp": r"(encoder|decoder)/layers(_\d+)?/mlp/(gate|up|down)/kernel",
    "all-linear": r"(encoder|decoder)/layers(_\d+)?/.*/kernel",
}

# And in a mixture of experts: every expert, and those that all tokens share. What only chooses
# among them, the router and the gate of the shared ones, is in all-linear.
_OF_EXPERTS = {"mlp": r"layers(_\d+)?/mlp/((experts|shared)/)?(gate|up|down)/kernel"}


def in_model(pattern: str, paths: Iterable[str]) -> str:
    """The regex for a model whose weights have these paths: names in TARGETS take in both stacks of
    an encoder-decoder, and mlp the experts of a mixture. A run's id does not depend on it.
    """
    known: dict[str, str] = {}
    for path in paths:
        if path.startswith(("encoder/layers", "decoder/layers")):
            known = _IN_TWO_STACKS
        elif "/mlp/experts/" in path:
            known = _OF_EXPERTS
    for name, regex in known.items():
        pattern = pattern.replace(TARGETS[name], regex)
    return pattern


@dataclass(frozen=True)
class ModelSites:
    """The weights of a model that a run could name, by path; `name` is the model's, and `stored` its
    files.
    """

    name: str
    sites: Mapping[str, Site]
    stored: StoredModel

    def pattern(self, targets: str) -> str:
        """The regex that targets stand for in this model."""
        return in_model(resolve_targets(targets), self.sites)

    def taken(self, targets: str) -> list[Site]:
        """The sites that these targets adapt.

        Raises:
            ValueError: they match none, and near ones are listed; or one that is no matrix.
        """
        pattern, called = self.pattern(targets), name_of_targets(targets)
        what = "targets" if called == targets and called not in TARGETS else f"targets {called!r}:"
        try:
            found = [self.sites[path] for path in match([(pattern, True)], self.sites, what=what)]
        except ValueError as error:
            raise ValueError(
                f"{self.name}: {error} Or see `lora-jax inspect {self.name}`."
            ) from None
        if vectors := [site.path for site in found if not site.is_matrix]:
            raise ValueError(
                f"{self.name}: {what} rule {pattern!r} matches {len(vectors)} weights that are no "
                f"matrices, such as {vectors[0]!r}, and only matrices have factors or are "
                "quantised. Let it end in /kernel."
            )
        return found


def count_weights(sites: list[Site]) -> int:
    """How many matrices these are, every layer and every expert by itself."""
    return sum(math.prod(site.stack) for site in sites)


def count_parameters(sites: list[Site], rank: int) -> int:
    """Numbers in the factors of that rank at these sites.

    Raises:
        ValueError: the rank is larger than the smaller side of one of them.
    """
    side = min(min(site.rows, site.columns) for site in sites)
    if rank > side:
        raise ValueError(f"The rank must be at most {side} at these sites, got {rank}.")
    return sum(math.prod(site.stack) * rank * (site.rows + site.columns) for site in sites)


def open_sites(
    name: str, *, revision: str | None = None, scan: bool = True, fetch: bool = True
) -> ModelSites:
    """The sites of a model by the names and shapes in its files; no weight is read.

    What belongs to a new head is left out. `fetch` says whether a model that is not on this machine
    is fetched.

    Raises:
        FileNotFoundError: the model is not here, or cannot be fetched.
        ValueError: it is none that is known, or its files are damaged.
    """
    is_file = Path(name).is_file()
    folder = Path(name) if is_file else resolve(name, revision=revision, fetch=fetch)
    kind, head = kind_of(folder), {}
    if kind == "encoder":  # With any head: without one, files that hold one are not all read.
        head = dict(num_classes=classes_of(folder) or 2, key=jax.random.key(0))
    stored = open_model(folder, scan=scan, **head)
    config = stored.config

    new = ("classifier/", "pooler/") if getattr(config, "pooler_in_head", False) else "classifier/"
    sites = {
        path: site
        for path, site in find_sites(model_of(config, scan=scan), *example_inputs(config)).items()
        if not path.startswith(new)
    }
    return ModelSites(name, sites, stored)
