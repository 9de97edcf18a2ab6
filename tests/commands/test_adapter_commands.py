"""`lora-jax inspect` of adapters and `lora-jax convert`: what is printed, what is written, and what
is refused, through the front door.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from adapted_decoders import GOLDEN as DECODERS
from adapted_decoders import adapted_decoder

import lora_jax
from lora_jax.cli import main
from lora_jax.commands.adapter import is_stacked
from lora_jax.io import safetensors
from lora_jax.io.adapter import load_adapter, save_adapter
from lora_jax.io.peft import load_peft, save_peft
from lora_jax.io.weights import adapter_names, encoder_names, load_decoder, load_encoder

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
MODEL = str(GOLDEN / "bert_cls")


def test_a_PEFT_adapter_is_shown_with_its_rank_at_every_site_and_layer(
    capsys: pytest.CaptureFixture,
) -> None:
    assert main(["inspect", str(GOLDEN / "bert_patterns"), "--model", MODEL]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split()[0]: line.split()[-3:] for line in lines[:7]}
    assert lines[0].split() == ["site", "\\", "layer", "0", "1", "-"]
    assert cells["layers/attn/q/kernel"] == [".", "4", "."] and cells["layers/mlp/down/kernel"] == [
        ".",
        "5",
        ".",
    ]
    assert "sites that change nothing: none" in lines[-1]


def test_conversion_to_ours_and_back_keeps_every_number(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for case in ("bert_lora", "bert_dora", "bert_bias_adapted"):
        ours, back = tmp_path / case / "ours", tmp_path / case / "peft"
        assert main(["convert", str(GOLDEN / case), str(ours), "--model", MODEL]) == 0
        assert main(["export", "peft", str(ours), str(back), "--model", MODEL]) == 0
        assert "target_modules" in capsys.readouterr().out
        first, second = (
            safetensors.read(folder / "adapter_model.safetensors")
            for folder in (GOLDEN / case, back)
        )
        assert first.keys() == second.keys() and all(
            np.array_equal(first[key], second[key]) for key in first
        )
        assert main(["inspect", str(ours)]) == 0, capsys.readouterr().err
        config, _ = load_encoder(MODEL, num_classes=2)
        assert set(load_adapter(ours)[0]) == set(load_peft(back, encoder_names(config))[0])


def test_an_adapter_of_a_model_with_its_layers_in_a_loop_goes_out_and_comes_back(
    tmp_path: Path,
) -> None:
    loop, peft, stacked, again = (
        str(tmp_path / name) for name in ("loop", "peft", "stacked", "again")
    )
    assert main(["convert", str(GOLDEN / "bert_lora"), loop, "--model", MODEL, "--loop"]) == 0
    assert main(["export", "peft", loop, peft, "--model", MODEL]) == 0
    assert (
        main(["convert", peft, stacked, "--model", MODEL]) == 0
    )  # Recorded for the base in the other layout: the same base.
    assert main(["convert", stacked, again, "--model", MODEL]) == 0
    first, second = (
        safetensors.read(Path(folder) / "adapter_model.safetensors") for folder in (peft, again)
    )
    assert first.keys() == second.keys() and all(
        np.array_equal(first[key], second[key]) for key in first
    )
    assert (
        "layers_0/attn/q/kernel" in load_adapter(loop)[0]
        and "layers/attn/q/kernel" in load_adapter(stacked)[0]
    )


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
def test_a_decoders_adapter_is_converted_for_its_model(scan: bool, tmp_path: Path) -> None:
    model = str(DECODERS / "llama3")
    _, _, trainable = adapted_decoder("llama3", scan=scan)
    save_adapter(
        tmp_path / "ours",
        trainable,
        base=lora_jax.fingerprint(load_decoder(model, scan=scan)[1]),
        model="llama3",
    )
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "peft"), "--model", model]) == 0
    loop = [] if scan else ["--loop"]
    assert (
        main(["convert", str(tmp_path / "peft"), str(tmp_path / "back"), "--model", model, *loop])
        == 0
    )
    back = load_adapter(tmp_path / "back")[0]
    assert set(back) == set(trainable)
    for path, leaf in trainable.items():
        np.testing.assert_allclose(back[path].delta(), leaf.delta(), atol=1e-6)


def test_what_changes_nothing_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    low = lora_jax.core.LowRank(
        a=jnp.ones((2, 4, 3)), b=jnp.zeros((2, 3, 4)), scale=jnp.ones((2, 3))
    )
    moving = low.replace(b=low.b + 1)
    save_adapter(
        tmp_path,
        {"layers/q/kernel": low, "layers/v/kernel": moving},
        base="0123456789abcdef",
        model="x",
    )
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "sites that change nothing: layers/q/kernel" in out and "base 0123456789abcdef" in out
    assert is_stacked(tmp_path)
    for path in ("layers_0/q/kernel", "encoder/layers_1/q/kernel", "decoder/layers_0/q/kernel"):
        save_adapter(tmp_path, {path: moving}, base="0", model="x")
        assert not is_stacked(tmp_path), path


def test_what_cannot_be_converted_is_one_paragraph_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, params = load_encoder(MODEL, num_classes=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    other = tmp_path / "other"
    trainable = {
        "layers/attn/q/kernel": lora_jax.core.LowRank(
            a=jnp.ones((2, 16, 1)), b=jnp.ones((2, 1, 16)), scale=jnp.ones((2, 1))
        )
    }
    save_adapter(other, trainable, base="0123456789abcdef", model="x")
    theirs = save_peft(
        tmp_path / "theirs",
        trainable,
        adapter_names(load_encoder(MODEL, num_classes=2)[0]),
        base_model=MODEL,
        base="0123456789abcdef",
    )
    assert theirs.tensors
    partly = tmp_path / "partly"
    own = lora_jax.fingerprint(
        {name: leaf for name, leaf in params.items() if name != "classifier"}
    )
    save_adapter(
        partly,
        {**trainable, "layers/attn/k/bias": lora_jax.core.TrainedWeight(value=jnp.ones((2, 16)))},
        base=own,
        model="x",
    )
    cases = [
        (["inspect", "--adapter", str(GOLDEN / "bert_lora")], "give it with --model"),
        (["inspect", "--adapter", str(tmp_path / "nowhere")], "There is no file"),
        (
            ["convert", str(GOLDEN / "bert_lora"), str(tmp_path / "full"), "--model", MODEL],
            "new or empty folder",
        ),
        (
            ["convert", str(other), str(tmp_path / "out"), "--model", MODEL],
            "trained on base 0123456789abcdef",
        ),
        (
            ["convert", str(tmp_path / "theirs"), str(tmp_path / "out"), "--model", MODEL],
            "trained on base 0123456789abcdef",
        ),
        (["convert", str(partly), str(tmp_path / "out"), "--model", MODEL], "biases"),
    ]
    for arguments, message in cases:
        assert main(arguments) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert said.startswith("lora-jax: error:") and message in said and "Traceback" not in said
