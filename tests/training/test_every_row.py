"""Every row of every table trains: initialisers, variants, formats, methods, optimisers, and recipes
with their heads. A row that is added is tested by being there.
"""

import functools
import json
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoder import save_tiny_encoder
from tiny_language import write_tiny_model
from tiny_tasks import HEADS, records

from lora_jax.adapters.checks import check_effect
from lora_jax.adapters.sites import find_sites
from lora_jax.analysis.domains import adapter_matrix
from lora_jax.config import from_config_dict, to_dict
from lora_jax.config.fields import BaselineConfig, Method, OptimConfig
from lora_jax.core.codebooks import FORMATS
from lora_jax.core.init import INITIALIZERS
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import dequantize
from lora_jax.core.variants import VARIANTS
from lora_jax.data.encoding import Encoded
from lora_jax.data.recipes import RECIPES
from lora_jax.io.adapter import load_adapter
from lora_jax.models.encoder import Encoder, EncoderConfig
from lora_jax.models.kinds import example_inputs
from lora_jax.tasks.encoder import EncoderTask
from lora_jax.training.loop import train
from lora_jax.training.run import initial_state
from lora_jax.training.saved import load_run

NF4 = {"format": "nf4", "block_size": 4, "double": False, "targets": "attention"}
ADALORA = {"adalora": {"target_rank": 1.0, "warmup_steps": 0, "final_steps": 1, "interval": 1}}


def lora(**fields):
    return {"lora": {"rank": 2, "alpha": 4.0, "targets": "query+value"} | fields}


def initialiser(name):
    quantised = {"method": "qlora", "quant": NF4} if INITIALIZERS[name].makes_up else {}
    return lora(init=name, calibration_batches=1) | quantised


def rows():
    """(name of the row, its settings), for a classifier that is already there."""
    for name in INITIALIZERS:
        yield f"init {name}", initialiser(name)
    for name in VARIANTS:
        optim = {"optim": ADALORA} if name == "adalora" else {}
        rank = 1 if name == "lokr" else 2  # of blocks of 4 x 4
        yield f"variant {name}", lora(variant=name, group_size=4, rank=rank) | optim
    yield "dora", lora(dora=True)
    for name in FORMATS:
        yield f"format {name}", lora() | {"method": "qlora", "quant": NF4 | {"format": name}}
    for name in ("fit=hqq", "fit=entropy", "rotation=hadamard"):
        quant = NF4 | dict([name.split("=")])
        yield f"quant.{name}", lora() | {"method": "qlora", "quant": quant}
    for name in typing.get_args(Method):
        quant = {"quant": NF4} if name == "qlora" else {}
        yield f"method {name}", {"method": name, "baseline": {"top_layers": 1}} | quant
    for kind in typing.get_args(typing.get_type_hints(BaselineConfig)["kind"]):
        yield f"bottleneck {kind}", {"method": "bottleneck", "baseline": {"kind": kind, "size": 2}}
    for name in typing.get_args(typing.get_type_hints(OptimConfig)["name"]):
        yield f"optimiser {name}", lora() | {"optim": {"name": name}}
    for name in typing.get_args(typing.get_type_hints(OptimConfig)["factors"])[1:]:
        yield f"factors {name}", lora() | {"optim": {"factors": name}}


ROWS = dict(rows())
WORDS = {
    "pair_regression": lambda text: {"text": text, "text_pair": "the film", "score": 2.0},
    "instruction": lambda text: {"instruction": text, "input": "ab", "output": text},
    "chat": lambda text: {
        "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "ba"}]
    },
    "summarisation": lambda text: {"text": text, "summary": "ab"},
    "translation": lambda text: {"source": text, "target": "ba"},
    "code": lambda text: {"task": text, "code": "ab"},
    "creative": lambda text: {"prompt": text, "text": "ba"},
    "table_to_text": lambda text: {"table": text, "text": "ab"},
    "completion": lambda text: {"prompt": text, "completion": "ba"},
}
TRAIN = {"total_steps": 2, "batch_size": 4, "eval_batch_size": 4, "checkpoint_every": 2}


@functools.cache
def classifier():
    """One layer, ten random sentences, and no files."""
    rng = np.random.default_rng(0)
    sizes = EncoderConfig(
        vocab_size=30,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        max_positions=32,
        num_classes=2,
    )
    model = Encoder(sizes, scan=False)
    tokens = jnp.ones((1, 8), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens, tokens > 0)["params"]

    def encoded(count):
        tokens = [rng.integers(1, 30, 8).astype(np.int32) for _ in range(count)]
        labels = np.arange(count, dtype=np.int32) % 2
        types = [np.zeros_like(ids) for ids in tokens]
        return Encoded(tokens, types, labels, 8, 0, 0, "made up")

    return EncoderTask(
        model=model,
        params=params,
        sites=find_sites(model, *example_inputs(model.config)),
        splits={"train": encoded(8), "validation": encoded(4), "test": encoded(4)},
        buckets=(8,),
        label_names=("a", "b"),
        note="",
        fingerprint=lambda: "base",
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder / "decoder")
    save_tiny_encoder(folder / "encoder")
    return folder


def of_recipe(name, models, folder):
    """The config of a recipe with the kind of model that it needs."""
    if name in HEADS:
        made = records(name, 60)
    else:
        letters = ("the film is good bad plain dull" if name in WORDS else "").split()
        texts = [
            f"{letters[n % 7]} {letters[n // 7 % 7]} {'is ' * (n // 49)}film" for n in range(90)
        ]
        made = [WORDS[name](text) for text in texts]
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in made) + "\n")
    decoder = RECIPES[name].head == "completion"
    data = {"name": str(path), "recipe": name, "max_length": 48 if decoder else 24}
    kind = {"task": "completion"} if decoder else {}
    model = {"name": str(models / ("decoder" if decoder else "encoder")), "scan": False}
    return lora() | {"model": model, "data": data | kind, "train": TRAIN}


# A number that is added to every choice's changes no choice: nothing trains the bias of that head.
NO_BIAS = pytest.mark.filterwarnings("ignore:1 trained arrays never had .* classifier/bias")
RECIPE_ROWS = [
    pytest.param(f"recipe {name}", marks=[NO_BIAS] * (recipe.head == "choice"))
    for name, recipe in RECIPES.items()
]


@pytest.mark.slow
@pytest.mark.parametrize("row", [*ROWS, *RECIPE_ROWS])
def test_a_row_trains_two_steps(row, models, tmp_path):
    """A trained array that no gradient reached is a warning, and so an error here."""
    if row.startswith("recipe"):
        config, task = from_config_dict(of_recipe(row.split()[1], models, tmp_path)), None
    else:
        config = from_config_dict({"train": TRAIN, "data": {"max_length": 8}} | ROWS[row])
        task = classifier()
    result = train(config, tmp_path / "run", task=task, quiet=True)
    assert result.steps == 2 and np.isfinite(result.value("test", "loss"))
    check_effect(load_adapter(tmp_path / "run" / "adapter")[0])


@pytest.mark.parametrize("init", [n for n, one in INITIALIZERS.items() if one.makes_up])
def test_the_model_before_training_is_the_codes_with_the_factors_that_make_up_for_them(
    init, models, tmp_path
):
    settings = of_recipe("completion", models, tmp_path) | initialiser(init)
    config = from_config_dict(settings)
    train(config, tmp_path / "run", quiet=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(config)))
    run = load_run(tmp_path / "run")
    used = initial_state(config, run.task, 2)[0]
    jax.tree.map(np.testing.assert_array_equal, run.frozen, used)
    frozen, base, start = flatten(run.frozen), flatten(run.task.read()), run.without_adapter()
    assert start
    for path, low in start.items():
        error = dequantize(frozen[path]) - base[path]
        assert jnp.linalg.norm(error + low.delta()) < jnp.linalg.norm(error), path
    with pytest.raises(ValueError, match="make up for its base's rounding"):
        adapter_matrix({"one": run})
