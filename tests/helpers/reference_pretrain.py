"""A training step of DINO and SelfPatch written plainly, on the parameters of a `Learner`.

One pass of the backbone for each size of views, attention by plain matrix products, every patch's neighbours copied
into a sequence of its own (five tokens with the class token) for the class-attention blocks, prototypes normalised on
each call, a loop over pairs of views, over tensors for clipping, and over parameters for the EMA. Written from
methods.md 1.3, 1.4, 2.3 and 2.4; only the transformer blocks themselves (timm's) are shared with the fast step.
"""

import torch
import torch.nn.functional as F

from plain_pretrain import class_attention, vit_tokens, window
from selfpatch_bench.pretrain.data.group import normalise
from selfpatch_bench.pretrain.optim import param_groups


def aggregate(readout, x, index, k=4):
    """Raw patches x [M, N, D] -> summaries of each patch's k nearest of its 8 neighbours on the torus [M, N, D]

    index [N, 8]: the neighbours."""
    unit = F.normalize(x.float(), dim=-1)
    near = (unit[:, index] * unit[:, :, None]).sum(-1).topk(k, -1)[1]  # [M, N, k]
    own = index.expand(len(x), -1, -1).gather(2, near)
    chosen = x[torch.arange(len(x), device=x.device)[:, None, None], own]  # [M, N, k, D]
    return readout.norm(class_attention(readout, chosen.flatten(0, 1))).view_as(x)


def head(module, x):
    """[R, D] -> [R, K]"""
    last = module.last_layer
    weight = last.weight_v * (last.weight_g / last.weight_v.norm(dim=1, keepdim=True))
    return F.linear(F.normalize(module.mlp(x), dim=-1), weight)


def run(network, views, teacher, near):
    """Groups of views [V, B, 3, S, S] -> per view, image outputs [B, K] and patch outputs [B, N, K] (or None)

    near: neighbours of each group's patches."""
    image, patch = [], []
    heads = dict(network.heads.items())
    heads.pop("image", None)  # the vectors as they are, for the log
    patch_head = heads.pop("p_head", None)
    (image_head,) = heads.values()
    for x, index in zip(views, near, strict=False):
        found = vit_tokens(network.backbone, x.flatten(0, 1))
        attention = hasattr(network.readout, "cls_blocks")
        vector = network.readout.norm(class_attention(network.readout, found.patch) if attention else found.cls)
        image += head(image_head, vector).split(x.shape[1])
        if patch_head is None:
            patch += [None] * len(x)
        else:
            rows = aggregate(network.readout, found.patch, index) if teacher else network.readout.norm(found.patch)
            out = head(patch_head, rows.flatten(0, 1))
            patch += out.view(*rows.shape[:2], -1).split(x.shape[1])
    return image, patch


def cross_entropy(target, logits, temperature):
    return -(target * F.log_softmax(logits / temperature, -1)).sum(-1).mean()


class Plain:
    """The plain counterpart of `trainer.Trainer` for the recipes dino and selfpatch, in one process.

    fused: attention by torch's fused kernel, instead of matrix products as in the official code.
    """

    def __init__(self, learner, precision="float32", fused=False):
        self.learner, self.cfg = learner, learner.cfg
        self.cast, self.device = {"bf16": torch.bfloat16}.get(precision), next(learner.parameters()).device
        for part in learner.modules():
            if hasattr(part, "fused_attn"):
                part.fused_attn = fused
        views = self.cfg.views
        sides = [views.specs()[members[0]].size // learner.patch for members in views.groups()]
        self.near = [torch.tensor(window(side, side, 1, True), device=self.device) for side in sides]  # [N, 8] each
        self.optimiser = torch.optim.AdamW(param_groups(learner.student.named_parameters()))
        self.all_views = any(getattr(e.options, "centre_views", "") == "all" for e in self.cfg.objectives)

    def loss(self, groups):
        """-> total loss, teacher image outputs, teacher patch outputs"""
        with torch.autocast(self.device.type, self.cast, enabled=self.cast is not None):
            views = [normalise(g.x, self.cfg.data.mean, self.cfg.data.std) for g in groups]
            with torch.no_grad():
                t_image, t_patch = run(self.learner.teacher, views if self.all_views else views[:1], True, self.near)
            s_image, s_patch = run(self.learner.student, views, False, self.near)
            objectives, total, pairs = self.learner.objectives, 0.0, 0
            centre, o = objectives["dino"].centre, objectives["dino"].cfg
            for t in range(groups[0].x.shape[0]):
                target = ((t_image[t] - centre) / o.teacher_temperature).softmax(-1)
                for v, logits in enumerate(s_image):
                    if v != t:
                        total, pairs = total + cross_entropy(target, logits, o.student_temperature), pairs + 1
            total = total / pairs
            if "selfpatch" in objectives:
                o, patch = objectives["selfpatch"].cfg, 0.0
                for teacher, logits in zip(t_patch, s_patch, strict=True):
                    target = ((teacher - objectives["selfpatch"].centre) / o.teacher_temperature).softmax(-1)
                    patch = patch + cross_entropy(target, logits, o.student_temperature)
                total = total + self.learner.weights["selfpatch"] * patch / len(s_patch)
        return total, t_image, t_patch

    def step(self, groups, lr=5e-4, decay=0.04, momentum=0.996):
        """One optimiser step; -> the loss."""
        for group in self.optimiser.param_groups:
            group["lr"], group["weight_decay"] = lr, decay if group["decay"] else 0.0
        self.optimiser.zero_grad()
        total, t_image, t_patch = self.loss(groups)
        total.backward()
        for p in self.learner.student.parameters():
            if p.grad is not None:
                factor = self.cfg.optim.clip / (p.grad.norm(2) + 1e-6)
                if factor < 1:
                    p.grad.mul_(factor)
        self.optimiser.step()
        with torch.no_grad():
            for s, t in zip(self.learner.student.parameters(), self.learner.teacher.parameters(), strict=True):
                t.mul_(momentum).add_((1 - momentum) * s)
            for name, outs in (("dino", t_image), ("selfpatch", t_patch)):
                if name in self.learner.objectives:
                    mean = torch.cat([o.flatten(0, -2) for o in outs]).float().mean(0, keepdim=True)
                    self.learner.objectives[name].centre.mul_(0.9).add_(mean, alpha=0.1)
        return total.detach()
