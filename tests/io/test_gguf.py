"""GGUF files: every block format, exports read back, and damage that is named instead of
believed.
"""

import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lora_jax.core.paths import flatten
from lora_jax.io.export import export_gguf
from lora_jax.io.gguf import GgufFile
from lora_jax.io.gguf_blocks import FORMATS
from lora_jax.io.gguf_decoder import gguf_config
from lora_jax.io.gguf_tokenizer import gguf_tokenizer
from lora_jax.io.tensor_files import SafetensorsFile
from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
PIECES = [
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
    "<end>",
]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A GGUF file that holds a SentencePiece vocabulary of 40 pieces and one tensor."""
    path = tmp_path_factory.mktemp("gguf") / "tokenizer.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores([-float(n) for n in range(len(PIECES))])
    writer.add_token_types([2, 3, 3, *[6] * 26, *[1] * 10, 3])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_tensor("x", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_hold_what_the_gguf_package_reads(kind):
    format, type_ = FORMATS[kind], gguf.GGMLQuantizationType(kind)
    assert (
        gguf.GGML_QUANT_SIZES[type_] == (format.weights, format.bytes) and type_.name == format.name
    )
    blocks = np.random.default_rng(kind).integers(0, 256, (200, format.bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # Random halves are sometimes infinite.
        ours, theirs = format.read(blocks), gguf.dequantize(blocks, type_)
    np.testing.assert_array_equal(np.asarray(ours, np.float32), theirs.reshape(ours.shape))


def test_an_export_in_eight_bits_is_within_the_formats_error(tmp_path, tokenizer_file):
    from dataclasses import replace

    import jax

    config = replace(
        load_decoder(GOLDEN / "llama")[0], hidden_size=32, intermediate_size=64, head_dim=8
    )
    params = Decoder(config).init(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    export_gguf(tmp_path / "model.gguf", config, params, tokenizer_file, format="Q8_0")
    stored = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    formats = {tensor.name: tensor.tensor_type.name for tensor in stored}
    assert formats["blk.0.ffn_up.weight"] == "Q8_0" and formats["blk.0.attn_norm.weight"] == "F32"
    for path, leaf in flatten(load_decoder(tmp_path)[1]).items():
        theirs = np.asarray(flatten(params)[path])
        # Half a step of 1/127 of a block's largest weight, and up to 0.06 steps because the step is
        # stored in float16.
        np.testing.assert_allclose(
            leaf, theirs, atol=np.abs(theirs).max() / 127 * 0.57, err_msg=path
        )


def test_a_sentencepiece_vocabulary_merges_by_score_and_falls_back_to_bytes(tokenizer_file):
    tokenizer = gguf_tokenizer(GgufFile(tokenizer_file).metadata, tokenizer_file)
    spell = lambda text: [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(text)]
    # Scores fall with the index: 'ab' (33) is merged before 'bc' (38), and a space stands before
    # the text.
    assert spell("abc ab") == ["<s>", "▁abc", "▁ab"]
    assert spell("a\x01") == ["<s>", "▁a", "<0x01>"] and spell("<end>a") == ["<s>", "<end>", "a"]
    assert tokenizer.decode(tokenizer.encode("abc ab")) == "abc ab"


def damaged(path, content):
    path.write_bytes(content)
    return path


def test_damage_is_named(tokenizer_file, tmp_path):
    whole = tokenizer_file.read_bytes()
    path = tmp_path / "x.gguf"
    for content, said in (
        (b"GGML" + whole[4:], "begins with b'GGML'"),
        (whole[:4] + b"\x09" + whole[5:], "version is 9"),
        (whole[:8] + b"\xff" * 8 + whole[16:], "cannot hold"),
        (whole[:100], "its 100 bytes cannot hold"),
        (whole[:-16], "'x' needs"),
        (whole + b"0" * 40, "48 bytes behind 'x' belong to no tensor"),
        (b"GGUF", "only 4 bytes"),
    ):
        with pytest.raises(ValueError, match=said):
            GgufFile(damaged(path, content))
    kind = whole.rindex(b"x" + (2).to_bytes(4, "little")) + 1 + 4 + 16
    with pytest.raises(ValueError, match="IQ4_NL, which is not supported"):
        GgufFile(damaged(path, whole[:kind] + (20).to_bytes(4, "little") + whole[kind + 4 :]))


def mutations(whole, header, count, seed):
    rng = np.random.default_rng(seed)
    for n in range(count):
        content = bytearray(whole)
        end = header if n % 4 else len(whole)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, end))
            content[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)]))
        yield bytes(content[: rng.integers(1, len(content))] if n % 10 == 0 else content)


def test_mutated_gguf_files_are_refused_or_read_within_their_size(tokenizer_file, tmp_path):
    config, params = load_decoder(GOLDEN / "llama")
    export_gguf(tmp_path / "model.gguf", config, params, tokenizer_file)
    whole = (tmp_path / "model.gguf").read_bytes()
    header = GgufFile(tmp_path / "model.gguf")._entries["token_embd.weight"].start
    read = refused = 0
    for n, content in enumerate(mutations(whole, header, 2000, 0)):
        path = damaged(tmp_path / "x.gguf", content)
        try:
            file = GgufFile(path)
            # The widest format is Q2_K, 84 bytes for 1024 of float32.
            assert sum(np.asarray(file[name]).nbytes for name in file) <= 13 * len(content)
            gguf_config(file)
            gguf_tokenizer(file.metadata, path)
            if (
                n % 20 == 0
            ):  # All of them take minutes: tracing the model costs a tenth of a second.
                load_decoder(path)
            read += 1
        except ValueError:
            refused += 1
    assert read + refused == 2000 and read > 100 and refused > 500


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.dimension_count", (1 << 31).to_bytes(4, "little")),
        ("llama.attention.key_length", (1 << 31).to_bytes(4, "little")),
        ("llama.attention.head_count", (0).to_bytes(4, "little")),
        ("llama.attention.head_count", (1 << 31).to_bytes(4, "little")),
        ("llama.block_count", (1 << 31).to_bytes(4, "little")),
        ("llama.embedding_length", (1 << 31).to_bytes(4, "little")),
        ("llama.feed_forward_length", (1 << 31).to_bytes(4, "little")),
        ("llama.vocab_size", (1 << 31).to_bytes(4, "little")),
    ],
)
def test_a_size_in_the_metadata_that_the_tensors_do_not_have_is_refused_before_it_is_allocated(
    key, value, tokenizer_file, tmp_path
):
    config, params = load_decoder(GOLDEN / "llama")
    export_gguf(tmp_path / "model.gguf", config, params, tokenizer_file)
    whole = (tmp_path / "model.gguf").read_bytes()
    at = whole.index(key.encode() + (4).to_bytes(4, "little")) + len(key) + 4
    path = damaged(tmp_path / "model.gguf", whole[:at] + value + whole[at + 4 :])
    tracemalloc.start()
    if key == "llama.vocab_size":  # Nothing reads it: the embedding says how many words there are.
        assert load_decoder(path)[0] == config
    else:
        with pytest.raises(ValueError, match="model.gguf|not those of this llama decoder"):
            load_decoder(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6


def test_mutated_safetensors_files_are_refused_or_read_within_their_size(tmp_path):
    whole = (GOLDEN / "llama" / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    read = refused = 0
    for content in mutations(whole, header, 2000, 1):
        try:
            file = SafetensorsFile(damaged(tmp_path / "x.safetensors", content))
            assert sum(file[name].nbytes for name in file) <= len(content)
            read += 1
        except ValueError:
            refused += 1
    assert read + refused == 2000 and read > 100 and refused > 500
