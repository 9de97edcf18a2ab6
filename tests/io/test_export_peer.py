"""What is exported is what transformers reads: merged folders and GGUF files give the same logits
and the same ids there.
"""

from dataclasses import replace
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from transformers_peer import ask_transformers

from lora_jax.io.export import export_gguf, export_merged
from lora_jax.io.gguf_tokenizer import load_text_tokenizer
from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder
from lora_jax.models.decoder_config import DecoderConfig, Experts

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("default")]
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
TOKENS = np.arange(3, 20)[None]
TEXTS = ["a cab abc", "  ab  c", "bb\n\ncc", " ", "b c", "a\x01\tb"]


def ours(config, params):
    return np.asarray(jax.jit(Decoder(config).apply)({"params": params}, TOKENS))


def test_a_merged_folder_of_every_family_is_loaded_by_transformers(tmp_path):
    wanted, jobs = {}, []
    for name in sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir()):
        config, params = load_decoder(GOLDEN / name)
        # Several files and their index.
        export_merged(tmp_path / name, config, params, shard_bytes=8_000)
        assert (tmp_path / name / "model.safetensors.index.json").exists()
        wanted[name] = ours(config, params)
        jobs.append({"folder": tmp_path / name, "tokens": TOKENS})
    for (name, logits), theirs in zip(
        wanted.items(), ask_transformers(tmp_path, jobs)[0], strict=True
    ):
        np.testing.assert_allclose(logits, theirs, atol=1e-4, err_msg=name)


# transformers' loader takes some sizes and settings from the defaults of its classes, since it does
# not read their keys: Qwen 3's heads of 128, GPT-2's 1024 positions and inner size of 4 times the
# hidden one, the inner sizes of experts, and no windows or stretched positions.
SMALL = dict(
    vocab_size=40,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    max_positions=64,
    norm_eps=1e-5,
)
GEMMA = dict(
    activation="gelu_tanh",
    embedding_scale=8.0,
    tied=True,
    post_norms=True,
    window=4,
    query_scale=0.25,
)
READ_THERE = {
    "gpt2": DecoderConfig(
        family="gpt2", norm="layer", activation="gelu_tanh", gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, rotary=None, tied=True,
        **SMALL | {"num_kv_heads": 4, "max_positions": 1024, "intermediate_size": 256},
    ),
    "llama": DecoderConfig(**SMALL),
    "mistral": DecoderConfig(family="mistral", **SMALL),
    "qwen2": DecoderConfig(family="qwen2", qkv_bias=True, **SMALL),
    "qwen2_moe": DecoderConfig(family="qwen2_moe", qkv_bias=True, experts=Experts(4, 2, 1408, normalise=False, shared_size=5632), **SMALL),
    "qwen3": DecoderConfig(family="qwen3", qk_norm=True, **SMALL | {"head_dim": 128}),
    "qwen3_moe": DecoderConfig(family="qwen3_moe", qk_norm=True, experts=Experts(4, 2, 768), **SMALL),
    "phi3": DecoderConfig(family="phi3", **SMALL),
    "gemma2": DecoderConfig(
        family="gemma2", attention_softcap=50.0, final_softcap=30.0, local_layers=(True, False), **SMALL | GEMMA | {"head_dim": 256, "query_scale": 1 / 16}
    ),
}  # fmt: skip


def test_a_gguf_file_of_the_families_that_transformers_reads_gives_its_logits(tmp_path):
    vocabulary = write_vocabulary(tmp_path / "vocabulary.gguf")
    wanted, jobs = {}, []
    made = {
        name: (config, Decoder(config).init(jax.random.key(0), TOKENS)["params"])
        for name, config in READ_THERE.items()
    }
    rng = np.random.default_rng(0)
    for name, (config, params) in made.items():
        params = jax.tree.map(
            lambda leaf: np.asarray(leaf + rng.normal(0, 0.1, leaf.shape), np.float32), params
        )
        (tmp_path / name).mkdir()
        export_gguf(tmp_path / name / "model.gguf", config, params, vocabulary, format="F32")
        again, weights = load_decoder(tmp_path / name)
        assert replace(again, family=config.family) == config
        wanted[name] = ours(again, weights)
        jobs.append({"folder": tmp_path / name, "gguf": "model.gguf", "tokens": TOKENS})
    answers = dict(zip(wanted, ask_transformers(tmp_path, jobs)[0], strict=True))
    for name, theirs in answers.items():
        print(f"{name}: {np.abs(wanted[name] - theirs).max():.1e} of {np.abs(theirs).max():.1f}")
    for name, theirs in answers.items():
        logits = wanted[name]
        np.testing.assert_allclose(
            logits, theirs, atol=1e-4 * max(1, np.abs(theirs).max()), err_msg=name
        )


@pytest.mark.parametrize("arch", ["llama", "phi3", "gemma2"])
def test_a_sentencepiece_vocabulary_in_gguf_gives_transformers_ids(arch, tmp_path):
    path = write_vocabulary(tmp_path / "model.gguf", arch)
    tokenizer = load_text_tokenizer(path)
    (said,) = ask_transformers(
        tmp_path / "said", [{"folder": tmp_path, "gguf": "model.gguf", "texts": TEXTS}]
    )[1]
    assert [tokenizer.encode(text, special=False) for text in TEXTS] == said["plain"]


def write_vocabulary(path, arch="llama"):
    """A SentencePiece vocabulary of 40 pieces in a GGUF file."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{n:02X}>" for n in range(26)),
        "▁",
        "a",
        "b",
        "c",
        "ab",
        "▁a",
        "▁ab",
        "abc",
        "▁abc",
        "bc",
        "\n",
    ]
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(n) for n in range(40)])
    writer.add_token_types([2, 3, 3, *[6] * 26, *[1] * 11])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
