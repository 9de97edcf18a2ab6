"""PEFT's training step, for experiments/benchmark_train.py: prints one JSON line of its times and
memory. Needs torch, PEFT, bitsandbytes.

python experiments/peers/train_step.py minilm|gemma fp32|bf16|nf4|nf4-bf16 FOLDER STEPS BATCH TOKENS
FRACTION WARM [RANK]

On a GPU, where there is one; it then tells what the device has held.
"""

import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BertForSequenceClassification, BitsAndBytesConfig


def peak_bytes() -> int:
    """The most that this program has held; ru_maxrss may be that of who started it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


kind, precision, folder = sys.argv[1:4]
steps, batch, length = map(int, sys.argv[4:7])
fraction, warm = float(sys.argv[7]), int(sys.argv[8])
rank = int(sys.argv[9]) if len(sys.argv) > 9 else 8
device = "cuda" if torch.cuda.is_available() else "cpu"
dense = torch.bfloat16 if precision.endswith("bf16") else torch.float32
options = {"dtype": dense}
if precision.startswith("nf4"):
    options["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dense,
        llm_int8_skip_modules=["classifier", "lm_head"],
    )
torch.manual_seed(0)
labels = torch.randint(0, 2, (batch,))
if kind == "minilm":
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=2, **options)
    tokens = torch.randint(1000, 20000, (batch, length))
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=16,
        target_modules=["query", "key", "value", "dense"],
    )
else:
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    tokens = torch.randint(5, 200_000, (batch, length))
    labels = tokens.clone()
    labels[:, : length - int(length * fraction)] = -100
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=16, target_modules="all-linear")
if precision.startswith("nf4"):
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
model = get_peft_model(model, config)
tokens, labels = tokens.to(device), labels.to(device)
if not precision.startswith("nf4"):  # bitsandbytes has put it there
    model = model.to(device)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def step() -> float:
    loss = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


first = time.perf_counter()
step()
first = time.perf_counter() - first
for _ in range(warm):
    step()
times, used = [], time.process_time()
for _ in range(steps):
    start = time.perf_counter()
    loss = step()
    times.append(time.perf_counter() - start)
used = (time.process_time() - used) / steps
print(
    json.dumps(
        dict(
            seconds=times,
            processor=used,
            first=first,
            rss=peak_bytes(),
            loss=loss,
            device_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else None,
        )
    )
)
