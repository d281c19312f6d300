"""Checkpoint -> numbers -> tables. `load(path, **overrides)` gives an encoder.

A task or format of one's own imports what it needs from here: Task, Metric, Data, Card, UserError.
"""

from ..pretrain.common.moved import keep

__all__ = ["Card", "Data", "Metric", "Task", "UserError", "load"]


def __getattr__(name):  # torch takes seconds to import, and the command line's help must not wait for it
    if name == "load":
        from .hub.open import load as found
    elif name == "Task":
        from .tasks import Task as found
    elif name == "Metric":
        from .tasks import Metric as found
    elif name == "Data":
        from .datasets.base import Data as found
    elif name == "Card":
        from ..pretrain.common.card import Card as found
    elif name == "UserError":
        from ..pretrain.common.errors import UserError as found
    else:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return found


# What plug-ins used to import.
keep(
    __package__,
    {
        "task": "benchmarks.tasks, benchmarks.datasets.base",
        "card": "pretrain.common.card, pretrain.common.shapes, benchmarks.checkpoints.stated",
        "errors": "pretrain.common.errors",
        "atomic": "pretrain.common.atomic",
        "progress": "pretrain.common.progress",
        "encoder": "benchmarks.backbones.encoder, benchmarks.backbones.build, pretrain.common.positions",
        "conv": "benchmarks.backbones.conv, pretrain.model.swin",
        "sources": "benchmarks.checkpoints.state",
        "loading": "benchmarks.hub.open, benchmarks.checkpoints.open, pretrain.common.weights",
        "classes": "benchmarks.datasets.imagenet",
        "files": "benchmarks.datasets.files, benchmarks.datasets.roots, pretrain.common.machine",
        "masks": "benchmarks.datasets.masks",
        "image_features": "benchmarks.tasks._features",
        "propagation": "benchmarks.tasks._propagation",
    },
)
