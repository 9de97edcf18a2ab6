"""What llama.cpp makes of GGUF files that we wrote; run in the interpreter that
LORA_JAX_LLAMA_CPP_PYTHON names, or in this one.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import json, sys
from llama_cpp import Llama
said = []
for job in json.load(open(sys.argv[1])):
    adapter = {"lora_path": job["adapter"]} if job.get("adapter") else {}
    model = Llama(job["model"], n_ctx=128, n_threads=1, n_threads_batch=1, verbose=False, **adapter)
    for text in job["texts"]:
        prompt = model.tokenize(text.encode(), add_bos=True, special=True)
        made = []
        for token in model.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0):
            if token == model.token_eos() or len(made) == job["count"]:
                break
            made.append(token)
        told = model.detokenize(made, prev_tokens=prompt).decode(errors="replace")
        said.append({"prompt": prompt, "ids": made, "text": told})
    model.close()
print("said " + json.dumps(said))
"""


def llama_cpp_python() -> str:
    """The interpreter that has llama_cpp; without one the test is skipped."""
    python = os.environ.get("LORA_JAX_LLAMA_CPP_PYTHON")
    if python is None and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama_cpp is not installed (pip install llama-cpp-python)")
    return python or sys.executable


def ask_llama_cpp(folder: Path, jobs: list[dict]) -> list[dict]:
    """For each text of each job (`model`, a file; `adapter`, a file; `texts`; `count` of new tokens),
    the ids of the prompt and those that it is continued with greedily, and their text.
    """
    python = llama_cpp_python()
    (folder / "jobs.json").write_text(json.dumps(jobs, default=str))
    command = [python, "-c", _PROGRAM, str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("said ")[2])
