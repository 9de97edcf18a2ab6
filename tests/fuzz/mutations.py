"""Seeded damage to files, of their bytes and of their structure.

Each mutator takes a file's content and a `random.Random`, and gives a `Mutation`: what was done, the
new content, and whether that can explain another result, as a changed number in a file without a
checksum does. Where it cannot (a tensor less, a header that lies), another result is silent
wrongness.
"""

import dataclasses
import json
import math
import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """What was done to a file, its content then, and whether another result may come of it."""

    what: str
    content: bytes
    explains: bool


Mutator = Callable[[bytes, random.Random], Mutation]


@dataclasses.dataclass(frozen=True)
class Kind:
    """How the files of a folder are mutated, and the whole folder read.

    checked: a checksum guards the files: nothing explains another result.
    writes: reading changes the folder.
    """

    files: dict[str, Mutator]
    read: Callable[[Path], Any]
    checked: bool = False
    writes: bool = False


HUGE = (2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, math.nan, math.inf, -math.inf, 10**12),
    *(10**30, 2**31, 2**63, -(2**63), "", "x", "\ud800", "../../x", "a" * 5000, "(a+)+$", "(("),
    *([], {}, [1], [None], ["x"], {"x": 1}, [[]], {"x": {"x": []}}),
]
DIGITS = ("9" * 5000, "-" + "9" * 400, "1" + "0" * 300 + ".5", "1e400", "-1e400", "9" * 20)
MARK = '"#here#"'


def of_bytes(content: bytes, rng: random.Random, end: int | None = None) -> Mutation:
    """Bits, bytes and runs of bytes, before `end`; what cuts or inserts explains nothing."""
    new, end = bytearray(content), max(1, min(end or len(content), len(content)))
    kind = rng.choice(
        ["bit", "bit", "bits", "byte", "cut", "head", "junk", "empty", "hole", "twice", "swap", "fill", "huge"]
    )  # fmt: skip
    at, size = rng.randrange(end), rng.randint(1, 64)
    if kind == "bit":
        new[at : at + 1] = bytes(x ^ 1 << rng.randrange(8) for x in new[at : at + 1])
    elif kind == "bits":
        for _ in range(rng.randint(2, 12)):
            place = rng.randrange(end)
            new[place : place + 1] = bytes(
                x ^ 1 << rng.randrange(8) for x in new[place : place + 1]
            )
    elif kind == "byte":
        new[at : at + 1] = bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])])
    elif kind == "swap":
        other = rng.randrange(end)
        new[at : at + size], new[other : other + size] = (
            new[other : other + size],
            new[at : at + size],
        )
    elif kind == "fill":
        new[at : at + size] = bytes([rng.choice([0, 0xFF, 0x7F])]) * len(new[at : at + size])
    elif kind == "huge":
        new[at : at + 8] = struct.pack("<Q", rng.choice(HUGE))[: len(new[at : at + 8])]
    else:
        made = {
            "cut": content[:at],
            "head": content[rng.randrange(1, 100) :],
            "junk": content + rng.randbytes(rng.randint(1, 300)),
            "empty": b"",
            "hole": content[:at] + content[at + size :],
            "twice": content[: at + size] + content[at:],
        }
        return Mutation(f"{kind} of {size} at {at}", made[kind], False)
    return Mutation(f"{kind} at {at}", bytes(new), len(new) == len(content))


def of_anything(content: bytes, rng: random.Random) -> Mutation:
    """Bytes of a format in which any cut may be as whole as before."""
    return of_bytes(content, rng)._replace(explains=True)


# --- JSON ----------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner: Any = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value[:6]) if isinstance(value, list) else inner
    for key, child in inner:
        yield from _places(child, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = value.copy()
    value[path[0]] = _replaced(value[path[0]], path[1:], new)
    return value


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def of_json(content: bytes, rng: random.Random) -> Mutation:
    """Values, keys, depth, digits, encoding and bytes of JSON; all of it explains."""
    value = json.loads(content)
    kind = rng.choice(
        ["value"] * 5 + ["key"] * 3 + ["deep", "bytes", "root", "digits", "encoding", "long"]
    )
    places = list(_places(value))
    path = rng.choice(places[1:] or places)
    if kind == "value":
        old, new = _at(value, path), rng.choice(ODD)
        if type(old) in (int, float) and rng.random() < 0.5:
            new = rng.choice([old + 1, old * 2, -old, old * 1.0, str(old), old + 0.5, old * 1000])
        return Mutation(f"{path} = {str(new)[:40]!r}", _dumped(_replaced(value, path, new)), True)
    if kind == "key":
        return _of_keys(value, places, rng)
    if kind == "deep":
        opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
        depth = rng.choice([500, 2000, 100_000])
        nested = opening * depth + "1" + closing * (depth if rng.random() < 0.7 else 0)
        return _put(value, rng.choice([path, ()]), nested, f"{depth} deep")
    if kind == "digits":
        digits = rng.choice(DIGITS)
        return _put(value, path, digits, f"{len(digits)} digits")
    if kind == "root":
        new = rng.choice([None, [], {}, 1, "x", True, [value], math.nan])
        return Mutation(f"root = {str(new)[:20]}", _dumped(new), True)
    if kind == "encoding":
        return _of_encoding(content, rng)
    if kind == "long":
        long = "x" * 200_000
        return Mutation(f"{path} = long", _dumped(_replaced(value, path, long)), True)
    return of_anything(content, rng)


def _put(value: Any, path: tuple[Any, ...], text: str, what: str) -> Mutation:
    """The JSON with a piece of text at a place."""
    whole = _dumped(_replaced(value, path, json.loads(MARK))).decode()
    return Mutation(f"{path} = {what}", whole.replace(MARK, text).encode(), True)


def _of_keys(value: Any, places: list[tuple[Any, ...]], rng: random.Random) -> Mutation:
    inside = [path for path in places if isinstance(_at(value, path), dict) and _at(value, path)]
    if not inside:
        return Mutation("nothing", _dumped(value), False)
    path = rng.choice(inside)
    branch = dict(_at(value, path))
    key = rng.choice(list(branch))
    kind = rng.choice(["delete", "rename", "twice"])
    if kind == "twice":
        both = [*branch.items(), (key, rng.choice(ODD[:18]))]
        text = ", ".join(f"{json.dumps(name)}: {json.dumps(item)}" for name, item in both)
        return _put(value, path, f"{{{text}}}", f"{key!r} twice")
    old = branch.pop(key)
    if kind == "rename":
        branch[key + rng.choice(["x", "_", " ", "\u200b"])] = old
    return Mutation(f"{kind} {(*path, key)}", _dumped(_replaced(value, path, branch)), True)


def _of_encoding(content: bytes, rng: random.Random) -> Mutation:
    half = len(content) // 2
    made = [
        b"\xef\xbb\xbf" + content,
        content.decode("utf-8", "replace").encode("utf-16"),
        content[:half] + b"\xff\xfe\x80" + content[half:],
        content + b"\0",
        content.replace(b'"', b"'"),
        content.replace(b"\n", b"\r\n"),
        content.replace(b"\n", b"\r"),
    ]
    number = rng.randrange(len(made))
    return Mutation(f"encoding {number}", made[number], True)


def of_lines(content: bytes, rng: random.Random) -> Mutation:
    """Lines of JSON: one of them, their order, their ends."""
    lines = content.splitlines(keepends=True)
    kind = rng.choice(["line"] * 4 + ["bytes", "order", "twice", "cut", "glue", "blank"])
    at = rng.randrange(len(lines))
    if kind == "line":
        what, lines[at], _ = of_json(lines[at], rng)
        lines[at] += b"\n"
        return Mutation(f"line {at}: {what}", b"".join(lines), True)
    if kind == "order":
        rng.shuffle(lines)
    elif kind == "twice":
        lines.insert(at, lines[rng.randrange(len(lines))])
    elif kind == "cut":
        return Mutation("cut", content[: rng.randrange(len(content))], True)
    elif kind == "glue":
        lines[at] = lines[at].rstrip(b"\n")
    elif kind == "blank":
        odd = [b"\n", b" \t\n", b"\r\n", b"\x0c\n", b"null\n", b"[]\n", b"\xe2\x80\xa8\n"]
        lines.insert(at, rng.choice(odd))
    else:
        return of_anything(content, rng)
    return Mutation(f"{kind} at {at}", b"".join(lines), True)


# --- texts ---------------------------------------------------------------------------------------

LETTERS = [
    *(
        b'"',
        b",",
        b"\t",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"'",
        b"\\",
        b"\x1b",
        b'""',
    ),
    *(b"\xe2\x80\xa8", b"x" * 300_000, b"=cmd()", b"\x85", b"\xef\xbb\xbf"),
]
TEMPLATES = [
    "{{ 1/0 }}", "{{ messages[99].content.x }}", "{{ undefined.x }}", "{{ 'x' * 10**10 }}", "{{ 10**10**8 }}",
    "{% for i in range(10**9) %}x{% endfor %}", "{{ range(10**9)|list }}", "{{ messages.append(1) }}",
    "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{{ lipsum(n=10**7) }}",
    "{% include '/etc/passwd' %}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ 'x'|center(10**10) }}",
    "{{ '{:>9999999999}'.format(1) }}", "{{ [1, 'a']|sort }}", "{{ 'x'|foo }}", "{{ x", "{% if %}", "{{ 'a'|int(base=99) }}",
    "{{ raise_exception('no') }}", "{{ {'a b': 1}|xmlattr }}", "{{ '\ud800' }}", "{{ ((((" * 2000, "{% if 1 %}" * 300,
    "{{ messages|tojson(indent='x'*10) }}", "{{ strftime_now('%Y' * 10**6) }}", "{% generation %}", "{{ messages|sum }}",
]  # fmt: skip


def of_text(content: bytes, rng: random.Random) -> Mutation:
    """Letters, lines and the encoding of a text."""
    kind = rng.choice(["bytes", "insert", "insert", "line", "drop", "order", "encoding"])
    at = rng.randrange(len(content))
    if kind == "insert":
        odd = rng.choice(LETTERS)
        return Mutation(f"{odd[:8]!r} at {at}", content[:at] + odd + content[at:], True)
    if kind == "encoding":
        return _of_encoding(content, rng)
    if kind == "bytes":
        return of_anything(content, rng)
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    if kind == "line":
        lines.insert(at, lines[rng.randrange(len(lines))])
    elif kind == "drop":
        del lines[at]
    else:
        rng.shuffle(lines)
    return Mutation(f"{kind} at line {at}", b"".join(lines), True)


def of_template(content: bytes, rng: random.Random) -> Mutation:
    """A chat template, or one that wants too much."""
    if rng.random() < 0.5:
        bad = rng.choice(TEMPLATES)
        return Mutation(f"template {bad[:50]!r}", bad.encode("utf-8", "surrogatepass"), True)
    return of_text(content, rng)


OVERRIDES = [
    "", "None", "nan", "inf", "-1", "0", "1e999", "9" * 5000, "((1,2", "1,,2", "[" * 3000, "'", "true", "\x00", "\udcff",
    "lora.alpha = ", "= 1", "lora.alpha = 1; lora.rank = 2", "1_000", "٣", "1e-3e", "()", "[[1]]", "None,None", "0x10",
    "x" * 10**5, "999999999999", "lora.rank = 1, a", "train.seed = 1, 2", "{}", "{'a': 1}", "1 2", "lambda: 1",
]  # fmt: skip


def of_overrides(content: bytes, rng: random.Random) -> Mutation:
    """One of the settings of a command line: its value or its key."""
    lines = content.decode().splitlines()
    at = rng.randrange(len(lines))
    key, _, value = lines[at].partition("=")
    if rng.random() < 0.7:
        lines[at] = f"{key}={rng.choice(OVERRIDES)}"
    else:
        stem = key.rpartition(".")[0]
        odd = [key + "x", stem, "config", "config.", key + ".a", key.upper(), "..", "config.lora"]
        lines[at] = f"{rng.choice([*odd, 'config.__class__', 'config.sweep.__init__'])}={value}"
    return Mutation(repr(lines[at][:60]), "\n".join(lines).encode("utf-8", "surrogateescape"), True)


# --- files of tensors ----------------------------------------------------------------------------

DTYPES = [
    "F16", "BF16", "I64", "F64", "F99", "", None, 5, "f32", "U8", "BOOL", "F8_E4M3", "I32", "U16", ["F32"], {},
]  # fmt: skip
HALVES = ({"F16", "BF16"}, {"F8_E4M3", "F8_E5M2"}, {"U8", "I8", "BOOL"})


def _packed(header: Any, data: bytes, size: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else _dumped(header)
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


def of_safetensors(content: bytes, rng: random.Random) -> Mutation:
    """The header's size, its entries and its text, and the numbers themselves."""
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    kind = rng.choice([*_OF_HEADER, "numbers", "numbers", "special", "bytes", "header", "size"])
    if kind in _OF_HEADER:
        return _OF_HEADER[kind](header, data, name, other, rng)
    if kind == "numbers":
        new, at = bytearray(data), rng.randrange(len(data))
        new[at] ^= 1 << rng.randrange(8)
        return Mutation(f"a bit of the numbers at {at}", _packed(header, bytes(new)), True)
    if kind == "special":
        return _special(header, data, name, rng)
    if kind == "size":
        right = [len(content), len(content) - 8, length - 1, length + 1, 100_000_001]
        size = rng.choice([0, 1, *HUGE, *right])
        return Mutation(f"header size {size}", struct.pack("<Q", size) + content[8:], False)
    return of_bytes(content, rng, 8 + length if kind == "header" else None)


def _special(header: Any, data: bytes, name: str, rng: random.Random) -> Mutation:
    """A NaN or an infinity among a tensor's numbers."""
    begin, end = header[name]["data_offsets"]
    code = {"F32": "f", "F16": "e", "F64": "d"}.get(header[name]["dtype"])
    if code is None or begin == end:
        new = data[:begin] + rng.randbytes(end - begin) + data[end:]
        return Mutation(f"{name} at random", _packed(header, new), True)
    raw = struct.pack(f"<{code}", rng.choice([math.nan, math.inf, -math.inf]))
    at = begin + len(raw) * rng.randrange((end - begin) // len(raw))
    new = data[:at] + raw + data[at + len(raw) :]
    return Mutation(f"no number in {name}", _packed(header, new), True)


def _dtype(header: Any, data: bytes, name: str, other: str, rng: random.Random) -> Mutation:
    old, new = header[name]["dtype"], rng.choice(DTYPES)
    header[name] |= {"dtype": new}
    alike = any({old, new} <= half for half in HALVES if isinstance(new, str))
    return Mutation(f"{name} is {new}", _packed(header, data), alike)


def _shape(header: Any, data: bytes, name: str, other: str, rng: random.Random) -> Mutation:
    old = header[name]["shape"]
    count = math.prod(old)
    new = rng.choice(
        [[], [0], [-1, -1], [2**62, 4], [2**31, 2**33], old[::-1], old[::-1], [*old, 1], [1, *old], [count], [count, 1],
         [1.0, 2.0], ["x"], None, 5, [True], [10**30], old * 40, [1] * 70 + old, [math.nan], {"a": 1}, "ab"]
    )  # fmt: skip
    header[name] |= {"shape": new}
    return Mutation(f"{name} has shape {str(new)[:40]}", _packed(header, data), False)


def _offsets(header: Any, data: bytes, name: str, other: str, rng: random.Random) -> Mutation:
    begin, end = header[name]["data_offsets"]
    new = rng.choice(
        [[-1, end], [begin, -end], [end, begin], [begin, end + 4], [begin + 4, end + 4], [0, 0], [begin],
         [2**63, 2**63 + end - begin], [begin + 0.0, end], [str(begin), end], None, [True, end], {"a": 1, "b": 2},
         header[other]["data_offsets"]]
    )  # fmt: skip
    header[name] |= {"data_offsets": new}
    return Mutation(f"{name} lies at {str(new)[:40]}", _packed(header, data), False)


def _swapped(header: Any, data: bytes, name: str, other: str, rng: random.Random) -> Mutation:
    header[name], header[other] = header[other], header[name]
    return Mutation(f"{name} and {other} exchanged", _packed(header, data), True)


def _twice(header: Any, data: bytes, name: str, other: str, rng: random.Random) -> Mutation:
    raw = f"{json.dumps(header)[:-1]}, {json.dumps(name)}: {json.dumps(header[other])}}}"
    return Mutation(f"{name} twice", _packed(raw.encode(), data), False)


def _renamed(header: Any, data: bytes, name: str, other: str, rng: random.Random) -> Mutation:
    new = rng.choice([name + "x", "", "#", name.upper(), "../" + name, "\ud800", name + "#a"])
    header[new] = header.pop(name)
    return Mutation(f"{name} renamed {new!r}", _packed(header, data), False)


def _removed(header: Any, data: bytes, name: str, other: str, rng: random.Random) -> Mutation:
    begin, end = header.pop(name)["data_offsets"]
    for entry in header.values():
        if entry.get("data_offsets", [0])[0] >= end:
            entry["data_offsets"] = [place - (end - begin) for place in entry["data_offsets"]]
    return Mutation(f"without {name}", _packed(header, data[:begin] + data[end:]), False)


def _metadata(header: Any, data: bytes, name: str, other: str, rng: random.Random) -> Mutation:
    told = header.get("__metadata__", {})
    if told and rng.random() < 0.7:
        key = rng.choice(list(told))
        try:
            new = of_json(told[key].encode(), rng).content.decode("utf-8", "replace")
        except ValueError:
            new = rng.choice(["", "x", "null", "[]", "{}", "[" * 5000, told[key][:-1]])
        changed: Any = told | {key: new}
    else:
        odd = [None, [], "x", 5, {"format": 5}, {"a": None}, {"format": ["x"]}, {}]
        changed = rng.choice([*odd, {**told, "extra": 5}])
    header["__metadata__"] = changed
    return Mutation(f"metadata {str(changed)[:60]}", _packed(header, data), True)


def _entry(header: Any, data: bytes, name: str, other: str, rng: random.Random) -> Mutation:
    entry = header[name]
    header[name] = rng.choice([None, [], 5, "x", {}, {"dtype": "F32"}, [entry]])
    return Mutation(f"{name} = {str(header[name])[:40]}", _packed(header, data), False)


def _extra(header: Any, data: bytes, name: str, other: str, rng: random.Random) -> Mutation:
    if rng.random() < 0.5:
        place = [len(data), len(data) + 2**42]
        header["huge"] = {"dtype": "F32", "shape": [2**40], "data_offsets": place}
        return Mutation("a tensor of 4 TB", _packed(header, data), False)
    depth = rng.choice([900, 5000, 100_000])
    raw = f'{json.dumps(header)[:-1]}, "deep": {"[" * depth}{"]" * depth}}}'
    return Mutation(f"a header {depth} deep", _packed(raw.encode(), data), False)


_OF_HEADER = {
    "dtype": _dtype, "shape": _shape, "offsets": _offsets, "swapped": _swapped, "twice": _twice,
    "renamed": _renamed, "removed": _removed, "metadata": _metadata, "entry": _entry, "extra": _extra,
}  # fmt: skip


def of_gguf(content: bytes, rng: random.Random) -> Mutation:
    """Counts, keys and bytes of a GGUF file's header, and what follows."""
    last = content.rfind(b"output_norm.weight")
    end = len(content) if last < 0 else last + 64  # a vocabulary alone has no tensors
    kind = rng.choice(["header", "header", "whole", "key", "key", "key", "count", "junk"])
    if kind == "count":
        at = rng.choice([4, 8, 16])
        value = rng.choice([0, 1, 2, 4, 255, 10**6, *HUGE])
        raw = struct.pack("<Q", value)[: 4 if at == 4 else 8]
        new = content[:at] + raw + content[at + len(raw) :]
        return Mutation(f"count at {at} is {value}", new, False)
    if kind == "junk":
        return Mutation("junk", content + rng.randbytes(rng.randint(1, 300)), False)
    if kind != "key":
        return of_bytes(content, rng, end if kind == "header" else None)
    found = rng.choice(list(re.finditer(rb"(llama|general|tokenizer)\.[a-z_.]+", content[:end])))
    at, new = found.end(), bytearray(content)
    what = rng.choice(["type", "value", "name", "length"])
    if what == "type":
        new[at : at + 4] = struct.pack("<I", rng.choice([*range(14), 255]))
    elif what == "value":
        numbers = [struct.pack("<I", n) for n in (0, 1, 2, 3, 7, 10**6, 65536, *HUGE[:2])]
        floats = [struct.pack("<f", x) for x in (math.nan, math.inf, -1.0, 0.0, 1e30)]
        new[at + 4 : at + 8] = rng.choice(numbers + floats)
    elif what == "name":
        new[at - 1] ^= 1
    else:
        sizes = (0, 1, 10**9, len(found.group()) - 1, *HUGE)
        new[found.start() - 8 : found.start()] = struct.pack("<Q", rng.choice(sizes))
    return Mutation(f"{found.group().decode()}: {what}", bytes(new), True)
