"""`lora-jax quantize` and `lora-jax inspect`: what is printed is what is stored."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.cli import main
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray, QuantSpec, quantize
from lora_jax.io import safetensors
from lora_jax.io.quantized import load_quantized
from lora_jax.io.weights import load_encoder, save_encoder
from lora_jax.models.encoder import Encoder, EncoderConfig

CONFIG = EncoderConfig(
    vocab_size=30,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    intermediate_size=128,
    max_positions=16,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    params = Encoder(CONFIG).init(
        jax.random.key(0), jnp.ones((1, 8), jnp.int32), jnp.ones((1, 8), bool)
    )["params"]
    save_encoder(folder, CONFIG, params)
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert main(["quantize", str(model), "--format", "nf4", "--out", str(out)]) == 0
    return out


def test_checkpoint_holds_what_quantize_gives(model, written):
    tree, metadata = load_quantized(written)
    dense = flatten(load_encoder(model)[1])
    for path, leaf in flatten(tree).items():
        if isinstance(leaf, QuantizedArray):
            expected = quantize(jnp.asarray(dense[path]), QuantSpec())
            np.testing.assert_array_equal(leaf.codes, expected.codes)
        else:
            np.testing.assert_array_equal(leaf, dense[path])
    assert (
        EncoderConfig(**metadata["encoder"]) == CONFIG
        and (written / "vocab.txt").exists()
        and (written / "config.json").exists()
    )


def test_model_runs_from_the_checkpoint_as_it_is(written):
    tree, _ = load_quantized(written)
    hidden, _ = Encoder(CONFIG).apply(
        {"params": tree}, jnp.ones((1, 8), jnp.int32), jnp.ones((1, 8), bool)
    )
    assert np.isfinite(np.asarray(hidden)).all()


def test_inspect_prints_the_same_table(written, capsys):
    assert main(["inspect", str(written)]) == 0
    shown = capsys.readouterr().out
    rows = load_quantized(written)[1]["losses"]
    assert len(rows) == 2 * 6 + 1
    for row in rows:
        assert (
            row["path"] in shown
            and f"{row['relative_error']:.5f}" in shown
            and f"{row['bytes_after']:,}" in shown
        )
    assert "QuantSpec(format='nf4', block_size=64, double=True" in shown and "7 weights" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "nf44"], "nearest: 'nf4'"),
        (["--block-size", "sixty"], "'column'"),
        (["--block-size", "63"], "even number"),
        (["--targets", "layers/nothing"], "matches none"),
        (["--scale-dtype", "bfloat16"], "double=False"),
    ],
)
def test_wrong_options_are_one_paragraph_and_status_2(model, tmp_path, capsys, arguments, words):
    assert main(["quantize", str(model), "--out", str(tmp_path / "x"), *arguments]) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "x").exists()


def test_nan_in_a_weight_is_named(model, tmp_path, capsys):
    tensors = safetensors.read(model / "model.safetensors")
    tensors["encoder.layer.1.attention.self.query.weight"][3, 3] = np.nan
    shutil.copytree(model, tmp_path / "bad")
    safetensors.write(tmp_path / "bad" / "model.safetensors", tensors)
    assert main(["quantize", str(tmp_path / "bad"), "--out", str(tmp_path / "x")]) == 2
    assert "layers/attn/q/kernel" in capsys.readouterr().err


def test_inspect_of_something_else_says_so(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    assert main(["inspect", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    for name in ("status.json", "adapter_config.json", "quantized.safetensors", "notes.txt"):
        assert name in said
    (tmp_path / "store.json").write_text("{}")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "lora-jax report" in " ".join(capsys.readouterr().err.split())
