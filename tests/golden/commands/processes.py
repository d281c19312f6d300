"""Commands of `selfpatch` as processes of their own, started without the seconds that importing torch takes.

Nothing of the project but its console command and `selfpatch_bench.benchmarks.load` is named here.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import warm

MODULE = "selfpatch_bench.benchmarks"
TIMEOUT = 1200  # seconds of one command
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
    """Starts the commands, as forks of one process (helpers/warm.py). A context manager; it starts with the first."""

    def __init__(self, folder: Path):
        self.folder, self.warm = folder, None

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        if self.warm:
            self.warm.end()

    def run(self, *arguments, **how) -> subprocess.CompletedProcess:
        """how: of warm.Process."""
        self.warm = self.warm or warm.Server("from selfpatch_bench.benchmarks import load", environment(self.folder))
        return warm.run(*arguments, server=self.warm, timeout=TIMEOUT, **how)


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
        env = environment(self.folder) | (env or {})
        done = self.server.run(*arguments, cwd=self.folder, env=env, kill=kill, code=code)
        return self._done(done.args, done.returncode, done.stdout, done.stderr)

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
