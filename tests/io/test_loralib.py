"""Checkpoints of microsoft/LoRA: the update that loralib's own forward computes, part by part of
fused weights.
"""

from pathlib import Path

import numpy as np
import pytest

from lora_jax.io import safetensors
from lora_jax.io.loralib import from_loralib, load_loralib
from lora_jax.io.names import Name

ROBERTA = {
    "layers/attn/q/kernel": Name(
        "roberta.encoder.layer.{}.attention.self.query.weight", (8, 8), "linear", (2,)
    ),
    "layers/attn/v/kernel": Name(
        "roberta.encoder.layer.{}.attention.self.value.weight", (8, 8), "linear", (2,)
    ),
    "layers/attn/v/bias": Name(
        "roberta.encoder.layer.{}.attention.self.value.bias", (8,), "vector", (2,)
    ),
    "classifier/kernel": Name("classifier.out_proj.weight", (8, 3), "linear"),
    "classifier/bias": Name("classifier.out_proj.bias", (3,), "vector"),
}
GPT2 = {
    f"layers/attn/{p}/kernel": Name(
        "transformer.h.{}.attn.c_attn.weight", (8, 6), "conv1d", (2,), part=(i, (6,) * 3)
    )
    for i, p in enumerate("qkv")
}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def roberta(prefix: str = "") -> dict[str, np.ndarray]:
    tensors = {"classifier.out_proj.weight": draw(3, 8), "classifier.out_proj.bias": draw(3)}
    for layer in range(2):
        for i, name in enumerate(("query", "value")):
            module = f"{prefix}roberta.encoder.layer.{layer}.attention.self.{name}"
            tensors |= {
                f"{module}.lora_A": draw(4, 8, seed=2 * layer + i),
                f"{module}.lora_B": draw(8, 4, seed=9 + 2 * layer + i),
            }
    return {
        key if key.startswith(prefix) else prefix + key: value for key, value in tensors.items()
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_update_is_alpha_over_r_times_B_A_and_the_head_comes_along(prefix: str) -> None:
    tensors = roberta(prefix)
    trainable = from_loralib(tensors, ROBERTA, alpha=16)
    for layer in range(2):
        module = f"{prefix}roberta.encoder.layer.{layer}.attention.self.value"
        update = (
            (tensors[f"{module}.lora_B"] @ tensors[f"{module}.lora_A"]) * 16 / 4
        )  # loralib.Linear.forward
        np.testing.assert_allclose(
            trainable["layers/attn/v/kernel"].delta()[layer], update.T, rtol=1e-5, atol=1e-6
        )
    np.testing.assert_array_equal(
        trainable["classifier/kernel"].value, tensors[f"{prefix}classifier.out_proj.weight"].T
    )
    assert "layers/attn/v/bias" not in trainable


def test_a_fused_weight_has_factors_of_its_own_for_each_adapted_part() -> None:
    """loralib.MergedLinear with enable_lora=[True, False, True]: A is (2 r, in), B (2 * out, r), a
    convolution with two groups.
    """
    tensors = {}
    for layer in range(2):
        module = f"transformer.h.{layer}.attn.c_attn"
        tensors |= {
            f"{module}.lora_A": draw(2 * 4, 8, seed=layer),
            f"{module}.lora_B": draw(12, 4, seed=layer),
        }
    trainable = from_loralib(tensors, GPT2, alpha=32)
    assert sorted(trainable) == ["layers/attn/q/kernel", "layers/attn/v/kernel"]
    for layer in range(2):
        a, b = (
            tensors[f"transformer.h.{layer}.attn.c_attn.lora_A"],
            tensors[f"transformer.h.{layer}.attn.c_attn.lora_B"],
        )
        grouped = np.concatenate([b[:6] @ a[:4], b[6:] @ a[4:]])  # F.conv1d(A, B, groups=2)
        for place, part in enumerate("qv"):
            np.testing.assert_allclose(
                trainable[f"layers/attn/{part}/kernel"].delta()[layer],
                8 * grouped[6 * place : 6 * place + 6].T,
                rtol=1e-4,
                atol=1e-5,
            )


def test_a_file_is_read_and_a_pickled_one_refused(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "lora.safetensors", roberta())
    assert len(load_loralib(tmp_path / "lora.safetensors", ROBERTA, alpha=8)) == 4
    (tmp_path / "lora.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"pickled.*can run code.*save_file"):
        load_loralib(tmp_path / "lora.bin", ROBERTA, alpha=8)


def test_what_is_incomplete_or_foreign_is_refused() -> None:
    whole = roberta()
    module = "roberta.encoder.layer.1.attention.self.query"
    cases = [
        (
            {key: value for key, value in whole.items() if key != f"{module}.lora_B"},
            "has no .*lora_B beside it",
        ),
        (
            {**whole, "roberta.encoder.layer.1.attention.self.qwery.lora_A": draw(4, 8)},
            "belong to no weight of the model, such as .*qwery",
        ),
        ({**whole, f"{module}.lora_A": draw(4, 9)}, "does not fit the model"),
        ({**whole, f"{module}.lora_A": draw(4, 8) * np.nan}, "NaN"),
        ({**whole, "roberta.encoder.layer.1.attention.self.value.bias": draw(8)}, "1 of 2 layers"),
        ({key: value * ("lora_B" not in key) for key, value in whole.items()}, "change nothing"),
        ({key: value for key, value in whole.items() if "lora" not in key}, "0 sites with factors"),
    ]
    for tensors, message in cases:
        with pytest.raises(ValueError, match=message):
            from_loralib(tensors, ROBERTA, alpha=16)
    with pytest.raises(ValueError, match="set enabled"):
        from_loralib(
            {
                "transformer.h.0.attn.c_attn.lora_A": draw(7, 8),
                "transformer.h.0.attn.c_attn.lora_B": draw(12, 4),
            },
            GPT2,
            alpha=1,
        )
