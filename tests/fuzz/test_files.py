"""Every kind of file that the library reads, mutated: a clean error that names the file, or a right
result, in bounded time and memory.

    pytest -m slow -n 0 tests/fuzz/test_files.py --fuzz 10000 --seed 7   # 10,000 mutations a kind
"""

import collections
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kinds import BUILDERS

DEFAULT = 100
SOUND = {"refused", "equal", "explained"}


class Reader:
    """The process that reads, started again where a mutation ends it."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._count = scratch, 0
        self._process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        self._count += 1
        folder = self._scratch / str(self._count)
        folder.mkdir()
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("reader.py")), str(folder)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def verdicts(self, kind: str, seed: int, count: int) -> Iterator[tuple[int, str, str]]:
        """(number, verdict, what was done) of every mutation."""
        first = 0
        while first < count:
            self._process.stdin.write(json.dumps([kind, seed, first, count]) + "\n")
            self._process.stdin.flush()
            begun = -1
            for _ in range(2 * (count - first)):
                line = self._process.stdout.readline()
                if not line:
                    break
                answer = json.loads(line)
                if isinstance(answer, int):
                    begun = answer
                elif answer[1] == "broken":
                    raise AssertionError(f"the valid files cannot be read:\n{answer[2]}")
                else:
                    first = answer[0] + 1
                    yield tuple(answer)
            if first < count:
                yield begun, "dead", f"the process ended with {self.close()}"
                first = begun + 1
                self._process = self._started()

    def close(self) -> int:
        """Lets it end; its exit status."""
        self._process.communicate()
        return self._process.returncode


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """The process that reads."""
    reader = Reader(tmp_path_factory.mktemp("fuzz"))
    yield reader
    reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUILDERS)
def test_a_mutated_file_is_refused_or_read_right(
    kind: str, reader: Reader, pytestconfig: pytest.Config
) -> None:
    count = pytestconfig.getoption("--fuzz") or DEFAULT
    counts, faults = collections.Counter(), []
    for number, verdict, told in reader.verdicts(kind, pytestconfig.getoption("--seed"), count):
        counts[verdict] += 1
        if verdict not in SOUND:
            faults.append(f"#{number} {verdict}: {told}")
    print(f"{kind}: {dict(counts)}")
    assert not faults, f"{len(faults)} faults of {count}:\n" + "\n".join(faults[:40])
