"""What transformers and PEFT make of files that we wrote; run in the interpreter that
LORA_JAX_PEER_PYTHON names, or in this one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

_PROGRAM = """
import json, sys
import numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
said = []
for n, job in enumerate(json.load(open(sys.argv[1] + "/jobs.json"))):
    where = {"gguf_file": job["gguf"]} if job.get("gguf") else {}
    result = {}
    if job.get("tokens"):
        model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32, attn_implementation="eager", **where)
        if job.get("adapter"):
            from peft import PeftModel
            model = PeftModel.from_pretrained(model, job["adapter"])
        with torch.no_grad():
            np.save(f"{sys.argv[1]}/{n}.npy", model.eval()(torch.as_tensor(job["tokens"])).logits.numpy())
        del model
    if job.get("texts"):
        tokenizer = AutoTokenizer.from_pretrained(job["folder"], **where)
        result["ids"] = [tokenizer(text)["input_ids"] for text in job["texts"]]
        result["plain"] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in job["texts"]]
    said.append(result)
print(json.dumps(said))
"""


def ask_transformers(folder: Path, jobs: list[dict]) -> tuple[list[np.ndarray | None], list[dict]]:
    """For each job, the logits of its tokens and the ids of its texts.

    A job has `folder`, and as wanted `gguf` (a file in it), `adapter` (a folder for PEFT), `tokens`
    and `texts`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(
        json.dumps([{key: _plain(value) for key, value in job.items()} for job in jobs])
    )
    command = [os.environ.get("LORA_JAX_PEER_PYTHON", sys.executable), "-c", _PROGRAM, str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = [folder / f"{n}.npy" for n in range(len(jobs))]
    return [np.load(file) if file.is_file() else None for file in files], json.loads(
        done.stdout.strip().splitlines()[-1]
    )


def _plain(value):
    return (
        value.tolist()
        if isinstance(value, np.ndarray)
        else str(value)
        if isinstance(value, Path)
        else value
    )
