"""Task recipes: the fields that a task has, how a prompt is made of them, what its answer is scored
by, and how it is decoded.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_jax.core.tables import register

from .fields import LETTERS, Unfit, answer_index, number_text, pick, read_role
from .records import Example, Problem, Record, near_names

Head = Literal["class", "score", "token", "span", "choice", "completion"]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated: greedy with one beam, else beam search. `max_new` tokens at most;
    `stop` strings end it.
    """

    max_new: int = 64
    beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A kind of task.

    `fields` are its roles with the column that each is read from unless the config says otherwise;
    those in `optional` may be missing. The last of the others is the target, what is to be found.
    Records with the same `group` stay in one split. `head` is what an encoder needs for it,
    completion if only a decoder can do it. A decoder is given `prompt` and learns to write
    `completion`, both templates over roles. `metrics` score an encoder, `text_metrics` generated
    text; the first of each is the one that is reported.
    """

    head: Head
    fields: Mapping[str, str]
    prompt: str
    completion: str
    metrics: tuple[str, ...] = ()
    text_metrics: tuple[str, ...] = ("exact_match",)
    optional: tuple[str, ...] = ()
    group: str | None = None
    decoding: Decoding = field(default_factory=Decoding)

    @property
    def target(self) -> str:
        """The role that is to be found."""
        return [role for role in self.fields if role not in self.optional][-1]

    @property
    def class_role(self) -> str | None:
        """The role that holds names of classes, if there is one."""
        return next((role for role in ("label", "tags") if role in self.fields), None)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The roles that are given."""
        return tuple(role for role in self.fields if role not in (self.target, "references")) or (
            self.target,
        )

    def read(self, record: Record, columns: Mapping[str, str]) -> Example | Problem:
        """The checked values of every role, or what is wrong with the record.

        `columns` names the column of a role where it is not the recipe's. The target is None where
        a data set hides it.
        """
        try:
            return Example(record.place, self._values(record.fields, columns))
        except Unfit as error:
            return Problem(record.place, error.reason, str(error))

    def _values(self, fields: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for role, default in self.fields.items():
            try:
                value = pick(fields, columns.get(role) or default)
            except Unfit:
                if role in self.optional and role not in columns:
                    continue
                raise
            if value is not None or role not in self.optional:
                out[role] = read_role(role, value)

        if "choices" in out:
            out["answer"] = answer_index(out["choices"], out["answer"])
        if "tags" in out and len(out["words"]) != len(out["tags"]):
            raise Unfit(
                "another number of tags",
                f"{len(out['words'])} words need as many tags, but {len(out['tags'])} came.",
            )
        for answer in out.get("answers", ()) if self.head == "span" else ():
            text, start = answer["text"], answer["start"]
            if text not in out["context"]:
                raise Unfit(
                    "an answer outside its context",
                    f"the answer {text[:60]!r} does not stand in the context.",
                )
            if start >= 0 and not out["context"].startswith(text, start):
                raise Unfit(
                    "an answer at another place",
                    f"the answer {text[:60]!r} does not stand at letter {start} of the context.",
                )
        return out

    def input_text(self, values: Values) -> str:
        """What tells a record's input from others: the values of all roles that are given."""
        # The target of a chat is the last message of its only role.
        parts = [
            values[role][:-1] if role == "messages" else values[role]
            for role in self.inputs
            if role in values
        ]
        return "\n".join(
            part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
            for part in parts
        )

    def group_text(self, values: Values) -> str:
        """What decides the split of a record: its group, or its input."""
        return values[self.group] if self.group else self.input_text(values)


_SHORT = Decoding(max_new=16, stop=("\n",))
RECIPES: dict[str, Recipe] = {
    "classification": Recipe(
        "class",
        {"text": "text", "label": "label"},
        "{text}\nClass:",
        "{label}",
        ("accuracy", "macro_f1", "matthews"),
        decoding=_SHORT,
    ),
    "pair_classification": Recipe(
        "class",
        {"text": "text", "text_pair": "text_pair", "label": "label"},
        "First: {text}\nSecond: {text_pair}\nClass:",
        "{label}",
        ("accuracy", "f1", "matthews"),
        group="text",
        decoding=_SHORT,
    ),
    "regression": Recipe(
        "score",
        {"text": "text", "score": "score"},
        "{text}\nScore:",
        "{score}",
        ("pearson", "spearman"),
        decoding=_SHORT,
    ),
    "pair_regression": Recipe(
        "score",
        {"text": "text", "text_pair": "text_pair", "score": "score"},
        "First: {text}\nSecond: {text_pair}\nScore:",
        "{score}",
        ("pearson", "spearman"),
        group="text",
        decoding=_SHORT,
    ),
    "token_classification": Recipe(
        "token",
        {"words": "words", "tags": "tags"},
        "{words}\nEntities:",
        "{entities}",
        ("token_f1",),
        ("exact_match", "squad_f1"),
        decoding=Decoding(max_new=128),
    ),
    "qa": Recipe(
        "span",
        {"context": "context", "question": "question", "answers": "answers"},
        "{context}\nQuestion: {question}\nAnswer:",
        "{answer}",
        ("squad_f1", "exact_match"),
        ("squad_f1", "exact_match"),
        group="context",
        decoding=Decoding(max_new=32, stop=("\n",)),
    ),
    "multiple_choice": Recipe(
        "choice",
        {"question": "question", "choices": "choices", "answer": "answer"},
        "{question}\n{choices}\nAnswer:",
        "{letter}",
        ("accuracy",),
        decoding=Decoding(max_new=4, stop=("\n",)),
    ),
    "instruction": Recipe(
        "completion",
        {"instruction": "instruction", "input": "input", "output": "output"},
        "### Instruction:\n{instruction}\n\n{input_part}### Response:",
        "{output}",
        text_metrics=("rouge_l",),
        optional=("input",),
        decoding=Decoding(max_new=256),
    ),
    "chat": Recipe(
        "completion",
        {"messages": "messages"},
        "{conversation}",
        "{reply}",
        text_metrics=("rouge_l",),
        decoding=Decoding(max_new=256),
    ),
    "summarisation": Recipe(
        "completion",
        {"text": "text", "summary": "summary", "references": "references"},
        "{text}\nSummary:",
        "{summary}",
        text_metrics=("rouge_l", "rouge_1", "rouge_2"),
        optional=("references",),
        decoding=Decoding(max_new=128),
    ),
    "translation": Recipe(
        "completion",
        {"source": "source", "target": "target", "references": "references"},
        "{source}\nTranslation:",
        "{target}",
        text_metrics=("bleu", "chrf"),
        optional=("references",),
        decoding=Decoding(max_new=128, beams=4, stop=("\n",)),
    ),
    "code": Recipe(
        "completion",
        {"task": "task", "code": "code"},
        "{task}",
        "{code}",
        text_metrics=("exact_match", "chrf"),
        decoding=Decoding(max_new=256),
    ),
    "creative": Recipe(
        "completion",
        {"prompt": "prompt", "text": "text"},
        "{prompt}",
        "{text}",
        text_metrics=("chrf",),
        decoding=Decoding(max_new=256),
    ),
    "table_to_text": Recipe(
        "completion",
        {"table": "table", "text": "text", "references": "references"},
        "{table}\nText:",
        "{text}",
        text_metrics=("lowercase_bleu", "nist", "coco_rouge_l", "cider"),
        optional=("references",),
        # As Hu et al. 2021 decode E2E (their Table 11).
        decoding=Decoding(
            max_new=64, beams=10, length_penalty=0.9, no_repeat_ngram=4, stop=("\n",)
        ),
    ),
    "completion": Recipe(
        "completion", {"prompt": "prompt", "completion": "completion"}, "{prompt}", "{completion}"
    ),
}


def register_recipe(name: str, recipe: Recipe) -> Recipe:
    """Adds a recipe to the table, for every function and setting that takes a recipe's name.

    Raises:
        ValueError: the name is taken by another recipe.
    """
    return register(RECIPES, name, recipe, "recipe")


def recipe_named(name: str | Recipe) -> Recipe:
    """The recipe of that name; a recipe is itself.

    Raises:
        ValueError: there is none; near names are listed.
    """
    if isinstance(name, Recipe):
        return name
    if name not in RECIPES:
        raise ValueError(
            f"config.data.recipe must be one of {', '.join(RECIPES)}, got {name!r}. "
            f"{near_names(name, RECIPES)}"
        )
    return RECIPES[name]


# --- what templates may name besides the roles ---------------------------------------------------


def _entities(values: Values) -> str:
    """'Bank - ORG, Bob - PER' of BIO tags."""
    parts: list[tuple[str, list[str]]] = []
    inside = ""
    for word, tag in zip(values["words"], values["tags"]):
        prefix, _, kind = tag.partition("-")
        if prefix == "I" and kind == inside:
            parts[-1][1].append(word)
        elif prefix in ("B", "I"):
            parts.append((kind, [word]))
        inside = kind if prefix in ("B", "I") else ""
    return ", ".join(f"{' '.join(words)} - {kind}" for kind, words in parts) or "none"


_DERIVED: dict[str, tuple[str, Callable[[Values], str]]] = {
    "entities": ("tags", _entities),
    "answer": ("answers", lambda values: values["answers"][0]["text"]),
    "letter": ("choices", lambda values: LETTERS[values["answer"]]),
    "input_part": (
        "instruction",
        lambda values: f"### Input:\n{values['input']}\n\n" if values.get("input") else "",
    ),
    "conversation": (
        "messages",
        lambda values: "\n".join(message["content"] for message in values["messages"][:-1]),
    ),
    "reply": ("messages", lambda values: values["messages"][-1]["content"]),
}


def render(template: str, values: Values) -> str:
    """The template with `{role}` replaced; lists are written a line each (choices with letters),
    words with spaces.

    Raises:
        ValueError: the template names what the record does not have, or braces do not match.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"A template needs roles in braces, such as '{{text}}', but {template!r} came "
            f"({error}). Double the braces that are meant as such."
        ) from None

    out = []
    for literal, name, spec, conversion in parts:
        out.append(literal)
        if name is None:
            continue
        if spec or conversion:
            raise ValueError(
                f"A template needs plain roles in braces, but {template!r} asks for a format of "
                f"{name!r}. Write {{{name}}}."
            )
        needs, make = _DERIVED.get(name, ("", None))
        if make is not None and needs in values and (name not in values or name == "answer"):
            out.append(make(values))
        elif name in values:
            out.append(_shown(name, values[name]))
        else:
            known = [*values, *(other for other, (role, _) in _DERIVED.items() if role in values)]
            raise ValueError(
                f"A template may name {', '.join(known)}, but names {name!r}. "
                f"{near_names(name, known)}Correct the template."
            )
    return "".join(out)


def references(recipe: Recipe, values: Values, completion: str) -> tuple[str, ...]:
    """The right texts of a record: its own list of references, all its answers, or the completion
    alone.
    """
    if values.get("references"):
        return tuple(values["references"])
    if "answers" in recipe.fields:
        return tuple(dict.fromkeys(answer["text"] for answer in values["answers"]))
    return (completion,)


def _shown(name: str, value: Any) -> str:
    if name == "choices":
        return "\n".join(f"{LETTERS[n]}. {choice}" for n, choice in enumerate(value))
    if name == "words":
        return " ".join(value)
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(map(str, value))
    return str(value)
