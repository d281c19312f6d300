"""Models x tasks x seeds: check everything first, skip what is done, one record per result."""

import dataclasses
import gc
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from . import plugins, record
from .datasets import data_roots
from .errors import UserError
from .progress import Reporter
from .task import Config


@dataclass
class Options:
    """What `selfpatch run` was told beside models and tasks; see its help."""

    data: list[str] = field(default_factory=list)
    out: Path = Path("results")
    card: dict[str, str] = field(default_factory=dict)
    format: str | None = None
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
    overrides: list[str] = field(default_factory=list)


@dataclass
class Model:
    """What a record says of a model; `path` is None for results of another method that are only scored."""

    name: str
    fingerprint: str
    path: Path | None = None
    card: dict | None = None
    format: str | None = None
    overrides: dict = field(default_factory=dict)
    row: str | None = None
    accounting: str | None = None
    facts: dict = field(default_factory=dict)

    def as_dict(self) -> dict:
        """Plain types, for the record."""
        facts = dataclasses.asdict(self) | {"file": str(self.path) if self.path else None}
        del facts["path"]
        return facts


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
        key, sign, _ = item.partition("=")
        if not sign:
            raise UserError(f"{item}: not key=value")
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


def describe(path: Path, options: Options) -> Model:
    """Open a checkpoint far enough to know that it will run, and let go of its weights."""
    from .loading import default_name, open_checkpoint, ready

    c = open_checkpoint(path, format=options.format, card=options.card)
    ready(c)
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in c.overrides.items()}
    given |= {"format": options.format} if options.format else {}
    name, row = options.name or default_name(path), options.row or c.row
    card = c.card.as_dict()
    return Model(name, c.fingerprint, path, card, c.reading.format, given, row, c.accounting, c.facts)


def expand(models: list[Path], every: int | None = None) -> list[Path]:
    """Checkpoints, with the export of its newest checkpoint for a folder that is a pretraining run.

    every: all kept ones whose step is a multiple of it, instead. Raises UserError, as pretrain.export.exports does.
    """
    files, runs = [], 0
    for path in models:
        if not ((path / "config.yaml").is_file() and (path / "checkpoints").is_dir()):
            files.append(path)
            continue
        from ..pretrain.export import exports

        files += exports(path, every)
        runs += 1
    if every and not runs:
        raise UserError(f"--every {every}: is for folders of pretraining runs; none is given")
    return files


def plan(models: list[Path], tasks: list[str], options: Options) -> list[Job]:
    """Every job, after every check that can be made before the work. Raises UserError at the first thing wrong."""
    if not tasks:
        raise UserError(f"--task: which? there are: {', '.join(plugins.scan('tasks'))}")
    if options.name and len(models) > 1:
        raise UserError("--name is for a single checkpoint")
    if bool(models) == bool(options.masks):
        raise UserError("give checkpoints, or --masks DIR to score existing masks" + ("; not both" if models else ""))
    described = [describe(path, options) for path in models]
    jobs: list[Job] = []
    modules = {name: plugins.get("tasks", name).module for name in tasks}
    protocols = {name: parse_protocol(m.TASK.protocol, options.overrides) for name, m in modules.items()}
    if lost := set.intersection(*(set(unknown) for _, _, unknown in protocols.values())):
        valid = {f.name for m in modules.values() for f in dataclasses.fields(m.TASK.protocol)}
        raise UserError(f"{', '.join(tasks)} has no {', '.join(sorted(lost))}; there are: {', '.join(sorted(valid))}")
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
        )
        cfg.data = module.check(cfg)
        rows = described or [_masks_model(cfg, options)]
        for model in rows:
            for seed in options.seeds:
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
                jobs.append(Job(model, name, module, own, changed, record.make_key(parts)))
    _check_names({j.model.name: j.model.fingerprint for j in jobs}, [j.model for j in jobs], options.out)
    return jobs


def _masks_model(cfg: Config, options: Options) -> Model:
    path = options.masks.resolve()
    name = options.name or f"{path.parent.name}/{path.name}"
    return Model(name, cfg.data.content.results_fingerprint, row=options.row, format="masks")


def _check_names(names: Mapping[str, str], models: list[Model], out: Path) -> None:
    """Two fingerprints under one name would be two models in one row of a table."""
    seen = {(m.name, m.fingerprint): str(m.path or "these masks") for m in models}
    for path in sorted((out / "records").glob("*/*.json")):
        try:
            model = record.read(path)["model"]
            seen.setdefault((model["name"], model["fingerprint"]), str(path))
        except (UserError, KeyError, TypeError):
            continue  # `table` reports foreign files
    for (name, mark), where in seen.items():
        if name in names and mark != names[name]:
            raise UserError(f"{name} already names other weights ({where}): give --name")


def run(jobs: list[Job], options: Options, console: Console) -> int:
    """Do the jobs; those that another process is at come last. Returns the exit status: 1 if any failed."""
    failed, later = 0, []
    for note in dict.fromkeys(note for job in jobs for note in job.cfg.data.notes):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    for wait, todo in ((False, jobs), (True, later)):
        for job in todo:
            with record.lock(options.out, job.task, job.key, wait) as mine:
                if not mine:
                    console.print(f"{job.title}: another process is at it; coming back later", highlight=False)
                    later.append(job)
                    continue
                failed += not _one(job, options, console, came_back=wait)
    return int(failed > 0)


def _one(job: Job, options: Options, console: Console, came_back: bool) -> bool:
    existing = record.done(options.out, job.task, job.key)
    if existing and (came_back or not options.rerun):
        why = "the same weights, card, protocol, data and seed"
        console.print(
            f"{job.title}: done already ({existing[-1]}: {why}); --rerun repeats it", highlight=False, soft_wrap=True
        )
        return True
    number = len(existing) + 1
    out = options.out / "artifacts" / job.task / (job.key if number == 1 else f"{job.key}.{number}")
    start, facts = time.monotonic(), _facts(job)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Reporter(job.title, console) as report:
            job.cfg.progress = report
            result = job.module.run(_encoder(job, options, console), job.cfg, out)
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        facts |= {"status": "failed", "error": text, "traceback": traceback.format_exc()}
        path = record.write(options.out, facts | _cost(job, start), failed=True)
        console.print(f"{job.title}: failed: {text} ({path})", style="red", highlight=False, soft_wrap=True)
        return False
    finally:
        gc.collect()
    facts["protocol"] |= {"id": result["protocol"].pop("id", facts["protocol"]["id"]), "effective": result["protocol"]}
    facts |= {"status": "done", "metrics": result["metrics"], "parts": result["parts"], "artifacts": str(out)}
    path = record.write(options.out, facts | _cost(job, start))
    shown = "  ".join(f"{m.name} {result['metrics'][m.name]:.2f}" for m in job.module.TASK.metrics[:3])
    console.print(f"{job.title}: {shown}  ({path})", highlight=False, soft_wrap=True)
    return True


def _encoder(job: Job, options: Options, console: Console):
    if job.model.path is None:
        return None
    from .loading import build, look_untrained, open_checkpoint

    checkpoint = open_checkpoint(job.model.path, format=options.format, card=options.card)
    if checkpoint.fingerprint != job.model.fingerprint:
        raise UserError(f"{job.model.path} changed while this was running")
    text = f"{job.model.name}: {checkpoint.reading.format}, {checkpoint.accounting}"
    console.print(text, highlight=False, soft_wrap=True)
    if why := look_untrained(checkpoint.reading.weights):
        console.print(f"{job.model.name}: warning: the weights look untrained: {why}", highlight=False, soft_wrap=True)
    return build(checkpoint).to(job.cfg.device)


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
        "environment": record.environment(job.cfg.device),
        "wall_seconds": round(time.monotonic() - start, 3),
        "peak_memory_bytes": record.peak_memory(job.cfg.device),
        "created": record.now(),
    }


def run_command(models: list[str], tasks: list[str], options: Options) -> int:
    """`selfpatch run`: plan, then do. Returns the exit status."""
    console = Console(stderr=False, file=sys.stdout)
    files = expand([Path(m) for m in models], options.every)
    return run(plan(files, tasks, options), options, console)
