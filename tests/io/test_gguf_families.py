"""GGUF files of every family that GGUF has: read from files that the gguf package names, and
written so that they are read back.
"""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest

from lora_jax.core.paths import flatten
from lora_jax.io.export import export_gguf
from lora_jax.io.gguf import GgufFile
from lora_jax.io.tensor_files import SafetensorsFile
from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder
from lora_jax.models.decoder_config import Experts
from lora_jax.models.rotary import Rotary

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
ARRAYS = np.load(GOLDEN / "logits.npz")
# Families that llama.cpp has, of those whose golden model GGUF can say.
SAID = {
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "gpt_neox": gguf.MODEL_ARCH.GPTNEOX,
    "gpt_neox_serial": gguf.MODEL_ARCH.GPTNEOX,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "llama3": gguf.MODEL_ARCH.LLAMA,
    "llama_yarn": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "gemma": gguf.MODEL_ARCH.GEMMA,
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A GGUF file with a vocabulary of 40 words and no model."""
    path = tmp_path_factory.mktemp("gguf") / "tokenizer.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{n}" for n in range(40)])
    writer.add_token_scores([-float(n) for n in range(40)])
    finish(writer)
    return path


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def assert_golden_logits(name, config, params):
    tokens, mask = ARRAYS[f"{name}/tokens"], ARRAYS[f"{name}/mask"]
    ours = np.asarray(jax.jit(Decoder(config).apply)({"params": params}, tokens, mask))
    # As for safetensors: float32 sums in another order.
    np.testing.assert_allclose(ours[mask], ARRAYS[f"{name}/logits"][mask], atol=1e-4, rtol=0)


def as_llama_cpp_converts(name, path):
    """The golden model by llama.cpp's conversion rules (convert_hf_to_gguf.py); names are the gguf
    package's own.
    """
    folder = GOLDEN / name
    raw = json.loads((folder / "config.json").read_text())
    get = lambda *keys: next(raw[key] for key in keys if raw.get(key) is not None)
    arch = SAID[name]
    layers, heads = get("num_hidden_layers", "n_layer"), get("num_attention_heads", "n_head")
    kv, hidden = raw.get("num_key_value_heads") or heads, get("hidden_size", "n_embd")
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(get("max_position_embeddings", "n_positions"))
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(raw.get("intermediate_size") or 4 * hidden)
    writer.add_head_count(heads)
    if arch in (gguf.MODEL_ARCH.GPT2, gguf.MODEL_ARCH.GPTNEOX):
        writer.add_layer_norm_eps(get("layer_norm_eps", "layer_norm_epsilon"))
    else:
        writer.add_head_count_kv(kv)
        writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    rope = raw.get("rope_parameters") or {}
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    if arch == gguf.MODEL_ARCH.GPTNEOX:
        writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * hidden // heads))
        writer.add_parallel_residual(raw["use_parallel_residual"])
    if "head_dim" in raw and raw["head_dim"]:
        writer.add_key_length(raw["head_dim"])
    if arch == gguf.MODEL_ARCH.PHI3:
        writer.add_sliding_window(raw["sliding_window"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        scale = raw["max_position_embeddings"] / rope["original_max_position_embeddings"]
        writer.add_rope_scaling_attn_factors(
            np.sqrt(1 + np.log(scale) / np.log(rope["original_max_position_embeddings"]))
        )
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, hidden // heads))
    if experts := raw.get("num_experts") or raw.get("num_local_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(raw["num_experts_per_tok"])
    names = gguf.get_tensor_name_map(arch, layers)
    mixtures = {}
    file = SafetensorsFile(folder / "model.safetensors")
    for key in file:
        tensor = np.asarray(file[key], np.float32)
        stem, leaf = key.rsplit(".", 1)
        if arch == gguf.MODEL_ARCH.GPT2 and tensor.ndim == 2 and ".h." in key:
            tensor = tensor.T  # Conv1D
        if ".query_key_value" in key:
            tensor = (
                tensor.reshape(heads, 3, hidden // heads, -1).swapaxes(0, 1).reshape(tensor.shape)
            )
        if arch == gguf.MODEL_ARCH.LLAMA and stem.endswith(("q_proj", "k_proj")):
            many = heads if stem.endswith("q_proj") else kv
            tensor = (
                tensor.reshape(many, 2, tensor.shape[0] // many // 2, *tensor.shape[1:])
                .swapaxes(1, 2)
                .reshape(tensor.shape)
            )
        if arch == gguf.MODEL_ARCH.GEMMA and stem.endswith("norm"):
            tensor = tensor + 1
        if ".experts." in stem:
            before, after = stem.split(".experts.")
            number, projection = after.split(".")
            mixtures.setdefault(f"{before}.experts.{projection}", {})[int(number)] = tensor
            continue
        writer.add_tensor(
            f"{names.get_name(stem)}.{leaf}", np.ascontiguousarray(np.squeeze(tensor))
        )
    for stem, parts in mixtures.items():
        writer.add_tensor(
            f"{names.get_name(stem)}.weight", np.stack([parts[n] for n in range(len(parts))])
        )
    finish(writer)


def llama3_factors(rope, dim):
    """As convert_hf_to_gguf.py computes rope_freqs."""
    factors = []
    for frequency in 1.0 / rope["rope_theta"] ** (np.arange(0, dim, 2) / dim):
        wavelength = 2 * np.pi / frequency
        low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
        high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
        smooth = (
            rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]
        ) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        middle = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(1 if wavelength < high else rope["factor"] if wavelength > low else middle)
    return np.array(factors, np.float32)


@pytest.mark.parametrize("name", SAID)
def test_a_file_of_llama_cpps_rules_gives_transformers_logits(name, tmp_path):
    as_llama_cpp_converts(name, tmp_path / "model.gguf")
    assert_golden_logits(name, *load_decoder(tmp_path / "model.gguf"))


@pytest.mark.parametrize("name", SAID)
def test_an_export_is_the_same_decoder_when_it_is_read_back(name, tmp_path, vocabulary):
    config, params = load_decoder(GOLDEN / name)
    export_gguf(tmp_path / "model.gguf", config, params, vocabulary)
    again, weights = load_decoder(tmp_path)
    assert again == (
        config if name not in ("llama3", "phi3") else replace(config, rotary=again.rotary)
    )
    for path, leaf in flatten(params).items():
        # Golden weights are float16 numbers, which F16 holds exactly (Gemma's norms 1 + w stay
        # float32).
        np.testing.assert_array_equal(flatten(weights)[path], leaf, err_msg=path)
    assert_golden_logits(name, again, weights)


@pytest.mark.parametrize("name", SAID)
def test_an_export_has_the_tensors_of_llama_cpps_rules(name, tmp_path, vocabulary):
    as_llama_cpp_converts(name, tmp_path / "theirs.gguf")
    export_gguf(tmp_path / "ours.gguf", *load_decoder(GOLDEN / name), vocabulary, format="F32")
    ours, theirs = GgufFile(tmp_path / "ours.gguf"), GgufFile(tmp_path / "theirs.gguf")
    assert set(ours) == set(theirs)
    for key in theirs:
        # Rotary factors are quotients of float32 frequencies; all else is copied.
        np.testing.assert_allclose(
            ours[key], theirs[key], rtol=1e-6 if key.startswith("rope") else 0, err_msg=key
        )


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gemma3", "mistral"])
def test_what_a_family_has_beyond_gguf_is_named_and_the_rest_is_written(name, tmp_path, vocabulary):
    config, params = load_decoder(GOLDEN / name)
    with pytest.raises(ValueError, match="would be read as"):
        export_gguf(tmp_path / "model.gguf", config, params, vocabulary)
    assert not list(tmp_path.iterdir())
    plain = {"window": None, "local_layers": ()}
    if name.startswith("gemma"):
        pattern = 2 if name == "gemma2" else 6
        plain = {
            "query_scale": config.head_dim**-0.5,
            "local_layers": tuple(bool((n + 1) % pattern) for n in range(config.num_layers)),
        }
    config = replace(config, **plain)
    export_gguf(tmp_path / "model.gguf", config, params, vocabulary)
    again, weights = load_decoder(tmp_path)
    apply = lambda config, params: np.asarray(
        jax.jit(Decoder(config).apply)({"params": params}, ARRAYS[f"{name}/tokens"])
    )
    np.testing.assert_array_equal(apply(again, weights), apply(config, params))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("opt", {}, "GGUF defines no architecture for the family 'opt'"),
        ("gpt2", {"activation": "relu"}, "activation 'relu' would be read as 'gelu_tanh'"),
        ("gpt_neox", {"activation": "gelu_tanh"}, "would be read as 'gelu'"),
        (
            "llama",
            {
                "rotary": Rotary(
                    scaling="yarn", factor=4.0, original_positions=16, attention_factor=1.5
                )
            },
            "attention_factor=1.5.* would be read as",
        ),
        (
            "qwen2_moe",
            {"experts": Experts(4, 2, 12, normalise=True, shared_size=10)},
            "normalise=True.* would be read as",
        ),
    ],
)
def test_what_gguf_cannot_say_is_refused(name, changes, said, tmp_path, vocabulary):
    config, params = load_decoder(GOLDEN / name)
    with pytest.raises(ValueError, match=said):
        export_gguf(tmp_path / "model.gguf", replace(config, **changes), params, vocabulary)
    assert not list(tmp_path.iterdir())


def test_a_weight_too_large_for_float16_is_refused(tmp_path, vocabulary):
    config, params = load_decoder(GOLDEN / "llama")
    params["embed"]["embedding"] = params["embed"]["embedding"].copy()
    params["embed"]["embedding"][3, 3] = 1e5
    with pytest.raises(ValueError, match="token_embd.weight holds 100000, more than float16 can"):
        export_gguf(tmp_path / "model.gguf", config, params, vocabulary)
    assert not list(tmp_path.iterdir())


def test_a_number_of_experts_that_the_tensors_do_not_have_is_refused(tmp_path, vocabulary):
    export_gguf(tmp_path / "model.gguf", *load_decoder(GOLDEN / "mixtral"), vocabulary)
    whole = (tmp_path / "model.gguf").read_bytes()
    key = b"llama.expert_count" + (4).to_bytes(4, "little")
    at = whole.index(key) + len(key)
    (tmp_path / "model.gguf").write_bytes(
        whole[:at] + (1 << 30).to_bytes(4, "little") + whole[at + 4 :]
    )
    with pytest.raises(ValueError, match="claims 1073741824 experts"):
        load_decoder(tmp_path)


def test_experts_in_eight_bits_are_read_one_by_one_within_the_formats_error(tmp_path, vocabulary):
    small = dict(hidden_size=32, intermediate_size=64, head_dim=8, experts=Experts(4, 2, 64))
    config = replace(load_decoder(GOLDEN / "mixtral")[0], **small)
    params = Decoder(config).init(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    export_gguf(tmp_path / "model.gguf", config, params, vocabulary, format="Q8_0")
    file = GgufFile(tmp_path / "model.gguf")
    stored = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    formats = {tensor.name: tensor.tensor_type.name for tensor in stored}
    assert formats["blk.1.ffn_down_exps.weight"] == "Q8_0"
    assert file.shape("blk.1.ffn_down_exps.weight") == (4, 32, 64)
    assert formats["blk.1.ffn_gate_inp.weight"] == "F32"  # llama.cpp keeps routers exact
    np.testing.assert_array_equal(
        file.entry("blk.1.ffn_down_exps.weight", 3), file["blk.1.ffn_down_exps.weight"][3]
    )
    for path, leaf in flatten(load_decoder(tmp_path)[1]).items():
        theirs = np.asarray(flatten(params)[path])
        # Half a step of 1/127 of a block's largest weight, and up to 0.06 steps because the step is
        # stored in float16.
        np.testing.assert_allclose(
            leaf, theirs, atol=np.abs(theirs).max() / 127 * 0.57, err_msg=path
        )
