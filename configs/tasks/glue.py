"""GLUE (Wang et al. 2019) through TensorFlow Datasets. Argument: cola, sst2, mrpc, qqp, stsb, mnli,
qnli, rte or wnli.

lora-jax train --config configs/tasks/glue.py:mrpc
lora-jax evaluate RUN

Published test labels are hidden: the validation split is the test split, and validation is texts of
train in hash bucket 8 (the run's note says so). MNLI's validation is the matched one. Each task is
scored by GLUE's own metrics. Results: not measured yet, TFDS has to download the data. RoBERTa and
DeBERTa go as well (--config.model.name=FacebookAI/roberta-base, or a folder); the papers'
hyperparameters for them are in configs/papers.
"""

import ml_collections

from configs.common import chosen, minilm

# task: (recipe, columns of text, text_pair and target, metrics)
TASKS = {
    "cola": ("classification", "sentence", None, ("matthews", "accuracy")),
    "sst2": ("classification", "sentence", None, ("accuracy",)),
    "mrpc": ("pair_classification", "sentence1", "sentence2", ("accuracy", "f1")),
    "qqp": ("pair_classification", "question1", "question2", ("accuracy", "f1")),
    "stsb": ("pair_regression", "sentence1", "sentence2", ("pearson", "spearman")),
    "mnli": ("pair_classification", "premise", "hypothesis", ("accuracy",)),
    "qnli": ("pair_classification", "question", "sentence", ("accuracy",)),
    "rte": ("pair_classification", "sentence1", "sentence2", ("accuracy",)),
    "wnli": ("pair_classification", "sentence1", "sentence2", ("accuracy",)),
}


def get_config(task: str = "sst2") -> ml_collections.ConfigDict:
    """The config of one task."""
    recipe, text, pair, metrics = chosen(task, TASKS)
    fields = {"text": text, "score" if task == "stsb" else "label": "label"}
    if pair:
        fields["text_pair"] = pair
    return minilm(
        data=dict(
            name=f"glue/{task}", recipe=recipe, fields=fields, metrics=metrics, max_length=128
        ),
        lora=dict(targets="query+value"),
        optim=dict(learning_rate=5e-4, weight_decay=0.1),
        train=dict(epochs=3.0, log_every=50, checkpoint_every=500),
        out=f"runs/glue/{task}",
    )
