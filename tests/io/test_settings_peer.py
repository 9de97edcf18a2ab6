"""A setting of config.json that is not the usual one gives the logits that transformers gives with
it, or is refused: every setting that transformers has, changed one at a time.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("default")]
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
TOKENS = np.random.default_rng(0).integers(4, 36, (2, 14))

# Of no logits, or of the shapes of the weights, which are compared with the files in other tests.
_APART = {
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "use_cache"),
    *("_name_or_path", "id2label", "label2id", "return_dict", "output_hidden_states"),
    *("output_attentions", "chunk_size_feed_forward", "problem_type", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tokenizer_class", "is_encoder_decoder"),
    *("attn_implementation", "_attn_implementation", "torchscript", "tie_word_embeddings"),
    *("num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "intermediate_size", "n_embd", "n_head", "n_layer", "n_inner"),
    *("ffn_dim", "word_embed_proj_dim"),
}
_PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np, torch
from transformers import AutoModelForCausalLM
folder, apart, tokens = Path(sys.argv[1]), set(json.loads(sys.argv[2])), torch.tensor(json.loads(sys.argv[3]))
ACTS = ("gelu", "relu", "silu", "gelu_new", "gelu_pytorch_tanh")

def others(key, value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2 or 3, max(1, value // 2)]
    if isinstance(value, float):
        return [value * 2 + 0.25, 0.5]
    if isinstance(value, str):
        return [act for act in ACTS if act != value][:2] if "act" in key or "func" in key else []
    if value is None:
        return [2, True, 0.5]
    return [value[::-1]] if isinstance(value, list) and value != value[::-1] else []

def logits():
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(tokens).logits.numpy(), model.config.to_dict()

said = []
raw = json.loads((folder / "config.json").read_text())
for key, value in {**logits()[1], **raw}.items():
    if key in apart:
        continue
    changed = others(key, value)
    if isinstance(value, dict):
        changed = [{**value, one: x} for one, was in value.items() for x in others(one, was)]
    for other in changed:
        (folder / "config.json").write_text(json.dumps({**raw, key: other}))
        try:
            found = logits()[0]
        except Exception:
            continue
        if np.isfinite(found).all():
            np.save(f"{folder}/{len(said)}.npy", found)
            said.append([key, other])
(folder / "config.json").write_text(json.dumps(raw))
print(json.dumps(said))
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_setting_is_read_as_transformers_reads_it_or_refused(family, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / family, tmp_path / family))
    arguments = (str(folder), json.dumps(sorted(_APART)), json.dumps(TOKENS.tolist()))
    done = subprocess.run(
        [os.environ.get("LORA_JAX_PEER_PYTHON", sys.executable), "-c", _PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    changes = json.loads(done.stdout.strip().splitlines()[-1])

    raw, read, wrong = json.loads((folder / "config.json").read_text()), 0, []
    for number, (key, value) in enumerate(changes):
        (folder / "config.json").write_text(json.dumps({**raw, key: value}))
        try:
            config, params = load_decoder(folder)
            ours = np.asarray(jax.jit(Decoder(config).apply)({"params": params}, TOKENS))
        except ValueError:
            continue
        read += 1
        off = float(np.abs(ours - np.load(folder / f"{number}.npy")).max())
        if not off < 1e-4:
            wrong.append((key, value, off))
    assert not wrong
    assert read >= 3  # Not everything was refused.
