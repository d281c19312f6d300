"""The parent's side of a training: start its processes, pass on their progress and any signal to end."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from ...pretrain.common.errors import UserError
from ...pretrain.common.locks import take
from ...pretrain.common.machine import cache_folder
from ...pretrain.common.processes import catching, child_environment, python
from ..tasks import Crash, TaskConfig
from .training import ERROR, LOCK, LOG, PROGRESS, read_json, read_result

MODULE = f"{__package__}.launch"
TAIL = 40  # lines of the log that a failure record keeps
PATIENCE = 30.0  # seconds to end after a signal


def ask(question: str, device: str) -> str | None:
    """What is wrong with the configuration of a question (see launch.check), or None; a process of some seconds."""
    line = python(MODULE, "--check")
    done = subprocess.run(line, input=question, capture_output=True, text=True, env=variables(device), check=False)
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return last.removeprefix("error: ") if last.startswith("error: ") else f"mm does not start: {last}"


def variables(device: str) -> dict[str, str]:
    """The environment of the processes: mm takes a GPU wherever it sees one, so on `cpu` it must see none. What mm
    imports (Matplotlib, YAPF) keeps files of its own, in the user's home unless it is told another place."""
    cache = str(cache_folder().absolute())
    kept = {"XDG_CACHE_HOME": cache, "MPLCONFIGDIR": f"{cache}/matplotlib"}
    unseen = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return child_environment(**unseen, **{name: os.environ.get(name) or path for name, path in kept.items()})


def wait_for_earlier(out: Path) -> None:
    """Wait until the processes of an earlier, killed run in `out` have ended. Raises UserError if they do not."""
    with (out / LOCK).open("a") as lock:
        if not take(lock.fileno(), PATIENCE):
            raise UserError(f"{out}: processes of an earlier run are still at work there", 1)


def work(path: Path, out: Path, cfg: TaskConfig) -> None:
    """Run the processes of the training at `path` to their end. Raises Crash.

    How they end does not matter once the result is there: libraries may abort a process whose work is done.
    """
    log = out / (LOG if cfg.rank == 0 else f"log.{cfg.rank}.txt")
    with log.open("ab") as output:
        output.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {path}\n".encode())
        output.flush()
        process = subprocess.Popen(
            python(MODULE, path.resolve()),
            stdin=subprocess.PIPE,  # its end tells the processes that this one has ended
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables(cfg.device),
            start_new_session=True,
        )
    with passing_on_signals(process):
        try:
            last = None
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
                if cfg.rank == 0 and (found := read_json(out / PROGRESS)) not in (None, last):
                    cfg.progress(found["done"], found["total"], found["text"])
                    last = found
        finally:
            process.stdin.close()
            end_group(process)
    if process.returncode and read_result(out) is None:
        raise Crash(reason(process.returncode, out, log), tail(log))


@contextlib.contextmanager
def passing_on_signals(process: subprocess.Popen) -> Iterator[None]:
    """For the block: SIGTERM and SIGINT go to a process group; after it, they do to this process what they meant.

    A group that has not ended PATIENCE seconds later, or at a second signal, is killed.
    """
    caught = []
    timer = threading.Timer(PATIENCE, end_group, [process])
    timer.daemon = True

    def catch(number: int, _frame) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL if caught else number)
        if not caught:
            timer.start()
        caught.append(number)

    with catching(catch):
        try:
            yield
        finally:
            timer.cancel()
    if caught:
        signal.raise_signal(caught[0])


def end_group(process: subprocess.Popen) -> None:
    """Kill whatever is left of a process group, and wait for its leader."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def reason(status: int, out: Path, log: Path) -> str:
    """Why the processes ended, in one line."""
    if found := read_json(out / ERROR):
        return found["error"]
    return f"the process {ended(status)}; log: {log}"


def ended(status: int) -> str:
    """What an exit status, negative for a signal, says of a process, in words."""
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    return f"was ended by {name}{' (out of memory, or killed by someone)' if name == 'SIGKILL' else ''}"


def tail(log: Path) -> str:
    """The last lines of a log."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return "".join(deque(file, TAIL))
    except OSError:
        return ""
