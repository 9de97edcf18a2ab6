"""PEFT itself loads what we wrote for DeBERTa and T5, and computes the same. Needs the extra
`peer`, as tests/io/test_peft_loads_ours.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax
from lora_jax.io.peft import load_peft, save_peft
from lora_jax.io.weights import (
    encoder_names,
    load_encoder,
    load_t5,
    save_encoder,
    save_t5,
    t5_names,
)

pytestmark = pytest.mark.peer
GOLDEN = Path(__file__).parents[1] / "golden"
# Loads every folder's adapter onto its base; then makes one of PEFT's own for the same targets and
# saves it.
PEER = """
import json, sys, pathlib
import numpy as np, torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from transformers import AutoModelForSeq2SeqLM, DebertaV2ForSequenceClassification
said = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = {name: torch.tensor(value).long() for name, value in np.load(path / "inputs.npz").items()}
    kind = AutoModelForSeq2SeqLM if path.name.startswith("t5") else DebertaV2ForSequenceClassification
    base = lambda: kind.from_pretrained(path / "base", dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base(), path / "adapter").eval()
    with torch.no_grad():
        np.save(path / "logits.npy", model(**data).logits.numpy())
    result = set_peft_model_state_dict(model, load_peft_weights(path / "adapter"))
    missing = [key for key in result.missing_keys if "lora" in key or "modules_to_save.default" in key]
    said[path.name] = missing + list(result.unexpected_keys)
    targets = ["q", "v", "wo"] if path.name.startswith("t5") else ["query_proj", "value_proj"]
    task = "SEQ_2_SEQ_LM" if path.name.startswith("t5") else "SEQ_CLS"
    own = get_peft_model(base(), LoraConfig(r=3, lora_alpha=5, target_modules=targets, task_type=task)).eval()
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if "lora" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
        np.save(path / "own_logits.npy", own(**data).logits.numpy())
    own.save_pretrained(path / "own")
print(json.dumps(said))
"""
CASES = {
    "deberta-v3": r"layers/(attn/[qkvo]|mlp/.*)/kernel",
    "deberta-v2_xxlarge": r"layers/attn/[qv]/kernel",
    "deberta-other": r"layers/attn/.*/kernel",
    "t5-v1_0": r"(encoder|decoder)/layers/.*/kernel",
    "t5-v1_1": r"(encoder|decoder)/layers/(attn|cross)/[qv]/kernel",
}


def adapted(case: str, folder: Path):
    """(names, what computes logits with an adapter, adapter that has moved, inputs as transformers
    calls them).
    """
    family, _, form = case.partition("-")
    golden = np.load(GOLDEN / family / "golden.npz")
    tokens, mask = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    inputs = dict(input_ids=golden["tokens"], attention_mask=golden["mask"].astype(int))
    if family == "t5":
        config, params = load_t5(GOLDEN / family / form)
        save_t5(folder / "base", config, params)
        target = jnp.asarray(golden["target"])
        model, names, args = (
            lora_jax.models.T5(config),
            t5_names(config),
            (tokens, mask.astype(jnp.int32), target, jnp.ones_like(target)),
        )
        inputs["decoder_input_ids"] = golden["target"]
    else:
        config, params = load_encoder(GOLDEN / family / form, num_classes=3)
        save_encoder(folder / "base", config, params)
        model, names, args = lora_jax.models.Encoder(config), encoder_names(config), (tokens, mask)
    rules = dict(
        lora=[(CASES[case], lora_jax.LoraSpec(rank=3, alpha=5.0))],
        whole=[] if family == "t5" else ["(classifier|pooler)/.*"],
    )
    frozen, trainable = lora_jax.adapt(
        model, jax.tree.map(jnp.asarray, params), args, key=jax.random.key(0), **rules
    )
    trainable = {
        path: leaf.replace(b=leaf.b + 0.1) if hasattr(leaf, "b") else leaf
        for path, leaf in trainable.items()
    }
    # PEFT's file holds the factors alone: the head that was trained whole is the base's own.
    plain = jax.tree.map(jnp.asarray, params)
    return (
        names,
        lambda adapter: np.asarray(
            lora_jax.apply(model, plain if adapter is not trainable else frozen, adapter, *args)
        ),
        trainable,
        inputs,
    )


def test_PEFT_loads_ours_without_a_missing_or_unexpected_key_and_we_load_PEFTs_own(
    tmp_path: Path,
) -> None:
    ours, run = {}, {}
    for case in CASES:
        folder = tmp_path / case
        folder.mkdir()
        names, compute, trainable, inputs = adapted(case, folder)
        save_peft(
            folder / "adapter",
            trainable,
            names,
            task_type="SEQ_2_SEQ_LM" if case.startswith("t5") else "SEQ_CLS",
        )
        np.savez(folder / "inputs.npz", **inputs)
        ours[case], run[case] = compute(trainable), (names, compute)
    python = os.environ.get("LORA_JAX_PEER_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-c", PEER, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {case: [] for case in CASES}
    for case, (names, compute) in run.items():
        # fp32; logits are of the order of 1 to 10.
        np.testing.assert_allclose(
            ours[case], np.load(tmp_path / case / "logits.npy"), atol=2e-4, err_msg=case
        )
        own, _ = load_peft(tmp_path / case / "own", names)
        np.testing.assert_allclose(
            compute(own), np.load(tmp_path / case / "own_logits.npy"), atol=2e-4, err_msg=case
        )


@pytest.mark.parametrize("form", ["v1_0", "v1_1"])
def test_a_folder_that_we_write_generates_the_same_in_transformers(
    form: str, tmp_path: Path
) -> None:
    config, params = load_t5(GOLDEN / "t5" / form)
    save_t5(tmp_path, config, params)
    code = (
        "import sys, numpy as np, torch\nfrom transformers import AutoModelForSeq2SeqLM\n"
        "model, data = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1]), np.load(sys.argv[2])\n"
        "batch = dict(input_ids=torch.tensor(data['tokens']), "
        "attention_mask=torch.tensor(data['mask']).long())\n"
        "with torch.no_grad(): out = model.eval()(**batch, "
        "decoder_input_ids=torch.tensor(data['target'])).logits\n"
        "np.save(sys.argv[1] + '/out.npy', out.numpy())"
    )
    python = os.environ.get("LORA_JAX_PEER_PYTHON", sys.executable)
    stored = GOLDEN / "t5" / "golden.npz"
    done = subprocess.run(
        [python, "-c", code, str(tmp_path), str(stored)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), np.load(stored)[f"{form}/logits"], atol=1e-4
    )
