"""Writes tests/golden/bitsandbytes.json and .safetensors: the bytes of bitsandbytes 0.50.2 on its
CPU backend, for tests without torch.

Run in an environment with torch 2.13 and bitsandbytes 0.50.2 (the extra `peer`), with one thread,
since the order of its sums depends on it:

    OMP_NUM_THREADS=1 python experiments/make_golden_bitsandbytes.py

Weights are multiplicative hashes, so that every platform makes the same: see `weight`. Stored:
sha256 of codes, scales and nested scales.
"""

import hashlib
import json
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch
from bitsandbytes import functional
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden"
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
SHAPES = ((64, 128), (7, 100), (3, 33), (1, 1), (129, 256))  # (out, in)


def weight(shape: tuple[int, int], seed: int, dtype: str) -> np.ndarray:
    """(out, in) of numbers with tails, some of them alone in their range, the first row 0 for odd
    seeds; rounded to `dtype`.
    """
    index = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(1000003 * seed)
    unit = ((index * np.uint64(2654435761)) % np.uint64(2**32)).astype(np.float64) / 2**31 - 1
    w = (unit**3 * 0.125).astype(np.float32).reshape(shape)
    w[:1] *= 1 - seed % 2
    return torch.from_numpy(w).to(getattr(torch, dtype)).float().numpy()


def digest(array: torch.Tensor) -> str:
    return hashlib.sha256(array.contiguous().numpy().tobytes()).hexdigest()[:16]


def main() -> None:
    cases = []
    for kind in ("nf4", "fp4"):
        for double in (False, True):
            for block in BLOCKS:
                for shape in SHAPES if block in (64, 1024) else SHAPES[:2]:
                    for seed, dtype in enumerate(("float32", "float16", "bfloat16")):
                        w = torch.from_numpy(weight(shape, seed, dtype)).to(getattr(torch, dtype))
                        codes, state = functional.quantize_4bit(
                            w, blocksize=block, quant_type=kind, compress_statistics=double
                        )
                        case = {
                            "kind": kind,
                            "double": double,
                            "block": block,
                            "shape": shape,
                            "seed": seed,
                            "dtype": dtype,
                        }
                        case |= {
                            "codes": digest(codes),
                            "absmax": digest(state.absmax),
                            "weights": digest(w.float()),
                        }
                        case["dequantised"] = digest(
                            functional.dequantize_4bit(codes, state).float()
                        )
                        if double:
                            case |= {
                                "offset": state.offset.item(),
                                "nested": digest(state.state2.absmax),
                            }
                        cases.append(case)
    (FOLDER / "bitsandbytes.json").write_text(
        "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n"
    )
    tensors = {}
    for name, kind, double, shape in (
        ("straddling", "nf4", True, (16, 100)),
        ("even", "nf4", True, (32, 128)),
        ("plain", "fp4", False, (8, 64)),
    ):
        layer = bnb.nn.Linear4bit(shape[1], shape[0], bias=True, quant_type=kind)
        layer.weight = bnb.nn.Params4bit(
            torch.from_numpy(weight(shape, 0, "float32")),
            requires_grad=False,
            quant_type=kind,
            compress_statistics=double,
        )
        torch.nn.init.constant_(layer.bias, 0.5)
        tensors |= {f"{name}.{key}": value for key, value in layer.to("cpu").state_dict().items()}
        tensors[f"{name}.dequantised"] = functional.dequantize_4bit(
            layer.weight.data, layer.weight.quant_state
        )
    layer = bnb.nn.Linear8bitLt(64, 16, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(
        torch.from_numpy(weight((16, 64), 0, "float32")),
        requires_grad=False,
        has_fp16_weights=False,
    )
    tensors |= {f"eight.{key}": value for key, value in layer.to("cpu").state_dict().items()}
    tensors["eight.dequantised"] = functional.int8_vectorwise_dequant(
        tensors["eight.weight"], tensors["eight.SCB"]
    )
    save_file(
        {key: value.detach().contiguous() for key, value in tensors.items()},
        str(FOLDER / "bitsandbytes.safetensors"),
    )
    print(
        f"{len(cases)} cases; "
        + ", ".join(
            f"{path.name} {path.stat().st_size:,} bytes" for path in FOLDER.glob("bitsandbytes.*")
        )
    )


if __name__ == "__main__":
    main()
