"""One process at a time: locks that the kernel takes back when a process ends, however it ends."""

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from .errors import UserError

log = logging.getLogger(__name__)
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # a file system without locks
JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
LINGER = 30.0  # seconds that files of a process may stay open when it has been killed
POLL = 0.1
EXITING = 0x4  # Linux's PF_EXITING
_held: set[int] = set()


class Busy(UserError):
    """Another process has the lock; who: which, in words."""

    def __init__(self, path: Path, who: str):
        super().__init__(f"{path} is held by {who}", 1)
        self.who = who


@contextlib.contextmanager
def lock(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` for the block; it says who does, and is gone afterwards.

    wait: seconds in which another process may let go of it; one that has just been killed is waited for in any case.
    Raises Busy, and UserError for a file that cannot be written. On a file system without locks there is one warning,
    and no protection. Forked children never hold it.
    """
    file = _acquire(path, wait)
    try:
        _sign(file)
        yield
    finally:
        if file in _held:  # else this is a child that was forked inside
            with contextlib.suppress(OSError):
                path.unlink()  # still locked: who waits for it looks whether it is there
            _release(file)


def _acquire(path: Path, wait: float) -> int:
    began = time.monotonic()
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # Python closes it in programs that are started
            _held.add(file)
            if take(file):
                if is_at(file, path):
                    return file
                _release(file)
                continue
        except OSError as error:
            raise UserError(f"{path} cannot be locked: {error.strerror or error}", 1) from None
        holder = _read(file)
        _release(file)
        if time.monotonic() - began >= (max(wait, LINGER) if _ended(holder) else wait):
            raise Busy(path, _words(holder))
        time.sleep(POLL)


def _release(file: int) -> None:
    _held.discard(file)
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)  # a child that was forked by other means than Python's may have it open
    os.close(file)


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def take(file: int, wait: float = 0.0, shared: bool = False) -> bool:
    """flock of an open file; False if another process still has it after `wait` seconds. OSError for a broken one."""
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(file, how)
            return True
        except BlockingIOError:
            if time.monotonic() - began >= wait:
                return False
            time.sleep(POLL)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _warn(error.strerror)
            return True


@functools.cache
def _warn(reason: str) -> None:
    """Once for each process."""
    log.warning("this file system has no locks (%s): do not start two processes on the same folder", reason)


def _forget() -> None:
    """In a forked child: the lock is its parent's alone, and ends with it."""
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def _sign(file: int) -> None:
    """Write into a lock file who has it."""
    job = next((os.environ[name] for name in JOB_VARIABLES if os.environ.get(name)), None)
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = json.dumps({"pid": os.getpid(), "host": platform.node(), "job": job, "since": since})
    with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
        os.ftruncate(file, 0)
        os.pwrite(file, f"{text}\n".encode(), 0)


def _read(file: int) -> dict:
    """Who has a lock, as far as it is known."""
    try:
        found = json.loads(os.pread(file, 4096, 0))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _words(holder: dict) -> str:
    if not holder:
        return "another process"
    job = f", job {holder['job']}," if holder.get("job") else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{job} since {holder.get('since')}"


def _ended(holder: dict) -> bool:
    """Whether the process is one of this machine and gone, or on its way out: it then holds its files for a moment."""
    if holder.get("host") != platform.node() or not os.path.isdir("/proc/self"):
        return False
    try:
        state = Path(f"/proc/{int(holder['pid'])}/stat").read_text().rpartition(")")[2].split()
    except (OSError, KeyError, TypeError, ValueError):
        return True
    return bool(int(state[6]) & EXITING)
