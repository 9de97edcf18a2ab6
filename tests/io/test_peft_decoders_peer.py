"""PEFT itself loads what we wrote for every decoder family. Needs the extra `peer`, as
tests/io/test_peft_loads_ours.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from adapted_decoders import FAMILIES, GOLDEN, adapted_decoder

import lora_jax
from lora_jax.io.peft import save_peft
from lora_jax.io.weights import decoder_names

pytestmark = pytest.mark.peer
PEER = """
import json, sys, pathlib
import numpy as np, torch
from peft import PeftModel, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from transformers import AutoModelForCausalLM
golden, folder = map(pathlib.Path, sys.argv[1:])
said = {}
for path in sorted(folder.iterdir()):
    data = np.load(path / "inputs.npz")
    base = AutoModelForCausalLM.from_pretrained(golden / path.name.split("-")[0], dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, path).eval()
    tokens, mask = torch.tensor(data["tokens"]).long(), torch.tensor(data["mask"]).bool()
    # Text by text: transformers chooses LongRoPE's factors for a whole batch, padding included.
    with torch.no_grad():
        out = [model(input_ids=text[real][None]).logits[0] for text, real in zip(tokens, mask)]
    np.save(path / "logits.npy", torch.cat(out).numpy())
    result = set_peft_model_state_dict(model, load_peft_weights(path))
    # A tied head reads the embedding's own rows; torch names them a second time.
    result.missing_keys[:] = [key for key in result.missing_keys if "lm_head.token_adapter" not in key]
    missing = [key for key in result.missing_keys if "lora" in key or "modules_to_save.default" in key or "token_adapter.trainable" in key]
    said[path.name] = missing + list(result.unexpected_keys)
print(json.dumps(said))
"""


def test_PEFT_computes_what_we_compute_on_every_family(tmp_path: Path) -> None:
    with np.load(GOLDEN / "logits.npz") as file:
        golden = dict(file)
    cases = {family: {} for family in FAMILIES}
    cases |= {
        "llama3-rows": dict(rows={"embed/embedding": [3, 7]}),
        "llama-rows": dict(rows={"embed/embedding": [3, 7]}),
    }
    cases |= {"gemma3-norm": dict(whole=["norm/.*"]), "llama-head": dict(whole=["head/.*"])}
    ours = {}
    for case, selection in cases.items():
        family = case.split("-")[0]
        config, frozen, trainable = adapted_decoder(family, **selection)
        folder = tmp_path / case
        save_peft(folder, trainable, decoder_names(config), task_type="CAUSAL_LM")
        tokens, mask = golden[f"{family}/tokens"], golden[f"{family}/mask"]
        np.savez(folder / "inputs.npz", tokens=tokens, mask=mask)
        ours[case] = (
            np.asarray(
                lora_jax.apply(
                    lora_jax.models.Decoder(config),
                    frozen,
                    trainable,
                    jnp.asarray(tokens),
                    jnp.asarray(mask),
                )
            ),
            mask,
        )
    python = os.environ.get("LORA_JAX_PEER_PYTHON", sys.executable)
    command = [python, "-c", PEER, str(GOLDEN), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said == {case: [] for case in cases}
    for case, (logits, mask) in ours.items():
        theirs = np.load(tmp_path / case / "logits.npy")
        np.testing.assert_allclose(
            logits[mask],
            theirs,
            atol=1e-4 * max(1.0, np.abs(theirs).max()),
            err_msg=case,
        )
