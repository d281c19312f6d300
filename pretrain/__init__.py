"""Pretraining: images -> checkpoint."""

from .common.moved import keep

# What an objective of a user used to import.
keep(
    __package__,
    {
        "heads": "pretrain.model.heads",
        "backbone": "pretrain.model.backbone",
        "network": "pretrain.model.network",
        "readout": "pretrain.model.readout",
        "batchnorm": "pretrain.model.batchnorm",
        "group": "pretrain.data.group",
        "views": "pretrain.data.views",
        "masks": "pretrain.data.masks",
        "learner": "pretrain.step",
        "schedules": "pretrain.optim",
    },
)
