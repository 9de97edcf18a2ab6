"""The model card beside an adapter: what it says is what is known, and other tools read it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lora_jax.core.lowrank import LowRank
from lora_jax.io.adapter import save_adapter
from lora_jax.io.card import Card, ScoreLine, base_id_of, licence_in, licence_of, with_licence

NASTY = 'a|b: \'# "x"\n---\nlicense: mit\n[c](d) {e}'
LORA = {"w": LowRank(a=jnp.ones((4, 2)), b=jnp.ones((2, 4)), scale=jnp.ones(2))}
CARD = Card(
    data=NASTY,
    task="text-classification",
    settings=["lora.rank = 2", f"data.name = {NASTY!r}"],
    scores=[
        ScoreLine("test", "accuracy", "accuracy", 0.5, "50.0%"),
        ScoreLine("test", "pearson", "Pearson correlation", float("nan"), "n/a"),
        ScoreLine("validation", "loss", "loss", 0.25, "0.250"),
    ],
    base_id="org/model",
)


def written(tmp_path, model="org/model", **card):
    save_adapter(tmp_path, LORA, base="12ab", model=model, card=dataclasses.replace(CARD, **card))
    return (tmp_path / "README.md").read_text()


def test_the_hubs_own_reader_finds_base_licence_and_scores(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    written(tmp_path)
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.license) == ("org/model", "unknown")
    assert (card.data.library_name, card.data.pipeline_tag) == ("lora_jax", "text-classification")
    found = {
        (one.dataset_split, one.metric_type): one.metric_value for one in card.data.eval_results
    }
    assert found == {("test", "accuracy"): 0.5, ("validation", "loss"): 0.25}  # and no NaN
    assert card.data.eval_results[0].dataset_name == NASTY
    assert "2 trained" not in card.text and "16 trained numbers, rank 2" in card.text


def test_names_cannot_add_a_field_or_a_heading(tmp_path):
    text = written(tmp_path, NASTY)
    head, body = text.split("---\n")[1], text.split("---\n", 2)[2]
    assert [line.partition(":")[0] for line in head.splitlines()] == ["base_model", "library_name", "license", "tags", "pipeline_tag", "model-index"]  # fmt: skip
    headings = [line for line in body.splitlines() if line.startswith(("# An", "## "))]
    assert len(headings) == 5 and licence_in(text) is None


def test_an_unknown_licence_is_said_and_a_known_one_named(tmp_path):
    assert "name no licence that was found" in written(tmp_path)
    assert "licence `gemma`" in written(tmp_path, base_licence=licence_of("gemma3-270m"))
    (tmp_path / "base").mkdir()
    assert licence_of(str(tmp_path / "base")) is None
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\nlicense: no\n")
    assert licence_of(str(tmp_path / "base")) == "mit" and base_id_of(str(tmp_path / "base")) == ""
    changed = with_licence(written(tmp_path), "apache-2.0")
    assert licence_in(changed) == "apache-2.0" and changed.count("apache") == 1
    for card, licence in (("no fields", "mit"), (changed, "my own: terms")):
        with pytest.raises(ValueError, match="licence|license"):
            with_licence(card, licence)


def test_a_card_of_somebody_elses_is_kept(tmp_path):
    assert "None are recorded" in written(tmp_path, settings=()) and "None are" not in written(
        tmp_path
    )
    (tmp_path / "README.md").write_text("mine")
    assert written(tmp_path) == "mine"


def test_without_a_card_what_the_file_holds_is_said(tmp_path):
    save_adapter(tmp_path, jax.tree.map(jnp.asarray, LORA), base="", model="")
    text = (tmp_path / "README.md").read_text()
    assert "base_model" not in text and text.count("not recorded") == 4 and "nan" not in text
