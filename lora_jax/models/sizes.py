"""The sizes of pretrained models that papers name, by the ids that presets give them: enough to count
their weights and memory without their files.
"""

from __future__ import annotations

from typing import Any

from lora_jax.models.deberta import DebertaConfig
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.encoder_parts import EncoderConfig
from lora_jax.models.kinds import ModelConfig
from lora_jax.models.rotary import Rotary
from lora_jax.models.t5 import T5Config


def _roberta(layers: int, width: int, heads: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=50_265, hidden_size=width, num_layers=layers, num_heads=heads,
        intermediate_size=4 * width, max_positions=512, type_vocab_size=1, family="roberta",
    )  # fmt: skip


def _gpt(layers: int, width: int, heads: int, positions: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=50_257, hidden_size=width, num_layers=layers, num_heads=heads,
        num_kv_heads=heads, head_dim=width // heads, intermediate_size=4 * width,
        max_positions=positions, family="gpt2", norm="layer", activation="gelu_tanh", gated=False,
        qkv_bias=True, out_bias=True, mlp_bias=True, rotary=None, tied=True,
    )  # fmt: skip


def _llama(layers: int, width: int, heads: int, inner: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=32_000, hidden_size=width, num_layers=layers, num_heads=heads,
        num_kv_heads=heads, head_dim=width // heads, intermediate_size=inner, max_positions=2048,
    )  # fmt: skip


def _llama3(layers: int, width: int, heads: int, inner: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=128_256, hidden_size=width, num_layers=layers, num_heads=heads, num_kv_heads=8,
        head_dim=128, intermediate_size=inner, max_positions=8192, norm_eps=1e-5,
        rotary=Rotary(base=500_000.0),
    )  # fmt: skip


def _gemma3(
    layers: int, width: int, heads: int, kv: int, head: int, inner: int, **others: Any
) -> DecoderConfig:
    """Five layers that see the last tokens, then one that sees all."""
    return DecoderConfig(
        num_layers=layers, hidden_size=width, num_heads=heads, num_kv_heads=kv, head_dim=head,
        intermediate_size=inner, family="gemma3_text", post_norms=True, activation="gelu_tanh",
        qk_norm=True, tied=True, embedding_scale=width**0.5, local_rotary=Rotary(base=1e4),
        local_layers=tuple((n + 1) % 6 > 0 for n in range(layers)), **others,
    )  # fmt: skip


_GEMMA3_270M = _gemma3(
    18, 640, 4, 1, 256, 2048, vocab_size=262_144, max_positions=32_768, window=512,
    query_scale=256**-0.5, rotary=Rotary(base=1e6),
)  # fmt: skip
_GEMMA3_27B = _gemma3(
    62, 5376, 32, 16, 128, 21_504, vocab_size=262_208, max_positions=131_072, window=1024,
    query_scale=168**-0.5, rotary=Rotary(base=1e6, scaling="linear", factor=8.0),
)  # fmt: skip


def _t5(layers: int, width: int, heads: int, inner: int) -> T5Config:
    return T5Config(
        vocab_size=32_128, hidden_size=width, num_layers=layers, num_decoder_layers=layers,
        num_heads=heads, head_dim=64, intermediate_size=inner, activation="gelu_tanh", gated=True,
        tied=False, scaled=False,
    )  # fmt: skip


# Liu et al. 2019; He et al. 2021; Radford et al. 2019; Brown et al. 2020 (Table 2.1); Touvron et
# al. 2023 (Table 2); Llama team 2024 (Table 3); Gemma team 2025; T5 1.1 as its repository has it.
SIZES: dict[str, ModelConfig] = {
    "FacebookAI/roberta-base": _roberta(12, 768, 12),
    "FacebookAI/roberta-large": _roberta(24, 1024, 16),
    "microsoft/deberta-v2-xxlarge": DebertaConfig(
        vocab_size=128_100,
        hidden_size=1536,
        num_layers=48,
        num_heads=24,
        intermediate_size=6144,
        max_positions=512,
        conv_size=3,
    ),
    "openai-community/gpt2-medium": _gpt(24, 1024, 16, 1024),
    "openai-community/gpt2-large": _gpt(36, 1280, 20, 1024),
    "gpt3-175b": _gpt(96, 12_288, 96, 2048),
    "huggyllama/llama-7b": _llama(32, 4096, 32, 11_008),
    "huggyllama/llama-13b": _llama(40, 5120, 40, 13_824),
    "huggyllama/llama-30b": _llama(60, 6656, 52, 17_920),
    "huggyllama/llama-65b": _llama(80, 8192, 64, 22_016),
    "meta-llama/Meta-Llama-3-8B": _llama3(32, 4096, 32, 14_336),
    "meta-llama/Meta-Llama-3-70B": _llama3(80, 8192, 64, 28_672),
    "google/gemma-3-270m": _GEMMA3_270M,
    "google/gemma-3-27b-pt": _GEMMA3_27B,
    "google/t5-v1_1-small": _t5(8, 512, 6, 1024),
    "google/t5-v1_1-base": _t5(12, 768, 12, 2048),
    "google/t5-v1_1-large": _t5(24, 1024, 16, 2816),
    "google/t5-v1_1-xl": _t5(24, 2048, 32, 5120),
    "google/t5-v1_1-xxl": _t5(24, 4096, 64, 10_240),
}
