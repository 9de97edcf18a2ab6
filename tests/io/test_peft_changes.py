"""OFT, FourierFT and SHiRA against what PEFT 0.21.2 computes (experiments/make_golden_variants.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.algebra import factorize
from lora_jax.adapters.checks import check_start, without_effect
from lora_jax.adapters.stacking import check_alike
from lora_jax.core.changes import Change
from lora_jax.core.own_starts import drawn_by_torch
from lora_jax.io.adapter import load_adapter, save_adapter
from lora_jax.io.names import Name
from lora_jax.io.peft import PeftAdapter, from_peft, to_peft
from lora_jax.training.optim import decay_mask
from lora_jax.training.starting import start_from

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "variants.npz")
NAMES = {"m/kernel": Name("0.weight", (12, 10))}


def settings(case: str) -> dict:
    """What the file of a case says besides PEFT's defaults."""
    method, _, rest = case.partition("_")
    if method == "oft":
        series = dict(use_cayley_neumann=rest != "0", num_cayley_neumann_terms=int(rest) or 5)
        return dict(peft_type="OFT", oft_block_size=4, **series)
    if method == "shira":
        return dict(peft_type="SHIRA", r=2, random_seed=5 if rest else None)
    return dict(peft_type="FOURIERFT", n_frequency=30)


@pytest.mark.parametrize(
    "case", [*(f"oft_{n}" for n in (0, 1, 2, 3, 5, 7)), "fourierft", "shira", "shira_seed"]
)
def test_PEFTs_file_gives_PEFTs_merged_weight_and_output(case: str) -> None:
    value, key = GOLDEN[f"{case}_value"], str(GOLDEN[f"{case}_key"])
    config = {"target_modules": ["0"], "bias": "none"} | settings(case)
    leaf = from_peft(PeftAdapter(config, {key: value}, {}, ()), NAMES)["m/kernel"]
    w, x = jnp.asarray(GOLDEN["W"].T), jnp.asarray(GOLDEN["x"])
    merged = leaf.changed(w)
    # float32 sums in another order; FourierFT's numbers are multiplied by 150.
    np.testing.assert_allclose(merged, GOLDEN[f"{case}_merged"].T, atol=2e-6)
    np.testing.assert_allclose(x @ merged + GOLDEN["bias"], GOLDEN[f"{case}_y"], atol=2e-5)
    assert leaf.active_parameters() == value.size
    if leaf.rotates:
        np.testing.assert_allclose(leaf.turned(x) @ w, x @ merged, atol=2e-6)
        r = np.asarray(leaf.rotation(), np.float64)
        if case == "oft_0":  # The exact transform is a rotation, whatever the numbers.
            np.testing.assert_allclose(r @ r.swapaxes(-1, -2), np.eye(4) + 0 * r, atol=1e-6)
    # Entries of another seed cannot be named by ours.
    if case in ("shira", "shira_seed"):
        with pytest.raises(ValueError, match="Merge it into the base"):
            to_peft({"m/kernel": leaf}, NAMES)
        return
    made = to_peft({"m/kernel": leaf}, NAMES)
    np.testing.assert_array_equal(made.tensors[key], value)
    kept = {name: made.config[name] for name in settings(case)}
    assert kept == settings(case) and not made.notes


def test_a_change_is_saved_and_read_with_all_that_it_says_and_its_effect_is_seen(
    tmp_path: Path,
) -> None:
    numbers = dict(value=jnp.arange(6.0), scale=jnp.ones(6), form="oft", rows=4, columns=2, block=4)
    saved = {"m/kernel": Change(**numbers, terms=5, in_axes=(1,))}
    save_adapter(tmp_path, saved, base="b", model="m")
    back, _ = load_adapter(tmp_path, base="b")
    assert jax.tree.structure(back) == jax.tree.structure(saved)
    jax.tree.map(np.testing.assert_array_equal, back, saved)
    assert without_effect(back) == []
    assert without_effect({"m/kernel": back["m/kernel"].replace(value=jnp.zeros(6))})


def test_a_change_of_other_numbers_or_of_another_weight_is_refused_in_words() -> None:
    numbers = dict(value=jnp.ones(6), scale=jnp.ones(6), form="oft", rows=4, columns=2, block=4)
    rotation = Change(**numbers)
    with pytest.raises(ValueError, match="cannot be padded to 9"):
        rotation.with_rank(9)
    with pytest.raises(ValueError, match="of 4 x 2, and the weight has shape"):
        rotation.onto(jnp.ones((2, 4)), "m/kernel")
    with pytest.raises(ValueError, match="no 'oft' in blocks of 2"):
        rotation.pad(rotation.replace(block=2))
    with pytest.raises(ValueError, match="'oft' is no product of thin factors"):
        factorize({"m": jnp.ones((4, 2))}, {"m": jnp.ones((4, 2))}, rank=1, like={"m": rotation})
    with pytest.raises(ValueError, match="update has norm 2.45"):
        check_start({"m": rotation})
    with pytest.raises(ValueError, match="8192 x 28672 weight are not drawn"):
        drawn_by_torch(8192, 28672, 10)


def test_numbers_of_a_change_decay_and_its_form_says_with_which_others_it_stands(
    tmp_path: Path,
) -> None:
    numbers = dict(value=jnp.ones(6), scale=jnp.ones(6), rows=4, columns=2)
    sparse = Change(**numbers, where=jnp.arange(6, dtype=jnp.int32))
    assert decay_mask({"m": sparse})["m"].value is True
    check_alike([{"m": sparse}, {"m": sparse.with_rank(12)}])
    with pytest.raises(ValueError):
        check_alike([{"m": sparse}, {"m": sparse.replace(form="fourierft")}])

    rotation = Change(**numbers, form="oft", block=4)
    save_adapter(tmp_path, {"m": rotation.replace(terms=5)}, base="b", model="m")
    with pytest.raises(ValueError, match="its terms is 0, and the adapter's 5"):
        start_from({"m": rotation}, tmp_path, base="b", is_head=lambda path: False)
