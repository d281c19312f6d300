"""What the tests of training share: pictures, a run of a second, and processes to run it in."""

import json
import os
import socket
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import warm

ROWS = (
    "views.rows=[{count: 2, size: 32, scale: [0.4, 1.0], blur_p: 0.5, solarize_p: 0.2},"
    "{count: 2, size: 16, scale: [0.1, 0.4]}]"
)
# Depth 2, 24 wide, 8-pixel patches: a step takes a few hundredths of a second. 16 pictures are 4 steps an epoch.
TINY = (
    ROWS,
    "network.backbone=vit_tiny_patch8",
    "network.overrides={embed_dim: 24, depth: 2, num_heads: 2}",
    "schedule.warmup_epochs=1",
    "schedule.lr=0.02",
    "loop.batch=4",
    "loop.epochs=3",
    "loop.device=cpu",
    "loop.precision=float32",
    "data.workers=0",
    "log.every=1",
)
HEAD = ("outputs=32", "hidden=32", "bottleneck=16")
SELFPATCH = (*TINY, *(f"objectives.{o}.{h}" for o in ("dino", "selfpatch") for h in HEAD))
DINO = (*TINY, *(f"objectives.dino.{h}" for h in HEAD))
# A queue of 12 takes a batch of 4 three times. A bias before batch norm has no gradient but rounding: with the usual
# eps Adam makes steps of that, which no two orders of addition agree on.
CONTRAST = ("outputs=16", "hidden=32", "queue=12")
MOBY = (*TINY, "optim.eps=0.001", *(f"objectives.moby.{c}" for c in CONTRAST))
MOBY_SELFPATCH = (*MOBY, *(f"objectives.moby_patch.{c}" for c in CONTRAST))
IBOT = (*TINY, *(f"objectives.{o}.{h}" for o in ("dino", "ibot") for h in HEAD))
SERE = (*IBOT, "objectives.sere.samples=5", "objectives.sere.local_samples=3")
PWSELF = (*TINY, *(f"objectives.pwself.{h}" for h in HEAD), "views.pre_resize=40")
# Swin at 32 pixels: windows of 2 on patches of 2, grids of 16, 8, 4 and 2.
SWIN = (
    "network.backbone=swin_tiny",
    "network.overrides={embed_dim: 8, depths: [2, 2, 2, 1], num_heads: [1, 2, 4, 8], window_size: 2, patch_size: 2}",
    "views.rows=[{count: 2, size: 32}]",
)
METHODS = {  # recipe: its options; what every method can do is tested on all of them
    "selfpatch": SELFPATCH,
    "dino": DINO,
    "ibot": IBOT,
    "sere": SERE,
    "pwself": PWSELF,
    "pwself_patchwise": PWSELF,
    "moby": MOBY,
    "moby_selfpatch": MOBY_SELFPATCH,
}

# Runs jobs one after the other, each in forks of a process that has computed nothing: processes of their own, to be
# killed at will.
DRIVER = r"""
import json, os, resource, signal, sys, threading, time, traceback
from pathlib import Path
from selfpatch_bench.benchmarks.commands import pretrain
from selfpatch_bench.benchmarks.commands.watch import Evaluator
from selfpatch_bench.pretrain import checkpoint, step
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.monitor import watch

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def prepare(what, number):
    "Let something happen to this process: at the end of a step, around the writing of a step's checkpoint, or in the"
    "evaluation after a step (PART EVENT), also while another process makes that."
    advance, save, replace = step.Trainer.advance, checkpoint.torch.save, os.replace
    events = {"kill": die, "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
              "int": lambda: os.kill(os.getpid(), signal.SIGINT),
              "full": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))}
    part, _, event = what.partition(" ")
    def after(self, *args):
        out = advance(self, *args)
        if self.step == number:
            events[what]()
        return out
    def during(self, *args):
        if args[1] == number:
            events[event]()
        return whole(self, *args)
    def waiting(ranks, mine):
        if ranks.rank:
            events[event]()
        return exchange(ranks, mine)
    def half(state, file):
        if state["step"] != number:
            return save(state, file)
        import io
        whole = io.BytesIO()
        save(state, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        die()
    def around(a, b):
        if b.name != f"step-{number:08d}.pt":
            return replace(a, b)
        if what == "rename":
            die()
        replace(a, b)
        die()
    if what in ("kill", "term", "int", "full"):
        step.Trainer.advance = after
    elif part == "wait":
        watch.PULSE, exchange, watch.exchange = 0.0, watch.exchange, waiting
    elif event:
        whole = getattr(Evaluator, part)
        setattr(Evaluator, part, during)
    elif what == "write":
        checkpoint.torch.save = half
    else:
        os.replace = around

for job in json.loads(sys.stdin.read()):
    error, children = Path(job["log"]), []
    error.write_text("")
    for rank in job["ranks"]:
        pid = os.fork()
        children.append(pid)
        if pid:
            continue
        os.environ |= rank
        os.dup2(os.open(error, os.O_WRONLY | os.O_APPEND), 2)
        try:
            if job.get("when"):
                prepare(*job["when"])
            code = pretrain.pretrain_command(**job["arguments"])
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.status
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stderr.flush()
        os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    print(json.dumps([next((c for c in codes if c), 0), error.read_text()]), flush=True)
"""
ONE = r"""
import json, sys
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command
if __name__ == "__main__":
    try:
        sys.exit(pretrain_command(**json.loads(sys.argv[1])))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
"""


@pytest.fixture(autouse=True)
def one_thread():
    """For tests that compute much with tiny tensors: threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(folder: Path, count: int = 16) -> Path:
    """Smooth random pictures, 48 x 40 pixels, in two class folders."""
    rng = np.random.default_rng(5)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        assert cv2.imwrite(str(path), cv2.resize(small, (48, 40), interpolation=cv2.INTER_CUBIC))
    return folder


def environment() -> dict[str, str]:
    """One thread for each process: sums are then made in one order, and forks are safe."""
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "500"}


def rank_of(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    found = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    return found | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(count: int = 2, code: str = ONE, **arguments) -> subprocess.CompletedProcess:
    """pretrain_command in so many processes that are told what torchrun tells: the largest exit status, and all that
    they said."""
    given, port = json.dumps(arguments, default=str), free_port()
    ranks = [warm.Process(given, code=code, env=environment() | rank_of(i, count, port)) for i in range(count)]
    said = [process.communicate() for process in ranks]
    status = max(abs(process.returncode) for process in ranks)
    return subprocess.CompletedProcess(given, status, *("".join(texts) for texts in zip(*said, strict=True)))


class Jobs:
    """Runs of pretrain_command, each in a process of its own, or in `world` of them: `job(when=("kill", 3),
    recipe=...)`, then `run()` -> (exit status, stderr) of each; -9 is a SIGKILL."""

    def __init__(self, folder: Path):
        self.folder, self.jobs = folder, []

    def job(self, when: tuple | None = None, world: int = 1, **arguments) -> None:
        log = self.folder / f"job-{len(self.jobs)}.txt"
        ranks = [rank_of(i, world, port) for port in [free_port()] for i in range(world)] if world > 1 else [{}]
        self.jobs.append({"when": when, "ranks": ranks, "arguments": arguments, "log": log})

    def run(self) -> list[tuple[int, str]]:
        given = json.dumps(self.jobs, default=str)
        done = warm.run(code=DRIVER, given=given, env=environment())
        assert done.returncode == 0, done.stderr
        self.jobs = []
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def lines(folder: Path) -> list[dict]:
    """The log of a run, without what depends on the clock."""
    loaded = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k not in ("images_per_s", "data_wait", "memory_gb", "mfu")} for x in loaded]


def final(folder: Path) -> dict:
    """The newest checkpoint of a run."""
    return torch.load(max((folder / "checkpoints").glob("step-*.pt")), weights_only=True)


def tensors(state, key: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of nested dicts and lists, by dotted name."""
    if isinstance(state, torch.Tensor):
        return {key: state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {k: v for name, part in pairs for k, v in tensors(part, f"{key}.{name}").items()}


def same(a: dict, b: dict) -> bool:
    """Whether two checkpoints are equal bit for bit."""
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def difference(a: dict, b: dict) -> float:
    """Largest difference of student, teacher and centres, relative to each tensor's largest entry.

    A key's bias moves all logits of a query alike, a bias before batch norm all its rows: the gradient is 0 but for
    rounding, of which Adam makes steps of its own. A tensor that is below 1e-7 in both is therefore not compared, and
    a key's bias has to be.
    """
    worst = 0.0
    for part in ("student", "teacher", "objectives"):
        assert a[part].keys() == b[part].keys()
        for name, value in a[part].items():
            other = b[part][name].double()
            nothing = max(value.abs().max(), other.abs().max()) < 1e-7
            assert nothing or not name.endswith("attn.k.bias")
            if not nothing:
                worst = max(worst, float((value.double() - other).abs().max() / other.abs().max().clamp(min=1e-30)))
    return worst
