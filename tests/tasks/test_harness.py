"""lm-evaluation-harness on our models: every request type equals the harness's own Hugging Face
backend on the same records.
"""

import json
import os

import jax
import pytest
from tiny_language import write_tiny_model

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("default")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
TEXTS = [
    "hello world",
    "abc def",
    "the cat sat",
    "a",
    "one two three four five six seven eight nine ten eleven twelve",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lora_jax.tasks.harness import HarnessModel

    folder = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    # What transformers makes of this tokenizer.json: it has no post-processor that would write a
    # bos.
    settings |= {
        "eos_token": "<eos>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
    }
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = huggingface.HFLM(
        pretrained=str(folder), dtype="float32", device="cpu", batch_size=2, max_length=24
    )
    return HarnessModel.load(folder, batch_size=2, max_length=24), theirs, folder


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, n) for n, args in enumerate(arguments)]


def test_loglikelihood_and_is_greedy_equal_the_hugging_face_backend(models):
    ours, theirs, _ = models
    asked = instances(
        "loglikelihood",
        [(context, answer) for context in [*TEXTS, ""] for answer in (" yes", "no", " a b")],
    )
    for mine, other in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-3) and mine[1] == other[1]


def test_rolling_loglikelihood_equals_it_over_several_windows(models):
    ours, theirs, _ = models
    asked = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    assert ours.loglikelihood_rolling(asked) == pytest.approx(
        theirs.loglikelihood_rolling(asked), abs=1e-3
    )


def test_generated_texts_equal_it_up_to_stop_sequences(models):
    ours, theirs, _ = models
    # After the two others this random model writes <pad> in mid-text, at which the harness cuts if
    # another text of the batch is longer. The tokens are equal there, too.
    texts = ["hello world", "a", TEXTS[-1]]
    asked = instances(
        "generate_until", [(text, {"until": ["a", "\n"], "max_gen_toks": 8}) for text in texts]
    )
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_drawing_without_a_temperature_is_at_1(models):
    ours, _, _ = models
    drawn = {"do_sample": True, "max_gen_toks": 8}
    asked = [(TEXTS[0], settings) for settings in (drawn, {**drawn, "temperature": 1.0})]
    made = []
    for one in asked:
        ours._key = jax.random.key(0)
        made += ours.generate_until(instances("generate_until", [one]))
    greedy = ours.generate_until(instances("generate_until", [(TEXTS[0], {"max_gen_toks": 8})]))
    assert made[0] == made[1] != greedy[0]


def test_a_local_task_runs_with_a_quantised_base_and_an_adapter(models, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from lora_jax import LoraSpec, QuantSpec, adapt
    from lora_jax.io.adapter import save_adapter
    from lora_jax.tasks.harness import HarnessModel

    ours, theirs, folder = models
    rows = [{"q": text, "choices": ["yes", "no"], "gold": n % 2} for n, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "a.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    run = lambda model: lm_eval.simple_evaluate(
        model=model, tasks=[task], task_manager=TaskManager(), bootstrap_iters=0, log_samples=True
    )
    mine, other = run(ours), run(theirs)
    for a, b in zip(mine["samples"]["local"], other["samples"]["local"], strict=True):
        assert [r[0] for r in a["filtered_resps"]] == pytest.approx(
            [r[0] for r in b["filtered_resps"]], abs=1e-3
        )
    assert mine["results"]["local"]["acc,none"] == other["results"]["local"]["acc,none"]
    frozen, trainable = adapt(
        ours.model, ours.frozen, (jax.numpy.ones((1, 4), int),), lora=[("layers/.*kernel", LoraSpec(2))], quant=[("layers/.*kernel", QuantSpec("nf4", 8, False))], key=jax.random.key(0)
    )  # fmt: skip
    trainable = {path: leaf.replace(b=leaf.b + 0.1) for path, leaf in trainable.items()}
    save_adapter(tmp_path / "adapter", trainable, base="x", model="tiny")
    from lora_jax.io.adapter import load_adapter

    quantised = HarnessModel(
        ours.model,
        frozen,
        ours.tokenizer,
        load_adapter(tmp_path / "adapter")[0],
        batch_size=2,
        max_length=24,
    )
    changed = run(quantised)["samples"]["local"]
    assert [s["filtered_resps"] for s in changed] != [
        s["filtered_resps"] for s in mine["samples"]["local"]
    ]
