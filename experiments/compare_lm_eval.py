"""lm-evaluation-harness on Gemma-3-270M: our adapter class against the harness's Hugging Face
backend, record by record.

python experiments/compare_lm_eval.py [--records 12]

Needs lm_eval, torch and transformers beside this library. The records are multiple-choice questions
on tort law of OpenAI's evals; the context is the question, the continuations are its four letters.
Then a rolling log-likelihood of each question's first 400 letters, and 16 greedy tokens after it.
The backend runs as it comes, and with its softmax in float64: torch's log_softmax of float32 over
262,144 words is 1e-5 a token too high, which adds up over a text.
"""

import argparse
import json
import time

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lora_jax.io import resolve
from lora_jax.tasks.harness import HarnessModel


def nats(answer: float | tuple[float, bool]) -> float:
    """The log-probability of an answer."""
    return answer[0] if isinstance(answer, tuple) else answer


def gap(ours: list, theirs: list) -> float:
    """The largest difference of two lists of answers."""
    return max(abs(nats(a) - nats(b)) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    """Prints the largest differences and the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=12)
    count = parser.parse_args().records
    rows = [
        json.loads(line)
        for line in (resolve("evals-us-tort-law") / "samples.jsonl")
        .read_text()
        .splitlines()[:count]
    ]
    questions = [row["input"][-1]["content"] for row in rows]
    folder = resolve("gemma3-270m")
    (file,) = folder.glob("*.gguf")
    ours = HarnessModel.load(folder, batch_size=4)
    theirs = HFLM(
        pretrained=str(folder), gguf_file=file.name, dtype="float32", device="cpu", batch_size=4
    )
    precise = HFLM(
        pretrained=theirs.model, tokenizer=theirs.tokenizer, batch_size=4, softmax_dtype="float64"
    )
    make = lambda kind, arguments: [Instance(kind, {}, args, n) for n, args in enumerate(arguments)]
    asked = make(
        "loglikelihood", [(question, f" {letter}") for question in questions for letter in "ABCD"]
    )
    rolling = make("loglikelihood_rolling", [(question[:400],) for question in questions])
    until = make(
        "generate_until",
        [(question, {"until": ["\n\n"], "max_gen_toks": 16}) for question in questions[:4]],
    )
    for name, requests in (
        ("loglikelihood", asked),
        ("loglikelihood_rolling", rolling),
        ("generate_until", until),
    ):
        start = time.perf_counter()
        mine = getattr(ours, name)(requests)
        middle = time.perf_counter()
        other = getattr(theirs, name)(requests)
        print(
            f"{name}: {len(requests)} requests, ours {middle - start:.1f} s (compiling too), "
            f"Hugging Face {time.perf_counter() - middle:.1f} s"
        )
        if name == "generate_until":
            print(f"  equal texts: {sum(a == b for a, b in zip(mine, other))} of {len(mine)}")
            continue
        third = getattr(precise, name)(requests)
        print(
            f"  largest difference {gap(mine, other):.2e} nats, {gap(mine, third):.2e} with its "
            "softmax in float64, "
            f"on sums of {min(map(nats, other)):.1f} to {max(map(nats, other)):.1f}"
        )
        if name == "loglikelihood":
            pick = lambda scores: [
                max(range(4), key=lambda c: scores[4 * n + c][0]) for n in range(count)
            ]
            right = ["ABCD".index(row["ideal"]) for row in rows]
            print(
                f"  accuracy ours {sum(a == b for a, b in zip(pick(mine), right))}/{count}, theirs "
                f"{sum(a == b for a, b in zip(pick(other), right))}/{count}"
            )


if __name__ == "__main__":
    main()
