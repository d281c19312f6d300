"""One file = one task, or one family. The module's name is the task's name.

A task's file defines

    TASK = MyTask(version=..., protocol_id=..., protocol=Protocol, metrics=(...), dataset=..., ...)

an object of a subclass of `Task`; or, for a family, `TASKS = {name: object, ...}`. It imports nothing that takes long:
what `run` needs (torch), `run` imports. Beside them it may define `example(folder) -> Path`, a tiny data set.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...pretrain.common.errors import UserError
from ..datasets.base import Data
from ._protocol import parse_protocol


@dataclass(frozen=True)
class Metric:
    """A metric by its name in the published tables, in `unit`. `noise`: half width of the run-to-run band, 0 where the
    number is always the same; None: it was not measured."""

    name: str
    unit: str = "%"
    higher: bool = True
    noise: float | None = 0.0


@dataclass(frozen=True)
class Flag:
    """A flag of a task's own. Its value is `cfg.KEY`, `default` where it is not given.

    It says where things lie or what is made beside the number, and is no part of a record's key: with another value, a
    result counts as done already. What changes the number is a value of the protocol.

    type: bool (a switch), int, float, str or Path. text: as it is written, else `--KEY`. least: of a number.
    """

    key: str
    type: type
    help: str
    default: Any = None
    text: str = ""
    least: float | None = None

    @property
    def spelling(self) -> str:
        return self.text or f"--{self.key.replace('_', '-')}"


KINDS = ("detection", "segmentation", "video", "retrieval", "classification", "correspondence", "other")
PICTURES = Flag("pictures", bool, "Contact sheets and animations as well.", False)


class Crash(UserError):
    """A task's processes ended without a result; `log` is the tail of what they printed."""

    def __init__(self, message: str, log: str):
        super().__init__(message, 1)
        self.log = log


@dataclass
class TaskConfig:
    """What `run(encoder, cfg, out)` gets beside the encoder and its output folder.

    own: values of the task's own flags that were given, by `Flag.key`; each flag's value, or its default, is an
    attribute as well. world, rank: processes that a launcher started, and which of them this is.
    progress(done, total, text): called by the task as it proceeds.
    """

    protocol: Any
    root: Path | None = None
    data: Data | None = None
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    world: int = 1
    rank: int = 0
    own: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[float, float, str], None] = lambda done, total, text: None

    def __getattr__(self, key: str) -> Any:
        values = DEFAULTS | dict(self.__dict__.get("own", {}))
        if key not in values:
            raise AttributeError(f"a task's configuration has no {key}; its task declares no such flag")
        return values[key]


# Of the flags that a task of a user's own may look at without declaring them.
DEFAULTS = {"masks": None, "list_file": None, "odd_masks": False, "pictures": False}
DEFAULTS |= {"gpus": 1, "scale_lr": False, "eval_only": None}
Config = TaskConfig  # as a user's plug-in may know it


@dataclass(eq=False)
class Task:
    """A task: what it declares, and, in a subclass, `check` and `run`.

    version: raised whenever the same checkpoint would get another number; part of the record's key.
    protocol: dataclass type of every protocol value with its default; `key=value` on the command line overrides one.
    dataset: what `--data NAME=ROOT` calls its data.
    published: the (task, protocol) pairs of published rows that this task's numbers may stand beside; (task, protocol,
    our metric, theirs) where a metric has another name there.
    needs: what it takes from the encoder, of image, patches, keys, blocks.
    takes: what `run` is given: encoder; checkpoint (the opened file, of which it builds a network of its own); masks
    (None: the results to score lie in the folder cfg.masks). Several are alternatives.
    seeded: whether the seed changes the number; where it does not, the task runs once, under seed 0.
    processes: `many` where `run` is called in every process that a launcher started, not in the first alone.
    flags: its own. variants: name -> protocol values, asked for as `--task NAME:VARIANT`. published_variants:
    `published` of those that stand beside published rows. kind: one of KINDS, the heading that `ls tasks` has it below.
    cost: of the whole official data with a ViT-S/16 on one GPU, estimated.
    """

    version: int
    protocol_id: str
    protocol: type
    metrics: tuple[Metric, ...]
    dataset: str
    published: tuple[tuple[str, ...], ...] = ()
    needs: tuple[str, ...] = ("patches",)
    takes: tuple[str, ...] = ("encoder",)
    values: tuple[str, ...] = ()  # keys of `key=value`, where they are not the protocol's fields
    seeded: bool = True
    processes: str = "one"
    flags: tuple[Flag, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    published_variants: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    kind: str = "other"
    cost: str = ""
    name: str = field(default="", init=False)  # the file's, or the key in TASKS
    variant: str = field(default="", init=False)

    def __post_init__(self):
        self.needs, self.takes = ((x,) if isinstance(x, str) else tuple(x) for x in (self.needs, self.takes))
        self.values = self.values or tuple(f.name for f in fields(self.protocol))

    def check(self, cfg: TaskConfig) -> Data:
        """Find everything that can be wrong with the data, before any long work. Raises UserError, one line each."""
        raise NotImplementedError

    def run(self, encoder, cfg: TaskConfig, out: Path) -> dict:
        """Evaluate -> {"metrics": {...}, "parts": {...}, "protocol": {...}}.

        metrics: by their published names. parts: whatever they are averages of. protocol: values that only the encoder
        decides (mean, std ...). out: a folder of the task's own that survives an interruption: a second call with the
        same folder goes on where the first one stopped. Where there is nothing to measure by: {"said": what was made},
        in words; no record is written then.
        """
        raise NotImplementedError

    def check_data(self, root: Path) -> Data:
        """The data alone, for `selfpatch doctor`. Raises UserError."""
        own = {flag.key: flag.default for flag in self.flags}
        return self.check(TaskConfig(self.protocol(), root=root, own=own))

    def check_card(self, values, card: dict) -> None:
        """Hold the protocol's values against a network's card, before any data are read. Raises UserError."""

    def check_model(self, cfg: TaskConfig, card: dict) -> None:
        """Look at a network's card before any work, when the data are known. Raises UserError."""

    def parse(self, options) -> tuple[Any, dict, list[str]]:
        """options.overrides (`key=value`) -> (protocol, what differs from its defaults, keys that it lacks)."""
        preset = self.variants.get(self.variant, {})
        values, changed, unknown = parse_protocol(self.protocol, options.overrides, preset)
        if self.variant in self.published_variants:  # its values are those that were published
            declared, _, _ = parse_protocol(self.protocol, (), preset)
            names = (f.name for f in fields(declared))
            changed = {k: getattr(values, k) for k in names if getattr(values, k) != getattr(declared, k)}
        return values, changed, unknown

    def draws(self, own: Mapping[str, Any]) -> bool:
        """Whether the seed changes the number, with these values of its own flags."""
        return self.seeded

    def of_variant(self, variant: str) -> "Task":
        """The task with the values of a variant. Raises UserError."""
        if variant not in self.variants:
            raise UserError(f"{self.name}:{variant}: variants of {self.name}: {', '.join(self.variants) or 'none'}")
        task = copy.copy(self)
        task.variant, task.protocol_id = variant, f"{self.protocol_id}-{variant}"
        task.published = self.published_variants.get(variant, ())
        return task

    @property
    def title(self) -> str:
        """As `--task` has it: NAME or NAME:VARIANT."""
        return f"{self.name}:{self.variant}" if self.variant else self.name


def make_key(parts: Mapping) -> str:
    """Hash (16 hex digits) of everything that makes a number another number."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
