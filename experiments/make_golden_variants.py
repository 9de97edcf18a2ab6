"""Writes tests/golden/variants.npz: what PEFT 0.21.2 computes for DoRA, PiSSA, OLoRA, LoRA-GA,
VeRA, AdaLoRA, LoRA-FA, OFT, FourierFT and SHiRA.

python experiments/make_golden_variants.py  (needs the extra 'peer'; the tests that read the file
need nothing of it)

All matrices are stored as PEFT has them: W (out, in), A (r, in), B (out, r).
"""

import copy
from pathlib import Path

import numpy as np
import torch
from peft import (
    AdaLoraConfig,
    FourierFTConfig,
    LoraConfig,
    OFTConfig,
    ShiraConfig,
    VeraConfig,
    get_peft_model,
)
from peft.optimizers import create_lorafa_optimizer
from peft.tuners.lora.config import LoraGAConfig

IN, OUT, RANK, BATCH = 12, 10, 3, 5


def base():
    """One linear layer and its name."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(IN, OUT))
    return model


def layer(model):
    """The adapted layer."""
    return model.base_model.model[0]


def numpy(x):
    """A float32 array of its own."""
    return x.detach().numpy().astype(np.float32).copy()


def main():
    """Runs PEFT and writes the file."""
    out = {}
    torch.manual_seed(1)
    x, g = torch.randn(BATCH, IN), torch.randn(BATCH, OUT)
    noise = {
        "A": 0.3 * torch.randn(RANK, IN),
        "B": 0.3 * torch.randn(OUT, RANK),
        "m": 0.3 * torch.randn(OUT),
    }
    plain = base()
    out |= {"x": numpy(x), "g": numpy(g), "W": numpy(plain[0].weight), "bias": numpy(plain[0].bias)}

    dora = get_peft_model(
        copy.deepcopy(plain), LoraConfig(r=RANK, lora_alpha=6, target_modules=["0"], use_dora=True)
    )
    module = layer(dora)
    magnitude = module.lora_magnitude_vector["default"].weight
    out["dora_start_m"] = numpy(magnitude)
    with torch.no_grad():
        module.lora_A["default"].weight += noise["A"]
        module.lora_B["default"].weight += noise["B"]
        magnitude += noise["m"]
    y = dora(x)
    (y * g).sum().backward()
    parts = {
        "A": module.lora_A["default"].weight,
        "B": module.lora_B["default"].weight,
        "m": magnitude,
    }
    out |= {f"dora_{name}": numpy(value) for name, value in parts.items()} | {"dora_y": numpy(y)}
    out |= {f"dora_grad_{name}": numpy(value.grad) for name, value in parts.items()}
    out["dora_merged"] = numpy(dora.merge_and_unload()[0].weight)

    for init in ("pissa", "olora"):
        model = get_peft_model(
            copy.deepcopy(plain),
            LoraConfig(r=RANK, lora_alpha=6, target_modules=["0"], init_lora_weights=init),
        )
        module = layer(model)
        out |= {
            f"{init}_A": numpy(module.lora_A["default"].weight),
            f"{init}_B": numpy(module.lora_B["default"].weight),
        }
        out[f"{init}_residual"] = numpy(module.base_layer.weight)

    ready = copy.deepcopy(plain)
    gradient = torch.randn(OUT, IN)
    ready[0]._peft_loraga_grad = gradient
    config = LoraConfig(
        r=RANK,
        lora_alpha=6,
        target_modules=["0"],
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
    )
    module = layer(get_peft_model(ready, config))
    out |= {"lora_ga_G": numpy(gradient), "lora_ga_A": numpy(module.lora_A["default"].weight)}
    out |= {
        "lora_ga_B": numpy(module.lora_B["default"].weight),
        "lora_ga_residual": numpy(module.base_layer.weight),
    }

    vera = get_peft_model(copy.deepcopy(plain), VeraConfig(r=RANK, target_modules=["0"]))
    module = layer(vera)
    out["vera_start_d"] = numpy(module.vera_lambda_d["default"])
    with torch.no_grad():
        module.vera_lambda_b["default"] += noise["m"]
    out |= {"vera_A": numpy(module.vera_A["default"]), "vera_B": numpy(module.vera_B["default"])}
    out |= {"vera_b": numpy(module.vera_lambda_b["default"]), "vera_y": numpy(vera(x))}

    out |= adalora(plain)
    out |= lora_fa(plain, noise)
    out |= changes(plain, x)
    path = Path(__file__).parents[1] / "tests" / "golden" / "variants.npz"
    np.savez_compressed(path, **out)
    print(path, path.stat().st_size, "bytes")


def adalora(plain):
    """Gains, importance inputs and masks over the steps of a budget, driven by given values and
    gradients.
    """
    two = torch.nn.Sequential(torch.nn.Linear(IN, OUT), torch.nn.Linear(OUT, IN))
    config = AdaLoraConfig(
        init_r=4,
        target_r=2,
        tinit=2,
        tfinal=3,
        deltaT=2,
        beta1=0.85,
        beta2=0.85,
        total_step=12,
        lora_alpha=6,
        target_modules=["0", "1"],
    )
    model = get_peft_model(two, config)
    allocator = model.base_model.rankallocator
    out = {}
    named = {n: p for n, p in model.named_parameters() if "lora_" in n}
    torch.manual_seed(2)
    for step in range(1, 13):
        for name, p in named.items():
            short = name.split("model.")[-1].replace(".default", "")
            p.data = torch.randn_like(p)
            p.grad = torch.randn_like(p)
            out[f"adalora_{step}_{short}"], out[f"adalora_{step}_{short}_grad"] = (
                numpy(p),
                numpy(p.grad),
            )
        budget, _ = allocator.update_and_allocate(model.base_model, step)
        out[f"adalora_{step}_budget"] = np.int32(budget)
        for name, p in named.items():
            if "lora_E" in name:
                out[f"adalora_{step}_{name.split('model.')[-1].replace('.default', '')}_kept"] = (
                    numpy(p != 0)
                )
    return out


def changes(plain, x):
    """OFT (exact, and as the series of each length), FourierFT and SHiRA: the tensors, outputs and
    merged weights.
    """
    series = {
        f"oft_{terms}": OFTConfig(
            target_modules=["0"],
            oft_block_size=4,
            use_cayley_neumann=terms > 0,
            num_cayley_neumann_terms=terms or 5,
        )
        for terms in (0, 1, 2, 3, 5, 7)
    }
    configs = series | {
        "fourierft": FourierFTConfig(target_modules=["0"], n_frequency=30, init_weights=True),
        "shira": ShiraConfig(target_modules=["0"], r=2),
        "shira_seed": ShiraConfig(target_modules=["0"], r=2, random_seed=5),
    }
    out = {}
    torch.manual_seed(4)
    for name, config in configs.items():
        model = get_peft_model(copy.deepcopy(plain), config)
        (key, trained), *_ = [item for item in model.named_parameters() if item[1].requires_grad]
        with torch.no_grad():
            trained += 0.2 * torch.randn_like(trained)
        out |= {f"{name}_value": numpy(trained), f"{name}_y": numpy(model(x))}
        out[f"{name}_key"] = np.array(key.replace(".default", ""))
        out[f"{name}_merged"] = numpy(model.merge_and_unload()[0].weight)
    return out


def lora_fa(plain, noise):
    """B after three steps of PEFT's LoRA-FA optimiser on given gradients."""
    model = get_peft_model(
        copy.deepcopy(plain), LoraConfig(r=RANK, lora_alpha=6, target_modules=["0"])
    )
    optimizer = create_lorafa_optimizer(model, r=RANK, lora_alpha=6, lr=0.01)
    b = layer(model).lora_B["default"].weight
    grads = []
    torch.manual_seed(3)
    for _ in range(3):
        b.grad = torch.randn_like(b)
        grads.append(numpy(b.grad))
        optimizer.step()
    return {
        "fa_A": numpy(layer(model).lora_A["default"].weight),
        "fa_grads": np.stack(grads),
        "fa_B": numpy(b),
    }


if __name__ == "__main__":
    main()
