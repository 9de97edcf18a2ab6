"""Adapters on disk: the round trip is the identity, and a file that does not fit is refused by
name.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax import LoraSpec, load_adapter, save_adapter
from lora_jax.core import LowRank, TrainedWeight
from lora_jax.core.init import initialize
from lora_jax.io import safetensors


def same(x: Any, y: Any) -> bool:
    return jax.tree.structure(x) == jax.tree.structure(y) and all(
        (a.dtype, a.shape, np.asarray(a).tobytes()) == (b.dtype, b.shape, np.asarray(b).tobytes())
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )


def lora() -> dict[str, LowRank | TrainedWeight]:
    key = jax.random.key(0)
    one = initialize(key, (3,), 6, 5, LoraSpec(2, dropout=0.1))
    two = initialize(
        key, (), 6, 4, LoraSpec(3, alpha=5.0, scaling="rslora", dropout=0.2), in_axes=(0, 1)
    )
    half = initialize(key, (), 6, 4, LoraSpec(1))
    return {
        "layers/q/kernel": one.replace(b=jax.random.normal(key, one.b.shape)),
        "out/kernel": two,
        "half/kernel": half.replace(a=half.a.astype(jnp.bfloat16)),
        "head/bias": TrainedWeight(value=jnp.arange(3.0)),
        "temperature": TrainedWeight(value=jnp.float32(2.0)),
    }


def test_loading_gives_what_was_saved_bit_for_bit(tmp_path: Path) -> None:
    save_adapter(tmp_path, lora(), base="1234", model="minilm", label_names=("neg", "pos"))
    again, metadata = load_adapter(tmp_path, base="1234")
    assert same(again, lora())
    assert (metadata["model"], json.loads(metadata["labels"])) == ("minilm", ["neg", "pos"])
    assert same(load_adapter(tmp_path)[0], lora())


def test_another_base_is_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path, lora(), base="1234", model="minilm")
    with pytest.raises(
        ValueError, match=r"was trained on base 1234 \(minilm\), and this base is 99. Load the base"
    ):
        load_adapter(tmp_path, base="99")


def as_before_checksums(tensors: Any, metadata: Any) -> None:
    metadata["format"] = "lora_jax-adapter-1"
    del metadata["checksum"], metadata["tensors"]


def rewrite(folder: Path, *changes: Any) -> None:
    file = folder / "adapter.safetensors"
    tensors, metadata = dict(safetensors.read(file)), safetensors.read_metadata(file)
    for change in changes:
        change(tensors, metadata)
    safetensors.write(file, {name: np.array(t) for name, t in tensors.items()}, metadata)


DAMAGE = {
    "no b": (
        lambda t, m: t.pop("out/kernel#b"),
        r"'out/kernel' has the parts \['a', 'dropout', 'scale'\]; needed a, b and scale, or whole",
    ),
    "a part more": (
        lambda t, m: t.update({"out/kernel#m": t["out/kernel#a"]}),
        r"'out/kernel' has the parts .*'m'.* needed a, b and scale",
    ),
    "a site less": (
        lambda t, m: [t.pop(f"out/kernel#{part}") for part in ("a", "b", "scale", "dropout")],
        "lacks the factors of 1 sites that its metadata names, such as 'out/kernel'",
    ),
    "trained rows less": (
        lambda t, m: m.update(variants='{"word/embedding": {"kind": "rows"}}'),
        "lacks the factors of 1 sites that its metadata names, such as 'word/embedding'",
    ),
    "a name without a part": (
        lambda t, m: t.update({"out": t["out/kernel#a"]}),
        "needed a, b and scale",
    ),
    "another format": (
        lambda t, m: m.update(format="pt"),
        "is not an adapter of this library .format 'pt', needed 'lora_jax-adapter-1'",
    ),
    "no metadata": (lambda t, m: m.clear(), "is not an adapter of this library .format None"),
    "metadata cut": (lambda t, m: m.pop("in_axes"), "lacks the metadata 'in_axes'"),
    "nothing in it": (lambda t, m: (t.clear(), m.update(in_axes="{}")), "holds no adapter"),
    "a nan": (
        lambda t, m: t.update({"out/kernel#a": np.full_like(t["out/kernel#a"], np.nan)}),
        "out/kernel#a holds a NaN or an infinity",
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_an_incomplete_or_broken_file_is_refused(tmp_path: Path, how: str) -> None:
    change, message = DAMAGE[how]
    save_adapter(tmp_path, lora(), base="1234", model="minilm")
    rewrite(tmp_path, as_before_checksums, change)
    with pytest.raises(ValueError, match=message):
        load_adapter(tmp_path, base="1234")


CHANGED = {
    "a whole weight less": (
        lambda t, m: t.pop("head/bias#whole"),
        r"head/bias#whole is missing, and was float32\[3\]",
    ),
    "one more": (
        lambda t, m: t.update({"x/kernel#whole": t["head/bias#whole"]}),
        r"x/kernel#whole is float32\[3\], and was not there",
    ),
    "transposed": (
        lambda t, m: t.update({"out/kernel#b": t["out/kernel#b"].T}),
        r"out/kernel#b is float32\[4,3\], and was float32\[3,4\]",
    ),
    "one number": (
        lambda t, m: t["head/bias#whole"].__setitem__(1, 7.0),
        "its checksum is not that of what it holds",
    ),
    "two exchanged": (
        lambda t, m: t["layers/q/kernel#a"].__setitem__([0, 1], t["layers/q/kernel#a"][[1, 0]]),
        "its checksum is not that of what it holds",
    ),
    "another base": (lambda t, m: m.update(base="99"), "its checksum is not that"),
    "another scale's axes": (
        lambda t, m: m.update(in_axes=m["in_axes"].replace("[0]", "[1]")),
        "its checksum is not that",
    ),
    "no checksum": (lambda t, m: m.pop("checksum"), "its checksum is not that"),
    "no checksum and no table": (
        lambda t, m: (m.pop("checksum"), m.pop("tensors")),
        "its checksum is not that",
    ),
}


@pytest.mark.parametrize("how", CHANGED)
def test_a_file_that_was_changed_since_it_was_saved_is_refused(tmp_path: Path, how: str) -> None:
    change, message = CHANGED[how]
    save_adapter(tmp_path, lora(), base="1234", model="minilm")
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=f"adapter.safetensors was changed since.*{message}"):
        load_adapter(tmp_path)


def test_a_file_without_a_checksum_loads_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter(tmp_path, lora(), base="1234", model="minilm")
    rewrite(tmp_path, as_before_checksums)
    assert same(load_adapter(tmp_path)[0], lora())
    assert "was written by an older version and has no checksum" in capsys.readouterr().err


MISFITS = {
    "b transposed": (
        lambda t, m: t.update({"out/kernel#b": t["out/kernel#b"].T}),
        "'b' of 'out/kernel' does not fit",
    ),
    "a scale too few": (
        lambda t, m: t.update({"out/kernel#scale": t["out/kernel#scale"][1:]}),
        "'scale' of 'out/kernel' does not fit",
    ),
    "another stack": (
        lambda t, m: t.update({"layers/q/kernel#dropout": t["layers/q/kernel#dropout"][1:]}),
        "'dropout' of 'layers/q/kernel' does not fit",
    ),
    "whole numbers": (
        lambda t, m: t.update({"half/kernel#b": t["half/kernel#b"].astype(np.int32)}),
        "'b' of 'half/kernel' does not fit",
    ),
    "a group that is none": (
        lambda t, m: m.update(variants='{"out/kernel": {"group": "2"}}'),
        "'group' of 'out/kernel' does not fit",
    ),
    "a field that is none": (
        lambda t, m: m.update(variants='{"out/kernel": {"groups": 2}}'),
        "unexpected keyword argument 'groups'",
    ),
    "axes that are none": (lambda t, m: m.update(in_axes="[["), "in_axes is not JSON"),
}


@pytest.mark.parametrize("how", MISFITS)
def test_parts_that_do_not_fit_together_are_refused_by_name(tmp_path: Path, how: str) -> None:
    change, message = MISFITS[how]
    save_adapter(tmp_path, lora(), base="1234", model="minilm")
    rewrite(tmp_path, as_before_checksums, change)
    with pytest.raises(ValueError, match=f"adapter.safetensors .*{message}"):
        load_adapter(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*adapter.safetensors"):
        load_adapter(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_or_infinity_is_never_saved_and_the_old_file_stays(
    tmp_path: Path, bad: float
) -> None:
    save_adapter(tmp_path, lora(), base="1234", model="minilm")
    broken = lora()
    broken["half/kernel"] = broken["half/kernel"].replace(
        b=broken["half/kernel"].b.at[0, 1].set(bad)
    )
    with pytest.raises(
        ValueError, match="half/kernel#b holds a NaN or an infinity; the adapter was not saved"
    ):
        save_adapter(tmp_path, broken, base="1234", model="minilm")
    assert same(load_adapter(tmp_path)[0], lora())
