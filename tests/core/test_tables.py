"""Rows that users add: known by name to functions and settings from then on, and no name is taken
twice.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.config import from_config_dict
from lora_jax.core.codebooks import FORMATS, Format, register_format
from lora_jax.core.init import INITIALIZERS, Initializer, initialize, register_initializer
from lora_jax.core.initializers.start import Start
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.variants import VARIANTS, Variant, register_variant
from lora_jax.data.recipes import RECIPES, Recipe, recipe_named, register_recipe
from lora_jax.metrics.table import METRICS, Metric, metric, register_metric


def eye(w: Any, key: Any, spec: LoraSpec) -> dict[str, Any]:
    rows, out = w.shape
    return {"a": jnp.eye(rows, spec.rank), "b": jnp.zeros((spec.rank, out))}


def eye_start(w: Any, data: Any, key: Any, spec: LoraSpec) -> Start:
    return Start(**eye(w, key, spec), residual=None)


LETTERS = Recipe("completion", {"riddle": "riddle", "reply": "reply"}, "{riddle}", "{reply}")
SHARE = Metric("share", "texts", each=lambda p, r: np.ones(len(p)))
ROWS: dict[str, Any] = {
    "variant": (
        lambda: register_variant(Variant("mine", start=eye)),
        lambda: register_variant(Variant("mine")),
        VARIANTS,
        dict(lora=dict(variant="mine")),
    ),
    "init": (
        lambda: register_initializer("mine", Initializer(eye_start)),
        lambda: register_initializer("mine", Initializer(eye_start, "weight")),
        INITIALIZERS,
        dict(lora=dict(init="mine")),
    ),
    "format": (
        lambda: register_format(Format("mine", 2, (-1.0, -1 / 3, 1 / 3, 1.0))),
        lambda: register_format(Format("mine", 2, (-1.0, 0.0, 1 / 3, 1.0))),
        FORMATS,
        dict(method="qlora", quant=dict(format="mine", formats="layers_0/.*: mine")),
    ),
    "recipe": (
        lambda: register_recipe("mine", LETTERS),
        lambda: register_recipe("mine", replace(LETTERS, prompt="{riddle}?")),
        RECIPES,
        dict(data=dict(task="completion", recipe="mine", fields=dict(riddle="question"))),
    ),
    "metric": (
        lambda: register_metric(replace(SHARE, name="mine")),
        lambda: register_metric(replace(SHARE, name="mine", higher_is_better=False)),
        METRICS,
        {},
    ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_of_ones_own_is_known_by_its_name_and_no_other_takes_it(kind: str) -> None:
    register, again, table, settings = ROWS[kind]
    if settings:
        with pytest.raises(ValueError, match="must be"):
            from_config_dict(settings)
    known = dict(table)
    try:
        assert register() == register()  # A file that is run twice.
        assert set(table) - set(known) == {"mine"}
        from_config_dict(settings)
        with pytest.raises(ValueError, match="named 'mine' exists and .* a name of its own"):
            again()
        if kind in ("variant", "init"):
            spec = LoraSpec(rank=2, **{kind: "mine"})
            low = initialize(jax.random.key(0), (3,), 4, 5, spec)
            np.testing.assert_array_equal(low.a, np.broadcast_to(np.eye(4, 2), (3, 4, 2)))
        if kind == "recipe":
            assert recipe_named("mine").inputs == ("riddle",)
        if kind == "metric":
            assert metric("mine").score(["a"], [["b"]]) == 1.0
    finally:
        table.pop("mine", None)
    assert dict(table) == known


def test_a_misspelt_name_is_compared_with_registered_ones_and_odd_names_are_none() -> None:
    register_variant(Variant("waves", start=eye))
    try:
        with pytest.raises(ValueError, match="'waves', got 'wavse'. Nearest: 'waves'"):
            from_config_dict(dict(lora=dict(variant="wavse")))
    finally:
        del VARIANTS["waves"]
    for name in ("", "a b", "8bit", "a/b"):
        with pytest.raises(ValueError, match=f"A name of a LoRA variant .*got {name!r}"):
            register_variant(Variant(name))
    with pytest.raises(ValueError, match="needs `each`"):
        register_metric(Metric("mine", "texts"))
