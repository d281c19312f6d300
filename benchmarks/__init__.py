"""Checkpoint -> numbers -> tables. `load(path, **overrides)` gives an encoder, and so does `wrap(module, ...)`, of a
network of one's own; `evaluate(encoder, tasks, data=...)` runs tasks.

A task or format of one's own imports what it needs from here: Task, Metric, Flag, Data, Card, UserError.
"""

from ..pretrain.common.moved import keep

__all__ = ["Card", "Data", "Flag", "Metric", "Task", "UserError", "evaluate", "load", "wrap"]


def __getattr__(name):  # torch takes seconds to import, and the command line's help must not wait for it
    if name in ("Flag", "Metric", "Task"):
        from . import tasks as home
    elif name == "load":
        from .hub import open as home
    elif name == "wrap":
        from .backbones import own as home
    elif name == "evaluate":
        from .run import in_memory as home
    elif name == "Data":
        from .datasets import base as home
    elif name == "Card":
        from ..pretrain.common import card as home
    elif name == "UserError":
        from ..pretrain.common import errors as home
    else:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(home, name)


# What plug-ins used to import.
keep(
    __package__,
    {
        "task": "benchmarks.tasks, benchmarks.datasets.base",
        "card": "pretrain.common.card, pretrain.common.shapes, benchmarks.checkpoints.stated",
        "errors": "pretrain.common.errors",
        "atomic": "pretrain.common.atomic",
        "progress": "pretrain.common.progress",
        "encoder": "benchmarks.backbones.base, benchmarks.backbones.encoder, benchmarks.backbones.build, "
        "pretrain.common.positions",
        "conv": "benchmarks.backbones.conv, pretrain.model.swin",
        "sources": "benchmarks.checkpoints.state",
        "loading": "benchmarks.hub.open, benchmarks.checkpoints.open, pretrain.common.weights",
        "runner": "benchmarks.run.runner",
        "classes": "benchmarks.datasets.imagenet",
        "files": "benchmarks.datasets.files, benchmarks.datasets.roots, pretrain.common.machine",
        "masks": "benchmarks.datasets.masks",
        "image_features": "benchmarks.tasks._features",
        "propagation": "benchmarks.tasks._propagation",
    },
)
