"""What travels between the devices of a mesh in a compiled step."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple


class Collective(NamedTuple):
    """Collective operations of one kind and dtype among groups of so many `devices`.

    times: in a step, loops counted as often as they turn. size: bytes that each device receives in
    a step, by rings: of a gathered array all but its own part, of a sum twice as much.
    """

    kind: str
    dtype: str
    devices: int
    times: int
    size: int


def collectives_of(compiled: Any) -> tuple[Collective, ...]:
    """The collectives of a compiled program of jax, the largest first; none of one device.

    Raises:
        ValueError: the compiler writes groups of devices in a form that is not known here.
    """
    return collectives_in(compiled.as_text())


def collectives_in(text: str) -> tuple[Collective, ...]:
    """`collectives_of` an optimised HLO module, as text. A loop whose turns the compiler does not
    know counts once.
    """
    times: Counter[tuple[str, str, int]] = Counter()
    sizes: Counter[tuple[str, str, int]] = Counter()
    bodies = dict(_computations(text))
    for name, turns in _turns(bodies).items():
        for line in bodies[name]:
            if (found := _OPERATION.search(line)) is None:
                continue
            kind, arrays = found["kind"], _arrays(found["results"], bool(found["start"]))
            devices = _group_size(line)
            if devices < 2 or not arrays:
                continue
            received = _RECEIVED[kind](devices)
            # Arrays that travel together are of one dtype, but for what is small.
            dtype = max(arrays, key=lambda one: one[1])[0]
            key = kind, dtype, devices
            times[key] += turns
            sizes[key] += round(turns * received * sum(size for _, size in arrays))
    found = (Collective(*key, times[key], sizes[key]) for key in times)
    return tuple(sorted(found, key=lambda one: -one.size))


# Bytes that a device receives, for each byte of what it has afterwards; n devices.
_RECEIVED = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_OPERATION = re.compile(rf" = (?P<results>.*?) (?P<kind>{'|'.join(_RECEIVED)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|\w+_computations?)=\{?(%[^,}\s]+(?:, %[^,}\s]+)*)"
)


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """(name, lines) of each computation; the program's own is called ENTRY."""
    name, lines = "", []
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            name, lines = line.split()[0], []
        elif line == "}":
            yield name, lines
        else:
            lines.append(line)


def _turns(bodies: dict[str, list[str]]) -> Counter[str]:
    """How often each computation runs in a step."""
    found: Counter[str] = Counter()
    # What is called is printed before what calls it.
    found["ENTRY"] = 1
    for name in reversed(bodies):
        for line in bodies[name] if found[name] else ():
            trip = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            each = int(trip[1]) if trip and " while(" in line else 1
            for several in _CALLED.findall(line):
                for called in several.split(", "):
                    found[called] += found[name] * each
    return found


def _arrays(results: str, started: bool) -> list[tuple[str, int]]:
    """(dtype, bytes) of each array that an operation gives."""
    found = [
        (dtype, math.prod(map(int, filter(None, shape.split(",")))) * _bits(dtype) // 8)
        for dtype, shape in _ARRAY.findall(results)
    ]
    # Started, to be waited for: beside what comes stands what went.
    return found[len(found) // 2 :] if started and results.startswith("((") else found


def _bits(dtype: str) -> int:
    """Of a number of an HLO dtype: pred, s4, bf16, f8e4m3fn, ..."""
    digits = re.search(r"\d+", dtype)
    return 8 if digits is None else int(digits[0])


def _group_size(line: str) -> int:
    """How many devices an operation is among."""
    if "source_target_pairs=" in line:
        return 2 if "source_target_pairs={{" in line else 1
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        # An axis, or a part of it, 'axis':(before)size.
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(counted[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    raise ValueError(f"This collective names its devices in no form that is known: {line[:300]}")
