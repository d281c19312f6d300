"""The plan of a command: models x tasks x seeds, after every check that can be made before the work."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...pretrain.common.errors import UserError, naming
from ..checkpoints.folders import is_run
from ..datasets.base import Data
from ..datasets.roots import data_roots
from ..results.record import Model, done, records
from ..tasks import Task, TaskConfig, make_key
from ..tasks._registry import check_flags, get_task
from ..tasks._registry import tasks as all_tasks
from .models import Entry, read_models
from .opened import InMemory, Opened, describe, given_labels, hold
from .options import Options


@dataclass
class Evaluation:
    """One result to be made. opened: None where masks are scored. given: name and row, as far as the user gave them."""

    model: Model
    opened: Opened | InMemory | None
    given: dict[str, str]
    task: Task
    cfg: TaskConfig
    overridden: dict
    key: str

    @property
    def title(self) -> str:
        seed = f" seed {self.cfg.seed}" if self.cfg.seed else ""
        return f"{self.model.name} on {self.task.title}{seed}"


def parse(tasks: Mapping[str, Task], options: Options) -> dict[str, tuple[object, dict]]:
    """Of every task its protocol's values and what differs from their defaults. Raises UserError, naming what is valid,
    for a key that no task has."""
    parsed = {name: task.parse(options) for name, task in tasks.items()}
    if lost := set.intersection(*(set(unknown) for _, _, unknown in parsed.values())):
        valid = {key for task in tasks.values() for key in task.values}
        raise UserError(f"{', '.join(tasks)} has no {', '.join(sorted(lost))}; there are: {', '.join(sorted(valid))}")
    return {name: (values, changed) for name, (values, changed, _) in parsed.items()}


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


def check_gpus(gpus: int, device: str) -> None:
    """As many GPUs as processes, unless --device cpu asks for processes on the CPU. Raises UserError."""
    if gpus == 1 or device.partition(":")[0] == "cpu":
        return
    import torch

    there = torch.cuda.device_count()
    if not there:
        raise UserError(f"--gpus {gpus}: there is no GPU here; with --device cpu the processes share the CPU")
    if gpus > there:
        raise UserError(f"--gpus {gpus}: there {'is 1 GPU' if there == 1 else f'are {there} GPUs'} here")


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
        path = model if isinstance(model, Path) else model.path
        if not is_run(path):
            files.append(model)
            continue
        from ...pretrain.export import exports

        found = exports(path, every)
        files += model.at(found) if isinstance(model, Entry) else found
        runs += 1
    if every and not runs:
        raise UserError(f"--every {every}: is for folders of pretraining runs; none is given")
    return files


def plan(
    models: list[Path | Entry | InMemory], tasks: list[str], options: Options, here: bool = True
) -> list[Evaluation]:
    """Every evaluation, after every check that can be made before the work. Raises UserError at the first thing wrong.

    here: the work is for this machine, not for one that Slurm will choose.
    """
    if not tasks:
        raise UserError(f"--task: which? there are: {', '.join(all_tasks())}")
    if bool(models) == bool(options.own.get("masks")):
        raise UserError("give checkpoints, or --masks DIR to score existing masks" + ("; not both" if models else ""))
    if options.row:
        from ..results.published import check_row  # pandas, which takes its time

        check_row(options.row)
    chosen = {name: get_task(name) for name in tasks}
    _check_own(chosen.values(), options)
    if here:
        check_gpus(options.own.get("gpus", 1), options.device)
    protocols = parse(chosen, options)
    _check_in_memory(models, chosen)
    models = expand(models, options.every)
    _check_alone(models, chosen, options)
    described = hold((describe(model, options) for model in models), options.rank)
    _check_entries(described)
    evaluations: list[Evaluation] = []
    for name, task in chosen.items():
        _check_cards(task, protocols[name][0], described)
        cfg = _task_config(task, protocols[name][0], options)
        for model, opened, given in [(o.model, o, o.given) for o in described] or [_masks(cfg, options)]:
            for seed in seeds_of(task, options):
                own, key = dataclasses.replace(cfg, seed=seed), _key(model, task, cfg, seed)
                evaluations.append(Evaluation(model, opened, given, task, own, protocols[name][1], key))
    if not all(opened.kept for opened in described):  # then each is opened again for all of its evaluations at once
        evaluations.sort(key=lambda evaluation: described.index(evaluation.opened))
    _check_names(evaluations, options.out)
    _check_models(evaluations, options)
    return evaluations


def _task_config(task: Task, values, options: Options) -> TaskConfig:
    """What all evaluations of a task share, with its data set opened and checked."""
    cfg = TaskConfig(
        values,
        root=data_roots(options.data, task.dataset),
        limit=options.limit,
        device=choose_device(options.device),
        world=options.world,
        rank=options.rank,
        own={flag.key: options.own.get(flag.key, flag.default) for flag in task.flags},
    )
    cfg.data = task.check(cfg)
    if not isinstance(cfg.data, Data):
        raise UserError(f"{task.title}: its check gives {type(cfg.data).__name__} instead of Data")
    return cfg


def _key(model: Model, task: Task, cfg: TaskConfig, seed: int) -> str:
    """Of a result: everything that makes a number another number."""
    values = dataclasses.asdict(cfg.protocol) | ({"variant": task.variant} if task.variant else {})
    parts = {"fingerprint": model.fingerprint, "card": model.card, "task": task.name, "version": task.version}
    parts |= {"protocol": values, "limit": cfg.limit, "data": cfg.data.fingerprint}
    return make_key(parts | {"seed": seed})


def seeds_of(task: Task, options: Options) -> list[int]:
    """The seeds to run a task with: 0 alone where its number depends on none."""
    return options.seeds if task.draws(options.own) else [0]


def _check_own(tasks: Iterable[Task], options: Options) -> None:
    """What can be wrong with the tasks' own flags."""
    check_flags(tasks, options.own)
    if (gpus := options.own.get("gpus", 1)) > 1 and options.world > 1:
        raise UserError(f"--gpus {gpus}: a launcher started {options.world} processes already; leave it away")
    if options.own.get("masks") and (others := [task.title for task in tasks if "masks" not in task.takes]):
        raise UserError(f"--masks: {', '.join(others)} takes checkpoints")


def _masks(cfg: TaskConfig, options: Options) -> tuple[Model, None, dict[str, str]]:
    """Masks of another method, in the place of a checkpoint."""
    path = cfg.masks.resolve()
    name = options.name or f"{path.parent.name}/{path.name}"
    model = Model(name, cfg.data.content.results_fingerprint, row=options.row, format="masks")
    return model, None, given_labels(options.name, options.row)


def _check_in_memory(models: list, tasks: Mapping[str, Task]) -> None:
    """A network in memory cannot be handed to a task's own processes."""
    alone = [task.title for task in tasks.values() if "encoder" not in task.takes]
    for one in models if alone else ():
        if isinstance(one, InMemory):
            raise UserError(
                f"{', '.join(alone)}: takes a checkpoint, which its processes read; of {one.name} make a plug-in "
                f"(backbones/{one.encoder.card.family}.py) and give the file of its weights"
            )


def _check_alone(models: list[Path | Entry], tasks: Mapping, options: Options) -> None:
    """What is for one checkpoint."""
    if options.name and sum(not isinstance(m, Entry) for m in models) > 1:
        raise UserError("--name is for a single checkpoint")
    if options.own.get("eval_only") is not None and (len(models) != 1 or len(tasks) != 1):
        raise UserError("--eval-only MODEL: with the one checkpoint it was fine-tuned from, and one task")


def _check_entries(described: list[Opened]) -> None:
    """Two models of one name, where one is an entry of a models.yaml, which has no --name."""
    seen: dict[str, Opened] = {}
    for opened in described:
        first = seen.setdefault(opened.model.name, opened)
        if first is not opened and (where := opened.asked.where):
            other = first.asked.where or first.asked.path
            raise UserError(f"{where}: {other} is called {opened.model.name} as well; give it a name of its own")


def _check_cards(task: Task, values, described: list[Opened]) -> None:
    """A protocol's values that a network cannot have, before any data are read."""
    for opened in described:
        with naming(opened.model.name if len(described) > 1 else ""):
            task.check_card(values, opened.model.card)


def _check_names(evaluations: list[Evaluation], out: Path) -> None:
    """Two fingerprints under one name would be two models in one row of a table."""
    models = [e.model for e in evaluations]
    names = {m.name: m.fingerprint for m in models}
    places = {(m.name, m.fingerprint): m.file or "these masks" for m in models}
    for one in records(out, strange={}):  # `table` reports foreign files
        places.setdefault((one.model.name, one.model.fingerprint), one.path)
    for (name, mark), where in places.items():
        if names.get(name, mark) != mark:
            raise UserError(f"{name} already names other weights ({where}): give --name, or another in models.yaml")


def _check_models(evaluations: list[Evaluation], options: Options) -> None:
    """Tasks that look at a network's card before the work do so now, for what is not done yet."""
    seen = []
    for one in evaluations:
        known = (one.task.title, one.model.card)
        todo = options.rerun or not done(options.out, one.task.name, one.key)
        if options.rank == 0 and one.opened and todo and known not in seen:  # masks have no network
            seen.append(known)
            one.task.check_model(one.cfg, one.model.card)
