"""Where there is no terminal, training says how far it is every half minute, and quietly nothing."""

import pytest

from lora_jax.training import progress
from lora_jax.training.progress import TrainingBar


@pytest.mark.parametrize("quiet", [False, True])
def test_a_line_comes_every_half_minute(quiet, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with TrainingBar("[1/2] nf4, rank 4", 40, 10, quiet=quiet) as bar:
        for step, seconds, speed in (
            (11, 29.0, 5.0),
            (12, 30.0, None),
            (13, 59.0, 9e4),
            (14, 61.0, 9e4),
        ):
            now[0] = 100.0 + seconds
            bar.update(step, 0.12345, speed)
    said = capsys.readouterr()
    assert said.out == ""
    assert (
        said.err.splitlines() == []
        if quiet
        else [
            "[1/2] nf4, rank 4: step 12 of 40, loss 0.1235",
            "[1/2] nf4, rank 4: step 14 of 40, loss 0.1235, 90,000 tok/s",
        ]
    )
