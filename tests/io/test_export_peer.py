"""What is exported is what transformers reads: merged folders and GGUF files give the same logits there."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lora_jax.io.decoder_weights import load_decoder
from lora_jax.io.export import export_gguf, export_merged
from lora_jax.models.decoder import Decoder

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("default")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
TOKENS = np.arange(3, 20)[None]


def theirs(folder, **kwargs):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **kwargs).eval()
    with torch.no_grad():
        return model(torch.as_tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize("name", sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir()))
def test_a_merged_folder_is_loaded_by_transformers(name, tmp_path):
    config, params = load_decoder(GOLDEN / name)
    export_merged(tmp_path, config, params)
    np.testing.assert_allclose(Decoder(config).apply({"params": params}, TOKENS), theirs(tmp_path), atol=1e-4)


@pytest.mark.parametrize("name", ["llama"])
def test_a_gguf_file_is_loaded_by_transformers(name, tmp_path, tokenizer_gguf):
    config, params = load_decoder(GOLDEN / name)
    export_gguf(tmp_path / "model.gguf", config, params, tokenizer_gguf, format="F16")
    np.testing.assert_allclose(Decoder(config).apply({"params": params}, TOKENS), theirs(tmp_path, gguf_file="model.gguf"), atol=1e-4)


@pytest.fixture(scope="module")
def tokenizer_gguf(tmp_path_factory):
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "tokenizer.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{n}" for n in range(40)])
    writer.add_token_scores([0.0] * 40)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
