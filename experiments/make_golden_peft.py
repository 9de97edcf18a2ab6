"""Writes tests/golden/peft: small adapters that PEFT saved, the random models they belong to, and
what PEFT computes with them.

Run in an environment with torch 2.13, transformers 5.23 and peft 0.21.2 (the extra `peer`):

    python experiments/make_golden_peft.py

A folder a case, as `save_pretrained` writes it. Models: bert/ and bert_cls/ (model folders), inputs
and results in golden.npz: `tokens`, `mask`, and for each case `<case>#logits` (or `#hidden`), or
`<case>#<module>` with the weight that `merge_and_unload` gives that module minus the base's.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

TARGET = Path(__file__).resolve().parents[1] / "tests" / "golden" / "peft"
BERT = dict(
    vocab_size=48,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=12,
)


def bert(kind: type) -> torch.nn.Module:
    torch.manual_seed(0)
    return kind(BertConfig(**BERT, initializer_range=0.2)).eval()


def gpt2() -> torch.nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=24, n_embd=8, n_layer=2, n_head=2, n_positions=8)
    ).eval()


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=24,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=12,
    )
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


CLS = dict(task_type="SEQ_CLS")
CASES = {
    # r and alpha alone, the head trained whole.
    "bert_lora": (lambda: bert(BertForSequenceClassification), LoraConfig(r=3, lora_alpha=5, target_modules=["query", "value"], **CLS)),
    # Everything that changes rank and scale at once.
    "bert_patterns": (
        lambda: bert(BertForSequenceClassification),
        LoraConfig(
            r=4, lora_alpha=6, use_rslora=True, lora_dropout=0.1, target_modules=["query", "key", "output.dense"], layers_to_transform=[1],
            layers_pattern="layer", rank_pattern={"key": 2, r"layer\.1\.output\.dense": 5}, alpha_pattern={"key": 3}, **CLS,
        ),
    ),
    "bert_dora": (lambda: bert(BertForSequenceClassification), LoraConfig(r=2, use_dora=True, target_modules=["query", "dense"], **CLS)),
    "bert_bias_adapted": (lambda: bert(BertForSequenceClassification), LoraConfig(r=2, bias="lora_only", target_modules=["value"], **CLS)),
    "bert_bias_all": (lambda: bert(BertForSequenceClassification), LoraConfig(r=2, bias="all", target_modules=["value"], **CLS)),
    # No task: PEFT's names have no 'bert.'.
    "bert_embedding": (lambda: bert(BertModel), LoraConfig(r=2, target_modules=["word_embeddings", "intermediate.dense"])),
    "bert_norms": (lambda: bert(BertModel), LoraConfig(r=2, target_modules=r".*layer\.\d\.attention\.self\.(query|key)", modules_to_save=["LayerNorm"])),
    "gpt2_conv1d": (gpt2, LoraConfig(r=3, lora_alpha=7, target_modules=["c_attn", "c_fc", "wte"], task_type="CAUSAL_LM")),
    "gpt2_dora": (gpt2, LoraConfig(r=2, use_dora=True, target_modules=["c_attn"], task_type="CAUSAL_LM")),
    "llama": (llama, LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")),
    # The embedding's own weight is saved along with its factors.
    "llama_embedding": (llama, LoraConfig(r=2, target_modules=["embed_tokens", "v_proj"], task_type="CAUSAL_LM")),
}  # fmt: skip


def randomise(model: torch.nn.Module) -> None:
    """Moves every trainable weight, so that nothing is at the value it starts from."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                if "magnitude" in name:
                    parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
                else:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def deltas(model: torch.nn.Module, base: dict) -> dict[str, np.ndarray]:
    merged = model.merge_and_unload().state_dict()
    return {
        name: (merged[name] - base[name]).numpy()
        for name in base
        if not torch.equal(merged[name], base[name])
    }


def main() -> None:
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    bert(BertModel).save_pretrained(TARGET / "bert")
    bert(BertForSequenceClassification).save_pretrained(TARGET / "bert_cls")
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 48, (4, 9), generator=generator)
    mask = torch.arange(9)[None] < torch.tensor([9, 5, 7, 3])[:, None]
    golden = {"tokens": tokens.numpy().astype(np.int32), "mask": mask.numpy()}
    for case, (build, config) in CASES.items():
        model = build()
        base = {name: value.clone() for name, value in model.state_dict().items()}
        adapted = get_peft_model(model, config).eval()
        randomise(adapted)
        adapted.save_pretrained(TARGET / case)
        (TARGET / case / "README.md").unlink(missing_ok=True)
        with torch.no_grad():
            if case.startswith("bert"):
                out = adapted(input_ids=tokens, attention_mask=mask.long())
                golden[f"{case}#logits" if "logits" in out else f"{case}#hidden"] = out[0].numpy()
            else:
                golden |= {f"{case}#{name}": value for name, value in deltas(adapted, base).items()}
                kept = ("c_attn.weight",) if "dora" in case else ("embed_tokens.weight",)
                golden |= {
                    f"{case}#base#{name}": v.numpy()
                    for name, v in base.items()
                    if name.endswith(kept)
                }
    np.savez_compressed(TARGET / "golden.npz", **golden)
    files = [file for file in TARGET.rglob("*") if file.is_file()]
    print(
        f"{TARGET}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1024:.0f} KiB"
    )


if __name__ == "__main__":
    main()
