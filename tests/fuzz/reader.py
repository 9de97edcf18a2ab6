"""Reads mutated files, one after the other, in a process that a bomb may end.

    python reader.py SCRATCH < requests > answers

A request is a line of JSON, [kind, seed, first, last]. For each number two lines come: its own
before it is read, so that it is known which one ended the process; then [number, verdict, detail].
Verdicts: 'refused' by a clean error that names the file; 'equal' to what the valid file gives;
'explained', another result that the mutation explains. Everything else is a fault: 'raw' (another
exception), 'unnamed' (an error without the file's name), 'silent' (another result).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import resource
import shutil
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from kinds import BUILDERS, Kind

SECONDS, BYTES = 20, 2 << 30  # of processor time, of address space beyond what Python and JAX take
CLEAN = (ValueError, OSError, TypeError)
RAW = (UnicodeError, json.JSONDecodeError)


def digest_of(value: Any) -> str:
    """The sha256 of a result: arrays, fields and texts."""
    digest = hashlib.sha256()
    _feed(value, digest)
    return digest.hexdigest()


def _feed(value: Any, digest: Any) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        digest.update(type(value).__name__.encode())
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(repr(key).encode("utf-8", "surrogatepass"))
            _feed(value[key], digest)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} of ".encode())
        for item in value:
            _feed(item, digest)
    elif isinstance(value, (np.ndarray, jax.Array)):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Path):  # Of the folder, which differs.
        digest.update(value.name.encode())
    else:
        digest.update(repr(value).encode("utf-8", "surrogatepass"))


class Bench:
    """One kind: its valid folder, what it gives, and a place for mutated ones."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name, self.valid = name, scratch / "valid" / name.replace(" ", "_")
        self.valid.parent.mkdir(exist_ok=True, parents=True)
        self.kind: Kind = BUILDERS[name](self.valid)
        self._place = scratch / "read" / self.valid.name
        self.wanted = self.outcome(next(iter(self.kind.files)), None)
        if isinstance(self.wanted, Exception):
            raise self.wanted

    def outcome(self, name: str, content: bytes | None) -> str | BaseException:
        """The result's digest, or the error, with one file's content replaced."""
        if self.kind.writes or not self._place.exists():
            shutil.rmtree(self._place, ignore_errors=True)
            shutil.copytree(self.valid, self._place)
        file = self._place / name
        if content is not None:
            _put(file, content)
        try:
            return digest_of(self.kind.read(self._place))
        except BaseException as error:
            return error
        finally:
            if content is not None and not self.kind.writes:
                _put(file, (self.valid / name).read_bytes())

    def judged(self, number: int, seed: int) -> tuple[str, str]:
        """The verdict on one mutation, and what was done."""
        rng = random.Random(f"{seed} {self.name} {number}")
        name = rng.choice(sorted(self.kind.files))
        content = (self.valid / name).read_bytes()
        what, new, explains = self.kind.files[name](content, rng)
        found = self.outcome(name, new)
        told = f"{name}: {what}"
        if isinstance(found, str):
            same = found == self.wanted or new == content
            explained = explains and not self.kind.checked
            return "equal" if same else "explained" if explained else "silent", told
        told = f"{told} -> {type(found).__name__} {_where(found)}: {str(found)[:300]!r}"
        ours = type(found).__module__.startswith("lora_jax.")
        if not (ours or isinstance(found, CLEAN)) or type(found) in RAW:
            return "raw", told
        places = (str(self._place), Path(name).name, "config.")
        return "refused" if any(place in str(found) for place in places) else "unnamed", told


def _put(file: Path, content: bytes) -> None:
    # Never into the file itself, which may still be mapped into memory.
    new = file.with_name(f".{file.name}.new")
    new.write_bytes(content)
    os.replace(new, file)


def _where(error: BaseException) -> str:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/lora_jax/" in frame.filename
    ]
    return f"at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "elsewhere"


def _limit_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def main() -> None:
    """Answers requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    warnings.filterwarnings("ignore")
    scratch, benches = Path(sys.argv[1]), {}
    for line in sys.stdin:
        name, seed, first, last = json.loads(line)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        _limit_time()
        try:
            benches[name] = benches.get(name) or Bench(name, scratch)
        except Exception:
            answer = [-1, "broken", traceback.format_exc()]
            print(json.dumps(answer), file=answers, flush=True)
            continue
        taken = int(Path("/proc/self/statm").read_text().split()[0])
        limit = taken * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        for number in range(first, last):
            print(number, file=answers, flush=True)
            _limit_time()
            answer = [number, *benches[name].judged(number, seed)]
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
