"""What users write on the command line and in config files becomes a Config, or an error that says
what to write.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from lora_jax.config import (
    Config,
    UnknownKeyError,
    canonical,
    config_hash,
    describe,
    flatten,
    from_config_dict,
    load_config,
    to_dict,
)
from lora_jax.core.quantize import QuantSpec
from lora_jax.tasks.specs import quant_spec

DEFAULT = str(Path(__file__).parents[1] / "configs" / "default.py")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("--config.sweep.rank=1,2,4", "sweep.rank", (1, 2, 4)),
        ("--config.sweep.rank=(1, 2, 4)", "sweep.rank", (1, 2, 4)),
        ("config.sweep.rank=[8]", "sweep.rank", (8,)),
        ("--config.sweep.rank=()", "sweep.rank", ()),
        ("--config.optim.learning_rate=1e-3", "optim.learning_rate", 1e-3),
        ("--config.optim.learning_rate=1", "optim.learning_rate", 1.0),
        ("--config.quant.block_size=None", "quant.block_size", None),
        ("--config.model.remat=true", "model.remat", True),
        ("--config.lora.targets='attention'", "lora.targets", "attention"),
        (
            r"--config.lora.targets=layers_[01]/mlp/(up|down)/kernel",
            "lora.targets",
            r"layers_[01]/mlp/(up|down)/kernel",
        ),
        ("--config.sweep.learning_rate.full=0.5", "sweep.learning_rate.full", 0.5),
        ("--config.out=/tmp/x=y", "out", "/tmp/x=y"),
    ],
)
def test_overrides_take_the_type_of_their_key(override, key, value):
    assert flatten(load_config(DEFAULT, [override]))[key] == value


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        (
            "--config.lora.rnk=4",
            UnknownKeyError,
            r"no setting config.lora.rnk.*Nearest: 'lora.rank'",
        ),
        ("--config.lor.rank=4", UnknownKeyError, r"no setting config.lor\b.*Nearest: 'lora'"),
        ("--config.rank=4", UnknownKeyError, r"'lora.rank'"),
        ("--config.lora.rank.x=4", UnknownKeyError, "is a value, not a group"),
        ("--config.lora.rank=four", TypeError, r"needs a whole number, got 'four'"),
        ("--config.lora.rank=4.5", TypeError, "whole number"),
        ("--config.lora.rank=0", ValueError, "must be 1 or more"),
        ("--config.lora.dropout=1", ValueError, "below 1"),
        ("--config.optim.learning_rate=inf", ValueError, "finite"),
        ("--config.model.remat=maybe", TypeError, "true or false"),
        ("--config.method=loar", ValueError, "Nearest: 'lora'"),
        ("--config.sweep.format=nf44", ValueError, "Nearest: 'nf4'"),
        ("--config.sweep.targets=all-liner", ValueError, "Nearest name: 'all-linear'"),
        ("--config.lora.targets=layers/(", ValueError, "not a regex"),
        ("--config.quant.block_size=7", ValueError, "even number"),
        ("--config.data.buckets=32,16", ValueError, "increase"),
        ("--config.data.buckets=16,32", ValueError, "must hold a text of config.data.max_length"),
        ("--config.train.accumulate=5", ValueError, "must divide.*Nearest that does: 4"),
        ("--config.method=qlora", ValueError, "needs a quantised base"),
        ("--config.quant.format=nf4", ValueError, "'qlora'"),
        ("--config.method=full", ValueError, "needs adapters"),
        ("--config.lora.layers=()", ValueError, "at least one layer"),
        ("--lora.rank=4", ValueError, "--config.group.key=value"),
        ("--config.lora.rank", ValueError, "--config.group.key=value"),
    ],
)
def test_a_wrong_override_is_an_error_that_says_what_to_write(override, error, words):
    with pytest.raises(error, match=words):
        load_config(DEFAULT, [override])


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("def get_config(:", ValueError, "SyntaxError"),
        ("import no_such_module", ValueError, "no_such_module"),
        ("def get_confg(): return {}", ValueError, "get_confg"),
        ("def get_config(): return 3", TypeError, "got int"),
        ("def get_config(): return {'lora': {'rank': 'four'}}", TypeError, "whole number"),
        ("def get_config(): return {'loraa': {}}", UnknownKeyError, "'lora'"),
        ("def get_config(): return {'lora': 4}", TypeError, "is a group of settings"),
        ("def get_config(): raise RuntimeError('boom')", ValueError, "boom"),
        ("def get_config(x): return {}", ValueError, "does not fit"),
        (
            (
                "import ml_collections as m\ndef get_config(): return m.ConfigDict({'out': "
                "m.config_dict.placeholder(str, True)})"
            ),
            ValueError,
            "placeholder",
        ),
    ],
)
def test_a_wrong_config_file_is_an_error(tmp_path, text, error, words):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(error, match=words):
        load_config(str(tmp_path / "c.py"))


def test_a_missing_config_file_lists_its_neighbours():
    with pytest.raises(FileNotFoundError, match=r"default\.py"):
        load_config(DEFAULT.replace("default", "defualt"))


def test_dicts_round_trip_and_describe_marks_what_differs():
    config = from_config_dict({"lora": {"rank": 3}, "sweep": {"rank": [1, 2]}})
    assert from_config_dict(to_dict(config)) == config
    assert [key for key, _, differs in describe(config) if differs] == ["lora.rank", "sweep.rank"]


def test_the_hash_ignores_what_the_method_does_not_read():
    head = from_config_dict({"method": "head"})
    assert config_hash(replace(head, lora=replace(head.lora, rank=2))) == config_hash(head)
    lora = Config()
    assert config_hash(replace(lora, quant=replace(lora.quant, block_size=128))) == config_hash(
        lora
    )
    assert "lora" not in canonical(head) and "quant" not in canonical(lora)


def test_how_scales_are_stored_is_part_of_a_run_only_where_it_is_not_the_default():
    settings = {"method": "qlora", "quant": {"format": "nf4"}}
    plain = from_config_dict(settings)
    assert (
        "second_level" not in canonical(plain)["quant"]
        and "scale_dtype" not in canonical(plain)["quant"]
    )
    log = from_config_dict({"method": "qlora", "quant": {"format": "nf4", "second_level": "log"}})
    brain = from_config_dict(
        {"method": "qlora", "quant": {"format": "nf4", "double": False, "scale_dtype": "bfloat16"}}
    )
    assert len({config_hash(plain), config_hash(log), config_hash(brain)}) == 3
    assert quant_spec(log) == QuantSpec("nf4", second_level="log")
    assert quant_spec(brain) == QuantSpec("nf4", double=False, scale_dtype="bfloat16")
    with pytest.raises(ValueError, match="needs config.quant.double=false"):
        from_config_dict({"method": "qlora", "quant": {"format": "nf4", "scale_dtype": "bfloat16"}})
