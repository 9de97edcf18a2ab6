"""Settings: a ConfigDict becomes frozen dataclasses here, once, or an error that says what to write
instead.

`load_config` is the door of every command. Nothing below it sees a dict.
"""

from lora_jax.config.fields import (
    ADAPTERS,
    NO_FORMAT,
    TARGETS,
    AdaLoraConfig,
    BaselineConfig,
    Config,
    DataConfig,
    DecodingConfig,
    FieldsConfig,
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
    flatten,
    resolve_targets,
)
from lora_jax.config.ids import canonical, config_hash
from lora_jax.config.limits import validate
from lora_jax.config.load import (
    UnknownKeyError,
    describe,
    from_config_dict,
    load_config,
    read_value,
    split_items,
    to_dict,
)

__all__ = [
    "ADAPTERS",
    "NO_FORMAT",
    "TARGETS",
    "AdaLoraConfig",
    "BaselineConfig",
    "Config",
    "DataConfig",
    "DecodingConfig",
    "FieldsConfig",
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
    "canonical",
    "config_hash",
    "describe",
    "flatten",
    "from_config_dict",
    "load_config",
    "read_value",
    "resolve_targets",
    "split_items",
    "to_dict",
    "validate",
]
