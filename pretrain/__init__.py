"""Pretraining: images -> checkpoint.

An objective of one's own imports what it needs from here: Objective, Spec, HeadSpec, Aggregated.
"""

from .common.moved import keep

__all__ = ["Aggregated", "HeadSpec", "Objective", "Spec"]


def __getattr__(name):  # torch takes seconds to import, and the command line's help must not wait for it
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from . import objectives

    return getattr(objectives, name)


# What an objective of a user used to import.
keep(
    __package__,
    {
        "heads": "pretrain.model.heads",
        "backbone": "pretrain.model.backbone",
        "network": "pretrain.model.network, pretrain.model.readout",
        "readout": "pretrain.model.readout",
        "batchnorm": "pretrain.model.batchnorm",
        "group": "pretrain.data.group",
        "views": "pretrain.data.views",
        "masks": "pretrain.data.masks",
        "learner": "pretrain.model.learner",
        "schedules": "pretrain.optim",
    },
)
