"""PEFT itself loads what we wrote: no missing and no unexpected key, and the same logits. Needs the
extra `peer` (torch, transformers, PEFT).

The interpreter with torch is this one, or the one that LORA_JAX_PEER_PYTHON names.
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
from lora_jax.adapters.surgery import adapt
from lora_jax.io.peft import load_peft, save_peft
from lora_jax.io.weights import encoder_names, load_encoder, save_encoder

pytestmark = pytest.mark.peer
GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
PEER = """
import json, sys, warnings
import numpy as np, torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from transformers import BertForSequenceClassification, BertModel
base, folder, inputs = sys.argv[1:]
data = np.load(inputs)
kind = BertForSequenceClassification if "ForSequenceClassification" in open(base + "/config.json").read() else BertModel
model = kind.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    adapted = PeftModel.from_pretrained(model, folder).eval()
tokens, mask = torch.tensor(data["tokens"]).long(), torch.tensor(data["mask"]).long()
with torch.no_grad():
    out = adapted(input_ids=tokens, attention_mask=mask)[0]
result = set_peft_model_state_dict(adapted, load_peft_weights(folder))
missing = [key for key in result.missing_keys if "lora" in key or "modules_to_save.default" in key]
np.save(folder + "/peft_out.npy", out.numpy())
print(json.dumps(dict(missing=missing, unexpected=result.unexpected_keys, said=[str(w.message) for w in caught if "key" in str(w.message)],
    trained=sorted(n for n, m in adapted.named_modules() if hasattr(m, "lora_A")))))
"""  # fmt: skip


def peft_says(
    base: Path, folder: Path, tokens: np.ndarray, mask: np.ndarray
) -> tuple[dict, np.ndarray]:
    """What PEFT reports on loading `folder` onto `base`, and the output it computes."""
    np.savez(folder / "inputs.npz", tokens=np.asarray(tokens), mask=np.asarray(mask))
    python = os.environ.get("LORA_JAX_PEER_PYTHON", sys.executable)
    command = [python, "-c", PEER, str(base), str(folder), str(folder / "inputs.npz")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), np.load(folder / "peft_out.npy")


def moved(trainable: dict, size: float = 0.1) -> dict:
    out = {}
    for index, (path, leaf) in enumerate(sorted(trainable.items())):
        keys = jax.random.split(jax.random.key(index), 4)
        out[path] = leaf.replace(
            **{
                n: getattr(leaf, n) + size * jax.random.normal(k, getattr(leaf, n).shape)
                for n, k in zip(leaf.trained_fields(), keys)
            }
        )
    return out


ADAPTERS = {
    "lora": dict(
        lora=[("layers/attn/[qv]/kernel", lora_jax.LoraSpec(rank=3, alpha=5.0))],
        whole=["classifier/.*"],
    ),
    "every rank, scale and layer its own": dict(
        lora=[
            (
                "layers/attn/q/kernel",
                lora_jax.LoraSpec(rank=2, alpha=7.0, scaling="rslora", layers=(1,)),
            ),
            ("layers/mlp/down/kernel", lora_jax.LoraSpec(rank=5, alpha=3.0)),
            ("layers/.*/kernel", lora_jax.LoraSpec(rank=1, alpha=2.0)),
            ("embeddings/word/embedding", lora_jax.LoraSpec(rank=4)),
        ],
        whole=["classifier/.*"],
    ),
    "dora": dict(
        lora=[("layers/.*/kernel", lora_jax.LoraSpec(rank=2, dora=True))], whole=["classifier/.*"]
    ),
    "biases of adapted modules": dict(
        lora=[("layers/attn/[qv]/kernel", lora_jax.LoraSpec(rank=2))],
        whole=["classifier/.*"],
        bias="lora_only",
    ),
    "all biases": dict(
        lora=[("layers/attn/q/kernel", lora_jax.LoraSpec(rank=2))],
        whole=["classifier/kernel"],
        bias="all",
    ),
    "norms": dict(
        lora=[("layers/mlp/up/kernel", lora_jax.LoraSpec(rank=2))],
        whole=["classifier/.*", "layers/.*norm/.*"],
    ),
    "vera": dict(
        lora=[("layers/attn/[qv]/kernel", lora_jax.LoraSpec(rank=3, variant="vera"))],
        whole=["classifier/.*"],
    ),
    "pissa": dict(
        lora=[("layers/attn/[qv]/kernel", lora_jax.LoraSpec(rank=3, init="pissa"))],
        whole=["classifier/.*"],
    ),
}


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
@pytest.mark.parametrize("name", ADAPTERS)
def test_PEFT_loads_ours_without_a_missing_or_unexpected_key_and_computes_the_same(
    name: str, task_type: str | None, tmp_path: Path
) -> None:
    if task_type is None and name != "lora":
        pytest.skip("one adapter without a task is enough")
    config, params = load_encoder(GOLDEN / "bert_cls", num_classes=2)
    model, params = lora_jax.models.Encoder(config), jax.tree.map(jnp.asarray, params)
    golden = np.load(GOLDEN / "golden.npz")
    tokens, mask = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    frozen, trainable = adapt(
        model, params, (tokens, mask), key=jax.random.key(0), **ADAPTERS[name]
    )
    trainable, names = moved(trainable), encoder_names(config)
    save_peft(tmp_path, trainable, names, task_type=task_type)
    said, out = peft_says(GOLDEN / "bert_cls", tmp_path, tokens, mask)
    assert (said["missing"], said["unexpected"], said["said"]) == ([], [], [])
    ours = lora_jax.apply(model, frozen, trainable, tokens, mask)
    np.testing.assert_allclose(out, ours, atol=1e-4)  # The bound is the promise.
    assert np.abs(ours - model.apply({"params": params}, tokens, mask)).max() > 0.05
    back, _ = load_peft(tmp_path, names)
    np.testing.assert_allclose(lora_jax.apply(model, frozen, back, tokens, mask), ours, atol=1e-5)


def test_MiniLM_with_an_adapter_of_ours_computes_the_same_in_PEFT(
    minilm_folder: Path, tmp_path: Path
) -> None:
    config, params = load_encoder(minilm_folder, num_classes=2, key=jax.random.key(0))
    save_encoder(tmp_path / "base", config, params)
    golden = np.load(GOLDEN.parent / "minilm.npz")
    tokens, mask = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    model, params = lora_jax.models.Encoder(config), jax.tree.map(jnp.asarray, params)
    rules = [
        ("layers/attn/[qkvo]/kernel", lora_jax.LoraSpec(rank=8, alpha=16.0)),
        ("layers/mlp/.*/kernel", lora_jax.LoraSpec(rank=4, alpha=9.0)),
    ]
    frozen, trainable = adapt(
        model, params, (tokens, mask), lora=rules, whole=["classifier/.*"], key=jax.random.key(1)
    )
    trainable = moved(trainable, 0.02)
    (tmp_path / "adapter").mkdir()
    save_peft(
        tmp_path / "adapter",
        trainable,
        encoder_names(config),
        task_type="SEQ_CLS",
        base=lora_jax.fingerprint(frozen),
    )
    said, out = peft_says(tmp_path / "base", tmp_path / "adapter", tokens, mask)
    ours = lora_jax.apply(model, frozen, trainable, tokens, mask)
    assert (said["missing"], said["unexpected"]) == ([], []) and len(said["trained"]) == 36
    np.testing.assert_allclose(out, ours, atol=1e-4)  # The bound is the promise. Measured: 3e-8.
    assert (
        np.abs(ours - model.apply({"params": params}, tokens, mask)).max() > 0.02
    )  # Measured: 0.030, of logits around 0.05 (the head is new).


OWN = """
import json, sys
import numpy as np, torch
from peft import PeftModel
from transformers import BertForSequenceClassification
base, folder = sys.argv[1:]
data = np.load(folder + "/inputs.npz")
model = BertForSequenceClassification.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
adapted = PeftModel.from_pretrained(model, folder, is_trainable=True).eval()
with torch.no_grad():
    out = adapted(input_ids=torch.tensor(data["tokens"]).long(), attention_mask=torch.tensor(data["mask"]).long())[0]
np.save(folder + "/peft_out.npy", out.numpy())
adapted.save_pretrained(folder + "/again")
print(sum(p.numel() for n, p in adapted.named_parameters() if p.requires_grad))
"""  # fmt: skip


@pytest.mark.parametrize(
    ("peft_type", "spec"),
    [
        ("MISS", lora_jax.LoraSpec(rank=3, variant="miss")),
        ("LOHA", lora_jax.LoraSpec(rank=3, alpha=5.0, variant="loha")),
        ("LOKR", lora_jax.LoraSpec(rank=1, alpha=5.0, variant="lokr")),
        ("GRALORA", lora_jax.LoraSpec(rank=4, alpha=5.0, variant="gralora")),
        ("HIRA", lora_jax.LoraSpec(rank=3, variant="hira")),
    ],
)
def test_variants_go_to_PEFTs_own_methods_and_back_with_as_many_parameters(
    peft_type: str, spec: lora_jax.LoraSpec, tmp_path: Path
) -> None:
    config, params = load_encoder(GOLDEN / "bert_cls", num_classes=2)
    model, params = lora_jax.models.Encoder(config), jax.tree.map(jnp.asarray, params)
    golden = np.load(GOLDEN / "golden.npz")
    tokens, mask = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    rules = [("layers/attn/[qv]/kernel", spec), ("layers/mlp/up/kernel", spec)]
    frozen, trainable = adapt(
        model, params, (tokens, mask), key=jax.random.key(0), lora=rules, whole=["classifier/.*"]
    )
    trainable, names = moved(trainable), encoder_names(config)
    made = save_peft(tmp_path, trainable, names, task_type="SEQ_CLS")
    assert made.config["peft_type"] == peft_type and made.notes == ()
    np.savez(tmp_path / "inputs.npz", tokens=np.asarray(tokens), mask=np.asarray(mask))
    python = os.environ.get("LORA_JAX_PEER_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-c", OWN, str(GOLDEN / "bert_cls"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours = lora_jax.apply(model, frozen, trainable, tokens, mask)
    base = lora_jax.apply(model, params, {}, tokens, mask)
    assert float(jnp.abs(ours - base).max()) > 1e-2
    np.testing.assert_allclose(np.load(tmp_path / "peft_out.npy"), ours, atol=1e-4)
    count = lora_jax.trainable_parameters(trainable)
    assert int(done.stdout.split()[-1]) == count
    again, _ = load_peft(tmp_path / "again", names)
    np.testing.assert_allclose(
        lora_jax.apply(model, frozen, again, tokens, mask), ours, rtol=0, atol=1e-5
    )
    assert lora_jax.trainable_parameters(again) == count
