"""Chats and chat templates: what tests/golden/chat/golden.json has of each is transformers' own text
(experiments/make_golden_chat.py).
"""

import json
from datetime import datetime
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "chat"
# Templates of known models, written anew after the formats that their makers describe.
FAMILIES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(GOLDEN.glob("*.jinja"))}
DATES = ("%d %b %Y", "%d %B %Y", "%B %d, %Y", "%Y-%m-%d")

_user = lambda text: {"role": "user", "content": text}
_said = lambda text, **more: {"role": "assistant", "content": text, **more}
_system = {"role": "system", "content": " You are terse. "}
_CALL = {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <tomorrow> & after",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "time", "parameters": {}}},
]
CONVERSATIONS = {
    "one": [_user("Hello, 世界! <b>&'\"")],
    "system": [_system, _user("  What is 2+2?\n")],
    "turns": [_user("a"), _said(" b \n"), _user("<|im_end|> c"), _said("d")],
    "all": [_system, _user("a"), _said("<think>\nhm\n</think>\n\nb"), _user("c"), _said("d  ")],
    "tools": [
        _system,
        _user("Weather?"),
        _said(None, tool_calls=[{"id": "abcDEF123", "type": "function", "function": _CALL}]),
        {"role": "tool", "content": '{"sky": "blue"}', "tool_call_id": "abcDEF123"},
        {"role": "tool", "content": "dry", "tool_call_id": "abcDEF123"},
        _said("Fine.", reasoning_content="It is blue."),
    ],
    "parts": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What? "}]}
    ],
    "wrong": [_said("I begin"), {"role": "critic", "content": "no"}],
}
# (conversation, variables, how it ends)
_ENDS = {
    "answer": {},
    "whole": {"answer": False},
    "continued": {"answer": False, "continued": True},
}
_RUNS = [(name, {}, end) for name in CONVERSATIONS for end in ("answer", "whole")]
_RUNS += [(name, {}, "continued") for name in ("system", "turns", "all", "tools")]
_RUNS += [
    ("system", {"tools": _TOOLS}, "answer"),
    ("tools", {"tools": _TOOLS}, "answer"),
    ("turns", {"documents": [{"title": "T", "text": "x"}, {"title": "U", "text": "y"}]}, "answer"),
    ("all", {"enable_thinking": False, "date_string": "1 May 2020"}, "answer"),
]
# What templates count on, piece by piece.
FEATURES = {
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "generation trimmed": "a  {%- generation -%}  {% set x = 1 %}{{ x }} {% endgeneration %}  {{ x is defined }}",
    "generation in a loop": "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.content }}{% endgeneration %}{% endfor %}",
    "strftime": "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now is defined }}",
    "tojson": "{{ messages[0] | tojson }}{{ messages[0] | tojson(ensure_ascii=False) }}{{ messages[0] | tojson(True) }}",
    "tojson laid out": "{{ {'b': [1, 2.5, none], 'a': '<é>'} | tojson(indent=2, sort_keys=true) }}{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':')) }}{{ [1] | tojson(false, 4) }}",
    "no tools": "{{ tools is defined }} {{ tools is none }} {% if tools is not none %}TOOLS {{ tools | length }}{% endif %}{{ documents is none }} {% if documents %}{{ documents[0].title }}{% endif %}",
    "tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ image_token }}",
    "missing tokens": "{{ sep_token is defined }}{{ mask_token }}{{ cls_token | default('none') }}",
    "missing token added": "{{ mask_token + 'x' }}",
    "namespace": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.last = m.role %}{% endfor %}{{ ns.n }}{{ ns.last }}",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "loop state": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.nextitem.role if loop.nextitem is defined }}{{ loop.cycle('x', 'y') }}{{ loop.changed(m.role) }}{% else %}empty{% endfor %}",
    "macro": "{% macro turn(role, text='-') %}<{{ role }}>{{ text | trim }}{{ varargs | length }}{% endmacro %}{% for m in messages %}{{ turn(m.role, m.content, 1, 2) }}{% endfor %}{{ turn('x') }}",
    "white space": "  {% if true %}\n  x\n    {% endif %}\n\n  {%- if true %} y {% endif -%}  \n z\n{# a comment #}\n  {# another #}  w\n\n",
    "refusal": "{{ raise_exception('only ' ~ messages | length ~ ' turns') }}",
    "system merged": "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}{% for m in messages %}{{ s ~ m.content if loop.index0 == 0 else m.content }}|{% endfor %}",
    "none is dropped": "{% for m in messages %}{{ 'content' in m }}{{ m.content is defined }}{{ m.tool_calls is defined }}{% endfor %}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }}{% endfor %}",
    "methods": "{% set t = messages[0].content %}{{ t.strip().split(' ')[-1] }}{{ t.startswith('H') }}{{ t[::-1] }}{{ t.replace('l', 'L', 1).title() }}{{ t.find('o') }}{{ 'a-b'.rpartition('-') | list }}",
    "filters": "{{ messages | map(attribute='role') | unique | join(',') }}{{ messages | selectattr('role', 'in', ['user', 'system']) | list | length }}{{ (messages | last).role | upper | replace('U', 'V') }}{{ messages | groupby('role') | length }}{{ ' x ' | trim | indent(2, true) }}{{ 3.7 | round | int }}",
    "mappings": "{% for k, v in messages[0].items() %}{{ k }}={{ v | length }};{% endfor %}{{ messages[0].get('name', 'nobody') }}{{ dict(a=1) }}{{ messages[0] | dictsort }}",
    "set block": "{% set text %}[{% for m in messages %}{{ m.role[0] }}{% endfor %}]{% endset %}{{ text }}{% filter upper %}x{{ text }}{% endfilter %}",
    "variables": "{{ enable_thinking is defined and enable_thinking is false }}{{ date_string | default('no date') }}",
    "conditions": "{{ 'a' if messages[0].role == 'x' }}|{{ messages[0].missing }}|{{ messages[9] }}|{{ 7 // 2 }}{{ 2 ** 3 }}{{ 7 % 4 }}{{ 1 ~ 2 }}{{ not none }}{{ 'b' in 'abc' and 1 in [1] }}{{ messages is iterable }}{{ '1' is number }}",
    "arithmetic of nothing": "{{ nothing + 1 }}",
    "division": "{{ 1 / 0 }}",
    "change of the messages": "{{ messages.append(1) }}",
    "reaching out": "{{ messages.__class__.__mro__ }}",
    "broken": "{% for m in messages %}{{ m.role ",
}  # fmt: skip
_FEATURE_RUNS = [("one", {}, "whole"), ("all", {}, "answer"), *_RUNS[-3:]]
# All texts that some template writes as a token of its own.
_SPECIAL = (
    "<s>", "</s>", "<unk>", "<pad>", "<img>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<start_of_turn>", "<end_of_turn>",
    "[INST]", "[/INST]", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
    "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<think>", "</think>",
)  # fmt: skip


def cases() -> dict[str, tuple[str, str, str, dict, str]]:
    """(template, its text, conversation, variables, end) of every chat that is compared, by name."""
    return {
        " / ".join([name, chat, *variables, end]): (name, template, chat, variables, end)
        for templates, runs in ((FAMILIES, _RUNS), (FEATURES, _FEATURE_RUNS))
        for name, template in templates.items()
        for chat, variables, end in runs
    }


def arguments(end: str, variables: dict) -> dict:
    """What `TextTokenizer.chat` is given."""
    return _ENDS[end] | variables


def dated(text: str) -> str:
    """A text with the day of today as its format."""
    for form in DATES:
        text = text.replace(datetime.now().strftime(form), form)
    return text


def write_chat_tokenizer(folder: Path, template: str | None = None) -> Path:
    """A folder with a tokenizer of single bytes and of all special tokens, some of them named."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(_SPECIAL))
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    settings |= {"unk_token": "<unk>", "pad_token": "<pad>", "image_token": "<img>"}
    settings |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
