"""Models x tasks x seeds: check everything first, skip what is done, one record per result."""

import dataclasses
import gc
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from ...pretrain.common.errors import UserError
from ...pretrain.common.keyvalue import key_value
from ...pretrain.common.progress import Reporter
from ..datasets.roots import data_roots
from ..environment import environment, peak_memory
from ..results import labels, record
from ..tasks import Config, Crash, Task, make_key
from ..tasks._registry import get_task
from ..tasks._registry import tasks as all_tasks
from .launchers import check_flags, check_gpus, check_models, launched
from .models import Entry, read_models
from .opened import Model, describe, given_labels, hold


@dataclass
class Options:
    """What `selfpatch run` was told beside models and tasks; see its help."""

    data: list[str] = field(default_factory=list)
    out: Path = Path("results")
    card: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    weights: str | None = None
    name: str | None = None
    row: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    limit: int | None = None
    device: str = "auto"
    masks: Path | None = None
    list_file: Path | None = None
    pictures: bool = False
    rerun: bool = False
    every: int | None = None
    gpus: int = 1
    scale_lr: bool = False
    eval_only: Path | None = None
    rank: int = 0  # this process's number among `world` that torchrun or Slurm started
    world: int = 1
    models: Path | None = None  # a models.yaml
    overrides: list[str] = field(default_factory=list)


@dataclass
class Job:
    """One result to be made."""

    model: Model
    task: str
    module: object
    cfg: Config
    overridden: dict
    key: str

    @property
    def title(self) -> str:
        seed = f" seed {self.cfg.seed}" if self.cfg.seed else ""
        return f"{self.model.name} on {self.task}{seed}"


def parse_protocol(protocol: type, overrides: Iterable[str]) -> tuple[object, dict, list[str]]:
    """A protocol dataclass with `key=value` applied -> (values, what differs from the defaults, keys it lacks).

    Raises UserError, naming what is valid, for a value of another type.
    """
    names = {f.name: f for f in dataclasses.fields(protocol)}
    base, unknown = OmegaConf.structured(protocol), []
    for item in overrides:
        key, _ = key_value(item)
        if key.partition(".")[0] not in names:
            unknown.append(key)
            continue
        try:
            base = OmegaConf.merge(base, OmegaConf.from_dotlist([item]))
        except OmegaConfBaseException:
            raise UserError(f"{item}: {key} is {_kind(names[key.partition('.')[0]])}") from None
    values = OmegaConf.to_object(base)
    default = protocol()
    changed = {k: getattr(values, k) for k in names if getattr(values, k) != getattr(default, k)}
    return values, changed, unknown


def parse(module, options: Options) -> tuple[object, dict, list[str]]:
    """`parse_protocol` for a task module, or for one that reads its overrides itself."""
    if hasattr(module, "parse"):
        return module.parse(options)
    return parse_protocol(module.TASK.protocol, options.overrides)


def _valid(module) -> list[str]:
    return list(module.TASK.values) or [f.name for f in dataclasses.fields(module.TASK.protocol)]


def _kind(spec: dataclasses.Field) -> str:
    kind = spec.type if isinstance(spec.type, str) else getattr(spec.type, "__name__", str(spec.type))
    return f"of type {kind}"


def choose_device(name: str) -> str:
    """`auto` -> cuda if there is one, else cpu. Raises UserError for a device that is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name


def gather(models: Iterable[str | Path], options: Options) -> list[Path | Entry]:
    """Checkpoints given by hand, for which the options are, then those of --models, which have their own."""
    by_hand: list[Path | Entry] = [Path(m) for m in models]
    if options.models is None:
        return by_hand
    own = {"--heads or --card": options.card, "--format": options.format, "--weights": options.weights}
    own |= {"--name": options.name, "--row": options.row}
    for flag, given in own.items():
        if given and not by_hand:
            raise UserError(f"{flag}: is for checkpoints given by hand; write it into the entries of {options.models}")
    return by_hand + read_models(options.models)


def expand(models: list[Path | Entry], every: int | None = None) -> list[Path | Entry]:
    """Checkpoints, with the export of its newest checkpoint for a folder that is a pretraining run.

    every: all kept ones whose step is a multiple of it, instead. Raises UserError, as pretrain.export.exports does.
    """
    files, runs = [], 0
    for model in models:
        path = model.path if isinstance(model, Entry) else model
        if not ((path / "config.yaml").is_file() and (path / "checkpoints").is_dir()):
            files.append(model)
            continue
        from ...pretrain.export import exports

        found = exports(path, every)
        files += model.at(found) if isinstance(model, Entry) else found
        runs += 1
    if every and not runs:
        raise UserError(f"--every {every}: is for folders of pretraining runs; none is given")
    return files


def plan(models: list[Path | Entry], tasks: list[str], options: Options, here: bool = True) -> list[Job]:
    """Every job, after every check that can be made before the work. Raises UserError at the first thing wrong.

    here: the work is for this machine, not for one that Slurm will choose.
    """
    if not tasks:
        raise UserError(f"--task: which? there are: {', '.join(all_tasks())}")
    if bool(models) == bool(options.masks):
        raise UserError("give checkpoints, or --masks DIR to score existing masks" + ("; not both" if models else ""))
    if options.row:
        from ..results.published import check_row  # pandas, which takes its time

        check_row(options.row)
    modules = {name: get_task(name).module for name in tasks}
    check_flags(modules, options)
    if here:
        check_gpus(options.gpus, options.device)
    protocols = {name: parse(m, options) for name, m in modules.items()}
    if lost := set.intersection(*(set(unknown) for _, _, unknown in protocols.values())):
        valid = {key for m in modules.values() for key in _valid(m)}
        raise UserError(f"{', '.join(tasks)} has no {', '.join(sorted(lost))}; there are: {', '.join(sorted(valid))}")
    models = expand(models, options.every)
    _check_alone(models, modules, options)
    described = hold((describe(model, options) for model in models), options.rank)
    _check_entries(described)
    jobs: list[Job] = []
    for name, module in modules.items():
        task, (values, changed, _) = module.TASK, protocols[name]
        cfg = Config(
            values,
            root=data_roots(options.data, task.dataset),
            limit=options.limit,
            device=choose_device(options.device),
            pictures=options.pictures,
            masks=options.masks,
            list_file=options.list_file,
            gpus=options.gpus,
            world=options.world,
            rank=options.rank,
            eval_only=options.eval_only,
        )
        cfg.data = module.check(cfg)
        rows = described or [_masks_model(cfg, options)]
        for model in rows:
            for seed in seeds_of(task, options):
                parts = {
                    "fingerprint": model.fingerprint,
                    "card": model.card,
                    "task": name,
                    "version": task.version,
                    "protocol": dataclasses.asdict(values),
                    "limit": options.limit,
                    "data": cfg.data.fingerprint,
                    "seed": seed,
                }
                own = dataclasses.replace(cfg, seed=seed)
                jobs.append(Job(model, name, module, own, changed, make_key(parts)))
    if not all(model.opened.kept for model in described):  # then each is opened again for all of its jobs at once
        place = {id(model): i for i, model in enumerate(described)}
        jobs.sort(key=lambda job: place[id(job.model)])
    _check_names({j.model.name: j.model.fingerprint for j in jobs}, [j.model for j in jobs], options.out)
    check_models(jobs, options)
    return jobs


def seeds_of(task: Task, options: Options) -> list[int]:
    """The seeds to run a task with: 0 alone where its number depends on none, as when nothing is trained but masks, or
    a fine-tuned model, are only evaluated."""
    return options.seeds if task.seeded and not options.masks and not options.eval_only else [0]


def _check_alone(models: list[Path | Entry], modules: Mapping, options: Options) -> None:
    """What is for one checkpoint."""
    if options.name and sum(not isinstance(m, Entry) for m in models) > 1:
        raise UserError("--name is for a single checkpoint")
    if options.eval_only is not None and (len(models) != 1 or len(modules) != 1):
        raise UserError("--eval-only MODEL: with the one checkpoint it was fine-tuned from, and one task")


def _masks_model(cfg: Config, options: Options) -> Model:
    path, given = options.masks.resolve(), given_labels(options.name, options.row)
    name = options.name or f"{path.parent.name}/{path.name}"
    return Model(name, cfg.data.content.results_fingerprint, row=options.row, format="masks", given=given)


def _check_entries(models: list[Model]) -> None:
    """Two models of one name, where one is an entry of a models.yaml, which has no --name."""
    seen: dict[str, Model] = {}
    for model in models:
        first = seen.setdefault(model.name, model)
        if first is not model and (where := model.opened.asked.where):
            other = first.opened.asked.where or first.path
            raise UserError(f"{where}: {other} is called {model.name} as well; give it a name of its own")


def _check_names(names: Mapping[str, str], models: list[Model], out: Path) -> None:
    """Two fingerprints under one name would be two models in one row of a table."""
    seen = {(m.name, m.fingerprint): str(m.path or "these masks") for m in models}
    for path in record.files(out):
        try:
            model = record.read(path)["model"]
            seen.setdefault((model["name"], model["fingerprint"]), str(path))
        except (UserError, KeyError, TypeError):
            continue  # `table` reports foreign files
    for (name, mark), where in seen.items():
        if name in names and mark != names[name]:
            raise UserError(f"{name} already names other weights ({where}): give --name, or another in models.yaml")


def run(jobs: list[Job], options: Options, console: Console) -> int:
    """Do the jobs; those that another process is at come last. Returns the exit status: 1 if any failed."""
    if options.rank:
        return int(not all([_follow(job, options) for job in jobs if job.module.TASK.takes == "checkpoint"]))
    failed, later = 0, []
    for note in dict.fromkeys([*_once(jobs, options), *(note for job in jobs for note in job.cfg.data.notes)]):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    left = Counter(id(job.model.opened) for job in jobs)  # of each checkpoint's jobs
    at_work = None
    for wait, todo in ((False, jobs), (True, later)):
        for job in todo:
            with record.lock(options.out, job.task, job.key, wait) as mine:
                if not mine:
                    console.print(f"{job.title}: another process is at it; coming back later", highlight=False)
                    later.append(job)
                    continue
                opened = job.model.opened
                if at_work not in (None, opened) and not at_work.kept:
                    at_work.let_go()
                at_work = opened
                left[id(opened)] -= 1
                last = not left[id(opened)]
                failed += not _one(job, options, console, wait, last)
                if last and opened:
                    opened.let_go()
    return int(failed > 0)


def _once(jobs: list[Job], options: Options) -> list[str]:
    """A line for the user on tasks that run once, whatever --seed says."""
    names = dict.fromkeys(job.task for job in jobs if seeds_of(job.module.TASK, options) != options.seeds)
    given = ",".join(map(str, options.seeds))
    return [f"{', '.join(names)}: runs once, under seed 0; --seed {given} does not change its number"] if names else []


def _one(job: Job, options: Options, console: Console, came_back: bool, last: bool) -> bool:
    """Make a job's record, where there is none yet; -> did it succeed? last: of its checkpoint's jobs."""
    existing = record.done(options.out, job.task, job.key)
    if existing and (came_back or not options.rerun):
        why = "the same weights, card, protocol, data and seed"
        console.print(
            f"{job.title}: done already ({existing[-1]}: {why}); --rerun repeats it", highlight=False, soft_wrap=True
        )
        _label(job, existing[-1], console)
        return True
    out = _folder(job, options, existing)
    start, facts = time.monotonic(), _facts(job)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Reporter(job.title, console) as report:
            job.cfg.progress = report
            result = job.module.run(_subject(job, console, last), job.cfg, out)
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        facts |= {"status": "failed", "error": text, "traceback": traceback.format_exc()}
        facts |= {"log": error.log} if isinstance(error, Crash) else {}
        path = record.write(options.out, facts | _cost(job, start), failed=True)
        console.print(f"{job.title}: failed: {text} ({path})", style="red", highlight=False, soft_wrap=True)
        return False
    finally:
        gc.collect()
    facts["protocol"] |= {"id": result["protocol"].pop("id", facts["protocol"]["id"]), "effective": result["protocol"]}
    facts |= {"status": "done", "metrics": result["metrics"], "parts": result["parts"], "artifacts": str(out)}
    cost = _cost(job, start)
    if "environment" in result:  # processes of the task's own did the work
        cost["environment"]["training"] = result["environment"]
        cost["peak_memory_bytes"] = result["peak_memory_bytes"]
    path = record.write(options.out, facts | cost)
    found = [(m.name, result["metrics"][m.name]) for m in job.module.TASK.metrics if m.name in result["metrics"]]
    shown = "  ".join(f"{name} {value:.2f}" for name, value in found[:3])
    console.print(f"{job.title}: {shown}  ({path})", highlight=False, soft_wrap=True)
    _label(job, path, console)
    return True


def _label(job: Job, path: Path, console: Console) -> None:
    """Give a result the name and row that the user gave, where it has others. The caller holds the key's lock."""
    has = record.read(path)["model"] if job.model.given else {}
    new = {k: v for k, v in job.model.given.items() if has.get(k) != v}
    if new:
        file = labels.write(path, new, record.now())
        said = ", ".join(f"its {k} is now {v} (was {has.get(k) or 'none'})" for k, v in new.items())
        console.print(f"{job.title}: {said}: {file}", highlight=False, soft_wrap=True, markup=False)


def _folder(job: Job, options: Options, existing: list[Path]) -> Path:
    """Where a job works; a repetition has a folder of its own."""
    number = len(existing) + 1
    return options.out / "artifacts" / job.task / (job.key if number == 1 else f"{job.key}.{number}")


def _follow(job: Job, options: Options) -> bool:
    """A job's processes of this machine (or GPU), of which the first process keeps the record."""
    existing = record.done(options.out, job.task, job.key)
    if existing and not options.rerun:
        return True
    out = _folder(job, options, existing)
    try:
        out.mkdir(parents=True, exist_ok=True)
        job.module.run(None, job.cfg, out)
    except Exception as error:
        print(f"{job.title}, process {options.rank}: {error}", file=sys.stderr)
        return False
    return True


def _subject(job: Job, console: Console, last: bool):
    """What the task's `run` takes: the network, or the opened checkpoint; None for masks."""
    if job.model.opened is None:
        return None
    from ..checkpoints.open import build, look_untrained

    checkpoint = job.model.opened.take(last)
    text = f"{job.model.name}: {checkpoint.reading.format}, {checkpoint.accounting}"
    console.print(text, highlight=False, soft_wrap=True)
    for warning in checkpoint.warnings:
        console.print(f"{job.model.name}: warning: {warning}", highlight=False, soft_wrap=True)
    if why := look_untrained(checkpoint.reading.weights):
        console.print(f"{job.model.name}: warning: the weights look untrained: {why}", highlight=False, soft_wrap=True)
    return checkpoint if job.module.TASK.takes == "checkpoint" else build(checkpoint).to(job.cfg.device)


def _facts(job: Job) -> dict:
    task, data = job.module.TASK, job.cfg.data
    return {
        "schema": record.SCHEMA,
        "key": job.key,
        "model": job.model.as_dict(),
        "task": job.task,
        "version": task.version,
        "protocol": {
            "id": task.protocol_id,
            "values": dataclasses.asdict(job.cfg.protocol),
            "overridden": job.overridden,
        },
        "published": [list(pair) for pair in task.published],
        "data": {
            "name": data.name,
            "root": str(data.root),
            "fingerprint": data.fingerprint,
            "official": data.official,
            "differs": data.differs,
            "summary": data.summary,
        },
        "limit": job.cfg.limit,
        "seed": job.cfg.seed,
    }


def _cost(job: Job, start: float) -> dict:
    return {
        "environment": environment(job.cfg.device),
        "wall_seconds": round(time.monotonic() - start, 3),
        "peak_memory_bytes": peak_memory(job.cfg.device),
        "created": record.now(),
    }


def run_command(models: list[str], tasks: list[str], options: Options) -> int:
    """`selfpatch run`: plan, then do. Returns the exit status."""
    options.rank, options.world = launched()
    console = Console(stderr=False, file=sys.stdout, quiet=options.rank > 0)
    return run(plan(gather(models, options), tasks, options), options, console)
