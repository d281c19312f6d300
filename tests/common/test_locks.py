"""One process at a time: who holds a lock is said, and it ends with its process, however that ends."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

from selfpatch_bench.benchmarks.hub import download
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.pretrain.common import locks
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.locks import Busy, lock

HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from selfpatch_bench.pretrain.common import locks
def say():  # in one piece: two processes do not mix their lines
    os.write(1, str(os.getpid()).encode() + bytes([10]))
with locks.lock(Path(sys.argv[1])):
    {then}
    say()
    time.sleep(600)
"""


@pytest.fixture
def start(tmp_path):
    """start(then="", **environment) -> a process that holds tmp_path/lock, after it has done `then`, and its output."""
    with contextlib.ExitStack() as ends:

        def start(then: str = "pass", **environment):
            line = [sys.executable, "-c", textwrap.dedent(HOLD.format(then=then)), str(tmp_path / "lock")]
            process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
            ends.callback(process.wait)
            ends.callback(process.kill)
            return process, int(process.stdout.readline())

        yield start


@pytest.fixture
def naps(monkeypatch):
    """naps(sleep): what happens in place of a pause between two tries."""
    return lambda sleep: monkeypatch.setattr(
        locks, "time", types.SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
    )


def never(_):
    raise AssertionError("it waits")


def test_who_holds_it_is_said(start, naps, tmp_path):
    naps(never)
    path = tmp_path / "lock"
    process, pid = start(SLURM_JOB_ID="4711")
    held = json.loads(path.read_text())
    assert (held["pid"], held["host"], held["job"]) == (pid, platform.node(), "4711")
    said = rf"^{path} is held by process {pid} on {platform.node()}, job 4711, since \d{{4}}-\S+Z$"
    with pytest.raises(Busy, match=said), lock(path):
        pass
    process.send_signal(signal.SIGINT)  # its block ends
    process.wait(timeout=60)
    assert not path.exists()
    with lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(Busy), lock(path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_waiting(start, naps, tmp_path):
    """A process that is given time gets the lock when the other one ends, and gives up when it does not."""
    process, _ = start()
    turns = []

    def sleep(_):
        turns.append(1)
        if len(turns) == 3:
            process.kill()

    naps(sleep)
    with lock(tmp_path / "lock", wait=600):
        assert len(turns) >= 3
    naps(time.sleep)
    start()
    with pytest.raises(Busy), lock(tmp_path / "lock", wait=0.3):
        pass


def test_a_forked_child_does_not_hold_it(start, naps, tmp_path):
    """The process is killed, and its fork lives on."""
    process, one = start("os.fork() or (say(), time.sleep(600))")
    other = int(process.stdout.readline())  # both have come out of the fork by now
    [child], parent = {one, other} - {process.pid}, process.pid
    try:
        assert parent in (one, other)
        process.kill()
        process.wait()
        naps(never)
        with lock(tmp_path / "lock"):
            os.kill(child, 0)  # it is there
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_a_killed_process_leaves_is_waited_for(start, naps, tmp_path):
    """Its file is still open in a child of other means than a fork: not a process at work, so no reason to refuse."""
    process, pid = start("c = subprocess.Popen(['sleep', '600'], pass_fds=[*locks._held]); print(c.pid, flush=True)")
    process.kill()
    process.wait()
    seen = []

    def sleep(_):
        if not seen:
            os.kill(pid, signal.SIGKILL)
        seen.append(1)

    naps(sleep)
    with lock(tmp_path / "lock"):
        assert seen


def test_a_file_that_was_removed_meanwhile(tmp_path, monkeypatch):
    """The lock of a file that is no longer there protects nothing: the one at its name is taken."""
    path, real = tmp_path / "lock", fcntl.flock

    def flock(file, how):
        real(file, how)
        if how & fcntl.LOCK_EX and not seen:
            seen.append(path.unlink())

    seen: list = []
    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert seen


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog, number):
    """One warning for all that the process locks, and everything goes on."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    locks._warn.cache_clear()
    with lock(tmp_path / "a"), lock(tmp_path / "b"), record.lock(tmp_path, "task", "key", wait=False) as mine:
        assert mine
        with download.open_part(tmp_path / "file"):
            pass
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert caplog.records[0].message.startswith(f"this file system has no locks ({os.strerror(number)})")
    assert [p.name for p in tmp_path.iterdir()] == ["records"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="lock cannot be locked: No such file or directory"), lock(tmp_path / "no/lock"):
        pass


def test_records_say_who_has_them(naps, tmp_path):
    """Records are locked by the same function: whoever does not wait is told at once."""
    naps(never)
    with record.lock(tmp_path, "task", "key") as mine:
        (path,) = Path(tmp_path, "records/task").iterdir()
        assert mine
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with record.lock(tmp_path, "task", "key", wait=False) as again, record.lock(tmp_path, "task", "other") as other:
            assert (again, other) == (False, True)
