"""The plan done: what is recorded is skipped, everything else leaves one record."""

import copy
import dataclasses
import gc
import json
import os
import sys
import time
import traceback
from collections import deque
from pathlib import Path

from rich.console import Console

from ...pretrain.common.errors import UserError
from ...pretrain.common.processes import refuse_in_child
from ...pretrain.common.progress import Reporter, line_console
from ..datasets.base import more
from ..datasets.identity import older
from ..environment import environment, peak_memory
from ..results import labels, record
from ..results.record import DataSet, Protocol, Record
from ..tasks import Crash
from .opened import InMemory
from .options import Options
from .plan import Evaluation, gather, plan, seeds_of


def run_command(models: list[str], tasks: list[str], options: Options) -> int:
    """`selfpatch run`: plan, then do. Returns the exit status."""
    options.rank, options.world = launched()
    console = line_console(file=sys.stdout, quiet=options.rank > 0)
    return run(plan(gather(models, options), tasks, options), options, console)


def launched() -> tuple[int, int]:
    """(number, count) of the processes that torchrun, or a step of a Slurm job, started; (0, 1) alone.

    Slurm's variables are turned into torchrun's, for the processes that tasks start. Ends a process that should do
    nothing of the kind, see processes.refuse_in_child.
    """
    refuse_in_child()
    known = os.environ
    if "RANK" not in known and int(known.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        known |= {"RANK": known["SLURM_PROCID"], "WORLD_SIZE": known["SLURM_STEP_NUM_TASKS"]}
        known |= {"LOCAL_RANK": known["SLURM_LOCALID"]}
        if known.get("SLURM_STEP_NUM_NODES", known.get("SLURM_NNODES")) == "1":
            known["LOCAL_WORLD_SIZE"] = known["WORLD_SIZE"]  # they meet on this machine alone
        known.setdefault("MASTER_ADDR", known.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        known.setdefault("MASTER_PORT", str(20000 + int(known.get("SLURM_JOB_ID", 0)) % 20000))
    return int(known.get("RANK", 0)), int(known.get("WORLD_SIZE", 1))


def run(evaluations: list[Evaluation], options: Options, console: Console) -> int:
    """Run the planned evaluations; those that another process is running come last. Returns the exit status: 1 if any
    failed."""
    if options.rank:
        return int(not all([_follow(e, options) for e in evaluations if e.task.processes == "many"]))
    for evaluation in evaluations:
        record.text_of(dataclasses.replace(_planned(evaluation), status=record.FAILED))  # before any work
    notes = [note for e in evaluations for note in e.cfg.data.notes]
    for note in dict.fromkeys([*_once(evaluations, options), *_older(evaluations, options.out), *notes]):
        console.print(f"note: {note}")
    failed, at_work = 0, None
    queue = deque((evaluation, False) for evaluation in evaluations)  # and whether to wait for another process
    while queue:
        evaluation, wait = queue.popleft()
        opened = evaluation.opened
        with record.lock(options.out, evaluation.task.name, evaluation.key, wait) as mine:
            if not mine:
                console.print(f"{evaluation.title}: another process is at it; coming back later")
                queue.append((evaluation, True))
                continue
            if at_work not in (None, opened) and not at_work.kept:
                at_work.let_go()
            at_work, last = opened, all(other.opened is not opened for other, _ in queue)
            failed += not _one(evaluation, options, console, wait, last)
            if last and opened:
                opened.let_go()
    return int(failed > 0)


def _once(evaluations: list[Evaluation], options: Options) -> list[str]:
    """A note that names the tasks that run once, whatever --seed says."""
    names = dict.fromkeys(e.task.title for e in evaluations if seeds_of(e.task, options) != options.seeds)
    given = ",".join(map(str, options.seeds))
    return [f"{', '.join(names)}: runs once, under seed 0; --seed {given} does not change its number"] if names else []


def _older(evaluations: list[Evaluation], out: Path) -> list[str]:
    """Lines for the user on results that older versions made, of what may be other data under the same names."""
    lines, known = [], record.records(out, strange={})
    for evaluation in evaluations:
        if record.done(out, evaluation.task.name, evaluation.key):
            continue
        planned = _planned(evaluation)
        found = [r.path for r in known if r.status == record.DONE and older(r.data.fingerprint) and _alike(r, planned)]
        if found and not older(planned.data.fingerprint):
            lines.append(
                f"{evaluation.title}: {found[-1]}{more(found)} is older: its data are known by names and sizes alone; "
                "it stays in tables, and a new record is made"
            )
    return lines


def _alike(old: Record, new: Record) -> bool:
    """Whether two records differ in nothing but the fingerprint of data of the same name and counts."""

    def parts(one: Record) -> str:
        model, data, values = one.model, one.data, dict(one.protocol.values)
        found = (model.fingerprint, model.card, one.task, one.version, values, one.limit, one.seed)
        return json.dumps([*found, data.name, data.summary], sort_keys=True, default=str)

    return parts(old) == parts(new)


def _one(evaluation: Evaluation, options: Options, console: Console, came_back: bool, last: bool) -> bool:
    """Make a record, where there is none yet; -> did it succeed? last: of its checkpoint's evaluations."""
    existing = record.done(options.out, evaluation.task.name, evaluation.key)
    if existing and (came_back or not options.rerun):
        why = "the same weights, card, protocol, data and seed"
        console.print(f"{evaluation.title}: done already ({existing[-1]}: {why}); --rerun repeats it")
        _label(evaluation, existing[-1], console)
        return True
    out = _folder(evaluation, options)
    start, planned = time.monotonic(), _planned(evaluation)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Reporter(evaluation.title, console) as report:
            evaluation.cfg.progress = report
            result = evaluation.task.run(_subject(evaluation, console, last), evaluation.cfg, out)
        if isinstance(result, dict) and "said" in result:
            console.print(f"{evaluation.title}: {result['said']}")
            return True
        finished = _finished(planned, result, str(out), _cost(evaluation, start))
        record.text_of(finished)  # what is wrong with it is the task's failure
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        found = {"status": record.FAILED, "error": text, "traceback": traceback.format_exc()}
        found |= {"log": error.log} if isinstance(error, Crash) else {}
        path = record.write(options.out, dataclasses.replace(planned, **found, **_cost(evaluation, start)))
        console.print(f"{evaluation.title}: failed: {text} ({path})", style="red")
        return False
    finally:
        gc.collect()
    path = record.write(options.out, finished)
    declared, metrics = evaluation.task.metrics, finished.metrics
    shown = "  ".join([f"{m.name} {metrics[m.name]:.2f}" for m in declared if m.name in metrics][:3])
    said = "; ".join([shown, *(finished.doubts or ())])
    console.print(f"{evaluation.title}: {said}  ({path})")
    _label(evaluation, path, console)
    return True


def _label(evaluation: Evaluation, path: Path, console: Console) -> None:
    """Give a result the name and row that the user gave, where it has others. The caller holds the key's lock."""
    if not evaluation.given:
        return
    model = record.read(path).model
    if new := {k: v for k, v in evaluation.given.items() if getattr(model, k) != v}:
        file = labels.write(path, new, record.now())
        said = ", ".join(f"its {k} is now {v} (was {getattr(model, k) or 'none'})" for k, v in new.items())
        console.print(f"{evaluation.title}: {said}: {file}")


def _folder(evaluation: Evaluation, options: Options) -> Path:
    """Where an evaluation works; a repetition has a folder of its own."""
    number = len(record.done(options.out, evaluation.task.name, evaluation.key)) + 1
    return record.artifacts(options.out, evaluation.task.name, evaluation.key, number)


def _follow(evaluation: Evaluation, options: Options) -> bool:
    """Take part in an evaluation as a process but the first, which writes the record; -> did it succeed?"""
    if not options.rerun and record.done(options.out, evaluation.task.name, evaluation.key):
        return True
    out = _folder(evaluation, options)
    try:
        out.mkdir(parents=True, exist_ok=True)
        evaluation.task.run(None, evaluation.cfg, out)
    except Exception as error:
        print(f"{evaluation.title}, process {options.rank}: {error}", file=sys.stderr)
        return False
    return True


def _subject(evaluation: Evaluation, console: Console, last: bool):
    """What the task's `run` takes: the network, or the opened checkpoint; None for masks."""
    if evaluation.opened is None:
        return None
    from ..checkpoints.open import build

    if isinstance(evaluation.opened, InMemory):
        return evaluation.opened.network(evaluation.cfg.device)
    name, checkpoint = evaluation.model.name, evaluation.opened.take(last)
    console.print(f"{name}: {checkpoint.reading.format}, {checkpoint.accounting}")
    if checkpoint.assumed:
        console.print(f"{name}: {checkpoint.assumed}")
    for warning in (*checkpoint.warnings, *evaluation.opened.doubts):
        console.print(f"{name}: warning: {warning}")
    if "checkpoint" in evaluation.task.takes:
        return checkpoint
    encoder = build(checkpoint).to(evaluation.cfg.device)
    # A task may change its network. On a CPU its weights are the opened file's, which wait for the next evaluation.
    return encoder if last or not evaluation.cfg.device.startswith("cpu") else copy.deepcopy(encoder)


def _planned(evaluation: Evaluation) -> Record:
    """What a record says before the work."""
    task, cfg, data = evaluation.task, evaluation.cfg, evaluation.cfg.data
    return Record(
        key=evaluation.key,
        model=evaluation.model,
        task=task.name,
        version=task.version,
        protocol=Protocol(task.protocol_id, dataclasses.asdict(cfg.protocol), evaluation.overridden),
        published=task.published,
        data=DataSet(
            data.name, str(data.root), data.fingerprint, data.official, data.differs, data.summary, data.notes
        ),
        limit=cfg.limit,
        seed=cfg.seed,
        doubts=[*data.doubts, *(evaluation.opened.doubts if evaluation.opened else ())] or None,
    )


def _finished(planned: Record, result: dict, out: str, cost: dict) -> Record:
    """The record of a result. result: what the task's `run` gives."""
    effective = dict(result["protocol"])
    protocol = dataclasses.replace(planned.protocol, id=effective.pop("id", planned.protocol.id), effective=effective)
    if "environment" in result:  # processes of the task's own did the work
        cost["environment"]["training"] = result["environment"]
        cost["peak_memory_bytes"] = result["peak_memory_bytes"]
    own = {"metrics": result["metrics"], "parts": result["parts"], "artifacts": out}
    return dataclasses.replace(planned, protocol=protocol, **own, **cost)


def _cost(evaluation: Evaluation, start: float) -> dict:
    device = evaluation.cfg.device
    return {
        "environment": environment(device),
        "wall_seconds": round(time.monotonic() - start, 3),
        "peak_memory_bytes": peak_memory(device),
        "created": record.now(),
    }
