"""An mm recipe as a task: what the runner asks of `tasks/NAME.py`, answered by processes that import mm.

This module does not: the data are checked here, the configuration in a short process (a bad override is refused before
any work), training and evaluation in processes of a group of their own. Only this side writes records.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from ...pretrain.common.keyvalue import key_value
from ...pretrain.common.locks import take
from ...pretrain.common.processes import child_environment, python
from ..tasks import Config, Crash, Data, Task
from . import recipe
from .job import ERROR, LOCK, LOG, PROGRESS, RESULT, Job, read_json

MODULE = f"{__package__}.launch"
MACHINE = ("workers", "per_gpu", "with_cp")  # change no number; of per_gpu, what does is in `micro_batch`
TAIL = 40  # lines of the log that a failure record keeps
PATIENCE = 30.0  # seconds to end after a signal


@dataclass
class Protocol:
    """What makes a number of a recipe another number.

    overrides: `key=value` as given. machine: those that only say how the machine does it. scale_lr: the learning rate
    was scaled with the batch. micro_batch: images that one backward pass sees, over all processes (batch-norm sees no
    more). eval_only: fingerprint of the fine-tuned model that was only evaluated.
    """

    overrides: dict[str, str] = field(default_factory=dict)
    scale_lr: bool = False
    micro_batch: int | None = None
    eval_only: str | None = None
    machine = {}  # noqa: RUF012 (no field, and so no part of a record's key)


class MMTask:
    """A recipe file behind the interface of a task module: TASK, parse, check, check_model, run."""

    def __init__(self, path: Path):
        self.recipe = r = recipe.read(path)
        self.TASK = Task(
            version=r.version,
            protocol_id=r.protocol_id,
            protocol=Protocol,
            metrics=r.metrics,
            dataset=r.dataset,
            published=r.published,
            needs="the weights",
            takes="checkpoint",
            values=(*recipe.OWN, "and dotted keys of the mm config"),
        )

    def parse(self, options) -> tuple[Protocol, dict, list[str]]:
        """-> (protocol, what differs from the recipe, keys that no recipe has); see runner.parse_protocol."""
        given = dict(map(key_value, options.overrides))
        unknown = [key for key in given if "." not in key and key not in recipe.OWN]
        given = {key: value for key, value in given.items() if key not in unknown}
        own, _ = recipe.parse(f"{k}={v}" for k, v in given.items())
        world = max(options.gpus, options.world)
        model = None
        if options.eval_only is not None:
            from ...pretrain.common.weights import fingerprint
            from ..checkpoints.open import read_file

            state, _ = read_file(options.eval_only)
            model = fingerprint({k: state[k] for k in state if k.startswith("state_dict.")} or dict(state.items()))
        machine = {k: given.pop(k) for k in MACHINE if k in given}
        values = Protocol(dict(sorted(given.items())), options.scale_lr, self._micro_batch(own, world), model)
        values.machine = machine
        extra = {"scale_lr": True} if options.scale_lr else {}
        return values, given | extra | ({"eval_only": model} if model else {}), unknown

    def _micro_batch(self, own: Mapping, world: int) -> int | None:
        """Images that one backward pass sees, over all processes; None where only its data loader says it."""
        per_gpu = own.get("per_gpu") or self.recipe.per_gpu
        batch = own.get("batch") or self.recipe.batch
        return recipe.batching(batch, world, per_gpu)[0] * world if batch and per_gpu else None

    def check(self, cfg: Config) -> Data:
        """The data set, to the last file. Raises UserError, also where the extra `mm` is not installed."""
        from . import ops

        ops.require()
        if cfg.masks is not None or cfg.list_file is not None:
            raise UserError(f"{self.recipe.name}: --masks and --list are for videos")
        own, _ = recipe.parse(f"{k}={v}" for k, v in cfg.protocol.overrides.items())
        classes = own.get("classes")
        return self._open()(cfg.root, cfg.limit, classes, train=cfg.eval_only is None)

    def check_data(self, root: Path) -> Data:
        """The data set, to the last file, with whatever classes it has; the extra `mm` is not needed for that."""
        from ..datasets.base import ANY

        return self._open()(root, classes=ANY)

    def _open(self):
        """The function that opens and checks the recipe's kind of data set."""
        if self.recipe.dataset == "coco":
            from ..datasets.coco import open_coco

            return open_coco
        from ..datasets.ade20k import open_ade20k

        return open_ade20k

    def check_model(self, cfg: Config, card: dict) -> None:
        """Build the configuration for this card in a process of its own. Raises UserError with its complaint."""
        recipe.check_family(self.recipe, Card(**{k: tuple(v) if isinstance(v, list) else v for k, v in card.items()}))
        job = dataclasses.asdict(dataclasses.replace(self._job(cfg, Path(), export=None), out="", seed=0))
        question = {"job": job, "card": card, "world": max(cfg.gpus, cfg.world)}
        if error := _ask(json.dumps(question), cfg.device):
            raise UserError(error)

    def _job(self, cfg: Config, out: Path, export: Path | None) -> Job:
        p = cfg.protocol
        return Job(
            recipe=str(self.recipe.path.resolve()),
            export=str(export) if export else "",
            data=str(Path(cfg.data.root).resolve()),
            out=str(out.resolve()),
            overrides=[f"{k}={v}" for k, v in (p.overrides | p.machine).items()],
            seed=cfg.seed,
            limit=cfg.limit,
            gpus=cfg.gpus,
            device=cfg.device,
            scale_lr=p.scale_lr,
            eval_only=str(cfg.eval_only.resolve()) if cfg.eval_only else None,
            pictures=cfg.pictures,
        )

    def run(self, checkpoint, cfg: Config, out: Path) -> dict:
        """Train and evaluate in `out`, going on where an earlier run there was interrupted. Raises Crash.

        checkpoint: an opened one (checkpoints.open.Checkpoint).
        """
        export = out.resolve() / "backbone.safetensors"
        job = self._job(cfg, out, export)
        if cfg.rank == 0:
            if (known := read_json(out / RESULT)) is not None:  # finished, but the record was not written any more
                return _result(known)

            from ...pretrain.common.weights import save_weights

            save_weights(export, checkpoint.reading.weights, checkpoint.card, {"fingerprint": checkpoint.fingerprint})
        path = out / ("job.json" if cfg.rank == 0 else f"job.{cfg.rank}.json")
        with _alone(out) if cfg.rank == 0 else contextlib.nullcontext():
            job.to_json(path)
            for name in (ERROR, PROGRESS):
                (out / name).unlink(missing_ok=True)
        work(path, out, cfg, cfg.rank)
        if cfg.rank:
            return {}
        if (found := read_json(out / RESULT)) is None:
            raise Crash(f"ended without a result; see {out / LOG}", tail(out / LOG))
        return _result(found)


def _result(found: dict) -> dict:
    protocol = found["protocol"] | {"accounting": found["accounting"]}
    return {k: found[k] for k in ("metrics", "parts", "environment", "peak_memory_bytes")} | {"protocol": protocol}


@cache
def _ask(question: str, device: str) -> str | None:
    """What is wrong with a configuration; a process of some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "question.json"), Path(folder, "answer.json")
        asked.write_text(question, encoding="utf-8")
        line = python(MODULE, "--check", asked, answer)
        done = subprocess.run(line, capture_output=True, text=True, env=_environment(device), check=False)
        found = read_json(answer)
    if found is None:
        text = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return f"mm does not start: {text}"
    return found.get("error")


def _environment(device: str) -> dict[str, str]:
    """Of the processes: mm takes a GPU wherever it sees one, so on `cpu` it must see none."""
    return child_environment(**({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}))


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Wait until the processes of an earlier, killed run in `out` have ended."""
    with (out / LOCK).open("a") as lock:
        if not take(lock.fileno(), PATIENCE):
            raise UserError(f"{out}: processes of an earlier run are still at work there", 1)
        yield


def work(path: Path, out: Path, cfg: Config, rank: int = 0) -> None:
    """Run the job's processes to their end, passing on their progress and any signal to end. Raises Crash."""
    log = out / (LOG if rank == 0 else f"log.{rank}.txt")
    line = python(MODULE, path.resolve())
    with log.open("ab") as output:
        output.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {path}\n".encode())
        output.flush()
        process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,  # whose end tells the processes that this one is gone
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(cfg.device),
            start_new_session=True,
        )
        try:
            with Forward(process) as told:
                last = None
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.3)
                    if rank == 0 and (found := read_json(out / PROGRESS)) not in (None, last):
                        cfg.progress(found["done"], found["total"], found["text"])
                        last = found
        finally:
            process.stdin.close()
            end_group(process)
    told.again()
    if process.returncode:
        raise Crash(reason(process.returncode, out, log), tail(log))


def end_group(process: subprocess.Popen) -> None:
    """Kill whatever is left of a process group, and take leave of its leader."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def reason(status: int, out: Path, log: Path) -> str:
    """Why the processes ended, in one line."""
    if found := read_json(out / ERROR):
        return found["error"]
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (out of memory, or killed by someone)" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}; log: {log}"
    return f"the process ended with status {status}; log: {log}"


def tail(log: Path, lines: int = TAIL) -> str:
    """The last lines of a log."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return "".join(deque(file, lines))
    except OSError:
        return ""


class Forward:
    """Passes SIGTERM and SIGINT on to a process group; a context manager. `again()` then does to this process what
    the signal meant. A launcher's own handlers (submitit's, torchrun's) are left alone.

    A group that has not ended PATIENCE seconds later, or at a second signal, is killed.
    """

    def __init__(self, process: subprocess.Popen):
        self.process, self.signal, self.before = process, 0, {}
        self.timer = threading.Timer(PATIENCE, end_group, [process])
        self.timer.daemon = True

    def __enter__(self) -> "Forward":
        if threading.current_thread() is threading.main_thread():
            default = (signal.SIG_DFL, signal.default_int_handler)
            own = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) in default]
            self.before = {n: signal.signal(n, self.catch) for n in own}
        return self

    def catch(self, number: int, _frame) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL if self.signal else number)
        if not self.signal:
            self.signal = number
            self.timer.start()

    def __exit__(self, *_) -> None:
        self.timer.cancel()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def again(self) -> None:
        """End this process by the signal that it passed on, if there was one."""
        if self.signal:
            signal.raise_signal(self.signal)
