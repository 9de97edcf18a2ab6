"""Writes tests/golden/adam8bit.npz: 12 steps of bitsandbytes 0.50.2's AdamW8bit on its CPU backend,
for tests without torch.

Run in an environment with torch 2.13 and bitsandbytes 0.50.2 (the extra `peer`):

    python experiments/make_golden_adam8bit.py

Parameters and gradients are multiplicative hashes, so that every platform makes the same: see
`numbers`. `large` (8, 1024) and `odd` (4500,) have moments in 8 bits, `small` (8, 256) has them in
float32. Stored: parameters, codes and scales after step 12.
"""

from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch

SHAPES = {"large": (8, 1024), "odd": (4500,), "small": (8, 256)}
STEPS = 12
SETTINGS = dict(lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)


def numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers with both signs, from 0.5 to 1.5 times a power of ten that is one for each run of
    1024.

    Gradients that are far smaller than others of their block are left out: there the two differ on
    purpose. Rounded to the nearest level, a second moment becomes 0 where the first does not, and
    the step is as large as `eps` lets it be; ours never rounds a positive one to 0.
    """
    index = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(1000003 * seed)
    unit = ((index * np.uint64(2654435761)) % np.uint64(2**32)).astype(np.float64) / 2**31 - 1
    sizes = 10.0 ** -(np.arange(np.prod(shape)) // 1024 % 4)
    return ((unit + 0.5 * np.sign(unit)) * sizes).astype(np.float32).reshape(shape)


def main() -> None:
    params = {
        name: torch.nn.Parameter(torch.from_numpy(numbers(shape, 99)))
        for name, shape in SHAPES.items()
    }
    tx = bnb.optim.AdamW8bit(params.values(), **SETTINGS)
    for step in range(STEPS):
        for name, p in params.items():
            p.grad = torch.from_numpy(numbers(SHAPES[name], step))
        tx.step()
    arrays = {f"{name}.param": p.detach().numpy() for name, p in params.items()}
    for name, p in params.items():
        for key in ("state1", "state2", "absmax1", "absmax2"):
            if key in tx.state[p]:
                arrays[f"{name}.{key}"] = tx.state[p][key].numpy()
    path = Path(__file__).resolve().parents[1] / "tests" / "golden" / "adam8bit.npz"
    np.savez_compressed(path, **arrays)
    print({name: (array.dtype, array.shape) for name, array in arrays.items()}, path.stat().st_size)


if __name__ == "__main__":
    main()
