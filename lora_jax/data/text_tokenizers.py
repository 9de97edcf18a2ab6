"""Tokenizers of language models: texts and chats to token ids and back, through the tokenizers
package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsInt

from lora_jax.core.extras import needs
from lora_jax.core.json_files import read_json, save_json

from .chat import Message, render_chat
from .records import held_by
from .tokenizers import backend_errors, read_backend, switch, wrong_setting

if TYPE_CHECKING:
    import tokenizers

# A tokenizer's templates by name: chats without tools use the first, chats with tools the second.
_DEFAULT, _TOOLS = "default", "tool_use"
_TOKENS = {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}


@dataclasses.dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A language model's tokenizer with its special ids.

    `bos_id` begins a text (None: nothing does), `eos_ids` end one, `pad_id` fills up batches. With
    `add_bos`, `encode` puts bos_id first. `chat_template` is a Jinja text, None if the model has
    none; `tool_template` one for chats with tools, where that is another. `named_tokens` are the
    special tokens that templates know ('unk_token': '<unk>'); None: those of bos and eos. `source`
    is what the tokenizer was read from, for errors.
    """

    backend: tokenizers.Tokenizer
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int
    add_bos: bool
    add_eos: bool = False
    chat_template: str | None = None
    tool_template: str | None = None
    named_tokens: Mapping[str, str] | None = None
    source: str = ""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens counted."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text; with `special`, bos and eos where the model wants them. Special tokens
        in the text become their ids.
        """
        with backend_errors(self.source):
            ids = self.backend.encode(text, add_special_tokens=False).ids
        if not special:
            return ids
        first = [self.bos_id] if self.add_bos and self.bos_id is not None else []
        return first + ids + ([self.eos_ids[0]] if self.add_eos and self.eos_ids else [])

    def decode(self, ids: Iterable[SupportsInt], *, special: bool = False) -> str:
        """The text of ids, without special tokens unless asked for."""
        with backend_errors(self.source):
            return self.backend.decode([int(i) for i in ids], skip_special_tokens=not special)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        answer: bool = True,
        continued: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation by the model's chat template, as transformers' own
        `apply_chat_template` has it.

        Args:
            messages: {'role': 'user' or 'assistant' or 'system', 'content': text}, ...
            answer: ends where the assistant's answer begins.
            continued: ends where the last message does, so that the model goes on with it; without
                an answer of its own.
            variables: further names for the template, such as `tools` (JSON schemas).

        Raises:
            ValueError: there is no template, the template refuses the messages or needs too much
                time or memory, or both `answer` and `continued` are wanted.
        """
        template = self.chat_template
        if variables.get("tools") is not None:
            template = self.tool_template or template
        origin = f" of {self.source}" if self.source else ""
        if template is None:
            raise ValueError(
                f"The tokenizer{origin} has no chat template: the model was not trained on chats. "
                "Give a plain text instead."
            )
        if answer and continued:
            raise ValueError(
                "A chat ends with the beginning of an answer or within the last message, not both; "
                "give answer=False with continued=True."
            )
        tokens = self._tokens() if self.named_tokens is None else self.named_tokens
        names: dict[str, Any] = {**tokens, "add_generation_prompt": answer, **variables}
        source = f"The chat template{origin}"
        return render_chat(template, messages, source=source, continued=continued, **names)

    def _tokens(self) -> dict[str, str]:
        token = self.backend.id_to_token
        begin = {} if self.bos_id is None else {"bos_token": token(self.bos_id)}
        return begin | ({"eos_token": token(self.eos_ids[0])} if self.eos_ids else {})

    def encode_chat(
        self, messages: Sequence[Message], *, answer: bool = True, **variables: Any
    ) -> list[int]:
        """The ids of `chat`; the template writes the special tokens itself."""
        return self.encode(self.chat(messages, answer=answer, **variables), special=False)


def read_text_tokenizer(folder: Path | str) -> TextTokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json with tokenizer_config.json,
    special_tokens_map.json, generation_config.json and its chat templates.

    Raises:
        FileNotFoundError: there is no tokenizer.json.
        ValueError: a file does not parse, a setting has another type, or a special token is not in
            the vocabulary.
    """
    folder = Path(folder)
    path, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} needs tokenizer.json, but holds {held_by(folder)}. Give the model's "
            "tokenizer files."
        )
    backend = read_backend(path)
    settings = _json(config)
    named = _named(config, settings) | _named(config, _extra(settings))
    # As transformers: what folders had before their settings listed the added tokens.
    if "added_tokens_decoder" not in settings:
        older = folder / "special_tokens_map.json"
        named |= _named(older, _json(older))
    ids = {name: _id(backend, named.get(f"{name}_token"), path) for name in ("bos", "eos", "pad")}
    eos_ids = tuple(dict.fromkeys(i for i in (ids["eos"], *_told_eos(folder)) if i is not None))
    # Where the settings do not say, the pipeline itself shows what it puts around a text.
    with backend_errors(path):
        with_special = backend.encode("a").ids
    bos, eos = switch(config, settings, "add_bos_token"), switch(config, settings, "add_eos_token")
    templates = _templates(config, settings.get("chat_template"))
    for name, file in (
        (_DEFAULT, folder / "chat_template.jinja"),
        (_TOOLS, folder / "additional_chat_templates" / f"{_TOOLS}.jinja"),
    ):
        if file.is_file():
            templates[name] = _text(file)
    return TextTokenizer(
        backend,
        ids["bos"],
        eos_ids,
        pad_id=next((i for i in (ids["pad"], *eos_ids) if i is not None), 0),
        add_bos=ids["bos"] is not None and with_special[:1] == [ids["bos"]] if bos is None else bos,
        add_eos=ids["eos"] is not None and with_special[-1:] == [ids["eos"]]
        if eos is None
        else eos,
        chat_template=templates.get(_DEFAULT),
        tool_template=templates.get(_TOOLS),
        named_tokens=named,
        source=str(folder),
    )


def save_text_tokenizer(folder: Path | str, tokenizer: TextTokenizer) -> None:
    """Writes tokenizer.json, tokenizer_config.json and the chat templates, as transformers reads
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
    settings |= tokenizer.named_tokens or {}
    save_json(folder / "tokenizer_config.json", settings, ensure_ascii=False)
    templates = {
        folder / "chat_template.jinja": tokenizer.chat_template,
        folder / "additional_chat_templates" / f"{_TOOLS}.jinja": tokenizer.tool_template,
    }
    for file, template in templates.items():
        # What another tokenizer left there would be taken for this one's.
        file.unlink(missing_ok=True)
        if template is not None:
            file.parent.mkdir(exist_ok=True)
            file.write_text(template, encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is not UTF-8 ({error}). Fetch the model's files again."
        ) from None


def _extra(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    found = settings.get("extra_special_tokens")
    return found if isinstance(found, dict) else {}


def _named(path: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens among settings, by name, each given as a text or as an AddedToken. Under
    names of a model's own, what is neither is another setting, such as a switch.
    """
    found = {}
    for name, token in settings.items():
        own = name.endswith("_token") and not name.startswith("add_")
        if (name in _TOKENS and token is not None) or (own and isinstance(token, (str, dict))):
            found[name] = token.get("content") if isinstance(token, dict) else token
            if not isinstance(found[name], str):
                wanted = "a text, or an object with a text as its content"
                raise wrong_setting(path, name, wanted, token)
    return found


def _told_eos(folder: Path) -> list[int]:
    """The ids that end a text by generation_config.json."""
    path = folder / "generation_config.json"
    told = _json(path).get("eos_token_id")
    ids = told if isinstance(told, list) else [] if told is None else [told]
    if not all(type(one) is int and one >= 0 for one in ids):
        raise wrong_setting(path, "eos_token_id", "a token id, or a list of them", told)
    return ids


def _templates(path: Path, told: Any) -> dict[str, str]:
    """Chat templates by name, given as one text or as a list of several."""
    if told is None or isinstance(told, str):
        return {} if told is None else {_DEFAULT: told}
    try:
        found = {entry["name"]: entry["template"] for entry in told}
    except (TypeError, KeyError):
        found = {None: None}
    if not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise wrong_setting(
            path, "chat_template", "a text, or a list of objects with name and template", told
        )
    return found


def _id(backend: tokenizers.Tokenizer, text: str | None, path: Path) -> int | None:
    found = None if text is None else backend.token_to_id(text)
    if found is None and text is not None:
        raise ValueError(
            f"{str(path)!r} has no token {text!r}, which tokenizer_config.json names. Fetch the "
            "model's files again."
        )
    return found
