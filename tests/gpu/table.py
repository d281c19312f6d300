"""A table that is worth something however early it ends: each row is in the file as soon as it is measured."""

import gc
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

SPARE = 1.3  # times the longest row so far: less time than that left, and no further row is begun


class OutOfTime(BaseException):
    """The deadline came during a measurement; nothing that catches errors on the way, such as a compiler, stops it."""


class Table:
    """Rows of a markdown file, measured one after the other until `minutes` are over."""

    def __init__(self, path: Path, title: str, columns: tuple[str, ...], minutes: float, device: torch.device):
        self.path, self.columns, self.device = path, columns, device
        self.begun, self.end, self.longest = time.monotonic(), time.monotonic() + 60 * minutes, 0.0
        self.left_out: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
        self.say(f"# {title}\n\n`{command}`: {describe(device)}\n")
        self.say(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")

    def say(self, text: str) -> None:
        """A line for the file and for whoever looks on."""
        print(text, flush=True)
        with self.path.open("a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.end - time.monotonic()

    def row(self, name: str, measure: Callable[[], dict[str, str]]) -> dict[str, str] | None:
        """Measure a row and write it. What fails becomes a row that says why; what there is no time for, a name in the
        last line."""
        if self.left < SPARE * self.longest:
            self.left_out.append(name)
            return None
        start = time.monotonic()
        try:
            with alarm(self.left):
                cells = measure()
        except OutOfTime:
            self.left_out.append(name)
            return None
        except Exception as error:  # one row is not to take the others with it
            text = " ".join((str(error).splitlines() or [""])[0].split())[:160].replace("|", "/")
            cells = {self.columns[1]: f"failed: {type(error).__name__}: {text}"}
        finally:
            free(self.device)
        self.longest = max(self.longest, time.monotonic() - start)
        self.say(f"| {' | '.join([name, *(str(cells.get(c, '')) for c in self.columns[1:])])} |")
        return cells

    def close(self, *notes: str) -> None:
        if self.left_out:
            notes = (f"No time was left for: {', '.join(self.left_out)}.", *notes)
        self.say("\n" + "\n\n".join([*notes, f"{time.monotonic() - self.begun:.0f} s in all."]))


@contextmanager
def alarm(seconds: float):
    """Raise OutOfTime in the main thread after so many seconds."""

    def ring(*_):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def describe(device: torch.device) -> str:
    """Device and versions, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"


def free(device: torch.device) -> None:
    """Give back what the last row held."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gb(device: torch.device) -> str:
    """Largest memory that tensors had on the device since `free`, in GB; empty on a CPU."""
    return f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f}" if device.type == "cuda" else ""


def seconds_each(work: Callable[[], object], device: torch.device, seconds: float, warm: int = 2) -> float:
    """Seconds of a call of `work`, over as many calls as take so long, at least two."""
    for _ in range(warm):
        work()
    wait(device)
    start, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - start < seconds:
        for _ in range(2):
            work()
        wait(device)
        count += 2
    return (time.perf_counter() - start) / count
