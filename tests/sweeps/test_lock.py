"""Leases: the dead lose them at once on their own machine, and after the lease on another."""

import json
import os

import pytest

from lora_jax.sweeps import lock as locks
from lora_jax.sweeps.lock import Lock, RunLocked

ELSEWHERE = {"host": "elsewhere", "machine": "boot", "pid": 1, "started": "1"}


def test_the_lock_of_another_host_that_promises_no_heartbeat_is_never_taken(tmp_path):
    (tmp_path / "lock").write_text(json.dumps(ELSEWHERE))
    os.utime(tmp_path / "lock", (1, 1))
    with pytest.raises(RunLocked, match="elsewhere"):
        Lock(tmp_path / "lock").acquire()


def test_the_lock_of_another_host_is_taken_when_its_heart_has_stopped_for_the_lease(tmp_path):
    path = tmp_path / "lock"
    path.write_text(json.dumps(ELSEWHERE | {"heartbeat": 20}))
    with pytest.raises(RunLocked, match="elsewhere"):
        Lock(path).acquire()
    now = path.stat().st_mtime
    os.utime(path, (now, now - locks.LEASE_SECONDS - 1))
    Lock(path).acquire()
    assert Lock(path).is_mine()


def test_a_machine_of_the_same_name_is_another_machine(tmp_path):
    Lock(tmp_path / "lock").acquire()
    owner = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps(owner | {"machine": "another boot", "pid": 999_999}))
    assert Lock(tmp_path / "lock").is_held()
    (tmp_path / "lock").write_text(json.dumps(owner | {"pid": 999_999}))
    assert not Lock(tmp_path / "lock").is_held()
    # A process that was given the pid of the dead one, as restarted containers have it.
    (tmp_path / "lock").write_text(json.dumps(owner | {"started": "1"}))
    assert not Lock(tmp_path / "lock").is_held() and not Lock(tmp_path / "lock").is_mine()


def test_the_heart_touches_locks_that_are_held_and_no_others(tmp_path):
    mine, given_back = Lock(tmp_path / "mine"), Lock(tmp_path / "given_back")
    mine.acquire()
    given_back.acquire()
    given_back.release()
    (tmp_path / "given_back").write_text(json.dumps(ELSEWHERE))
    for path in (mine.path, given_back.path):
        os.utime(path, (1, 1))
    for lock in (mine, given_back):
        lock.beat()
    assert mine.path.stat().st_mtime > 1 and given_back.path.stat().st_mtime == 1
    mine.release()
    assert not mine.path.exists() and given_back.path.exists()


def test_a_lock_file_that_was_cut_off_is_free(tmp_path):
    (tmp_path / "lock").write_text('{"host": "else')
    Lock(tmp_path / "lock").acquire()
    assert Lock(tmp_path / "lock").is_mine()
