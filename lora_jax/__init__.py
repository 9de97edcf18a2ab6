"""LoRA and QLoRA fine-tuning for JAX and Flax: any Linen module, honest bytes, sweeps over rank,
bits and targets.

The public names, one by one; each is imported when it is first used, so that `import lora_jax` is
quick and touches no device.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    # Adapting any Linen model.
    "find_sites": "lora_jax.adapters.sites",
    "Site": "lora_jax.adapters.sites",
    "adapt": "lora_jax.adapters.surgery",
    "merge": "lora_jax.adapters.merge",
    "merge_quantized": "lora_jax.adapters.merge",
    "MergeReport": "lora_jax.adapters.merge",
    "trainable_parameters": "lora_jax.adapters.surgery",
    "join": "lora_jax.adapters.apply",
    "split": "lora_jax.adapters.apply",
    "apply": "lora_jax.adapters.apply",
    "stack": "lora_jax.adapters.stack",
    "unstack": "lora_jax.adapters.stack",
    "weighted_sum": "lora_jax.adapters.algebra",
    "compress": "lora_jax.adapters.algebra",
    "ties": "lora_jax.adapters.algebra",
    "dare": "lora_jax.adapters.algebra",
    "factorize": "lora_jax.adapters.algebra",
    "Bank": "lora_jax.adapters.many",
    "make_bank": "lora_jax.adapters.many",
    "replace_adapter": "lora_jax.adapters.many",
    "apply_many": "lora_jax.adapters.many",
    "check_start": "lora_jax.adapters.checks",
    "check_effect": "lora_jax.adapters.checks",
    "coverage": "lora_jax.adapters.checks",
    "rule_coverage": "lora_jax.adapters.checks",
    "LoraSpec": "lora_jax.core.lowrank",
    "LowRank": "lora_jax.core.lowrank",
    "TrainedWeight": "lora_jax.core.trained_weight",
    "partition": "lora_jax.core.trainable",
    "combine": "lora_jax.core.trainable",
    "Rows": "lora_jax.core.rows",
    "rows_of": "lora_jax.core.rows",
    "input_moments": "lora_jax.adapters.calibration",
    "weight_gradients": "lora_jax.adapters.calibration",
    "eva_ranks": "lora_jax.adapters.calibration",
    "limit_ranks": "lora_jax.adapters.calibration",
    "prune": "lora_jax.training.variants",
    "fold_into_zeros": "lora_jax.core.qa_lora",
    # What the papers compare with.
    "bottlenecks": "lora_jax.adapters.baselines",
    "ia3": "lora_jax.adapters.baselines",
    "prefix_embedding": "lora_jax.adapters.baselines",
    "prefix_layers": "lora_jax.adapters.baselines",
    "top_layers": "lora_jax.adapters.baselines",
    # Quantised weights.
    "QuantSpec": "lora_jax.core.quantize",
    "QuantizedArray": "lora_jax.core.quantize",
    "quantize": "lora_jax.core.quantize",
    "dequantize": "lora_jax.core.quantize",
    "bytes_of": "lora_jax.core.quantize",
    "bytes_by_path": "lora_jax.core.quantize",
    "Format": "lora_jax.core.codebooks",
    "register_format": "lora_jax.core.codebooks:register",
    "scale_search": "lora_jax.core.calibrate",
    "gptq": "lora_jax.core.calibrate",
    "awq": "lora_jax.core.calibrate",
    "second_moment": "lora_jax.core.calibrate",
    "save_quantized": "lora_jax.io.quantized",
    "load_quantized": "lora_jax.io.quantized",
    "fingerprint": "lora_jax.core.fingerprint",
    # Models and files.
    "Encoder": "lora_jax.models.encoder",
    "EncoderConfig": "lora_jax.models.encoder",
    "DebertaConfig": "lora_jax.models.deberta",
    "load_encoder": "lora_jax.io.weights",
    "save_encoder": "lora_jax.io.weights",
    "save_adapter": "lora_jax.io.adapter",
    "load_adapter": "lora_jax.io.adapter",
    "load_peft": "lora_jax.io.peft",
    "save_peft": "lora_jax.io.peft",
    "load_loralib": "lora_jax.io.loralib",
    "encoder_names": "lora_jax.io.weights",
    "resolve": "lora_jax.io.hub",
    # Language models.
    "Decoder": "lora_jax.models.decoder",
    "DecoderConfig": "lora_jax.models.decoder_config",
    "load_model": "lora_jax.io.weights",
    "save_model": "lora_jax.io.weights",
    "open_model": "lora_jax.io.weights",
    "Name": "lora_jax.io.names",
    "decoder_names": "lora_jax.io.weights",
    "load_decoder": "lora_jax.io.weights",
    "T5": "lora_jax.models.t5",
    "T5Config": "lora_jax.models.t5",
    "load_t5": "lora_jax.io.weights",
    "save_t5": "lora_jax.io.weights",
    "t5_names": "lora_jax.io.weights",
    "save_decoder": "lora_jax.io.weights",
    "load_text_tokenizer": "lora_jax.io.gguf_tokenizer",
    "export_merged": "lora_jax.io.export",
    "export_gguf": "lora_jax.io.export",
    "TextGenerator": "lora_jax.generation.text",
    "Generator": "lora_jax.generation.engine",
    "Sampling": "lora_jax.generation.sampling",
    "beam_search": "lora_jax.generation.beam",
    "BeamSearch": "lora_jax.generation.beam",
    "language_loss": "lora_jax.tasks.language_loss",
    # Data.
    "load_data": "lora_jax.data.examples:load",
    "load_tokenizer": "lora_jax.io.encoder_tokenizer",
    "encode": "lora_jax.data.encoding",
    "Batches": "lora_jax.data.batches",
    "choose_buckets": "lora_jax.data.buckets",
    # Training.
    "Config": "lora_jax.config",
    "load_config": "lora_jax.config",
    "from_config_dict": "lora_jax.config",
    "train": "lora_jax.training.loop",
    "load_run": "lora_jax.training.saved",
    "TrainState": "lora_jax.training.step",
    "create_state": "lora_jax.training.step",
    "make_train_step": "lora_jax.training.step",
    "make_eval_step": "lora_jax.training.step",
    "make_optimizer": "lora_jax.training.optim",
    "classifier_loss": "lora_jax.tasks.heads",
    "evaluate": "lora_jax.training.evaluate",
    # Tasks, and evaluation that can be trusted.
    "RECIPES": "lora_jax.data.recipes",
    "to_completions": "lora_jax.data.completions",
    "find_contamination": "lora_jax.data.contamination",
    "metric": "lora_jax.metrics.table",
    "predict": "lora_jax.tasks.predictions",
    "generate_predictions": "lora_jax.tasks.generated",
    "intervals": "lora_jax.evaluation.comparison",
    "compare": "lora_jax.evaluation.comparison",
    "forgetting": "lora_jax.analysis.forgetting",
    "adapter_matrix": "lora_jax.analysis.domains",
    "home_wins": "lora_jax.analysis.domains",
    "fit_budget": "lora_jax.training.memory",
    # Sweeps.
    "expand": "lora_jax.sweeps.grid",
    "run_id": "lora_jax.sweeps.grid",
    "run_sweep": "lora_jax.sweeps.runner",
    "RunStore": "lora_jax.sweeps.store",
    "write_report": "lora_jax.sweeps.report",
    "report_figure": "lora_jax.sweeps.plots:figure",
    "cells_of": "lora_jax.sweeps.cells",
    "findings": "lora_jax.sweeps.findings:find",
    "export_runs": "lora_jax.sweeps.export:export",
    "run_on": "lora_jax.sweeps.executors",
    # Looking inside trained and quantised weights.
    "input_directions": "lora_jax.analysis.subspace",
    "phi": "lora_jax.analysis.subspace",
    "random_phi": "lora_jax.analysis.subspace",
    "sampled_phi": "lora_jax.analysis.subspace",
    "shared_start": "lora_jax.analysis.subspace",
    "shared_directions": "lora_jax.analysis.subspace",
    "update_svd": "lora_jax.analysis.spectra",
    "dense_svd": "lora_jax.analysis.spectra",
    "rank_for": "lora_jax.analysis.spectra",
    "effective_rank": "lora_jax.analysis.spectra",
    "amplification": "lora_jax.analysis.amplification",
    "overlap_with_top": "lora_jax.analysis.amplification",
    "projections": "lora_jax.analysis.amplification",
    "find_intruders": "lora_jax.analysis.intruders",
    "scale_intruders": "lora_jax.analysis.intruders",
    "best_rate": "lora_jax.analysis.curves",
    "rate_ratio": "lora_jax.analysis.curves",
    "forgetting_at": "lora_jax.analysis.curves",
    "envelope": "lora_jax.analysis.curves",
    "paired_bootstrap": "lora_jax.statistics.bootstrap",
    # Statistics of paired scores.
    "over_seeds": "lora_jax.statistics.interval",
    "paired_test": "lora_jax.statistics.paired",
    "holm": "lora_jax.statistics.paired",
    "detectable_difference": "lora_jax.statistics.paired",
    "decompose": "lora_jax.statistics.variance",
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
