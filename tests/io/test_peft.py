"""PEFT's adapter files: what PEFT saved computes here what PEFT computed; what is written is the
same again; nothing is dropped.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax
from lora_jax.adapters.surgery import adapt
from lora_jax.core.paths import flatten
from lora_jax.io import safetensors
from lora_jax.io.names import Name
from lora_jax.io.peft import from_peft, load_peft, save_peft, to_peft
from lora_jax.io.peft_config import read_config
from lora_jax.io.weights import encoder_names, load_encoder

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
# PEFT's logits are around 1; both sum in float32, in another order.
CLOSE = 2e-5
CLASSIFIERS = ("bert_lora", "bert_patterns", "bert_dora", "bert_bias_adapted", "bert_bias_all")
ENCODERS = ("bert_embedding", "bert_norms")

GPT2 = {
    "word/embedding": Name("transformer.wte.weight", (24, 8), "embedding"),
    "layers/attn/qkv/kernel": Name("transformer.h.{}.attn.c_attn.weight", (8, 24), "conv1d", (2,)),
    "layers/mlp/up/kernel": Name("transformer.h.{}.mlp.c_fc.weight", (8, 32), "conv1d", (2,)),
}
# The same weights in other layouts: q, k and v apart, and kernels of several axes.
GPT2_APART = {
    f"layers/attn/{part}/kernel": Name(
        "transformer.h.{}.attn.c_attn.weight", (8, 2, 4), "conv1d", (2,), part=(i, (8,) * 3)
    )
    for i, part in enumerate("qkv")
}
_ATTENTION = {
    "q": ("q_proj", (8, 2, 4), (0,)),
    "k": ("k_proj", (8, 1, 4), (0,)),
    "v": ("v_proj", (8, 1, 4), (0,)),
    "o": ("o_proj", (2, 4, 8), (0, 1)),
}
LLAMA = {
    "word/embedding": Name("model.embed_tokens.weight", (24, 8), "embedding"),
    **{
        f"layers/attn/{ours}/kernel": Name(f"model.layers.{{}}.self_attn.{theirs}.weight", shape, "linear", (2,), axes)
        for ours, (theirs, shape, axes) in _ATTENTION.items()
    },
    **{
        f"layers/mlp/{part}/kernel": Name(f"model.layers.{{}}.mlp.{part}_proj.weight", (12, 8) if part == "down" else (8, 12), "linear", (2,))
        for part in ("gate", "up", "down")
    },
    "head/kernel": Name("lm_head.weight", (8, 24), "linear"),
}  # fmt: skip
NAMES_OF = {"gpt2_conv1d": GPT2, "gpt2_dora": GPT2, "llama": LLAMA, "llama_embedding": LLAMA}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "golden.npz") as file:
        return dict(file)


@pytest.fixture(scope="module", params=[True, False], ids=["scan", "loop"])
def scan(request: pytest.FixtureRequest) -> bool:
    return request.param


def encoder(case: str, scan: bool = True):
    """(model, weights, names) of the golden encoder that a case belongs to."""
    classes = 2 if case in CLASSIFIERS else None
    config, params = load_encoder(
        GOLDEN / ("bert_cls" if classes else "bert"), num_classes=classes, scan=scan
    )
    return (
        lora_jax.models.Encoder(config, scan=scan),
        jax.tree.map(jnp.asarray, params),
        encoder_names(config, scan=scan),
    )


def names_of(case: str, scan: bool = True):
    return NAMES_OF[case] if case in NAMES_OF else encoder(case, scan)[2]


def base_of(case: str, golden: dict[str, np.ndarray]):
    return (
        {"word": {"embedding": golden["llama_embedding#base#model.embed_tokens.weight"]}}
        if case == "llama_embedding"
        else None
    )


def loaded(case: str, golden: dict[str, np.ndarray], names=None):
    return load_peft(GOLDEN / case, names or names_of(case), frozen=base_of(case, golden))[0]


def copy_of(case: str, folder: Path, **changes) -> Path:
    """A copy of a golden adapter with some fields of its configuration changed."""
    shutil.copytree(GOLDEN / case, folder, dirs_exist_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def with_tensors(case: str, folder: Path, change) -> Path:
    """A copy of a golden adapter whose tensors went through `change`."""
    copy_of(case, folder)
    file = folder / "adapter_model.safetensors"
    safetensors.write(file, change(safetensors.read(file)), {"format": "pt"})
    return folder


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b))
    )


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CLASSIFIERS + ENCODERS)
def test_an_encoder_with_the_loaded_adapter_computes_what_PEFT_computed(
    case: str, scan: bool, golden: dict[str, np.ndarray]
) -> None:
    model, params, names = encoder(case, scan)
    trainable, _ = load_peft(GOLDEN / case, names)
    inputs = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    out, base = (
        lora_jax.apply(model, params, trainable, *inputs),
        model.apply({"params": params}, *inputs),
    )
    key = f"{case}#logits" if case in CLASSIFIERS else f"{case}#hidden"
    out, base = (out, base) if case in CLASSIFIERS else (out[0], base[0])
    real = (
        np.ones(out.shape, bool)
        if case in CLASSIFIERS
        else np.broadcast_to(golden["mask"][..., None], out.shape)
    )
    np.testing.assert_allclose(np.asarray(out)[real], golden[key][real], atol=CLOSE, rtol=0)
    assert (
        np.abs(np.asarray(base)[real] - golden[key][real]).max() > 0.05
    )  # The adapter matters, or the line above says nothing.


@pytest.mark.parametrize("case", ["gpt2_conv1d", "llama", "llama_embedding"])
def test_the_dense_update_of_every_module_is_the_one_that_PEFT_merges(
    case: str, golden: dict[str, np.ndarray]
) -> None:
    trainable, seen = loaded(case, golden), set()
    for path, low in trainable.items():
        name = NAMES_OF[case][path]
        for index, parameter in name.layers():
            delta = np.asarray(low.delta())[index]
            seen.add(f"{case}#{parameter}")
            # PEFT adds to weights of about 0.1 in float32, so the difference has lost 7 digits of
            # those.
            np.testing.assert_allclose(
                delta if name.kind != "linear" else delta.T,
                golden[f"{case}#{parameter}"],
                atol=1e-6,
            )
    changed = {
        key
        for key in golden
        if key.startswith(f"{case}#")
        and "#base#" not in key
        and "lm_head" not in key
        or key in seen
    }
    assert seen == {key for key in changed if key.startswith(f"{case}#")}


def test_DoRA_on_a_Conv1D_merges_to_PEFTs_weight(golden: dict[str, np.ndarray]) -> None:
    trainable, base = loaded("gpt2_dora", golden), {}
    weights = [golden[f"gpt2_dora#base#transformer.h.{i}.attn.c_attn.weight"] for i in range(2)]
    base = {"layers": {"attn": {"qkv": {"kernel": jnp.asarray(np.stack(weights))}}}}
    merged, _ = lora_jax.merge(base, trainable)
    for layer in range(2):
        moved = np.asarray(merged["layers"]["attn"]["qkv"]["kernel"][layer]) - weights[layer]
        np.testing.assert_allclose(
            moved, golden[f"gpt2_dora#transformer.h.{layer}.attn.c_attn.weight"], atol=1e-6
        )


def test_scale_is_alpha_over_the_root_of_the_rank_where_the_file_says_rslora_and_over_the_rank_else(
    golden: dict[str, np.ndarray],
) -> None:
    trainable = loaded("bert_patterns", golden)
    config = json.loads((GOLDEN / "bert_patterns" / "adapter_config.json").read_text())
    assert config["use_rslora"] and config["layers_to_transform"] == [1]
    expected = {"q": (4, 6 / 2), "k": (2, 3 / np.sqrt(2)), "o": (4, 6 / 2)}
    for name, (rank, scale) in expected.items():
        low = trainable[f"layers/attn/{name}/kernel"]
        assert low.rank == rank and not low.scale[0].any()  # Layer 0 is not adapted.
        np.testing.assert_array_equal(low.scale[1], np.full(rank, np.float32(scale)))
    np.testing.assert_array_equal(
        trainable["layers/mlp/down/kernel"].scale[1], np.full(5, np.float32(6 / np.sqrt(5)))
    )
    assert float(loaded("bert_lora", golden)["layers/attn/q/kernel"].scale[0, 0]) == np.float32(
        5 / 3
    )
    np.testing.assert_array_equal(
        trainable["layers/attn/q/kernel"].dropout, np.full(2, 0.1, np.float32)
    )


def test_an_adapter_under_another_name_is_read_from_its_sub_folder(
    tmp_path: Path, golden: dict[str, np.ndarray]
) -> None:
    copy_of("bert_lora", tmp_path / "second")
    names = names_of("bert_lora")
    assert same(load_peft(tmp_path, names, adapter="second")[0], loaded("bert_lora", golden))
    with pytest.raises(FileNotFoundError, match="sub-folders: second"):
        load_peft(tmp_path, names)


# --- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [*CLASSIFIERS, *ENCODERS, "gpt2_conv1d", "gpt2_dora", "llama", "llama_embedding"]
)
def test_export_then_import_is_the_identity_and_the_tensors_are_PEFTs(
    case: str, tmp_path: Path, golden: dict[str, np.ndarray]
) -> None:
    names, trainable = names_of(case), loaded(case, golden)
    made = save_peft(tmp_path, trainable, names)
    assert made.notes == ()
    assert same(load_peft(tmp_path, names)[0], trainable)
    theirs = safetensors.read(GOLDEN / case / "adapter_model.safetensors")
    ours = {key.replace(".bert.", "."): value for key, value in made.tensors.items()}
    copies = (
        "embed_tokens.base_layer",
        "lm_head",
        ".modules_to_save.",
        ".original_module.",
    )  # What PEFT stores besides.
    theirs = {
        key.replace(".bert.", "."): value
        for key, value in theirs.items()
        if case == "llama" or not any(c in key for c in copies)
    }
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_equal_adapters_give_equal_bytes(tmp_path: Path, golden: dict[str, np.ndarray]) -> None:
    names, trainable = names_of("bert_patterns"), loaded("bert_patterns", golden)
    save_peft(tmp_path / "one", trainable, names, base="0123", base_model="org/model")
    save_peft(
        tmp_path / "two",
        dict(reversed(trainable.items())),
        names,
        base="0123",
        base_model="org/model",
    )
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_rank_and_alpha_patterns_give_PEFT_exactly_our_scales() -> None:
    names = {
        "layers/w/kernel": Name("h.{}.w.weight", (32, 32), "linear", (11,)),
        "v/kernel": Name("v.weight", (32, 32)),
    }
    rng = np.random.default_rng(0)
    for ranks in ([3, 3, 1, 7, 3, 3, 3, 3, 3, 3, 5], [2] * 11):
        a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((11, 32, 7), (11, 7, 32)))
        scales = rng.uniform(0.01, 40, 11).astype(np.float32)
        scale = np.where(np.arange(7) < np.array(ranks)[:, None], scales[:, None], 0).astype(
            np.float32
        )
        trainable = {
            "layers/w/kernel": lora_jax.core.LowRank(
                a=jnp.asarray(a), b=jnp.asarray(b), scale=jnp.asarray(scale)
            )
        }
        made = to_peft(trainable, names)
        config = read_config(made.config)
        for layer, rank in enumerate(ranks):
            assert config.rank(f"h.{layer}.w") == rank
            assert np.float32(config.scale(f"h.{layer}.w")) == scales[layer]
        assert not config.targets("v")
        back = from_peft(made, names)["layers/w/kernel"]
        np.testing.assert_array_equal(
            np.asarray(back.delta()), np.asarray(trainable["layers/w/kernel"].delta())
        )


def test_columns_with_several_scales_are_multiplied_into_B_and_said() -> None:
    names = {"w/kernel": Name("w.weight", (6, 5))}
    rng = np.random.default_rng(0)
    low = lora_jax.core.LowRank(
        a=jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
        b=jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
        scale=jnp.array([2.0, 0.0, 0.5]),
    )
    made = to_peft({"w/kernel": low}, names)
    assert (
        made.config["r"] == 2
        and made.config["lora_alpha"] == 2
        and "w: its columns have 2 scales, from 0.5 to 2" in made.notes[0]
    )
    np.testing.assert_allclose(from_peft(made, names)["w/kernel"].delta(), low.delta(), atol=1e-6)


def test_target_modules_are_the_shortest_endings_that_select_exactly_the_adapted_modules() -> None:
    _, params, names = encoder("bert_lora")
    ones = {path: lora_jax.core.LowRank(a=jnp.ones((2, n.rows, 1)), b=jnp.ones((2, 1, n.columns)), scale=jnp.ones((2, 1))) for path, n in names.items() if n.stack and n.kind == "linear"}  # fmt: skip

    def targets(*paths: str) -> list[str]:
        return to_peft(
            {f"layers/{path}/kernel": ones[f"layers/{path}/kernel"] for path in paths}, names
        ).config["target_modules"]

    assert targets("attn/q", "attn/v") == ["query", "value"]
    # 'dense' and 'output.dense' would take the attention's output along, and the pooler.
    assert targets("mlp/down") == [
        f"bert.encoder.layer.{i}.output.dense" for i in range(2)
    ] or targets("mlp/down") == [
        "0.output.dense",
        "1.output.dense",
    ]
    assert targets("attn/o", "mlp/down") == ["output.dense"]


def test_weights_lie_input_first_where_all_modules_are_Conv1D(
    golden: dict[str, np.ndarray],
) -> None:
    up = "layers/mlp/up/kernel"
    lora = {path: leaf for path, leaf in loaded("gpt2_conv1d", golden).items() if "layers" in path}
    mixed = GPT2 | {up: replace(GPT2[up], kind="linear")}
    assert up in lora and len(lora) == 2
    for names, first in ((GPT2, True), (mixed, False)):
        assert to_peft(lora, names).config["fan_in_fan_out"] is first


def test_parts_of_a_fused_weight_are_one_module_of_PEFTs(golden: dict[str, np.ndarray]) -> None:
    made = to_peft(
        {path: leaf for path, leaf in loaded("gpt2_conv1d", golden).items() if "qkv" in path}, GPT2
    )
    apart = from_peft(made, GPT2_APART)
    assert sorted(apart) == sorted(GPT2_APART) and apart["layers/attn/k/kernel"].b.shape == (
        2,
        3,
        8,
    )
    again = to_peft(apart, GPT2_APART)
    assert again.config == made.config and all(
        np.array_equal(again.tensors[key], made.tensors[key]) for key in made.tensors
    )
    # q and v alone, with factors of their own: block by block, ranks added.
    own = {
        path: apart[path].replace(a=apart[path].a + i)
        for i, path in enumerate(("layers/attn/q/kernel", "layers/attn/v/kernel"))
    }
    written = to_peft(own, GPT2_APART)
    assert written.config["r"] == 6 and "sum of their ranks, 6" in written.notes[0]
    assert same(from_peft(written, GPT2_APART), own)


def test_convolutions_have_PEFTs_layout() -> None:
    names = {"conv/kernel": Name("conv.weight", (3, 2, 4, 5), "conv", in_axes=(0, 1, 2))}
    rng = np.random.default_rng(0)
    low = lora_jax.core.LowRank(
        a=jnp.asarray(rng.normal(size=(24, 2)), jnp.float32), b=jnp.asarray(rng.normal(size=(2, 5)), jnp.float32), scale=jnp.full(2, 0.5), in_axes=(0, 1, 2)
    )  # fmt: skip
    made = to_peft({"conv/kernel": low}, names)
    a, b = (
        made.tensors["base_model.model.conv.lora_A.weight"],
        made.tensors["base_model.model.conv.lora_B.weight"],
    )
    assert a.shape == (2, 4, 3, 2) and b.shape == (5, 2, 1, 1)
    theirs = 0.5 * np.einsum(
        "or,rihw->oihw", b[:, :, 0, 0], a
    )  # PEFT's get_delta_weight for windows
    ours = np.asarray(low.delta()).reshape(3, 2, 4, 5)
    np.testing.assert_allclose(theirs.transpose(2, 3, 1, 0), ours, atol=1e-6)
    assert same(from_peft(made, names), {"conv/kernel": low})


# --- refused by name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alora_invocation_tokens", [1, 2]),
        ("kasa_config", {"beta": 1e-4}),
        ("layer_replication", [[0, 1], [0, 2]]),
        ("lora_bias", True),
        ("target_parameters", ["experts.w"]),
        ("trainable_token_indices", [3, 3]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 3}),
        ("monteclora_config", {"num_samples": 8}),
        ("velora_config", {"num_groups": 64}),
        ("megatron_config", {"x": 1}),
        ("ensure_weight_tying", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "olora"),
        ("peft_type", "IA3"),
        ("some_new_field", "anything"),
        ("bias", "some"),
        ("r", 0),
        ("target_modules", None),
        ("target_modules", "all-linear"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_its_name(
    field: str, value, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        load_peft(copy_of("bert_lora", tmp_path, **{field: value}), names_of("bert_lora"))
    assert value is None or str(value).split(",")[0].strip("[]{}'") in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", "(("),
        ("target_modules", r"(.*)\1"),
        ("target_modules", 5),
        ("exclude_modules", "["),
        ("exclude_modules", {}),
        ("modules_to_save", 5),
        ("modules_to_save", "classifier"),
        ("modules_to_save", [None]),
        ("lora_alpha", 10**400),
        ("lora_alpha", float("nan")),
        ("lora_alpha", "16"),
        ("lora_dropout", -1),
        ("lora_dropout", 5),
        ("lora_dropout", float("nan")),
        ("r", 2.0),
        ("r", True),
        ("r", 10**30),
        ("rank_pattern", ["query"]),
        ("rank_pattern", {"query": True}),
        ("rank_pattern", {"query": "4"}),
        ("rank_pattern", {"a)": 4}),
        ("alpha_pattern", {"query": None}),
        ("alpha_pattern", {"query": 1e39}),
        ("alpha_pattern", {"(": 4}),
        ("layers_to_transform", "0"),
        ("layers_to_transform", [True]),
        ("layers_pattern", "(a+)+"),
        ("layers_pattern", [3]),
        ("trainable_token_indices", {"x": {"y": [1]}}),
        ("trainable_token_indices", [2**40]),
        ("use_dora", 1),
    ],
)
def test_values_that_cannot_be_used_are_refused_with_their_field_and_folder(
    field: str, value, tmp_path: Path
) -> None:
    folder = copy_of("bert_lora", tmp_path, **{field: value})
    with pytest.raises(ValueError, match=field if "alpha" not in field else "alpha") as caught:
        load_peft(folder, names_of("bert_lora"))
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
def test_a_pattern_that_takes_a_backtracking_engine_for_ever_is_answered_at_once(
    field: str, tmp_path: Path
) -> None:
    pattern = r"(([a-z.0-9]+)+)+!"
    change = {field: {pattern: 4} if field == "rank_pattern" else pattern}
    folder = copy_of("bert_lora", tmp_path, **change)
    if field == "exclude_modules":  # It excludes nothing.
        assert load_peft(folder, names_of("bert_lora"))[0]
        return
    with pytest.raises(ValueError, match=field):
        load_peft(folder, names_of("bert_lora"))


@pytest.mark.parametrize("field", ["target_modules", "modules_to_save"])
def test_a_list_that_names_a_module_that_is_not_there_is_refused_with_the_nearest(
    field: str, tmp_path: Path
) -> None:
    listed = ["query", "value"] if field == "target_modules" else ["classifier"]
    folder = copy_of("bert_lora", tmp_path, **{field: [*listed, "keyy"]})
    with pytest.raises(
        ValueError, match=f"{field} names 'keyy', which is none of the model's .* Nearest: "
    ):
        load_peft(folder, names_of("bert_lora"))


def test_a_module_inside_of_one_that_is_saved_whole_gets_no_factors() -> None:
    config = read_config(
        {"peft_type": "LORA", "target_modules": ["query", "dense"], "modules_to_save": ["self"]}
    )
    layer = "encoder.layer.0.attention"
    targets = [config.targets(f"{layer}.{name}") for name in ("self.query", "output.dense")]
    assert targets == [False, True]


def test_a_pattern_that_matches_no_adapted_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="rank_pattern has 'key', which matches none of the 4 adapted modules"
    ):
        load_peft(copy_of("bert_lora", tmp_path, rank_pattern={"key": 3}), names_of("bert_lora"))


def test_renamed_keys_give_a_diff_of_expected_and_found(tmp_path: Path) -> None:
    def rename(tensors):
        return {
            key.replace("layer.1.attention.self.query", "layer.1.attention.self.qwery"): value
            for key, value in tensors.items()
        }

    with pytest.raises(ValueError, match="2 missing, 2 unexpected") as caught:
        load_peft(with_tensors("bert_lora", tmp_path, rename), names_of("bert_lora"))
    assert "missing     bert.encoder.layer.1.attention.self.query.lora_A.weight  (perhaps" in str(
        caught.value
    )
    assert "unexpected  bert.encoder.layer.1.attention.self.qwery.lora_A.weight" in str(
        caught.value
    )


def test_keys_that_all_have_another_prefix_are_refused_where_PEFT_only_warns(
    tmp_path: Path,
) -> None:
    def rename(tensors):
        return {
            key.replace("base_model.model.bert", "base_model.model.x.y.z.w.bert"): value
            for key, value in tensors.items()
        }

    with pytest.raises(ValueError, match="missing"):
        load_peft(with_tensors("bert_lora", tmp_path, rename), names_of("bert_lora"))
    with pytest.raises(ValueError, match="10 of 10 tensors have no name of PEFT's"):
        load_peft(
            with_tensors(
                "bert_lora",
                tmp_path,
                lambda t: {key.removeprefix("base_model.model."): v for key, v in t.items()},
            ),
            names_of("bert_lora"),
        )


def test_a_missing_layer_is_refused(tmp_path: Path) -> None:
    drop = lambda tensors: {key: value for key, value in tensors.items() if "layer.1" not in key}
    with pytest.raises(ValueError, match="4 missing, 0 unexpected"):
        load_peft(with_tensors("bert_lora", tmp_path, drop), names_of("bert_lora"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * np.nan, "holds a NaN"),
        (lambda x: x.astype(np.int32), "dtype int32"),
        (lambda x: x[:, :-1], "does not fit the model: shape"),
        (lambda x: x[:-1], "rank 2 and 3, and adapter_config.json says 3"),
    ],
)
def test_NaN_integers_and_wrong_shapes_are_refused_by_tensor(
    change, message: str, tmp_path: Path
) -> None:
    key = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    with pytest.raises(ValueError, match=message) as caught:
        load_peft(
            with_tensors(
                "bert_lora", tmp_path, lambda t: {**t, key: np.ascontiguousarray(change(t[key]))}
            ),
            names_of("bert_lora"),
        )
    assert "bert.encoder.layer.0.attention.self.query" in str(caught.value)


def test_an_adapter_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    case = "bert_embedding"
    zero = lambda tensors: {
        key: value * (not key.endswith(("lora_B.weight", "lora_embedding_B")))
        for key, value in tensors.items()
    }
    with pytest.raises(ValueError, match="changes nothing"):
        load_peft(with_tensors(case, tmp_path, zero), names_of(case))


def test_pickled_weights_are_refused_and_the_way_out_is_told(tmp_path: Path) -> None:
    copy_of("bert_lora", tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"adapter_model.bin.*can run code.*safe_serialization=True"
    ):
        load_peft(tmp_path, names_of("bert_lora"))


def test_an_empty_or_cut_off_file_and_no_folder_are_refused(tmp_path: Path) -> None:
    names = names_of("bert_lora")
    copy_of("bert_lora", tmp_path)
    data = (tmp_path / "adapter_model.safetensors").read_bytes()
    for part in (b"", data[: len(data) // 2]):
        (tmp_path / "adapter_model.safetensors").write_bytes(part)
        with pytest.raises(ValueError, match="whole safetensors file"):
            load_peft(tmp_path, names)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_peft(tmp_path, names)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_peft(tmp_path / "nowhere", names)


def test_an_adapter_for_a_model_of_another_size_or_of_another_base_is_refused(
    tmp_path: Path,
) -> None:
    _, params, names = encoder("bert_lora")
    config, _ = load_encoder(GOLDEN / "bert_cls", num_classes=2)
    with pytest.raises(ValueError, match="does not fit the model: shape"):
        load_peft(GOLDEN / "bert_lora", encoder_names(replace(config, hidden_size=32)))
    with pytest.raises(ValueError, match="layer.2.attention.self.query"):
        load_peft(GOLDEN / "bert_lora", encoder_names(replace(config, num_layers=3)))
    save_peft(
        tmp_path,
        load_peft(GOLDEN / "bert_lora", names)[0],
        names,
        base=lora_jax.fingerprint(params),
    )
    assert load_peft(tmp_path, names, base=lora_jax.fingerprint(params))[0]
    with pytest.raises(ValueError, match="trained on the base with fingerprint"):
        load_peft(tmp_path, names, base="feedfeedfeedfeed")


def test_alpha_that_was_changed_after_saving_is_seen(
    tmp_path: Path, golden: dict[str, np.ndarray]
) -> None:
    names = names_of("bert_lora")
    save_peft(tmp_path, loaded("bert_lora", golden), names)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    with pytest.raises(ValueError, match="was saved with scale .* it was changed since"):
        load_peft(tmp_path, names)


def test_a_copy_of_the_base_embedding_needs_to_be_the_bases(golden: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="Pass frozen="):
        load_peft(GOLDEN / "llama_embedding", LLAMA)
    base = base_of("llama_embedding", golden)
    with pytest.raises(ValueError, match="resized or the base changed"):
        load_peft(
            GOLDEN / "llama_embedding",
            LLAMA,
            frozen={"word": {"embedding": base["word"]["embedding"] + 1}},
        )


def ones(name: Name, rank: int = 1, **more) -> lora_jax.core.LowRank:
    return lora_jax.core.LowRank(
        a=jnp.ones((*name.stack, name.rows, rank)), b=jnp.ones((*name.stack, rank, name.columns)), scale=jnp.ones((*name.stack, rank)), in_axes=name.in_axes, **more
    )  # fmt: skip


def test_what_PEFTs_format_cannot_say_is_not_written() -> None:
    _, params, names = encoder("bert_lora")
    q, v = "layers/attn/q/kernel", "layers/attn/v/kernel"
    low, whole = (
        {q: ones(names[q])},
        lambda path: {
            path: lora_jax.core.TrainedWeight(
                value=jnp.ones((*names[path].stack, *names[path].shape))
            )
        },
    )
    cases = [
        (whole("classifier/kernel") | whole("classifier/bias"), "no site has factors"),
        (low | whole("layers/mlp/up/bias"), "biases"),
        (low | whole("layers/attn_norm/scale"), "LayerNorm.bias"),
        (low | whole(q.replace("kernel", "bias")) | whole("layers/attn/k/bias"), "lora_only"),
        (
            low | {v: ones(names[v], magnitude=jnp.ones((2, 16)))},
            "use_dora is for all modules or none",
        ),
        ({q: ones(names[q], dropout=jnp.array([0.1, 0.2]))}, "one lora_dropout"),
        ({q: ones(replace(names[q], shape=(16, 15)))}, "where the model's names say"),
        ({q: low[q].replace(a=low[q].a * jnp.nan)}, "NaN"),
    ]
    for trainable, message in cases:
        with pytest.raises(ValueError, match=message):
            to_peft(trainable, names)
    with pytest.raises(KeyError, match="layers/attn/q/kernel"):
        to_peft({"layers/attn/qq/kernel": low[q]}, names)
    with pytest.raises(ValueError, match="is tied"):
        to_peft(
            {"word/embedding": ones(GPT2["word/embedding"])},
            {"word/embedding": replace(GPT2["word/embedding"], tied=True)},
        )
    with pytest.raises(ValueError, match="trains the head whole"):
        to_peft({"classifier/kernel": ones(names["classifier/kernel"])}, names, task_type="SEQ_CLS")
    assert (
        to_peft({q: ones(names[q], dropout=jnp.array([0.1, 0.2]))}, names, dropout=0.1).config[
            "lora_dropout"
        ]
        == 0.1
    )


@pytest.mark.parametrize(
    "spec",
    [dict(init="pissa"), dict(init="olora"), dict(variant="vera"), dict(variant="adalora")],
    ids=str,
)
def test_variants_are_written_as_plain_LoRA_with_the_same_update_and_the_base_is_not_changed(
    spec: dict, golden: dict[str, np.ndarray]
) -> None:
    model, params, names = encoder("bert_lora")
    inputs = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    before = lora_jax.fingerprint(params)
    rules = [("layers/attn/[qv]/kernel", lora_jax.LoraSpec(rank=3, alpha=5.0, **spec))]
    frozen, trainable = adapt(model, params, inputs, lora=rules, key=jax.random.key(0))
    assert lora_jax.fingerprint(params) == lora_jax.fingerprint(frozen) == before
    trainable = {
        path: leaf.replace(**{n: getattr(leaf, n) + 0.1 for n in leaf.trained_fields()})
        for path, leaf in trainable.items()
    }
    made = to_peft(trainable, names)
    assert len(made.notes) == 2 and all("written as plain LoRA" in note for note in made.notes)
    assert made.config["r"] == (
        6 if "init" in spec else 3
    )  # Twice the rank where a start is subtracted.
    back = from_peft(made, names)
    for path, leaf in trainable.items():
        np.testing.assert_allclose(
            back[path].delta(),
            leaf.delta(),
            atol=2e-6 * float(jnp.abs(back[path].b).max() * jnp.abs(back[path].a).max()) * 16,
        )


@pytest.mark.parametrize(
    ("peft_type", "spec"),
    [
        ("MISS", dict(variant="miss", rank=3)),
        ("LOHA", dict(variant="loha", rank=3)),
        ("LOKR", dict(variant="lokr", rank=1)),
        ("GRALORA", dict(variant="gralora", rank=4)),
        ("HIRA", dict(variant="hira", rank=3)),
        ("OFT", dict(variant="oft", rank=4)),
        ("FOURIERFT", dict(variant="fourierft", rank=1)),
        ("SHIRA", dict(variant="shira", rank=1)),
    ],
)
def test_variants_are_written_as_PEFTs_own_methods_and_read_back_number_by_number(
    peft_type: str, spec: dict, golden: dict[str, np.ndarray]
) -> None:
    model, params, names = encoder("bert_lora")
    inputs = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    rules = [("layers/attn/[qv]/kernel", lora_jax.LoraSpec(alpha=5.0, **spec))]
    _, trainable = adapt(model, params, inputs, lora=rules, key=jax.random.key(0))
    trainable = {
        path: leaf.replace(**{n: getattr(leaf, n) + 0.1 for n in leaf.trained_fields()})
        for path, leaf in trainable.items()
    }
    made = to_peft(trainable, names)
    assert made.config["peft_type"] == peft_type and not made.notes
    back = from_peft(made, names)
    assert jax.tree.structure(back) == jax.tree.structure(trainable)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(trainable), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    halved = {path: leaf.replace(scale=leaf.scale / 2) for path, leaf in trainable.items()}
    for path, leaf in from_peft(to_peft(halved, names), names).items():
        base = jnp.asarray(flatten(params)[path])
        np.testing.assert_allclose(
            leaf.changed(base), halved[path].changed(base), rtol=1e-6, atol=1e-6
        )
    if peft_type in ("HIRA", "OFT", "FOURIERFT", "SHIRA"):
        with pytest.raises(ValueError, match="Merge it into the base"):
            to_peft(trainable, names, plain=True)
    else:
        plain = to_peft(trainable, names, plain=True)
        assert plain.config["peft_type"] == "LORA" and from_peft(plain, names)

    for name, value, says in (
        ("bias", "all", "trains biases"),
        ("a_setting_of_tomorrow", 3, "cannot be represented"),
    ):
        with pytest.raises(ValueError, match=says):
            from_peft(replace(made, config={**made.config, name: value}), names)
    short = {key: x for key, x in list(made.tensors.items())[1:]}
    with pytest.raises(ValueError, match="1 missing"):
        from_peft(replace(made, tensors=short), names)
    cut = {key: x[..., :-1] for key, x in made.tensors.items()}
    with pytest.raises(ValueError, match="needs rank|does not fit"):
        from_peft(replace(made, tensors=cut), names)
