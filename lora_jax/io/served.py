"""Whether a server takes an adapter in PEFT's files, before it is asked."""

from __future__ import annotations

from lora_jax.io.peft_config import read_config
from lora_jax.io.peft_export import PREFIX, PeftAdapter

# The values of vLLM's --max-lora-rank.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")


def refused_by_vllm(adapter: PeftAdapter) -> list[str]:
    """What vLLM would refuse of an adapter, or compute otherwise than PEFT, a line each; none if it
    serves it with `--max-lora-rank` at `vllm_rank(adapter)` or above.

    By the rules of its loader (vllm/lora: `PEFTHelper`, `parse_fine_tuned_lora_name`, 2025): LoRA
    alone, factors alone, one scale for all modules. Which modules of a model take adapters is known
    to its server alone.

    Args:
        adapter: what `save_peft` returned, or the second result of `load_peft`.
    """
    method = adapter.config.get("peft_type")
    if method != "LORA":
        return [f"its method is {method}, and LORA is served: merge it"]
    found = []
    if adapter.config.get("use_dora"):
        found.append("it has DoRA's magnitudes: merge it")
    if saved := adapter.config.get("modules_to_save"):
        found.append(f"modules are trained whole ({', '.join(saved)}): merge it")
    whole = [
        key.removeprefix(PREFIX)
        for key in sorted(adapter.tensors)
        if not key.endswith(_FACTORS)
        and not any(f".{module}." in key for module in saved or ())
        and not (adapter.config.get("use_dora") and "magnitude" in key)
    ]
    if whole:
        found.append(f"{len(whole)} tensors are no factors, such as {whole[0]}: merge it")
    if (rank := _largest_rank(adapter)) > VLLM_RANKS[-1]:
        found.append(f"its largest rank is {rank}, and {VLLM_RANKS[-1]} are served: merge it")

    config = read_config(adapter.config)
    modules = [
        key.removeprefix(PREFIX).removesuffix(_FACTORS[0])
        for key in sorted(adapter.tensors)
        if key.endswith(_FACTORS[0])
    ]
    usual = config.scale("")
    if others := [module for module in modules if config.scale(module) != usual]:
        found.append(
            f"{len(others)} of {len(modules)} modules have a scale other than lora_alpha / r = "
            f"{usual:g}, such as {others[0]} ({config.scale(others[0]):g}), and would be computed "
            "with that one: give all the same alpha / rank, or merge it"
        )
    return found


def vllm_rank(adapter: PeftAdapter) -> int:
    """The smallest `--max-lora-rank` of vLLM that holds the adapter.

    Raises:
        ValueError: none does.
    """
    rank = _largest_rank(adapter)
    for held in VLLM_RANKS:
        if rank <= held:
            return held
    raise ValueError(
        f"vLLM's --max-lora-rank is {VLLM_RANKS[-1]} at most, and the adapter's largest rank is "
        f"{rank}. Merge it."
    )


def _largest_rank(adapter: PeftAdapter) -> int:
    """Of `r` and of the factors that are stored."""
    stored = (
        int(tensor.shape[0])
        for key, tensor in adapter.tensors.items()
        if key.endswith((_FACTORS[0], _FACTORS[2]))
    )
    return max(int(adapter.config.get("r") or 0), *stored, 0)
