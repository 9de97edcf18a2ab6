"""The sets of targets and the sites of a model, as `inspect` shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from lora_jax.core.escapes import in_terminal

if TYPE_CHECKING:
    from lora_jax.adapters.sites import Site
    from lora_jax.tasks.targets import ModelSites

_RANK = 8
_LAYER = re.compile(r"(?<![^/])layers(_\d+)?/")


def tables_of(opened: ModelSites, targets: Sequence[str] = ()) -> list[Table]:
    """A table of the named sets and of these targets, and one of the sites that a pattern can name.

    Raises:
        ValueError: one of the targets matches nothing.
    """
    from lora_jax.config import TARGETS

    sets = {name: _taken(opened, name) for name in TARGETS}
    sets |= {one: opened.taken(one) for one in targets}
    return [_sets_table(opened, sets), _sites_table(opened, sets)]


def _taken(opened: ModelSites, name: str) -> list[Site]:
    """The sites of a set of ours; none where this model has none of it."""
    try:
        return opened.taken(name)
    except ValueError:
        return []


def _sets_table(opened: ModelSites, sets: dict[str, list[Site]]) -> Table:
    from lora_jax.config import name_of_targets
    from lora_jax.tasks.targets import count_parameters, count_weights

    table = Table(title=in_terminal(f"targets in {opened.name}"))
    table.add_column("targets", overflow="fold")
    table.add_column("sites", justify="right")
    table.add_column(f"parameters, r = {_RANK}", justify="right")
    table.add_column("pattern", no_wrap=True)  # whole, so that it can be copied
    for targets, sites in sets.items():
        try:
            parameters = f"{count_parameters(sites, _RANK):,}" if sites else "0"
        except ValueError as error:
            parameters = str(error)
        table.add_row(
            in_terminal(name_of_targets(targets)), str(count_weights(sites)), parameters,
            in_terminal(opened.pattern(targets)),
        )  # fmt: skip
    return table


def _sites_table(opened: ModelSites, sets: dict[str, list[Site]]) -> Table:
    from lora_jax.config import name_of_targets
    from lora_jax.tasks.targets import count_weights

    found: dict[str, list[Site]] = {}
    for site in opened.sites.values():
        if site.is_matrix:
            found.setdefault(_pattern(site), []).append(site)

    table = Table(title="sites, one a pattern: join them with | or shorten them with .*")
    table.add_column("pattern", no_wrap=True)  # whole, so that it can be copied
    table.add_column("sites", justify="right")
    table.add_column("inputs x outputs")
    table.add_column("read by")
    table.add_column("taken by", overflow="fold")
    for pattern, sites in found.items():
        shapes = dict.fromkeys(f"{site.rows} x {site.columns}" for site in sites)
        takers = [name_of_targets(one) for one, taken in sets.items() if sites[0] in taken]
        table.add_row(
            in_terminal(pattern), str(count_weights(sites)), ", ".join(shapes), sites[0].kind,
            in_terminal(", ".join(takers)),
        )  # fmt: skip
    return table


def _pattern(site: Site) -> str:
    """A regex of the site in every layer, whether layers are stacked or apart."""
    parts = _LAYER.split(site.path)
    return r"layers(_\d+)?/".join(map(re.escape, parts[::2]))
