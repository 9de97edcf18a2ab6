"""`lora-jax inspect MODEL`, and what a sweep says of targets before its first run."""

import re
from pathlib import Path

import jax
import pytest
from tiny_families import write_t5

from lora_jax.adapters.sites import find_sites
from lora_jax.adapters.surgery import adapt
from lora_jax.cli import main
from lora_jax.config import TARGETS
from lora_jax.core.lowrank import LoraSpec
from lora_jax.io.hub import resolve
from lora_jax.io.weights import load_decoder, load_encoder, load_t5
from lora_jax.models.kinds import example_inputs, model_of
from lora_jax.tasks.targets import count_parameters, count_weights, in_model, open_sites

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(
    str(path.parent.relative_to(GOLDEN))
    for path in GOLDEN.rglob("config.json")
    if (path.parent / "model.safetensors").is_file() and "peft" not in path.parts
)
LOADERS = {"encoder": load_encoder, "decoder": load_decoder, "t5": load_t5}


@pytest.mark.parametrize("kind", LOADERS)
def test_what_is_listed_is_what_adapt_takes_and_no_weight_is_read(
    kind, tiny, tmp_path, capsys, monkeypatch
):
    folder = {"encoder": tiny["config.model.name"], "decoder": GOLDEN / "decoders" / "gpt2"}.get(
        kind
    )
    folder = folder or write_t5(tmp_path / "t5")
    config, params = LOADERS[kind](folder)[:2]
    model = model_of(config)
    sites = find_sites(model, *example_inputs(config))

    def read(*_, **__):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("lora_jax.io.stored_model.read_leaf", read)
    assert main(["inspect", str(folder), "--pattern", "mine=.*mlp/up/kernel"]) == 0
    rows = [
        re.split(r"\s*│\s*", line)[1:-1]
        for line in capsys.readouterr().out.splitlines()
        if "│" in line
    ]
    shown = {row[0]: row[1:] for row in rows}
    opened, key = open_sites(str(folder)), jax.random.key(0)

    for name, regex in TARGETS.items():
        rules = [(in_model(regex, sites) if kind == "t5" else regex, LoraSpec(rank=8))]
        made = jax.eval_shape(
            lambda given, rules=rules: adapt(model, given, (), lora=rules, key=key, sites=sites)[1],
            params,
        )
        numbers = sum(leaf.a.size + leaf.b.size for leaf in made.values())
        taken = opened.taken(name)
        assert {site.path for site in taken} == set(made)
        assert count_parameters(taken, 8) == numbers
        assert shown[name] == [str(count_weights(taken)), f"{numbers:,}", rules[0][0]]
    # A pattern that is listed names its site, with its layers stacked or apart.
    patterns = [row[0] for row in rows if len(row) == 5]
    for scan in (True, False):
        paths = [
            path
            for path, site in open_sites(str(folder), scan=scan).sites.items()
            if site.is_matrix
        ]
        assert all(any(re.fullmatch(one, path) for one in patterns) for path in paths)


@pytest.mark.parametrize("folder", [*FOLDERS, "a BERT"])
def test_every_named_set_takes_what_its_name_says_in_every_family(folder, tiny, tmp_path):
    path = GOLDEN / folder if folder in FOLDERS else Path(tiny["config.model.name"])
    opened = open_sites(str(path))
    taken = {name: {site.path for site in opened.taken(name)} for name in TARGETS}

    linear = {
        site.path for site in opened.sites.values() if site.kind == "Dense" and site.is_matrix
    }
    within = {path for path in linear if re.search(r"(^|/)(layers/|pooler)", path)}
    attention = {path for path in within if re.search("/(attn|cross)/", path)}
    # DeBERTa's projections of relative positions are no projections of tokens; a router chooses
    # experts and is none. all-linear has them.
    tokens = {path for path in attention if "/pos_" not in path}
    assert taken["query+value"] == {path for path in tokens if re.search("/[qv]/kernel$", path)}
    assert taken["attention"] == tokens
    chooses = {path for path in within if path.endswith(("/router/kernel", "/shared_gate/kernel"))}
    assert taken["mlp"] == {path for path in within if "/mlp/" in path} - chooses
    assert taken["all-linear"] == within
    assert all(taken.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--targets", "--pattern", "ffn=layers/mlpp/.*"], "targets 'ffn': rule 'layers/mlpp/.*' matches none of 21 sites. Nearest: 'layers/mlp/up/"),
        (["--targets", "--pattern", "layers/attn/.*"], "weights that are no matrices, such as 'layers/attn/k/bias'"),
        (["--pattern", "mlp", "--adapter"], "--pattern goes with a model"),
    ],
)  # fmt: skip
def test_what_takes_nothing_is_one_paragraph(options, words, capsys):
    # Its file has a head and no pooler: what is new in training is no site.
    assert main(["inspect", str(GOLDEN / "roberta"), *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def swept(tiny, tmp_path, targets, *more):
    file = tmp_path / "c.py"
    file.write_text("def get_config():\n    return dict(train=dict(total_steps=1))\n")
    given = {**tiny, "config.out": str(tmp_path / "runs"), "config.sweep.targets": targets}
    return main(
        [
            "sweep",
            "--config",
            str(file),
            *(f"--{key}={value}" for key, value in given.items()),
            *more,
        ]
    )


def test_a_sweep_is_told_of_targets_before_its_first_run(tiny, tmp_path, capsys):
    assert swept(tiny, tmp_path, "ffn=.*/mlp/(up|down)/kernel,mlp,attention", "--dry-run") == 0
    said = capsys.readouterr().err
    assert "Targets 'ffn' and 'mlp' take the same 4 weights of" in said
    for more in (["--quiet"], ["--dry-run"]):
        assert swept(tiny, tmp_path, "attention,ffn=.*/mlq/up/kernel", *more) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert (
            "targets 'ffn': rule '.*/mlq/up/kernel' matches none of" in said
            and "/mlp/up/kernel'" in said
        )
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_fetches_no_model(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="'minilm-l6' is not on this machine yet"):
        resolve("minilm-l6", fetch=False)
    given = {**tiny, "config.model.name": "nobody/nothing"}
    assert swept(given, tmp_path, "mlp,attention", "--dry-run") == 0
    assert "nobody/nothing were not looked at: 'nobody/nothing' is not on this" in " ".join(
        capsys.readouterr().err.split()
    )
