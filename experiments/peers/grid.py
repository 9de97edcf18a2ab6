"""A grid of adapters as a loop over PEFT + bitsandbytes + Trainer, for
experiments/benchmark_sweep.py: prints one JSON line.

One process, the data tokenised once, the model loaded anew for each run; padding to the longest of
a batch, as Trainer is used. Needs torch, transformers, PEFT, bitsandbytes and accelerate.

python experiments/peers/grid.py MODEL_FOLDER REVIEWS_CSV GRID.json STEPS
GRID.json: [{"method", "rank", "format", "targets", "learning_rate", "is_tested"}, ...]
"""

import csv
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


def peak_bytes() -> int:
    """The most that this program has held; ru_maxrss may be that of who started it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


folder, reviews, grid, steps = (
    sys.argv[1],
    sys.argv[2],
    json.loads(Path(sys.argv[3]).read_text()),
    int(sys.argv[4]),
)
TARGETS = {"all-linear": ["query", "key", "value", "dense"], "query+value": ["query", "value"]}
start = time.perf_counter()
with open(reviews, newline="", encoding="utf-8") as file:
    data = {row["text"]: row["label"] for row in csv.DictReader(file) if "otten" in row["source"]}
labels = {name: number for number, name in enumerate(sorted(set(data.values())))}
tokenizer = AutoTokenizer.from_pretrained(folder)


def bucket(text):
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10


def records(buckets):
    texts = [text for text in data if bucket(text) in buckets]
    ids = tokenizer(texts, truncation=True, max_length=128)["input_ids"]
    return [
        {"input_ids": i, "attention_mask": [1] * len(i), "labels": labels[data[text]]}
        for i, text in zip(ids, texts, strict=True)
    ]


train, validation, test = records(range(8)), records([8])[:256], records([9])


def load(form):
    options = {}
    if form == "nf4":
        options = dict(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    elif form == "int8":
        options = dict(load_in_8bit=True)
    if not options:
        return BertForSequenceClassification.from_pretrained(folder, num_labels=2)
    config = BitsAndBytesConfig(**options, llm_int8_skip_modules=["classifier"])
    model = BertForSequenceClassification.from_pretrained(
        folder, num_labels=2, quantization_config=config
    )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


results = []
for run in grid:
    torch.manual_seed(0)
    used, began = time.process_time(), time.perf_counter()
    model = load(run["format"])
    if run["method"] in ("lora", "qlora"):
        config = LoraConfig(
            task_type="SEQ_CLS",
            r=run["rank"],
            lora_alpha=16,
            lora_dropout=0.0,
            target_modules=TARGETS[run["targets"]],
        )
        model = get_peft_model(model, config)
    elif run["method"] == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("classifier")
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        max_steps=steps,
        learning_rate=run["learning_rate"],
        weight_decay=0.01,
        lr_scheduler_type="linear",
        warmup_steps=steps // 10,
        seed=0,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        logging_steps=5,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda out: {
            "accuracy": float((np.argmax(out.predictions, -1) == out.label_ids).mean())
        },
    )
    before = time.perf_counter()
    trainer.train()
    trained = time.perf_counter() - before
    trainer.evaluate(validation)
    accuracy = trainer.evaluate(test)["eval_accuracy"] if run["is_tested"] else None
    took = {
        "wall": time.perf_counter() - began,
        "training": trained,
        "processor": time.process_time() - used,
    }
    print(f"{run}: {took['processor']:.1f} processor s", file=sys.stderr, flush=True)
    results.append({**run, "test_accuracy": accuracy, **took})
print(
    json.dumps(
        {
            "wall": time.perf_counter() - start,
            "rss": peak_bytes(),
            "results": results,
        }
    )
)
