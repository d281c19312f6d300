"""How this package starts Python: no module comes from the current folder, and no script of the caller runs again.
And how it hears that it is to end.

Python puts the current folder first on the path of `-m` and `-c`, where a stray `torch.py` would be executed; and the
processes of a pool import the caller's main module, which without `if __name__ == "__main__":` starts all anew.
"""

import contextlib
import multiprocessing
import multiprocessing.context
import os
import signal
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

SAFE_PATH = "PYTHONSAFEPATH"  # as -P, for children of children too; PYTHONPATH counts as ever
STORE = "SELFPATCH_STORE"  # variable with the path of a file by which the processes of a group on one machine meet
_starting = threading.RLock()


def python(module: str, *arguments) -> list[str]:
    """Command line of a module of ours."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def child_environment(**more: str) -> dict[str, str]:
    """Of a process that may start others."""
    return os.environ | {SAFE_PATH: "1"} | more


def run_together(line: list[str], count: int) -> tuple[int, int]:
    """Run a command in `count` processes of this machine, which meet by a file (distributed.Ranks);
    -> (rank, exit status) of the first that failed, else (0, 0). Where one fails, the others are killed; where one was
    told to stop (a status from 128 on), so were they, and they may still save.

    torchrun does the same, but looks up the machine's name and listens to other machines.
    """
    world = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", 1)}
    failed = (0, 0)
    with tempfile.TemporaryDirectory() as folder:
        world[STORE] = Path(folder) / "store"
        left: dict[int, tuple[int, subprocess.Popen]] = {}
        for rank in range(count):
            known = {k: str(v) for k, v in (world | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            process = subprocess.Popen(line, env=child_environment(**known))
            left[process.pid] = rank, process
        while left:
            pid, status = os.wait()
            if pid not in left:  # a child of somebody else's
                continue
            rank, process = left.pop(pid)
            process.returncode = status = os.waitstatus_to_exitcode(status)
            if status and failed == (0, 0):
                failed = rank, status
            if status and status < 128:
                for _, other in left.values():
                    os.kill(other.pid, signal.SIGKILL)
    return failed


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """For processes that a library starts inside the block."""
    with _starting:
        before = os.environ.get(SAFE_PATH)
        os.environ[SAFE_PATH] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[SAFE_PATH]
            else:
                os.environ[SAFE_PATH] = before


@contextlib.contextmanager
def _sheltered() -> Iterator[None]:
    """Processes that are started inside find no main module to import, and never get a Ctrl-C, which is the caller's to
    handle: else they print their own traceback, or end while the caller still needs them. Nor a SIGTERM, which
    launchers send to whole groups of processes: the server of forks ends with its caller, and its forks unblock it."""
    with safe_path():
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process(multiprocessing.context.ForkServerProcess):
    def start(self) -> None:
        with _sheltered():
            super().start()


class _Context(multiprocessing.context.ForkServerContext):
    Process = _Process


def context(preload: str) -> multiprocessing.context.BaseContext:
    """For pools whose work is all in importable modules: forks of a server that has imported the module `preload` and
    run nothing. This process is never forked: threads of torch, OpenCV and CUDA do not survive that."""
    with safe_path():
        resource_tracker.ensure_running()
    server = _Context()
    server.set_forkserver_preload([preload])
    return server


def refuse_in_child() -> None:
    """End a process of somebody else's pool that runs a command while it is still being started: its script lacks the
    main guard."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        print(
            "error: a process that a script starts runs the script again: put the call below "
            "`if __name__ == '__main__':`",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(1)


@contextlib.contextmanager
def catching(catch: Callable, launchers: int | None = None) -> Iterator[None]:
    """Inside the block SIGTERM and SIGINT call `catch(number, frame)`, except where a launcher (submitit, torchrun) has
    a handler of its own. launchers: a signal that is caught only where one has. Python allows handlers in the main
    thread alone: in others nothing is caught."""
    own = []
    if threading.current_thread() is threading.main_thread():
        default = (signal.SIG_DFL, signal.default_int_handler)
        own = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) in default]
        own += [launchers] if launchers and callable(signal.getsignal(launchers)) else []
    before = {number: signal.signal(number, catch) for number in own}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
