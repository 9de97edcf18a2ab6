"""Settings: a ConfigDict becomes frozen dataclasses here, once, or an error that says what to write
instead.

`load_config` is the door of every command. Nothing below it sees a dict.
"""

from lora_jax.config.fields import (
    ADAPTERS,
    NO_FORMAT,
    AdaLoraConfig,
    BaselineConfig,
    Columns,
    Config,
    DataConfig,
    DecodingConfig,
    HalvingConfig,
    LearningRates,
    LoraConfig,
    Method,
    MixturePart,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    SearchConfig,
    SweepConfig,
    TrainConfig,
    built,
    flatten,
)
from lora_jax.config.ids import canonical, changed, config_hash
from lora_jax.config.limits import TARGETS, resolve_targets
from lora_jax.config.load import describe, from_config_dict, load_config, to_dict, validate
from lora_jax.config.values import (
    UnknownKeyError,
    kind_of,
    read_value,
    split_items,
    value_of,
    with_value,
)

__all__ = [
    "ADAPTERS",
    "NO_FORMAT",
    "TARGETS",
    "AdaLoraConfig",
    "BaselineConfig",
    "Columns",
    "Config",
    "DataConfig",
    "DecodingConfig",
    "HalvingConfig",
    "LearningRates",
    "LoraConfig",
    "Method",
    "MixturePart",
    "ModelConfig",
    "OptimConfig",
    "QuantConfig",
    "SearchConfig",
    "SweepConfig",
    "TrainConfig",
    "UnknownKeyError",
    "built",
    "canonical",
    "changed",
    "config_hash",
    "describe",
    "flatten",
    "from_config_dict",
    "kind_of",
    "load_config",
    "read_value",
    "resolve_targets",
    "split_items",
    "to_dict",
    "validate",
    "value_of",
    "with_value",
]
