"""Checkpoints: a restored state equals the saved one bit for bit, and is refused for another base,
run or shape.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from small_task import PLAIN, batch, loss, make
from user_models import same_bits

from lora_jax import LoraSpec, create_state, make_optimizer, make_train_step
from lora_jax.adapters.stacking import pad
from lora_jax.training import checkpoint
from lora_jax.training.checkpoint import Checkpoints, DamagedCheckpoint

TX = make_optimizer(PLAIN, 100)


def state_of(rank: int = 2, **rest: Any) -> tuple[Any, Any]:
    frozen, trainable = make(LoraSpec(rank, dropout=0.1), **rest)
    return frozen, create_state(trainable, TX, jax.random.key(7))


def test_a_restored_state_is_the_saved_one_bit_for_bit_and_trains_on_alike(tmp_path: Path) -> None:
    frozen, fresh = state_of()
    step = jax.jit(make_train_step(loss, TX))
    state = step(fresh, frozen, batch())[0]
    saving = Checkpoints(tmp_path, base="b", run="r")
    assert saving.steps() == []
    saving.save(state, {"grain": {"next": 3}, "batches": "x"})
    saving.save(state, {"grain": "ignored: this step is there"})
    saving.close()
    reading = Checkpoints(tmp_path, base="b", run="r")
    assert reading.steps() == [1]
    again, position = reading.restore(fresh)
    reading.close()
    assert same_bits(again, state) and position == {"grain": {"next": 3}, "batches": "x"}
    assert jnp.issubdtype(again.key.dtype, jax.dtypes.prng_key)
    assert same_bits(step(again, frozen, batch(seed=1))[0], step(state, frozen, batch(seed=1))[0])


def test_a_checkpoint_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: Any) -> None:
    """Orbax would print a traceback for each array, from threads that nobody can catch."""
    _, state = state_of()
    checkpoints = Checkpoints(tmp_path, base="b", run="r")
    free = SimpleNamespace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: free)
    said = (
        r"No space left on device: a checkpoint of [\d,]+ bytes .* where 1,000 are free. Free some"
    )
    with pytest.raises(OSError, match=said):
        checkpoints.save(state, {})
    assert checkpoints.steps() == [] and not list(tmp_path.iterdir())
    monkeypatch.undo()
    checkpoints.save(state, {})
    assert checkpoints.steps() == [0]
    checkpoints.close()


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    _, state = state_of()
    checkpoints = Checkpoints(tmp_path, base="b", run="r", keep=2)
    for number in (1, 2, 3):
        checkpoints.save(state.replace(step=jnp.int32(number)), {})
    assert checkpoints.steps() == [2, 3]
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "3"]


@pytest.mark.parametrize(
    ("base", "run", "what"),
    [
        ("other", "r", "base b, and this run has base other"),
        ("b", "other", "run r, and this run has run other"),
    ],
)
def test_another_base_or_run_is_refused(tmp_path: Path, base: str, run: str, what: str) -> None:
    _, state = state_of()
    for identity in (dict(base="b", run="r"), dict(base=base, run=run)):
        checkpoints = Checkpoints(tmp_path, **identity)
        if identity["base"] == "b" and identity["run"] == "r":
            checkpoints.save(state.replace(step=jnp.int32(4)), {})
        else:
            with pytest.raises(
                ValueError,
                match=f"checkpoint at step 4 belongs to {what}.*delete the run's folder to start again",
            ):
                checkpoints.restore(state)
        checkpoints.close()


def test_arrays_of_other_shapes_are_refused_not_cut(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, base="b", run="r")
    checkpoints.save(state_of()[1].replace(step=jnp.int32(4)), {})
    for other in (state_of(rank=3)[1], state_of(whole=("head/kernel",))[1]):
        with pytest.raises(
            ValueError, match="checkpoint at step 4 holds other arrays than this run trains"
        ):
            checkpoints.restore(other)
    checkpoints.close()


@pytest.mark.parametrize("variant", ["lora", "adalora", "lora_xs", "loha"])
def test_what_was_padded_is_saved_without_padding(variant: str, tmp_path: Path) -> None:
    (_, narrow), (_, wide) = (make(LoraSpec(rank, variant=variant)) for rank in (2, 4))
    padded = create_state(pad(narrow, wide), TX, jax.random.key(7))
    checkpoints = Checkpoints(tmp_path, base="b", run="r")
    checkpoints.save(padded, {})
    alone = create_state(narrow, TX, jax.random.key(7))
    assert same_bits(checkpoints.restore(alone)[0], alone)
    assert same_bits(checkpoints.restore(padded)[0], padded)
    checkpoints.close()


def test_a_folder_that_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=r"Cannot make checkpoints in .*Give a folder that can be written"
    ):
        Checkpoints(tmp_path / "file" / "checkpoints", base="b", run="r")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no"), OSError(24, "no"), ValueError("PERMISSION_DENIED: x\ny")]
)
def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    checkpoints = Checkpoints(tmp_path, base="b", run="r")
    _, state = state_of()

    def refused(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints._manager, "restore", refused)
    with pytest.raises(OSError, match="/4 cannot be read: .*It may be sound"):
        checkpoints.restore(state, 4)
    checkpoints.close()


@pytest.mark.parametrize("text", ["", "[]", '{"item_handlers": 5}'])
def test_a_damaged_note_of_orbax_keeps_no_checkpoint_from_being_read(
    tmp_path: Path, text: str
) -> None:
    _, state = state_of()
    checkpoints = Checkpoints(tmp_path, base="b", run="r")
    for number in (2, 4):
        checkpoints.save(state.replace(step=jnp.int32(number)), {"at": number})
    checkpoints.close()
    (tmp_path / "4" / "_CHECKPOINT_METADATA").write_text(text)
    checkpoints = Checkpoints(tmp_path, base="b", run="r")
    again, data = checkpoints.restore(state)
    assert int(again.step) == 4 and data == {"at": 4}
    checkpoints.save(state.replace(step=jnp.int32(6)), {})
    assert checkpoints.steps() == [4, 6]
    checkpoints.close()


@pytest.mark.parametrize("what", ["meta", "arrays"])
def test_a_damaged_checkpoint_is_named_and_can_be_passed_over(tmp_path: Path, what: str) -> None:
    _, state = state_of()
    checkpoints = Checkpoints(tmp_path / "checkpoints", base="b", run="r")
    for number in (4, 6):
        checkpoints.save(state.replace(step=jnp.int32(number)), {"at": number})
    files = [path for path in (tmp_path / "checkpoints" / "6").rglob("*") if path.is_file()]
    for path in files:
        if ("meta" in path.parts) == (what == "meta"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedCheckpoint, match=r"The checkpoint in .*/6 is damaged: "):
        checkpoints.restore(state)
    assert checkpoints.pass_over(6) == tmp_path / "checkpoints_damaged" / "6"
    again, data = checkpoints.restore(state)
    assert int(again.step) == 4 and data == {"at": 4}
    # Its step can be written again, and so can one below it.
    for number in (6, 5):
        checkpoints.save(state.replace(step=jnp.int32(number)), {})
    assert checkpoints.steps() == [5, 6] and checkpoints.restore(state)[1] == {}
    checkpoints.close()
