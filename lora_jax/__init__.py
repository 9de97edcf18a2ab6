"""LoRA and QLoRA fine-tuning for JAX and Flax: any Linen module, honest bytes, sweeps over rank, bits and targets.

The public names, one by one; each is imported when it is first used, so that `import lora_jax` is quick and touches no device.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    # Adapting any Linen model.
    "find_sites": "lora_jax.adapt.sites",
    "Site": "lora_jax.adapt.sites",
    "adapt": "lora_jax.adapt.surgery",
    "merge": "lora_jax.adapt.surgery",
    "MergeReport": "lora_jax.adapt.surgery",
    "trainable_parameters": "lora_jax.adapt.surgery",
    "join": "lora_jax.adapt.apply",
    "split": "lora_jax.adapt.apply",
    "apply": "lora_jax.adapt.apply",
    "stack": "lora_jax.adapt.stack",
    "unstack": "lora_jax.adapt.stack",
    "LoraSpec": "lora_jax.core.lowrank",
    "LowRank": "lora_jax.core.lowrank",
    "Whole": "lora_jax.core.boxes",
    # Quantised weights.
    "QuantSpec": "lora_jax.core.quantize",
    "QuantizedArray": "lora_jax.core.quantize",
    "quantize": "lora_jax.core.quantize",
    "bytes_of": "lora_jax.core.quantize",
    "bytes_by_path": "lora_jax.core.quantize",
    "fingerprint": "lora_jax.core.fingerprint",
    # Models and files.
    "Encoder": "lora_jax.models.encoder",
    "EncoderConfig": "lora_jax.models.encoder",
    "load_encoder": "lora_jax.io.weights",
    "save_encoder": "lora_jax.io.weights",
    "save_adapter": "lora_jax.io.adapter",
    "load_adapter": "lora_jax.io.adapter",
    "resolve": "lora_jax.io.hub",
    # Language models.
    "Decoder": "lora_jax.models.decoder",
    "DecoderConfig": "lora_jax.models.decoder_config",
    "load_decoder": "lora_jax.io.decoder_weights",
    "save_decoder": "lora_jax.io.decoder_weights",
    "load_text_tokenizer": "lora_jax.io.gguf_tokenizer",
    "export_merged": "lora_jax.io.export",
    "export_gguf": "lora_jax.io.export",
    "TextGenerator": "lora_jax.generate.text",
    "Generator": "lora_jax.generate.engine",
    "Sampling": "lora_jax.generate.sampling",
    "beam_search": "lora_jax.generate.beam",
    "BeamSearch": "lora_jax.generate.beam",
    "language_loss": "lora_jax.train.language_loss",
    # Data.
    "load_data": "lora_jax.data.datasets:load",
    "load_tokenizer": "lora_jax.data.tokenizers",
    "encode": "lora_jax.data.tokenizers",
    "Batches": "lora_jax.data.batches",
    "choose_buckets": "lora_jax.data.buckets",
    # Training.
    "Config": "lora_jax.config",
    "load_config": "lora_jax.config",
    "from_config_dict": "lora_jax.config",
    "train": "lora_jax.train.loop",
    "load_run": "lora_jax.train.saved",
    "TrainState": "lora_jax.train.step",
    "create_state": "lora_jax.train.step",
    "make_train_step": "lora_jax.train.step",
    "make_eval_step": "lora_jax.train.step",
    "make_optimizer": "lora_jax.train.optim",
    "classifier_loss": "lora_jax.train.losses",
    "evaluate": "lora_jax.evaluate.evaluators",
    # Sweeps.
    "expand": "lora_jax.sweep.grid",
    "run_sweep": "lora_jax.sweep.runner",
    "RunStore": "lora_jax.sweep.store",
    "write_report": "lora_jax.sweep.report",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lora_jax' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
