"""Agree: image vectors of two views point the same way. An objective of a user's own."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from selfpatch_bench.pretrain.objectives import HeadSpec, Spec


@dataclass
class Config:
    """width: of the head."""

    width: int = 6


class Objective(nn.Module):
    @staticmethod
    def spec(cfg, net):
        linear = partial(nn.Linear, out_features=cfg.width)
        return Spec({"near": HeadSpec(linear, "image"), "guess": HeadSpec(linear, "near", side="student")})

    def __init__(self, cfg, net):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, student, teacher, groups, step):
        near = torch.cosine_similarity(student[0]["guess"], teacher[0]["near"].flip(0), -1).mean()
        return {"near": 1 - near}, {"near": near.detach() * 2, "images": near.new_tensor(2.0)}

    def update(self, stats):
        self.steps += 1
        return {"cosine": stats["near"] / stats["images"]}
