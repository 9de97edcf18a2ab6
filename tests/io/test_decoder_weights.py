"""Logits of every decoder family equal transformers' on tiny random models, and files are used
exactly once.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.merge import merge
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray, QuantSpec
from lora_jax.io import safetensors
from lora_jax.io.weights import load_decoder, save_decoder
from lora_jax.models.decoder import Decoder, empty_cache

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
ARRAYS = np.load(GOLDEN / "logits.npz")


def logits_of(name, *, scan=True, params=None, config=None, **kwargs):
    if params is None:
        config, params = load_decoder(GOLDEN / name, scan=scan)
    tokens, mask = ARRAYS[f"{name}/tokens"], ARRAYS[f"{name}/mask"]
    return np.asarray(
        jax.jit(Decoder(config, scan=scan, **kwargs).apply)({"params": params}, tokens, mask)
    )


def assert_equal_logits(name, ours, tolerance=1e-4):
    """Where tokens are real; fp32 with sums in another order: worst measured 7e-6 over all
    families.
    """
    mask, theirs = ARRAYS[f"{name}/mask"], ARRAYS[f"{name}/logits"]
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers(name):
    assert_equal_logits(name, logits_of(name))


@pytest.mark.parametrize("name", ["gemma3", "qwen2_moe", "gpt2"])
def test_a_loop_over_layers_computes_what_the_scan_does(name):
    assert_equal_logits(name, logits_of(name, scan=False))


def test_remat_changes_no_gradient():
    config, params = load_decoder(GOLDEN / "gemma3")
    tokens = ARRAYS["gemma3/tokens"]
    plain, saved = (
        jax.jit(
            jax.grad(
                lambda p, remat=remat: (
                    Decoder(config, remat=remat).apply({"params": p}, tokens) ** 2
                ).mean()
            )
        )(params)
        for remat in (False, True)
    )
    # The same sums, computed twice: float32 rounding of gradients of order 1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, saved)


@pytest.mark.parametrize(
    ("name", "scan", "stacked"),
    [("gemma3", True, True), ("qwen2", False, False), ("opt", False, True)],
)
def test_decoding_with_a_cache_gives_the_logits_of_the_whole_text(name, scan, stacked):
    config, params = load_decoder(GOLDEN / name, scan=scan)
    model, tokens, mask = (
        Decoder(config, scan=scan),
        ARRAYS[f"{name}/tokens"],
        ARRAYS[f"{name}/mask"],
    )
    step = jax.jit(
        lambda tokens, cache, mask: model.apply(
            {"params": params}, tokens, cache, mask, method="decode"
        )
    )
    cache = empty_cache(config, 2, 14, scan=stacked)
    first, cache = step(tokens[:, :5], cache, mask[:, :5])
    rest = []
    for n in range(5, tokens.shape[1]):
        logits, cache = step(tokens[:, n : n + 1], cache, mask[:, n : n + 1])
        rest.append(logits)
    whole = ARRAYS[f"{name}/logits"]
    np.testing.assert_allclose(jnp.concatenate([first, *rest], 1)[mask], whole[mask], atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_saving_gives_back_the_file(name, tmp_path):
    config, params = load_decoder(GOLDEN / name)
    save_decoder(tmp_path, config, params, dtype=np.float16)
    original, saved = (
        safetensors.read(GOLDEN / name / "model.safetensors"),
        safetensors.read(tmp_path / "model.safetensors"),
    )
    assert set(saved) == set(original)
    for tensor in original:
        # float32 norms of Gemma pass through scale = 1 + w; all else is bit for bit.
        np.testing.assert_allclose(
            saved[tensor], original[tensor], atol=2e-4 if "norm" in tensor else 0, err_msg=tensor
        )
    again, _ = load_decoder(tmp_path)
    assert again == config


def test_shards_are_read_and_written(tmp_path):
    config, params = load_decoder(GOLDEN / "llama")
    save_decoder(tmp_path, config, params, shard_bytes=4000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    again = flatten(load_decoder(tmp_path)[1])
    assert all(np.array_equal(again[path], leaf) for path, leaf in flatten(params).items())
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002"):
        load_decoder(tmp_path)


def test_quantised_and_bfloat16_weights_are_made_leaf_by_leaf():
    config, params = load_decoder(
        GOLDEN / "mixtral",
        dtype=jnp.bfloat16,
        quant=[("layers/.*/(q|up)/kernel", QuantSpec("nf4", 8))],
    )
    flat = flatten(params)
    quantised = {path for path, leaf in flat.items() if isinstance(leaf, QuantizedArray)}
    assert quantised == {"layers/attn/q/kernel", "layers/mlp/experts/up/kernel"}
    assert flat["layers/mlp/experts/up/kernel"].shape == (2, 4, 16, 24)
    assert flat["head/kernel"].dtype == jnp.bfloat16 and flat["norm/scale"].dtype == np.float32
    dense = flatten(load_decoder(GOLDEN / "mixtral")[1])["layers/mlp/experts/up/kernel"]
    error = np.linalg.norm(
        flat["layers/mlp/experts/up/kernel"].unbox().astype(np.float32) - dense
    ) / np.linalg.norm(dense)
    assert 0.02 < error < 0.12  # nf4 of Gaussian weights: 0.09 at blocks of 64, less at 8
    merged, _ = merge(params, {})
    assert np.isfinite(logits_of("mixtral", params=merged, config=config)).all()


def test_a_rule_that_quantises_nothing_is_an_error():
    with pytest.raises(ValueError, match="layers/attn/q/kernel"):
        load_decoder(GOLDEN / "llama", quant=[("layers/attn/query/kernel", QuantSpec())])


def edited(tmp_path, name, edit):
    """A copy of a golden folder whose tensors and config `edit` has changed."""
    folder = tmp_path / name
    shutil.copytree(GOLDEN / name, folder)
    tensors, config = (
        dict(safetensors.read(folder / "model.safetensors")),
        json.loads((folder / "config.json").read_text()),
    )
    edit(tensors, config)
    safetensors.write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_missing_left_over_and_misshaped_tensors_are_all_listed(tmp_path):
    def edit(tensors, config):
        tensors["model.layers.0.mlp.gate_projection.weight"] = tensors.pop(
            "model.layers.0.mlp.gate_proj.weight"
        )
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].copy()
        tensors["extra"] = np.zeros(3, np.float32)

    with pytest.raises(ValueError) as error:
        load_decoder(edited(tmp_path, "llama", edit))
    text = str(error.value)
    assert "1 missing, 2 left over, 1 of another shape" in text
    assert (
        "perhaps 'model.layers.0.mlp.gate_projection.weight'" in text
        and "left over  extra" in text
        and "(15,)" in text
    )


def test_a_tied_head_may_stand_in_the_file_only_if_it_equals_the_embedding(tmp_path):
    same = edited(
        tmp_path / "a",
        "llama3",
        lambda t, c: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}),
    )
    load_decoder(same)
    other = edited(
        tmp_path / "b",
        "llama3",
        lambda t, c: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
    )
    with pytest.raises(ValueError, match="left over  lm_head.weight"):
        load_decoder(other)


def test_a_file_of_the_bare_model_is_understood(tmp_path):
    def edit(tensors, config):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    config, params = load_decoder(edited(tmp_path, "gpt2", edit))
    assert_equal_logits("gpt2", logits_of("gpt2", params=params, config=config))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "lama"}, "Nearest: .*llama"),
        ({"hidden_act": "tanh"}, "activation 'tanh'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rotary scaling 'dynamic'"),
        ({"num_key_value_heads": 3}, "multiple of num_kv_heads"),
        ({"hidden_size": None}, "hidden_size must be"),
    ],
)
def test_what_the_decoder_has_not_is_named(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        load_decoder(edited(tmp_path, "llama", lambda tensors, config: config.update(change)))


def test_old_and_new_rotary_settings_mean_the_same(tmp_path):
    def edit(tensors, config):
        told = config.pop("rope_parameters")
        config["rope_theta"] = told.pop("rope_theta")
        config["rope_scaling"] = told

    assert load_decoder(edited(tmp_path, "llama3", edit))[0] == load_decoder(GOLDEN / "llama3")[0]
