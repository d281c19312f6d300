"""Processes that have everything imported when they begin: `selfpatch` commands and programs without the seconds that
importing torch and timm takes.

A server (one for each pytest process, begun with the first use) imports other people's packages and then forks for
every process that is asked for. The child runs `python -m selfpatch_bench.benchmarks ARGUMENTS`, or a program, to its
real exit: with an environment, a folder, signals and files of its own. What a test has to say of the start of Python
itself (imports, `-P`, the console script) is for `subprocess`.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

SERVER = r"""
import atexit, gc, json, os, runpy, signal, sys, threading, traceback

import cv2, numpy, omegaconf, pandas, PIL.Image, rich.progress, safetensors.torch, timm, torch, typer, yaml

PATHS = os.environ.get("PYTHONPATH")
exec(sys.argv[1], {})


def next_job():
    "What a child is to do. The server answers with process numbers and exit statuses, null while there is none."
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            pid, status = os.waitpid(asked["wait"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            return asked


def settle(job):
    "The surroundings of a new process."
    if job["session"]:
        os.setsid()
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    if (paths := job["env"].get("PYTHONPATH")) and paths != PATHS:
        sys.path[1:1] = paths.split(os.pathsep)
    for number, path in enumerate(job["files"]):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY), number)
    torch.set_num_threads(int(job["env"].get("OMP_NUM_THREADS") or torch.get_num_threads()))


def killed_before(name):
    "This process ends as by SIGKILL at the moment at which a file would get that name."
    def look(event, arguments):
        if event == "os.rename" and os.path.basename(os.fspath(arguments[1])) == name:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(look)


def run(arguments, code):
    sys.argv = ["-c" if code else "selfpatch", *arguments]
    try:
        if code:
            exec(code, {"__name__": "__main__"})
        else:
            runpy.run_module("selfpatch_bench.benchmarks", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


gc.collect()
gc.freeze()  # a child that collects would copy all of the packages' memory
if job := next_job():
    settle(job)
    if job["kill"]:
        killed_before(job["kill"])
    status = run(job["arguments"], job["code"])
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take the packages apart would cost a second
"""


class Server:
    """The process that forks. imports: what it is to import as well. env: its environment, by default this one's."""

    def __init__(self, imports: str = "", env: dict | None = None):
        environment = (env or os.environ) | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # forks are then safe
        line, pipe = [sys.executable, "-c", SERVER, imports], subprocess.PIPE
        self.process = subprocess.Popen(line, stdin=pipe, stdout=pipe, env=environment, text=True, cwd="/")
        self.files, self.number = tempfile.TemporaryDirectory(), 0
        atexit.register(self.end)

    def ask(self, **what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def new_files(self, given: str | None) -> list[Path]:
        """Standard input (None: a pipe), output and error of a process."""
        self.number += 1
        found = [Path(self.files.name) / f"{self.number}.{name}" for name in ("in", "out", "err")]
        for path, text in zip(found, (given, "", ""), strict=True):
            os.mkfifo(path) if text is None else path.write_text(text)
        return found

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.files.cleanup()


server = cache(Server)


class Process:
    """As subprocess.Popen: pid, returncode, poll, wait, communicate, send_signal. out, err: what it has printed."""

    def __init__(self, *arguments, code: str = "", given: str | None = "", log=None, imports: str = "", **place):
        """A `selfpatch` command, or a program with arguments. given: its input; None: what is written to `stdin`.
        log: file for all that it prints. imports: of its server, where place has none. place: cwd, env; session:
        whether it leads a group of processes of its own; kill: it dies, as by SIGKILL, just before a file gets this
        name; server."""
        self.args, self.returncode = [str(a) for a in arguments], None
        self.server = place.get("server") or server(imports)
        self.files = self.server.new_files(given)
        if log:
            self.files[1:] = [Path(log)] * 2
        self.pid = self.server.ask(
            arguments=self.args,
            code=code,
            cwd=str(place.get("cwd") or os.getcwd()),
            env=dict(os.environ if place.get("env") is None else place["env"]),
            files=list(map(str, self.files)),
            session=place.get("session", False),
            kill=place.get("kill"),
        )
        if given is None:
            self.stdin = self.files[0].open("wb")

    @property
    def out(self) -> str:
        return self.files[1].read_text()

    @property
    def err(self) -> str:
        return self.files[2].read_text()

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask(wait=self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        end, pause = time.monotonic() + timeout, 0.001
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout, self.out, self.err)
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        return self.out, self.err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def run(*arguments, timeout: float = 300, **more) -> subprocess.CompletedProcess:
    """A process (see `Process`) to its end."""
    process = Process(*arguments, **more)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.send_signal(signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
