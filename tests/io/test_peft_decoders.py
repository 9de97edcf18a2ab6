"""PEFT's names of decoders: every family's adapter, written in PEFT's words, changes the family's
own tensors as it changes our weights.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapted_decoders import FAMILIES, GOLDEN, adapted_decoder

import lora_jax
from lora_jax.core.paths import flatten
from lora_jax.io.named_weights import named_tensors
from lora_jax.io.peft import from_peft, to_peft
from lora_jax.io.weights import decoder_names, load_decoder, names_of

PREFIX = "base_model.model."


@pytest.mark.parametrize("family", FAMILIES)
def test_what_PEFT_adds_to_the_familys_tensors_is_what_merging_adds_here(family: str) -> None:
    """PEFT computes W + scale * B A on each module's own tensor (its transpose for Conv1D): so it
    must give the merged file's tensor.
    """
    config, frozen, trainable = adapted_decoder(family)
    made = to_peft(trainable, decoder_names(config))
    base = dict(named_tensors(names_of(config), flatten(load_decoder(GOLDEN / family)[1])))
    merged = dict(named_tensors(names_of(config), flatten(lora_jax.merge(frozen, trainable)[0])))
    changed = set()
    for key in made.tensors:
        if not key.endswith("lora_A.weight"):
            continue
        module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        rank = made.config["rank_pattern"].get(module, made.config["r"])
        scale = made.config["alpha_pattern"].get(module, made.config["lora_alpha"]) / rank
        update = scale * made.tensors[key.replace("lora_A", "lora_B")] @ made.tensors[key]
        update = update.T if made.config["fan_in_fan_out"] else update
        tensor = f"{module}.weight"
        np.testing.assert_allclose(
            base[tensor] + update, merged[tensor], atol=2e-6
        )  # Float32 sums of numbers around 1.
        changed.add(tensor)
    same = {name for name, tensor in base.items() if np.array_equal(tensor, merged[name])}
    assert changed and changed == set(base) - same


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "gemma3"])
def test_export_then_import_is_the_identity_for_fused_and_for_shifted_weights(
    family: str, scan: bool
) -> None:
    config, _, trainable = adapted_decoder(family, scan=scan, whole=[r"norm/.*"])
    names = decoder_names(config, scan=scan)
    back = from_peft(to_peft(trainable, names), names)
    assert set(back) == set(trainable)
    for path, leaf in trainable.items():
        if isinstance(leaf, lora_jax.core.TrainedWeight):
            np.testing.assert_allclose(
                back[path].value, leaf.value, atol=1e-6
            )  # A shifted norm is rounded once each way.
        else:
            np.testing.assert_allclose(back[path].delta(), leaf.delta(), atol=1e-6)


def test_trained_rows_of_a_tied_embedding_go_out_and_come_back() -> None:
    config, _, trainable = adapted_decoder("llama3", rows={"embed/embedding": [3, 7]})
    names = decoder_names(config)
    made = to_peft(trainable, names)
    assert made.config["trainable_token_indices"] == {"model.embed_tokens": [3, 7]}
    back = from_peft(made, names)["embed/embedding"]
    assert np.array_equal(back.value, trainable["embed/embedding"].value) and np.array_equal(
        back.index, [3, 7]
    )


def test_trained_rows_that_do_not_fit_and_tied_weights_trained_whole_are_refused() -> None:
    config, _, trainable = adapted_decoder("llama3", rows={"embed/embedding": [3, 7]})
    names = decoder_names(config)
    made = to_peft(trainable, names)
    for value, message in (
        ([3, 400], "of a weight of shape"),
        ([3], "has shape"),
        ([3, 3], "different row numbers"),
    ):
        made.config["trainable_token_indices"]["model.embed_tokens"] = value
        with pytest.raises(ValueError, match=message):
            from_peft(made, names)
    config, _, trainable = adapted_decoder("llama3", whole=["embed/embedding"])
    with pytest.raises(ValueError, match="tied and trained whole"):
        to_peft(trainable, names)


def test_experts_have_no_name_in_PEFTs_layout_and_are_refused() -> None:
    config, frozen, _ = adapted_decoder("mixtral")
    tokens = jnp.ones((1, 4), jnp.int32)
    rules = [(r"layers/mlp/experts/up/kernel", lora_jax.LoraSpec(rank=2))]
    _, trainable = lora_jax.adapt(
        lora_jax.models.Decoder(config), frozen, (tokens,), lora=rules, key=jax.random.key(0)
    )
    with pytest.raises(KeyError, match="no PEFT name for 'layers/mlp/experts/up/kernel'"):
        to_peft(trainable, decoder_names(config))


def test_an_adapter_of_a_tied_embedding_is_refused_on_the_way_in_as_on_the_way_out() -> None:
    config, _, trainable = adapted_decoder("llama3")
    names = decoder_names(config)
    made = to_peft(trainable, names)
    rng = np.random.default_rng(0)
    key = "base_model.model.model.embed_tokens"
    factors = {
        f"{key}.lora_embedding_A": rng.normal(size=(made.config["r"], 40)).astype(np.float32),
        f"{key}.lora_embedding_B": rng.normal(size=(16, made.config["r"])).astype(np.float32),
    }
    targets = [*made.config["target_modules"], "embed_tokens"]
    adapted = replace(
        made,
        config={**made.config, "target_modules": targets},
        tensors={**made.tensors, **factors},
    )
    saved = replace(
        made,
        config={**made.config, "modules_to_save": ["embed_tokens"]},
        tensors={**made.tensors, f"{key}.weight": rng.normal(size=(40, 16)).astype(np.float32)},
    )
    for odd in (adapted, saved):
        with pytest.raises(ValueError, match="'model.embed_tokens' is tied"):
            from_peft(odd, names)


def test_the_copy_of_an_adapted_head_is_compared_as_it_lies_there() -> None:
    config, frozen, trainable = adapted_decoder("llama")
    names = decoder_names(config)
    made = to_peft(trainable, names)
    rank, rng = made.config["r"], np.random.default_rng(0)
    key, head = "base_model.model.lm_head", np.asarray(frozen["head"]["kernel"])
    factors = {
        f"{key}.lora_A.weight": rng.normal(size=(rank, 16)).astype(np.float32),
        f"{key}.lora_B.weight": rng.normal(size=(40, rank)).astype(np.float32),
        f"{key}.base_layer.weight": np.ascontiguousarray(head.T),
    }
    targets = [*made.config["target_modules"], "lm_head"]
    found = replace(
        made,
        config={**made.config, "target_modules": targets},
        tensors={**made.tensors, **factors},
    )
    assert "head/kernel" in from_peft(found, names, frozen=frozen)
    with pytest.raises(ValueError, match="not the base's 'head/kernel'"):
        other = {**frozen, "head": {"kernel": frozen["head"]["kernel"] + 1}}
        from_peft(found, names, frozen=other)
    with pytest.raises(ValueError, match="'head/kernel' is quantised"):
        stored = {
            **frozen,
            "head": {"kernel": lora_jax.quantize(jnp.asarray(head), lora_jax.QuantSpec())},
        }
        from_peft(found, names, frozen=stored)


def test_trained_rows_of_an_output_head_are_refused_by_their_reason() -> None:
    config, _, trainable = adapted_decoder("llama", rows={"embed/embedding": [3, 7]})
    names = decoder_names(config)
    made = to_peft(trainable, names)
    made.config["trainable_token_indices"]["lm_head"] = [3, 7]
    made.tensors["base_model.model.lm_head.token_adapter.trainable_tokens_delta"] = np.ones(
        (2, 16), np.float32
    )
    with pytest.raises(ValueError, match="names 'lm_head', which is no embedding"):
        from_peft(made, names)


def test_trained_rows_on_a_base_of_host_arrays_are_computed_joined_and_merged() -> None:
    config, params = load_decoder(GOLDEN / "llama3")
    model, tokens = lora_jax.models.Decoder(config), jnp.arange(9)[None]
    rows = lora_jax.core.rows_of(params["embed"]["embedding"], [3, 7])
    trained = {"embed/embedding": rows.replace(value=rows.value + 1)}
    ours = lora_jax.apply(model, params, trained, tokens)
    merged, _ = lora_jax.merge(params, trained)
    # The head's products with the two rows come from another sum in fp32.
    np.testing.assert_allclose(ours, model.apply({"params": merged}, tokens), atol=1e-4)
