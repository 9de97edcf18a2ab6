"""Mistakes that people make end in an error that says what was needed: of adapt, and of rules.

They are made in a process of their own: in this one, annotations are checked first.
"""

import json
import subprocess
import sys

import pytest

MISTAKES = {
    "adapt(key=None)": r"needs a random key for the first factors, such as jax.random.key(0); got None",
    "adapt(key=0)": "needs a random key",
    "adapt(lora=[(UP, 8)])": "lora needs a list of pairs, such as [('layers/.*/kernel', LoraSpec())]; the value of 'kernel' is 8",
    "adapt(lora={UP: LoraSpec(2)})": "as the first that matches wins; got a dict. Give its items()",
    "adapt(lora=UP)": "lora needs a list of pairs, such as [('layers/.*/kernel', LoraSpec())]; got 'kernel'",
    "adapt(lora=5)": "; got 5.",
    "adapt(lora=[UP])": "; 'kernel' is no such pair",
    "adapt(lora=[(UP, LoraSpec(2), 1)])": "is no such pair",
    "adapt(lora=[(1, LoraSpec(2))])": "is no such pair",
    "adapt(quant=[(UP, 'nf4')])": "quant needs a list of pairs, such as [('layers/.*/kernel', QuantSpec())]; the value of 'kernel' is 'nf4'",
    "adapt(whole='bias')": "whole needs a list of patterns; got 'bias'. Give ['bias']",
    "adapt(inputs=x)": "needed in a tuple, such as (tokens,); got float32[1,3]",
    "adapt(inputs='x')": "needed in a tuple",
    "lora_jax.merge(frozen, trainable, model=model, sample=x)": "needed in a tuple",
    "LoraSpec(alpha='16')": "LoRA alpha must be a number, got '16'",
    "LoraSpec(alpha=True)": "LoRA alpha must be a number, got True",
    "LoraSpec(rank=2.0)": "LoRA rank must be a whole number, got 2.0",
    "LoraSpec(rank=True)": "LoRA rank must be a whole number, got True",
    "LoraSpec(rank=None)": "LoRA rank must be a whole number, got None",
    "LoraSpec(dropout='0.1')": "LoRA dropout must be a number, got '0.1'",
    "LoraSpec(dora=1)": "LoRA dora must be True or False, got 1",
    "LoraSpec(group_size=2.5)": "LoRA group_size must be a whole number, got 2.5",
    "QuantSpec(double='no')": "QuantSpec.double must be True or False, got 'no'",
    "quantize(jnp.ones((4, 4)), 'nf4')": "needs an array and a QuantSpec",
    "quantize([[1.0]], QuantSpec())": "needs an array and a QuantSpec",
    "Sampling(temperature='1')": "temperature must be a number, got '1'",
    "Sampling(temperature=1.0, top_k=2.5)": "top_k must be a whole number, got 2.5",
    "lora_jax.join(frozen, {'kernel': 5})": "'kernel' needs an adapter, as adapt or a loader gives it, and came as 5",
}
RIGHT = ["adapt()", "LoraSpec(np.int64(4), np.float32(8.0))", "adapt(key=jax.random.PRNGKey(0))"]

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
import lora_jax
from lora_jax import LoraSpec, QuantSpec, quantize
from lora_jax.generation import Sampling

UP, x, model = "kernel", jnp.ones((1, 3)), nn.Dense(4)
params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}

def adapt(inputs=(x,), **changes):
    options = {"lora": [(UP, LoraSpec(2))], "key": jax.random.key(0), **changes}
    return lora_jax.adapt(model, params, inputs, **options)

frozen, trainable = adapt()
said = {}
for line in json.load(sys.stdin):
    try:
        eval(line)
        said[line] = ""
    except Exception as error:
        said[line] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What comes of each line: an error's text, or nothing."""
    lines = json.dumps([*MISTAKES, *RIGHT])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=lines, text=True, capture_output=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told(said: dict[str, str], line: str) -> None:
    assert said[line].startswith("TypeError: ") and MISTAKES[line] in said[line]


@pytest.mark.parametrize("line", RIGHT)
def test_what_is_none_is_taken(said: dict[str, str], line: str) -> None:
    assert said[line] == ""
