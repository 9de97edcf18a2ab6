"""An adapter's folder to the model hub, by huggingface_hub."""

from __future__ import annotations

from pathlib import Path

import lora_jax.io.adapter as own
import lora_jax.io.peft as peft
from lora_jax.core.extras import needs
from lora_jax.io import card
from lora_jax.io.hub import HUB_ID

_KINDS = ((own.FILE,), (peft.CONFIG, peft.WEIGHTS))


def push_adapter(
    folder: Path | str,
    repository: str,
    *,
    licence: str | None = None,
    public: bool = False,
    message: str = "An adapter",
) -> str:
    """Uploads an adapter's files and its model card in one commit; the address of the repository,
    which is made if it is not there, as a private one unless it is to be `public`.

    Args:
        folder: of `save_adapter` or `save_peft`.
        repository: 'owner/name'.
        licence: of the adapter, as the hub names licences, put into the card that is uploaded; the
            card in the folder stays as it is.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: the repository is no 'owner/name', or the licence cannot be put into the card.
        OSError: the hub cannot be reached, or refuses; it says why.
    """
    folder = Path(folder)
    files = next((kind for kind in _KINDS if all((folder / name).is_file() for name in kind)), None)
    if files is None:
        raise FileNotFoundError(
            f"{folder} needs to hold an adapter: {own.FILE}, or PEFT's {peft.CONFIG} with "
            f"{peft.WEIGHTS}. Give RUN/adapter, or what lora-jax export peft wrote."
        )
    if "/" not in repository or not HUB_ID.fullmatch(repository):
        raise ValueError(f"A repository of the hub is named OWNER/NAME, got {repository!r}.")
    content: dict[str, bytes | str] = {name: str(folder / name) for name in files}
    readme = folder / card.FILE
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        content[card.FILE] = (card.with_licence(text, licence) if licence else text).encode()
    elif licence:
        raise ValueError(
            f"{folder} has no {card.FILE} that a licence could stand in. Save the adapter again, "
            "which writes one."
        )
    with needs("hub"):
        from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    try:
        made = hub.create_repo(repository, private=not public, exist_ok=True)
        changes = [CommitOperationAdd(name, what) for name, what in content.items()]
        hub.create_commit(repository, changes, commit_message=message)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise OSError(
            f"{folder} was not pushed to {repository!r}. Check the network, the name, and the token "
            f"of `hf auth login` or HF_TOKEN, which must be one that may write. The hub says: {said}"
        ) from error
    return str(made)
