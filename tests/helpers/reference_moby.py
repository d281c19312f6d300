"""MoBY written out: two views, one call each, loops over pairs, torch's own batch norm, queues as plain lists."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from plain_pretrain import vit_tokens


def plain_head(head):
    """A BatchNormMlp with torch's batch norm, same weights and running statistics."""
    head = copy.deepcopy(head)
    for i, part in enumerate(head.mlp):
        if not isinstance(part, (nn.Linear, nn.ReLU)):
            norm = nn.BatchNorm1d(len(part.weight)).to(part.weight.dtype)
            norm.load_state_dict(part.state_dict())
            head.mlp[i] = norm
    return head.mlp


class PlainMoby:
    """The official step, on copies of a learner's networks: keys after the update of the target, momentum by a counter
    of its own, global clipping, plain AdamW over two groups of parameters. `total`: optimiser steps of the run."""

    def __init__(self, learner, total, options, decay=0.05, eps=1e-8, clip=5.0):
        self.options, self.total, self.clip, self.k, self.norms = options, total, clip, 0, []
        self.online, self.target = copy.deepcopy(learner.student), copy.deepcopy(learner.teacher)
        self.projector = plain_head(learner.student.heads["projector"])
        self.predictor = plain_head(learner.student.heads["predictor"])
        self.target_projector = plain_head(learner.teacher.heads["projector"])
        for network in (self.online, self.target):
            del network.heads
        queues = learner.objectives["moby"].queues
        self.queues, self.pointer = [q.clone() for q in queues.keys], int(queues.pointer)
        trained = nn.ModuleList([self.online, self.projector, self.predictor])
        self.parameters = [p for p in trained.parameters() if p.requires_grad]
        named = list(trained.named_parameters())
        plain = [p for n, p in named if p.ndim == 1 or n.endswith(".bias")]
        decayed = [p for n, p in named if not (p.ndim == 1 or n.endswith(".bias"))]
        groups = [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=eps)

    def image(self, network, x):
        """One view -> image vectors: the mean of normed tokens, or the class token"""
        found = vit_tokens(network.backbone, x)
        if network.cfg.readout == "token":
            return network.readout.norm(found.cls)
        return network.readout.norm(found.patch).mean(1)

    def move_target(self):
        momentum = 1 - (1 - 0.99) * (math.cos(math.pi * self.k / self.total) + 1) / 2
        self.k += 1
        for source, goal in ((self.online, self.target), (self.projector, self.target_projector)):
            for s, t in zip(source.parameters(), goal.parameters(), strict=True):
                t.data = t.data * momentum + s.data * (1 - momentum)
        return momentum

    def contrast(self, queries, keys, queue):
        positive = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([positive, queries @ queue], 1) / self.options.temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    def step(self, views, lr):
        """views [2, B, 3, S, S] -> the official loss"""
        queries = [F.normalize(self.predictor(self.projector(self.image(self.online, x))), dim=1) for x in views]
        with torch.no_grad():
            self.move_target()
            keys = [F.normalize(self.target_projector(self.image(self.target, x)), dim=1) for x in views]
        loss = self.contrast(queries[0], keys[1], self.queues[1]) + self.contrast(queries[1], keys[0], self.queues[0])
        self.optimiser.zero_grad()
        loss.backward()
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.sqrt(sum((g**2).sum() for g in grads))
        for g in grads:
            g.mul_(min(1.0, self.clip / (float(norm) + 1e-6)))
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.norms.append(float(norm))
        for queue, new in zip(self.queues, keys, strict=True):
            for i, key in enumerate(new):
                queue[:, (self.pointer + i) % queue.shape[1]] = key
        self.pointer = (self.pointer + len(keys[0])) % self.queues[0].shape[1]
        return loss.detach()

    def weights(self):
        """(side, our name) -> value, the batch norms' running statistics included"""
        found = {}
        for side, network, projector in (
            ("student", self.online, self.projector),
            ("teacher", self.target, self.target_projector),
        ):
            for key, value in network.state_dict().items():
                found[side, key] = value
            for key, value in projector.state_dict().items():
                found[side, f"heads.projector.mlp.{key}"] = value
        for key, value in self.predictor.state_dict().items():
            found["student", f"heads.predictor.mlp.{key}"] = value
        return found


def learning_rate(step, total, warmup, scale=1.0):
    """Of optimiser step `step`, as the official scheduler sets it, after the step before it. scale: batch / 512"""
    peak, low, start = 1e-3 * scale, 5e-6 * scale, 5e-7 * scale
    t = max(step - 1, 0)
    if t < warmup:
        return start + t * (peak - start) / warmup
    return low + (peak - low) * (1 + math.cos(math.pi * t / total)) / 2
