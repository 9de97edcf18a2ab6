"""Adapters go to a hub as its interface is documented: a stand-in on this machine takes them."""

import pytest
from hub_stand_in import stand_in

from lora_jax import cli
from lora_jax.io.adapter import save_adapter
from lora_jax.io.card import licence_in
from tests.io.test_card import LORA

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def adapter(tmp_path):
    save_adapter(tmp_path / "RUN" / "adapter", LORA, base="12ab", model="gpt2")
    (tmp_path / "RUN" / "adapter" / "notes.txt").write_text("mine")
    return tmp_path / "RUN" / "adapter"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with stand_in(token="secret") as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        yield served


def test_an_adapter_and_its_card_are_one_commit_of_a_private_repository(adapter, hub, capsys):
    kept = (adapter / "README.md").read_text()
    given = ["push", str(adapter.parent), "me/it", "--licence", "mit"]
    assert cli.main(given) == 0
    assert f"pushed: {hub.url}/me/it" in capsys.readouterr().out
    files = hub.files["me/it"]
    assert set(files) == {"adapter.safetensors", "README.md"} and hub.private == {"me/it": True}
    assert files["adapter.safetensors"] == (adapter / "adapter.safetensors").read_bytes()
    assert licence_in(files["README.md"].decode()) == "mit"
    assert (adapter / "README.md").read_text() == kept and licence_in(kept) is None
    assert sum("/commit/" in asked for asked in hub.asked) == 1


@pytest.mark.parametrize(
    ("more", "token", "words"),
    [
        (["me"], "secret", "named OWNER/NAME"),
        (["me/it", "--licence", "my own"], "secret", "A licence is named as the hub does"),
        (["me/it"], "another", "HF_TOKEN, which must be one that may write"),
    ],
)
def test_what_is_refused_uploads_nothing(adapter, hub, capsys, more, token, words):
    hub.token = token
    assert cli.main(["push", str(adapter), *more]) == 2
    said = capsys.readouterr().err
    assert words in " ".join(said.split()) and "secret" not in said and not hub.files
    assert cli.main(["push", str(adapter.parent.parent), "me/it"]) == 2
    assert "needs to hold an adapter" in capsys.readouterr().err
