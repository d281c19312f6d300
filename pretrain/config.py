"""What a run is: dataclasses, recipes (recipes/NAME.yaml) and `dotted.key=value` overrides.

Types are strict: an unknown key or a value of another type is a UserError that names what is valid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .common.errors import UserError
from .common.keyvalue import key_value
from .common.plugins import Kind
from .common.ranges import bounded, check_number, check_numbers
from .data.views import PIXELS, Views
from .recipes import RECIPES
from .schedules import LR_RULES

OBJECTIVES = Kind("objectives", Path(__file__).resolve().parent / "objectives", f"{__package__}.objectives")
PRECISIONS = ("auto", "float32", "bf16", "fp16", "float64")
STEPS = 10**8  # of a run: its schedules are tables
# Bounds of network.overrides, which timm's constructors do not check.
SIZES = {"at_least": 1, "at_most": 2**14}
COUNTS = {"at_least": 1, "at_most": 1000}
OVERRIDES = {
    "mlp_ratio": {"above": 0, "at_most": 64},
    "reg_tokens": {"at_least": 0, "at_most": 1000},
    **{key: SIZES for key in ("embed_dim", "num_heads", "patch_size", "window_size")},
    **{key: COUNTS for key in ("depth", "depths")},
    **{f"{part}drop_rate": {"at_least": 0, "below": 1} for part in ("", "pos_", "patch_", "proj_", "attn_")},
}


@dataclass
class Data:
    """path: images to train on (see images.open_source), root: where a list file's paths start. mean, std: of RGB in
    0..1. workers: processes that make views, per training process (null: as many as there are cores for each).
    prefetch: batches each makes ahead."""

    path: str | None = None
    root: str | None = None
    mean: tuple[float, float, float] = bounded((0.485, 0.456, 0.406), at_least=0, at_most=1)
    std: tuple[float, float, float] = bounded((0.229, 0.224, 0.225), above=0, at_most=1)
    workers: int | None = bounded(None, at_least=0, at_most=1024)
    prefetch: int = bounded(2, at_least=1, at_most=1024)


@dataclass
class Network:
    """backbone: vit_{tiny,small,base,large}_patchP, swin_{tiny,small,base,large}, or any ViT or Swin of timm;
    overrides: arguments of timm's constructor. class_token: null leaves the architecture's own. readout: token |
    class_attention | mean; readout_depth: blocks of class attention. drop_path: stochastic depth of the student,
    teacher_drop_path of the teacher. positions: how they are made at other sizes (card.POSITION_RULES).
    image_size: whose patch grid the stored positions have (null: that of the global views)."""

    backbone: str = "vit_small_patch16"
    class_token: bool | None = None
    readout: str = "token"
    readout_depth: int = bounded(2, at_least=1, at_most=100)
    drop_path: float = bounded(0.1, at_least=0, below=1)
    teacher_drop_path: float = bounded(0.0, at_least=0, below=1)
    positions: str = "dino"
    image_size: int | None = bounded(None, at_least=1, at_most=PIXELS)
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class ObjectiveEntry:
    """name: of the plug-in. weight: 0 leaves it and its heads out. options: its own Config. In a recipe all three
    stand side by side: {name: selfpatch, weight: 0.1, k: 4}."""

    name: str
    weight: float = bounded(1.0, at_least=0, at_most=10**6)
    options: Any = None


@dataclass
class Optim:
    """AdamW. clip: largest L2 norm of a gradient, of every tensor (clip_mode per_tensor) or of all together (global);
    null: none. decay_biases: also decay biases; 1-D weights never are, nor parameters whose name contains one of
    no_decay. freeze: parameters whose name contains one of these get no update in the first freeze_epochs epochs."""

    betas: tuple[float, float] = bounded((0.9, 0.999), at_least=0, below=1)
    eps: float = bounded(1e-8, above=0)
    clip: float | None = bounded(3.0, above=0)
    clip_mode: str = "per_tensor"
    decay_biases: bool = False
    no_decay: list[str] = field(default_factory=list)
    freeze: list[str] = field(default_factory=lambda: ["last_layer"])
    freeze_epochs: int = bounded(1, at_least=0)


@dataclass
class Schedule:
    """lr: peak for a batch of lr_batch images, scaled in proportion to the batch; min_lr and warmup_lr are scaled so
    only with scale_min_lr. warmup_epochs: linear from warmup_lr. lr_rule: dino (the cosine follows the warm-up) | timm
    (it began with the run, and every value is used one step late). weight_decay, ema: along a cosine to their *_end.
    ema_shift: the teacher's momentum is that of so many steps later (1: an update before the next forward)."""

    lr: float = bounded(5e-4, at_least=0, at_most=1000)
    lr_batch: int = bounded(256, at_least=1, at_most=10**9)
    min_lr: float = bounded(1e-6, at_least=0, at_most=1000)
    scale_min_lr: bool = False
    warmup_epochs: float = bounded(10.0, at_least=0)
    warmup_lr: float = bounded(0.0, at_least=0, at_most=1000)
    lr_rule: str = "dino"
    weight_decay: float = bounded(0.04, at_least=0, at_most=1000)
    weight_decay_end: float = bounded(0.4, at_least=0, at_most=1000)
    ema: float = bounded(0.996, at_least=0, at_most=1)
    ema_end: float = bounded(1.0, at_least=0, at_most=1)
    ema_shift: int = bounded(0, at_least=0, at_most=1000)


@dataclass
class Loop:
    """epochs, or steps if given (then the schedules span these). batch: images per optimiser step, over all processes
    and the accumulation's micro-steps. precision: auto (bf16 on a GPU that has it, else float32) | float32 | bf16 |
    fp16 | float64. compile: torch.compile the networks. fused_attention: null picks the faster kernel."""

    epochs: int = bounded(100, at_least=1, at_most=STEPS)
    steps: int | None = bounded(None, at_least=1, at_most=STEPS)
    batch: int = bounded(1024, at_least=1, at_most=10**9)
    accumulation: int = bounded(1, at_least=1, at_most=10**9)
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False
    fused_attention: bool | None = None


@dataclass
class Checkpoint:
    """every_steps: also save every so many steps (null: at the end of epochs only). keep_every: epochs whose checkpoint
    is kept beside the last one. export: teacher | student, the network that the method is evaluated by."""

    every_steps: int | None = bounded(None, at_least=1)
    keep_every: int = bounded(20, at_least=0)
    export: str = "teacher"


@dataclass
class Log:
    """every: steps between lines. tensorboard: also write event files."""

    every: int = bounded(10, at_least=1)
    tensorboard: bool = False


@dataclass
class Watch:
    """Evaluation of the running network (checkpoint.export) every so many epochs and at the end; it changes nothing of
    the training. every: epochs (null: none). knn: a folder of labelled images, train/ and val/ with a folder per class;
    knn_images: only so many of each of the two, from the classes in turn. davis: a folder in the DAVIS layout, of which
    the first `sequences`, with so many frames of each (null: all) and davis_size pixels on the shorter side. pictures:
    so many images whose patch similarity and attention are drawn, the first of `images`, a folder (null: of the
    training images). size: pixels of the squares that the network sees of them and of knn's."""

    every: int | None = bounded(None, at_least=1)
    knn: str | None = None
    knn_images: int | None = bounded(None, at_least=1)
    davis: str | None = None
    sequences: int = bounded(2, at_least=1)
    frames: int | None = bounded(None, at_least=1)
    davis_size: int = bounded(480, at_least=1, at_most=PIXELS)
    pictures: int = bounded(4, at_least=0)
    images: str | None = None
    size: int = bounded(224, at_least=1, at_most=PIXELS)


@dataclass
class Config:
    """A run. init: checkpoint to start from (any file that the loader accepts); init_format: its format, where the file
    could be of several."""

    recipe: str = ""
    seed: int = bounded(0, at_least=0, below=2**63)
    init: str | None = None
    init_format: str | None = None
    data: Data = field(default_factory=Data)
    views: Views = field(default_factory=Views)
    network: Network = field(default_factory=Network)
    objectives: list[Any] = field(default_factory=list)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    loop: Loop = field(default_factory=Loop)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)
    watch: Watch = field(default_factory=Watch)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Config:
    """A recipe by name, or by the path of a yaml file, with `dotted.key=value` overrides -> a checked Config.

    Rows of views and objectives are addressed by number, objectives also by name: `objectives.selfpatch.weight=0`.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"recipe {name}: no such file")
    else:
        path = RECIPES.get(name).path
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # yaml's and OmegaConf's errors have no common base
        raise UserError(f"recipe {path}: not yaml: {error}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"recipe {path}: holds no options")
    return from_dict({"recipe": path.stem} | loaded, overrides, f"recipe {path.name}")


def from_dict(values: Mapping, overrides: Sequence[str] = (), where: str = "config") -> Config:
    """Nested plain values, as `to_dict` gives them, with overrides on top -> a checked Config. Raises UserError."""
    values = dict(values)
    given = values.pop("objectives", [])
    root = OmegaConf.structured(Config)
    for key, value in values.items():
        _put(root, key, value, where)
    entries = [_entry(e, where) for e in _listed(given, where)]
    for text in overrides:
        key, value = key_value(text, example="loop.batch=64")
        key = key.replace("[", ".").replace("]", "")
        value = _parse(text, value)
        head, _, rest = key.partition(".")
        if head != "objectives":
            _put(root, key, value, "option")
        elif not rest:
            entries = [_entry(e, key) for e in _listed(value, key)]
        else:
            label, _, option = rest.partition(".")
            _put(_find(entries, label), option, value, f"objectives.{label}")
    config: Config = OmegaConf.to_object(root)
    config.objectives = [_finish(*e) for e in entries]
    check(config)
    return config


def to_dict(config: Config) -> dict:
    """Plain nested values that `from_dict` takes back, for the run's folder and its checkpoints."""
    values = asdict(config)
    values["objectives"] = [{"name": e.name, "weight": e.weight} | asdict(e.options) for e in config.objectives]
    return _plain(values)


def check(config: Config) -> None:
    """Raise UserError for values that no run can have."""
    check_numbers(replace(config, objectives=[]), "")
    for key, value in config.network.overrides.items():
        check_number(value, f"network.overrides.{key}", **OVERRIDES.get(key, {}))
    if "img_size" in config.network.overrides:
        raise UserError("network.overrides.img_size: give it as network.image_size")
    for entry in config.objectives:
        check_numbers(replace(entry, options=None), f"objectives.{entry.name}")
        check_numbers(entry.options, f"objectives.{entry.name}")
    config.views.check()
    loop, optim = config.loop, config.optim
    if loop.precision not in PRECISIONS:
        raise UserError(f"loop.precision={loop.precision}: it is one of {', '.join(PRECISIONS)}")
    if optim.clip_mode not in ("per_tensor", "global"):
        raise UserError(f"optim.clip_mode={optim.clip_mode}: it is per_tensor or global")
    if config.checkpoint.export not in ("teacher", "student"):
        raise UserError(f"checkpoint.export={config.checkpoint.export}: it is teacher or student")
    if config.schedule.lr_rule not in LR_RULES:
        raise UserError(f"schedule.lr_rule={config.schedule.lr_rule}: it is {' or '.join(LR_RULES)}")
    watch = config.watch
    for name in ("knn", "davis", "images"):
        if watch.every is None and getattr(watch, name):
            raise UserError(f"watch.{name}: give the epochs between evaluations too, for example watch.every=10")
    if not any(e.weight for e in config.objectives):
        raise UserError("objectives: a run needs at least one with a weight other than 0")
    names = [e.name for e in config.objectives]
    if len(set(names)) < len(names):
        raise UserError(f"objectives: one is listed twice: {', '.join(names)}")


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """Optimiser steps of the whole run. Raises UserError for more than the schedules' tables can have."""
    total = config.loop.steps or config.loop.epochs * steps_per_epoch
    if total > STEPS:
        raise UserError(f"loop.epochs={config.loop.epochs}: {total} steps; there can be {STEPS}")
    return total


def _plain(value):
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _parse(text: str, value: str) -> Any:
    """The part after `=`, as yaml reads it."""
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {value}"), resolve=True)["value"]
    except Exception:
        raise UserError(f"{text}: the value is not valid yaml; quote it if it is a text") from None


def _listed(value: Any, where: str) -> list:
    if not isinstance(value, list):
        raise UserError(f"{where}: objectives is a list of {{name: ..., weight: ..., option: ...}}")
    return value


def _entry(value: Any, where: str) -> tuple[str, DictConfig]:
    """One objective of a recipe -> its name, and its options and weight, typed by its file's Config."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UserError(f"{where}: an objective needs a name, as in {{name: dino, weight: 1}}; found {value}")
    name = value["name"]
    try:
        node = OmegaConf.structured(make_dataclass("Entry", [("weight", float, 1.0)], bases=(_options(name),)))
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError(f"objective {name}: its Config cannot hold options: {str(error).splitlines()[0]}") from None
    for key, option in value.items():
        if key != "name":
            _put(node, key, option, f"{where}: objectives.{name}")
    return name, node


def _options(name: str) -> type:
    """The Config of an objective plug-in."""
    found = getattr(OBJECTIVES.get(name).module, "Config", None)
    if not (isinstance(found, type) and is_dataclass(found)):
        raise UserError(f"objective {name}: its file defines no dataclass Config")
    return found


def _find(entries: list[tuple[str, DictConfig]], label: str) -> DictConfig:
    """An objective by name or number."""
    for number, (name, node) in enumerate(entries):
        if label in (name, str(number)):
            return node
    raise UserError(f"objectives.{label}: there is none; there are: {', '.join(n for n, _ in entries) or 'none'}")


def _finish(name: str, node: DictConfig) -> ObjectiveEntry:
    options = _options(name)
    try:
        made = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:  # an option without a default that nobody gave
        raise UserError(f"objectives.{name}: {str(error).splitlines()[0]}") from None
    return ObjectiveEntry(name, node.weight, options(**{f.name: getattr(made, f.name) for f in fields(options)}))


def _put(root: DictConfig, key: str, value: Any, where: str) -> None:
    """Set an option, or several of a section at once; a list replaces the former one."""
    parts = key.split(".")
    node = root
    for depth, part in enumerate(parts):
        try:
            known = part in node if isinstance(node, DictConfig) else 0 <= int(part) < len(node)
        except (TypeError, ValueError):
            known = False
        free = isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict
        if not known and not free:
            raise UserError(f"{where}: there is no {'.'.join(parts[: depth + 1])}; {_valid(node, parts[:depth])}")
        if depth < len(parts) - 1:
            node = node[part] if isinstance(node, DictConfig) else node[int(part)]
    try:
        OmegaConf.update(root, key, value, merge=True)
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
        section = OmegaConf.select(root, key)
        hint = f"; {_valid(section, parts)}" if isinstance(section, DictConfig) else ""
        raise UserError(f"{where}: {key}={value}: {str(error).splitlines()[0]}{hint}") from None


def _valid(node: Any, parts: list[str]) -> str:
    """What may follow after a prefix of an option's name."""
    here = ".".join(parts)
    if isinstance(node, DictConfig):
        return f"{f'in {here} ' if here else ''}there are: {', '.join(map(str, node))}"
    return f"{here} has rows 0 to {len(node) - 1}" if isinstance(node, ListConfig) else f"{here} is a single value"
