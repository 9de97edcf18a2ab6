"""Memory is kept where the C library can, and nothing breaks where it cannot."""

import subprocess
import sys

import numpy as np
import pytest

from lora_jax.training import allocator
from lora_jax.training import compile as compiling
from lora_jax.training.compile import SETTLING, KeptProgram, Program

CODE = """
import resource, sys
import numpy as np
from lora_jax.training.allocator import keep_freed_memory, release_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else True
for round in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(64_000_000, np.uint8)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
release_freed_memory()
resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
print(int(kept), faults, resident)
"""


@pytest.mark.skipif(allocator.glibc("mallopt") is None, reason="needs glibc")
def test_kept_memory_is_not_faulted_in_again_and_can_be_given_back():
    def run(how: str) -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True
        )
        return [int(word) for word in done.stdout.split()]

    kept, faults, resident = run("keep")
    _, faults_before, _ = run("leave")
    assert kept == 1
    # 5 arrays of 64 MB (glibc maps those over 32 MB anew each time) are 78,000 pages of 4 KiB;
    # numpy asks for huge pages where they are to be had, which are fewer faults.
    assert faults < 100 and faults < faults_before
    assert resident < 200e6


@pytest.mark.skipif(allocator.glibc("mallopt") is None, reason="needs glibc")
def test_programs_run_in_the_thread_that_calls_them():
    """And not in one with an arena of 64 MB; so what a call gives is there when it returns."""
    code = """
from lora_jax.training.allocator import keep_freed_memory
keep_freed_memory()
import jax, jax.numpy as jnp
square = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda i, y: y @ x, x))
x = jnp.eye(500)
square(x)
print(square(x).is_ready())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_elsewhere_it_says_that_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert allocator.keep_freed_memory() is False
    allocator.release_freed_memory()


def test_room_is_made_only_where_a_budget_would_be_passed(monkeypatch):
    given_back = []
    monkeypatch.setattr(allocator, "release_freed_memory", lambda: given_back.append(True))
    monkeypatch.setattr(allocator, "resident_bytes", lambda: 700)
    monkeypatch.setattr(allocator, "_budget", None)
    allocator.make_room(10**12)
    allocator.set_budget(1000)
    allocator.make_room(300)
    assert not given_back
    allocator.make_room(301)
    assert given_back == [True]


def test_a_program_gives_kept_memory_back_when_its_place_in_the_heap_is_new(monkeypatch):
    """Before its first step after another program, after compiling, and in the first steps of a
    large shape; then only above what the process held before and the step needs.
    """
    given_back, held = [], [1000]
    monkeypatch.setattr(compiling, "release_freed_memory", lambda: given_back.append("all"))
    monkeypatch.setattr(compiling, "resident_bytes", lambda: held[0])
    monkeypatch.setattr(allocator, "resident_bytes", lambda: held[0])
    monkeypatch.setattr(allocator, "release_freed_memory", lambda: given_back.append("above"))
    monkeypatch.setattr(compiling, "_LARGE", -1)
    first, second = (KeptProgram(lambda x, n=n: x @ x + n) for n in (1, 2))

    def after(program: KeptProgram, times: int = 1) -> list[str]:
        given_back.clear()
        for _ in range(times):
            program(np.ones((8, 8), np.float32))
        return list(given_back)

    assert after(first) == ["all", "all"]
    assert after(first, SETTLING) == ["all"] * SETTLING
    assert after(first, 5) == []
    assert after(second) == ["all", "all"] and after(first) == ["all"] and after(first) == []
    needs = first.largest()
    held[0] += int(1.25 * (needs.new_results + needs.temporaries)) + 1
    assert after(first) == ["above"]


def test_programs_are_plain_ones_unless_the_process_keeps_memory(monkeypatch):
    for kept, kind in ((False, Program), (True, KeptProgram)):
        monkeypatch.setattr(allocator, "_kept", kept)
        assert type(compiling.program_for(lambda x: x)) is kind


def test_a_programs_peak_is_its_own_and_not_that_of_who_started_it():
    held = np.ones(400_000_000, np.uint8)
    code = "from lora_jax.training.allocator import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # It imports no JAX: tens of megabytes. What it inherits as ru_maxrss is above 400.
    assert 5e6 < int(done.stdout) < held.nbytes < allocator.peak_bytes()
