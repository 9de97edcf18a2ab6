"""transformers' and PEFT's greedy decoding, for experiments/benchmark_decode.py: prints one JSON
line. Needs torch, transformers, PEFT, and bitsandbytes for peer-nf4.

python experiments/peers/decode.py peer-dense|peer-adapter|peer-nf4 FOLDER ADAPTER TIMES
"""

import gc
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

case, folder, adapter, times = sys.argv[1:]
BATCHES, PROMPT, NEW = (1, 8), 32, 64
torch.set_num_threads(2)


def resident() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


before, start = resident(), time.perf_counter()
options = {}
if case == "peer-nf4":
    options["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
if case == "peer-adapter":
    model = PeftModel.from_pretrained(model, adapter)
model.eval()
load = time.perf_counter() - start
stored = sum(parameter.nbytes for parameter in model.parameters())
result = {"case": case, "load": load, "stored": stored, "first": {}, "seconds": {}}
prompts = torch.as_tensor(np.random.default_rng(0).integers(5, 200_000, (max(BATCHES), PROMPT)))
model.generation_config.eos_token_id = None  # No text ends before its last token.
for batch in BATCHES:
    taken = []
    for _ in range(int(times) + 1):
        start = time.perf_counter()
        with torch.no_grad():
            made = model.generate(
                input_ids=prompts[:batch],
                attention_mask=torch.ones_like(prompts[:batch]),
                do_sample=False,
                max_new_tokens=NEW,
                pad_token_id=0,
            )
        taken.append(time.perf_counter() - start)
    assert made.shape[1] == PROMPT + NEW
    result["first"][str(batch)], result["seconds"][str(batch)] = taken[0], taken[1:]
gc.collect()
result |= {"tokens": made[0, PROMPT:].tolist(), "resident": resident() - before}
print(json.dumps(result))
