"""What users write on the command line and in config files becomes a Config, or an error that says
what to write.
"""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from lora_jax.config import (
    NO_FORMAT,
    TARGETS,
    Config,
    DataConfig,
    DecodingConfig,
    LoraConfig,
    MixturePart,
    QuantConfig,
    UnknownKeyError,
    built,
    canonical,
    changed,
    config_hash,
    describe,
    flatten,
    from_config_dict,
    load_config,
    to_dict,
    validate,
)
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.quantize import QuantSpec
from lora_jax.data.recipes import Decoding
from lora_jax.tasks.building import quant_rules

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
        ("--config.quant.double=0", "quant.double", False),
        # The last may be as long as the longest text, which is the default.
        ("--config.data.buckets=16,128", "data.buckets", (16, 128)),
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
        (
            "--config.lora.targets=query+valee",
            ValueError,
            r"config.lora.targets: Targets 'query\+valee' is neither",
        ),
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


@pytest.mark.parametrize("budget", [3, 4, 5])
def test_adalora_may_keep_all_of_its_rank_and_no_more(budget):
    values = {
        "lora": {"variant": "adalora", "rank": 4},
        "optim": {"adalora": {"target_rank": budget}},
    }
    if budget <= 4:
        assert from_config_dict(values).optim.adalora.target_rank == budget
        return
    with pytest.raises(ValueError, match="at most config.lora.rank = 4, got 5"):
        from_config_dict(values)


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
    read = {
        config.method: {key.partition(".")[0] for key in canonical(config)}
        for config in (head, lora)
    }
    assert "lora" not in read["head"] and "lora" in read["lora"] and "quant" not in read["lora"]


def test_how_scales_are_stored_is_part_of_a_run_only_where_it_is_not_the_default():
    settings = {"method": "qlora", "quant": {"format": "nf4"}}
    plain = from_config_dict(settings)
    assert set(changed(plain)) == {"method", "quant.format"}
    log = from_config_dict({"method": "qlora", "quant": {"format": "nf4", "second_level": "log"}})
    brain = from_config_dict(
        {"method": "qlora", "quant": {"format": "nf4", "double": False, "scale_dtype": "bfloat16"}}
    )
    assert len({config_hash(plain), config_hash(log), config_hash(brain)}) == 3
    assert quant_rules(log, ".*", ()) == [(".*", QuantSpec("nf4", second_level="log"))]
    assert quant_rules(brain, ".*", ()) == [
        (".*", QuantSpec("nf4", double=False, scale_dtype="bfloat16"))
    ]
    with pytest.raises(ValueError, match="needs config.quant.double=false"):
        from_config_dict({"method": "qlora", "quant": {"format": "nf4", "scale_dtype": "bfloat16"}})


REFERENCES = """
import ml_collections as m
def get_config():
    c = m.ConfigDict({"train": {"batch_size": 8, "eval_batch_size": 8}, "optim": {"eps": 1}})
    c.train.eval_batch_size = c.train.get_ref("batch_size") * 2
    return c
"""


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        ((), (8, 16)),
        (("config.train.batch_size=32",), (32, 64)),
        (("config.train.batch_size=32", "config.train.batch_size=4"), (4, 8)),
        (("config.train.eval_batch_size=5", "config.train.batch_size=32"), (32, 5)),
    ],
)
def test_what_a_file_derives_follows_an_override(tmp_path, overrides, sizes):
    (tmp_path / "c.py").write_text(REFERENCES)
    train = load_config(str(tmp_path / "c.py"), overrides).train
    assert (train.batch_size, train.eval_batch_size) == sizes


def test_an_override_may_have_another_type_than_the_file_and_stand_in_a_new_group(tmp_path):
    (tmp_path / "c.py").write_text(REFERENCES)
    overrides = ["config.optim.eps=0.5", "config.lora.layers=0,1", "config.data.decoding.beams=2"]
    config = load_config(str(tmp_path / "c.py"), overrides)
    assert (config.optim.eps, config.lora.layers, config.data.decoding.beams) == (0.5, (0, 1), 2)


@pytest.mark.parametrize(
    "text",
    [
        # A ConfigDict inside a dict, and one inside a tuple.
        """
import ml_collections as m
def get_config():
    part = m.ConfigDict({"name": "a.jsonl", "fields": {"prompt": "q"}})
    return {"data": m.ConfigDict({"task": "completion", "mixture": (part,)})}
""",
        # Annotations that are looked up in the file's own module.
        """
from __future__ import annotations
from dataclasses import asdict, dataclass
@dataclass
class Part:
    name: str = "a.jsonl"
    fields: dict = None
def get_config():
    part = Part(fields={"prompt": "q"})
    return {"data": {"task": "completion", "mixture": [asdict(part)]}}
""",
        # What lies beside the file, and beside its folder.
        """
from beside import NAME
from above.parts import columns
def get_config():
    return {"data": {"task": "completion", "mixture": [{"name": NAME, "fields": columns()}]}}
""",
    ],
)
def test_config_files_may_be_written_as_python_is(tmp_path, text):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "beside.py").write_text("NAME = 'a.jsonl'")
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "parts.py").write_text("def columns():\n    return {'prompt': 'q'}")
    (folder / "c.py").write_text(text)
    before = list(sys.path)
    (part,) = load_config(str(folder / "c.py")).data.mixture
    assert sys.path == before
    assert (part.name, dict(part.fields)) == ("a.jsonl", {"prompt": "q"})


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("lora.alpha = 8, 16", ("lora.alpha = 8, 16",)),
        ("lora.alpha = 8, 16; train.seed = 0, 1", ("lora.alpha = 8, 16", "train.seed = 0, 1")),
        ("lora.rank, lora.alpha = (4, 8), (8, 16)", ("lora.rank, lora.alpha = (4, 8), (8, 16)",)),
        (
            "('lora.alpha = 8, 16', 'train.seed = 0, 1')",
            ("lora.alpha = 8, 16", "train.seed = 0, 1"),
        ),
        ("()", ()),
    ],
)
def test_an_axis_on_the_command_line_keeps_its_commas(text, axes):
    assert load_config(DEFAULT, [f"--config.sweep.axes={text}"]).sweep.axes == axes


COLUMNS = ["config.data.recipe=classification", "config.data.fields.text=review"]


def test_columns_are_named_by_role():
    config = load_config(DEFAULT, COLUMNS)
    assert config.data.fields == {"text": "review"} and hash(config) == hash(replace(config))
    assert from_config_dict(to_dict(config)) == config
    again = load_config(DEFAULT, [*COLUMNS, "config.data.fields.text=None"])
    assert again.data.fields == {}
    # As stores hold them that were written when every role had a key.
    old = {"recipe": "classification", "fields": {"text": "review", "label": None, "words": None}}
    assert from_config_dict({"data": old}).data.fields == {"text": "review"}


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["config.data.fields.txt=a"], UnknownKeyError, "Nearest: 'data.fields.text'"),
        (
            ["config.data.fields.words=a"],
            ValueError,
            "no.* a role of .*'classification'.*text, lab",
        ),
        (["config.data.fields=a"], TypeError, "one by one: text, label"),
        (["config.data.recipe=None"], ValueError, "set config.data.recipe"),
    ],
)
def test_a_column_of_a_role_that_the_recipe_has_not_is_refused(overrides, error, words):
    with pytest.raises(error, match=words):
        load_config(DEFAULT, [*COLUMNS, *overrides])


def test_limits_hold_for_a_config_that_was_replaced():
    config = Config()
    with pytest.raises(
        ValueError, match="config.lora.rank must be 1 or more, got 0. The default is 8"
    ):
        validate(replace(config, lora=replace(config.lora, rank=0)))
    with pytest.raises(TypeError, match="config.lora.rank needs a whole number, got '8'"):
        validate(replace(config, lora=replace(config.lora, rank="8")))
    part = MixturePart("a.jsonl", train_examples=0)
    data = replace(config.data, task="completion", mixture=(part,))
    with pytest.raises(ValueError, match="data.mixture.train_examples must be 1 or more, got 0"):
        validate(replace(config, data=data))


@pytest.mark.parametrize(
    ("kind", "group"),
    [(LoraSpec, LoraConfig), (QuantSpec, QuantConfig), (Decoding, DecodingConfig)],
)
def test_no_field_of_a_spec_is_forgotten(kind, group):
    """What the library's spec has, the config sets; a default is the same, or None = as it is."""
    known = {field.name: field.default for field in fields(group)}
    # Which kernel multiplies is no property of what is stored, and no setting of a run.
    for field in (field for field in fields(kind) if field.name != "kernel"):
        assert field.name in known, f"{group.__name__} has no {field.name}"
        assert known[field.name] in (field.default, None, NO_FORMAT)


def test_specs_are_built_by_name():
    @dataclass
    class Turned:
        alpha: float
        rank: int

    assert built(Turned, LoraConfig(rank=3, alpha=5.0)) == Turned(alpha=5.0, rank=3)
    lora = LoraConfig(rank=4, alpha=2.0, dropout=0.5, layers=(1,), parts=(True, False), dora=True)
    spec = built(LoraSpec, lora)
    assert all(getattr(spec, field.name) == getattr(lora, field.name) for field in fields(LoraSpec))
    assert {field.name for field in fields(MixturePart)} <= {f.name for f in fields(DataConfig)}


def test_one_run_has_one_spelling():
    def hash_of(**groups):
        return config_hash(from_config_dict(groups))

    assert hash_of(optim={"weight_decay": -0.0}) == hash_of(optim={"weight_decay": 0.0})
    for key in ("layers", "embedding_rows"):
        assert hash_of(lora={key: [1, 0, 1]}) == hash_of(lora={key: [0, 1]}) != hash_of()
    assert hash_of(optim={"head_learning_rate": 1e-3}) == hash_of()
    assert hash_of(lora={"targets": "attention"}) != hash_of()
    assert hash_of(lora={"targets": TARGETS["all-linear"]}) == hash_of(train={"log_every": 3})
    one, other = "layers_0/.*: 2,  pooler/kernel: 4", "mine=layers_0/.*:2, pooler/kernel: 4"
    assert hash_of(lora={"ranks": one}) == hash_of(lora={"ranks": other}) != hash_of()


def test_a_new_setting_leaves_the_ids_of_runs_that_do_not_use_it():
    """Pinned: a hash that changes orphans every store."""
    assert changed(Config()) == {} and config_hash(Config()) == "44136fa3"
    nf4 = {"method": "qlora", "quant": {"format": "nf4"}, "train": {"total_steps": 10, "seed": 3}}
    config = from_config_dict(nf4)
    assert changed(config) == {
        "method": "qlora", "quant.format": "nf4", "train.total_steps": 10, "train.seed": 3,
    }  # fmt: skip
    assert config_hash(config) == "0b8adc9f"


def test_a_baseline_reads_its_own_settings():
    def hash_of(method, **baseline):
        return config_hash(from_config_dict({"method": method, "baseline": baseline}))

    assert hash_of("bottleneck", prefix=3, top_layers=1) == hash_of("bottleneck")
    assert hash_of("bottleneck", size=3) != hash_of("bottleneck")
    assert hash_of("prefix_layers", size=3) == hash_of("prefix_layers")
    assert hash_of("prefix_layers", infix=3) != hash_of("prefix_layers")
    assert hash_of("top_layers", top_layers=3) != hash_of("top_layers")


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"lora": {"init": "pissa", "init_from": "a"}}, "'pissa' and config.lora.init_from both"),
        (
            {"data": {"recipe": "regression", "label_smoothing": 0.1}},
            "label_smoothing spreads a label over classes or words",
        ),
        ({"train": {"select": "best_epoch", "eval_examples": 9}}, "the whole validation split"),
        ({"data": {"task": "completion"}, "model": {"dropout": 0.1}}, "an encoder's alone"),
        ({"data": {"task": "completion"}, "model": {"head_dropout": 0.1}}, "model.head_dropout"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(groups, says):
    with pytest.raises(ValueError, match=says):
        from_config_dict(groups)
