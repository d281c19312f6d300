"""Commands of `selfpatch` as processes of their own, started without the seconds that importing torch takes.

A server imports other people's packages once and then forks for every command; the child runs
`python -m selfpatch_bench.benchmarks ARGUMENTS` from there on, to its real exit. Nothing of the project but its console
command and `selfpatch_bench.benchmarks.load` is named here.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MODULE = "selfpatch_bench.benchmarks"
# What decides colours, widths, threads, devices and data is set here; whatever the caller's shell says of it is not.
DROPPED = ("SELFPATCH_", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "CLICOLOR", "TERM", "TTY_", "RANK", "WORLD_SIZE")
DROPPED += ("SLURM_", "LOCAL_RANK", "MASTER_", "PYTEST_")
FIXED = {
    "COLUMNS": "1000",  # nothing wraps, however long a path is
    "NO_COLOR": "1",
    "TERM": "dumb",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",  # sums are then made in one order, and forks are safe
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}

SERVER = r"""
import atexit, gc, json, os, runpy, signal, sys, traceback

import cv2, numpy, omegaconf, pandas, PIL.Image, rich.progress, safetensors.torch, timm, torch, typer, yaml
from selfpatch_bench.benchmarks import load


def next_job():
    "A job, in a child; None when there are no more. The parent answers with exit statuses."
    for line in sys.stdin:
        if not (pid := os.fork()):
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def killed_before(name):
    "This process ends as by SIGKILL at the moment at which a file would get that name."
    def look(event, arguments):
        if event == "os.rename" and os.path.basename(os.fspath(arguments[1])) == name:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(look)


def run(arguments, code):
    sys.argv = ["selfpatch", *arguments]
    try:
        if code:
            exec(code, {"__name__": "__main__"})
        else:
            runpy.run_module("selfpatch_bench.benchmarks", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


gc.collect()
gc.freeze()  # a child that collects would copy all of the packages' memory
if job := next_job():
    os.chdir(job["cwd"])
    os.environ.update(job["env"])
    for number, path in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY), number)
    if job["kill"]:
        killed_before(job["kill"])
    status = run(job["arguments"], job["code"])
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take the packages apart would cost a second
"""


@dataclass
class Done:
    """A command that has ended. out, err: what it printed, with paths replaced by words."""

    arguments: list[str]
    status: int
    out: str
    err: str

    def __str__(self) -> str:
        said = [f"$ selfpatch {' '.join(self.arguments)}", *self.out.splitlines()]
        said += [f"stderr: {line}" for line in self.err.splitlines()] + [f"exit status {self.status}"] * bool(
            self.status
        )
        return "".join(f"{line.rstrip()}\n" for line in said)


def environment(folder: Path) -> dict[str, str]:
    """Of every command; a cache lies in the folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
    return kept | FIXED | {"SELFPATCH_CACHE": str(folder / "cache")}


class Server:
    """The process that forks. A context manager; it starts with the first command."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        if self.process:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()

    def run(self, job: dict) -> int:
        """-> exit status, negative for a signal."""
        if self.process is None:
            line, pipe = [sys.executable, "-c", SERVER], subprocess.PIPE
            env = environment(self.folder)
            self.process = subprocess.Popen(line, stdin=pipe, stdout=pipe, env=env, text=True, cwd=self.folder)
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


class Commands:
    """`commands("inspect", file)` -> Done; `folder` is the working folder of all of them.

    words: paths and the words that replace them in what commands print; the folder's own is FOLDER.
    """

    def __init__(self, server: Server, folder: Path, words: dict[Path, str]):
        self.server, self.folder = server, folder.resolve()
        self.words = {str(self.folder): "FOLDER"} | {str(q): w for p, w in words.items() for q in (p, p.resolve())}

    def __call__(self, *arguments, kill: str | None = None, env: dict | None = None, code: str = "") -> Done:
        """Run a command to its end. kill: it dies, as by SIGKILL, just before a file gets this name. env: variables
        to add. code: run this program instead."""
        given = [str(a) for a in arguments]
        out, err = self.folder / ".stdout", self.folder / ".stderr"
        env = {"SELFPATCH_CACHE": str(self.folder / "cache")} | (env or {})
        job = {"arguments": given, "cwd": str(self.folder), "out": str(out), "err": str(err)}
        status = self.server.run(job | {"kill": kill, "env": env, "code": code})
        return self._done(given, status, out.read_text("utf-8"), err.read_text("utf-8"))

    def alone(self, *arguments, columns: int = 100) -> Done:
        """Run a light command in a process that begins from nothing, on a terminal of so many columns."""
        line = [sys.executable, "-m", MODULE, *map(str, arguments)]
        env = environment(self.folder) | {"COLUMNS": str(columns)}
        done = subprocess.run(line, capture_output=True, text=True, env=env, cwd=self.folder, check=False)
        return self._done(line[3:], done.returncode, done.stdout, done.stderr)

    def _done(self, arguments: list[str], status: int, out: str, err: str) -> Done:
        return Done([self.plain(a) for a in arguments], status, self.plain(out), self.plain(err))

    def plain(self, text: str) -> str:
        """A text without this machine's paths, the longest first."""
        for path in sorted(self.words, key=len, reverse=True):
            text = text.replace(path, self.words[path])
        return text
