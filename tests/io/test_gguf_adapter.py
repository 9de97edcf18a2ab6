"""GGUF adapters: what a file adds to each tensor of a base is what merging adds, and it is read back."""

from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.core.lowrank import LowRank
from lora_jax.core.paths import flatten
from lora_jax.io.gguf import GgufFile
from lora_jax.io.gguf_adapter import export_gguf_adapter, load_gguf_adapter
from lora_jax.io.gguf_write import gguf_names
from lora_jax.io.named_weights import named_tensors
from lora_jax.io.weights import load_decoder

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"


def adapter(names, select=lambda path: path.endswith("kernel")):
    """Factors of ranks 2 to 4 and two scales at every matrix of the layers; one layer of one site
    is not adapted.
    """
    found, rng = {}, np.random.default_rng(0)
    for n, (path, name) in enumerate(sorted(names.items())):
        if name.kind != "linear" or not select(path) or name.parameter.endswith("]"):
            continue
        rank, scale = 2 + n % 3, np.full((*name.stack, 2 + n % 3), 1.0 + n % 2, np.float32)
        if name.stack and n % 3 == 0:
            scale[1:] = 0
        a, b = (
            jnp.asarray(rng.normal(size=(*name.stack, *shape)), jnp.float32)
            for shape in ((name.rows, rank), (rank, name.columns))
        )
        found[path] = LowRank(a=a, b=b, scale=jnp.asarray(scale), in_axes=name.in_axes)
    return found


def update(low):
    a, b, scale = (np.asarray(x) for x in (low.a, low.b, low.scale))
    return (a * scale[..., None, :]) @ b


def tensors(config, flat):
    return dict(named_tensors(gguf_names(config), flat))


# Fused kernels, heads side by side, rotary pairs, experts beside a router.
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_neox", "qwen2_moe"])
def test_a_file_adds_to_each_tensor_what_merging_adds(name, tmp_path):
    config, params = load_decoder(GOLDEN / name)
    trainable = adapter(gguf_names(config))
    export_gguf_adapter(tmp_path / "adapter.gguf", config, trainable)
    file = GgufFile(tmp_path / "adapter.gguf")
    flat = flatten(params)
    merged = {
        path: flat[path] + update(low).reshape(flat[path].shape) for path, low in trainable.items()
    }
    before, after = tensors(config, flat), tensors(config, flat | merged)
    alpha, seen = file.metadata["adapter.lora.alpha"], 0
    for key in before:
        added = np.zeros_like(before[key])
        if f"{key}.lora_a" in file:
            a, b = file[f"{key}.lora_a"], file[f"{key}.lora_b"]
            added, seen = np.float32(alpha / len(a)) * (b @ a), seen + 1
        # float32: sums of up to four products, and the base they are added to.
        np.testing.assert_allclose(after[key] - before[key], added, atol=2e-5, err_msg=key)
    assert 2 * seen == len(list(file))
    again = load_gguf_adapter(tmp_path / "adapter.gguf", config)
    assert again.keys() == trainable.keys()
    for path, leaf in trainable.items():
        np.testing.assert_allclose(update(again[path]), update(leaf), atol=1e-5, err_msg=path)


def test_what_an_adapter_of_llama_cpp_has_no_place_for_is_refused(tmp_path):
    config, params = load_decoder(GOLDEN / "llama")
    names = gguf_names(config)
    one = adapter(names, lambda path: path.endswith("up/kernel"))
    ((path, low),) = one.items()
    dora = {path: low.replace(magnitude=jnp.ones((*low.a.shape[:-2], low.columns)))}
    embed = {"embed/embedding": LowRank(a=jnp.ones((40, 2)), b=jnp.ones((2, 8)), scale=jnp.ones(2))}
    for trainable, said in ((dora, "magnitude"), (embed, "embedding")):
        with pytest.raises(ValueError, match=said):
            export_gguf_adapter(tmp_path / "adapter.gguf", config, trainable)
    assert not list(tmp_path.iterdir())

    export_gguf_adapter(tmp_path / "adapter.gguf", config, one)
    with pytest.raises(ValueError, match="general.architecture 'llama'"):
        load_gguf_adapter(tmp_path / "adapter.gguf", load_decoder(GOLDEN / "gemma3")[0])
    writer = gguf.GGUFWriter(str(tmp_path / "norm.gguf"), "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 0.0)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="blk.0.attn_norm.weight"):
        load_gguf_adapter(tmp_path / "norm.gguf", config)
