"""Tokenizers of language models: texts and chats to token ids and back, through the tokenizers
package.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsInt

from lora_jax.core.extras import needs

from .records import held_by

if TYPE_CHECKING:
    import tokenizers

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A language model's tokenizer with its special ids.

    `bos_id` begins a text (None: nothing does), `eos_ids` end one, `pad_id` fills up batches. With
    `add_bos`, `encode` puts bos_id first. `chat_template` is a Jinja text, None if the model has
    none.
    """

    backend: tokenizers.Tokenizer
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int
    add_bos: bool
    add_eos: bool = False
    chat_template: str | None = None

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens counted."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text; with `special`, bos and eos where the model wants them. Special tokens
        in the text become their ids.
        """
        ids = self.backend.encode(text, add_special_tokens=False).ids
        if not special:
            return ids
        first = [self.bos_id] if self.add_bos and self.bos_id is not None else []
        return first + ids + ([self.eos_ids[0]] if self.add_eos and self.eos_ids else [])

    def decode(self, ids: Iterable[SupportsInt], *, special: bool = False) -> str:
        """The text of ids, without special tokens unless asked for."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=not special)

    def chat(self, messages: Sequence[Message], *, answer: bool = True, **variables: Any) -> str:
        """The text of a conversation by the model's chat template.

        Args:
            messages: {'role': 'user' or 'assistant' or 'system', 'content': text}, ...
            answer: ends where the assistant's answer begins.
            variables: further names for the template, such as tools.

        Raises:
            ValueError: there is no template, or the template refuses the messages.
        """
        if self.chat_template is None:
            raise ValueError(
                "This tokenizer has no chat template: the model was not trained on chats. Give a "
                "plain text instead."
            )

        def token(i: int | None) -> str:
            return "" if i is None else self.backend.id_to_token(i)

        return render_chat(
            self.chat_template,
            messages,
            add_generation_prompt=answer,
            bos_token=token(self.bos_id),
            eos_token=token(self.eos_ids[0] if self.eos_ids else None),
            **variables,
        )

    def encode_chat(
        self, messages: Sequence[Message], *, answer: bool = True, **variables: Any
    ) -> list[int]:
        """The ids of `chat`; the template writes the special tokens itself."""
        return self.encode(self.chat(messages, answer=answer, **variables), special=False)


def render_chat(template: str, messages: Sequence[Message], **variables: Any) -> str:
    """What a Jinja chat template writes, run in a sandbox that reaches nothing but its arguments.

    Raises:
        ValueError: the template is broken, or it refuses the messages (its own words are given).
    """
    with needs("data"):
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def as_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(messages=messages, **variables)
    except jinja2.TemplateError as error:
        raise ValueError(
            f"The chat template does not take these {len(messages)} messages: {error}"
        ) from error


def read_text_tokenizer(folder: Path | str) -> TextTokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json with tokenizer_config.json,
    generation_config.json, chat_template.jinja.

    Raises:
        FileNotFoundError: there is no tokenizer.json.
        ValueError: a file does not parse, or a special token is not in the vocabulary.
    """
    with needs("data"):
        import tokenizers

    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} needs tokenizer.json, but holds {held_by(folder)}. Give the model's "
            "tokenizer files."
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The package raises bare Exception.
        raise ValueError(
            f"{str(path)!r} needs to be a tokenizer definition, but does not parse: {error}. Fetch "
            "it again."
        ) from error
    backend.no_padding()
    backend.no_truncation()

    settings = _json(folder / "tokenizer_config.json")
    ids = {
        name: _id(backend, settings.get(f"{name}_token"), path) for name in ("bos", "eos", "pad")
    }
    told = _json(folder / "generation_config.json").get("eos_token_id")
    eos = [ids["eos"], *(told if isinstance(told, list) else [told])]
    eos_ids = tuple(dict.fromkeys(i for i in eos if i is not None))
    # Where the settings do not say, the pipeline itself shows what it puts around a text.
    with_special = backend.encode("a").ids
    template = folder / "chat_template.jinja"
    return TextTokenizer(
        backend,
        ids["bos"],
        eos_ids,
        pad_id=next((i for i in (ids["pad"], *eos_ids) if i is not None), 0),
        add_bos=settings.get(
            "add_bos_token", ids["bos"] is not None and with_special[:1] == [ids["bos"]]
        ),
        add_eos=settings.get(
            "add_eos_token", ids["eos"] is not None and with_special[-1:] == [ids["eos"]]
        ),
        chat_template=template.read_text(encoding="utf-8")
        if template.is_file()
        else _template(settings.get("chat_template")),
    )


def save_text_tokenizer(folder: Path | str, tokenizer: TextTokenizer) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers reads
    them.

    Raises:
        OSError: the folder cannot be written.
    """
    with needs("data"):
        from tokenizers import Tokenizer, processors

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    token = backend.id_to_token
    first = [token(tokenizer.bos_id)] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    last = [token(tokenizer.eos_ids[0])] if tokenizer.add_eos and tokenizer.eos_ids else []
    if first or last:
        single = " ".join([*first, "$A", *last])
        pair = " ".join(
            [*first, "$A", *last, *(f"{t}:1" for t in first), "$B:1", *(f"{t}:1" for t in last)]
        )
        special = [(text, backend.token_to_id(text)) for text in dict.fromkeys(first + last)]
        backend.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=special
        )
    backend.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
        "padding_side": "left",
        "pad_token": token(tokenizer.pad_id),
    }
    settings |= {"bos_token": token(tokenizer.bos_id)} if tokenizer.bos_id is not None else {}
    settings |= {"eos_token": token(tokenizer.eos_ids[0])} if tokenizer.eos_ids else {}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    if tokenizer.chat_template is not None:
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} is not JSON ({error}). Fetch the model's files again."
        ) from None


def _id(backend: tokenizers.Tokenizer, token: Any, path: Path) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    if text is None:
        return None
    found = backend.token_to_id(text)
    if found is None:
        raise ValueError(
            f"{str(path)!r} has no token {text!r}, which tokenizer_config.json names. Fetch the "
            "model's files again."
        )
    return found


def _template(told: Any) -> str | None:
    if isinstance(told, list):  # Several templates by name.
        return next((entry["template"] for entry in told if entry.get("name") == "default"), None)
    return told
