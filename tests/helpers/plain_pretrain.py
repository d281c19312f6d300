"""Plain implementations for the tests of pretraining: sequences written out, loops over pairs, autograd throughout."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.objectives import Step
from selfpatch_bench.pretrain.step import Learner

TINY = [
    "network.overrides={embed_dim: 24, depth: 2, num_heads: 2}",
    "network.drop_path=0",
    "views.rows.0.size=64",
    "views.rows.1.size=64",
    "views.rows.2.size=32",
    "views.rows.2.count=3",
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For modules that import it: tensors of a few hundred numbers gain nothing from threads, and wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def heads(*names, outputs=20, hidden=24, bottleneck=16):
    """Overrides that make the heads of these objectives small."""
    sizes = {"outputs": outputs, "hidden": hidden, "bottleneck": bottleneck}
    return [f"objectives.{n}.{k}={v}" for n in names for k, v in sizes.items()]


def tiny(recipe, *overrides, kind=torch.float64, spread=0.5):
    """A small learner whose weights are far from their initial values, so that no part of it is nearly linear."""
    named = [e.name for e in load_recipe(recipe).objectives if hasattr(e.options, "bottleneck")]
    cfg = load_recipe(recipe, [*TINY, *heads(*named), *overrides])
    learner = Learner(cfg).to(kind)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for side in (learner.student, learner.teacher):
            for name, p in side.named_parameters():
                if not name.endswith("weight_g"):
                    noise = torch.randn(p.shape, generator=g, dtype=torch.float64).to(kind)
                    p.add_(noise * (spread / math.sqrt(p.shape[-1]) if p.ndim > 1 else 0.1))
    return learner


def groups(learner, batch=2, kind=torch.float64, seed=1):
    """Random views of the recipe's sizes."""
    g = torch.Generator().manual_seed(seed)
    specs, layout = learner.cfg.views.specs(), learner.cfg.views.groups()
    shapes = [(len(v), batch, 3, specs[v[0]].size, specs[v[0]].size) for v in layout]
    return [
        Group(
            torch.randn(s, generator=g, dtype=torch.float64).to(kind),
            torch.zeros(*s[:2], 4),
            torch.zeros(s[:2], dtype=torch.bool),
        )
        for s in shapes
    ]


def set_centres(learner):
    """Centres that matter: of the size of the outputs' spread."""
    with_centre = (o for o in learner.objectives.values() if hasattr(o, "centre"))
    for i, objective in enumerate(with_centre):
        objective.centre.copy_(0.1 * torch.randn(objective.centre.shape, generator=torch.Generator().manual_seed(i)))


def gradients(loss, module):
    """Of every trained parameter by name; None for one that the loss does not depend on."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {n: g for (n, _), g in zip(named, grads, strict=True)}


class Tokens(NamedTuple):
    cls: torch.Tensor | None
    patch: torch.Tensor
    hw: tuple[int, int]


def vit_tokens(vit, x, mask=None):
    """A ViT as published: patches, positions (DINO's rule), class token, timm's blocks. x [M, 3, H, W], mask [M, h, w]
    -> raw class token [M, D] or None, patches [M, N, D], and (h, w)"""
    conv = vit.patch_embed.proj
    y = F.conv2d(x, conv.weight, conv.bias, stride=conv.stride)
    h, w = hw = y.shape[2:]
    y = y.flatten(2).transpose(1, 2)
    if mask is not None:
        y = torch.where(mask.flatten(1)[..., None], vit.masked_embed, y)
    own = 0 if vit.cls_token is None else 1
    positions, side = vit.pos_embed[:, own:], math.isqrt(vit.pos_embed.shape[1] - own)
    if hw != (side, side):
        grid, scale = positions.transpose(1, 2).unflatten(2, (side, side)), ((h + 0.1) / side, (w + 0.1) / side)
        positions = F.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
    y = y + positions
    if own:
        y = torch.cat([(vit.cls_token + vit.pos_embed[:, :1]).expand(len(y), -1, -1), y], 1)
    for block in vit.blocks:
        y = block(y)
    return Tokens(y[:, 0] if own else None, y[:, own:], hw)


def class_attention(readout, patches):
    """The readout's blocks as published: class token and patches as one sequence. patches [M, n, D] -> token [M, D]"""
    token = readout.cls_token.expand(len(patches), -1, -1)
    for block in readout.cls_blocks:
        a, u = block.attn, block.norm1(torch.cat([token, patches], 1))
        q, k, v = (x.unflatten(-1, (a.num_heads, -1)).transpose(1, 2) for x in (a.q(u[:, :1]), a.k(u), a.v(u)))
        weight = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        token = token + a.proj((weight @ v).transpose(1, 2).flatten(2))
        token = token + block.mlp(block.norm2(token))
    return token[:, 0]


def window(h, w, radius, wrap):
    """For every patch the list of its neighbours, ascending, each once."""
    found = []
    for i in range(h):
        for j in range(w):
            near = set()
            for di in range(-radius, radius + 1):
                for dj in range(-radius, radius + 1):
                    a, b = i + di, j + dj
                    if wrap:
                        near.add(a % h * w + b % w)
                    elif 0 <= a < h and 0 <= b < w:
                        near.add(a * w + b)
            found.append(sorted(near - {i * w + j}))
    return found


def chosen(patches, hw, k, radius, wrap):
    """patches [M, N, D] -> [M][N] lists of the (at most k) most similar neighbours, most similar first"""
    near = window(*hw, max(hw) if radius == "all" else radius, wrap)
    unit = patches / patches.norm(dim=-1, keepdim=True)
    return [[sorted(c, key=lambda j: -float(u[i] @ u[j]))[:k] for i, c in enumerate(near)] for u in unit]


def aggregate(readout, patches, picks, pool):
    """One sequence of class token and chosen patches for each patch. -> [M, N, D], normed"""
    rows = [
        x[pick].mean(0) if pool == "mean" else class_attention(readout, x[pick][None])[0]
        for x, per_view in zip(patches, picks, strict=True)
        for pick in per_view
    ]
    return readout.norm(torch.stack(rows)).view_as(patches)


def cross_entropy(target, logits):
    """Mean over all rows of CE(target, softmax(logits))"""
    return -(target * F.log_softmax(logits, -1)).sum(-1).mean()


def dino_terms(student, teacher, centre, tau_t, tau_s=0.1, targets=2):
    """student, teacher: lists of [B, K], one a view -> the loss of every pair"""
    return [
        cross_entropy(((teacher[t] - centre) / tau_t).softmax(-1), student[v] / tau_s)
        for t in range(targets)
        for v in range(len(student))
        if v != t
    ]


def patch_terms(student, teacher, centre, tau_t, tau_s=0.1):
    """student, teacher: lists of [B, N, K], one a view -> the loss of every view"""
    return [cross_entropy(((t - centre) / tau_t).softmax(-1), s / tau_s) for s, t in zip(student, teacher, strict=True)]


def views(outputs, name):
    """Outputs per group -> one tensor a view"""
    return [v for out in outputs if out for v in out[name]]


def relative(a, b):
    """max|a - b| / max|b|"""
    a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (a, b))
    return float((a - b).abs().max() / b.abs().max())


def assert_same_gradients(ours, theirs, module, bound=1e-10):
    """Of two losses, by every trained parameter that the second depends on; to `bound` of the largest of all. -> the
    second's"""
    found = gradients(ours, module)
    wanted = {k: v for k, v in gradients(theirs, module).items() if v is not None}
    biggest = max(float(v.abs().max()) for v in wanted.values())
    for name, grad in wanted.items():
        assert float((found[name] - grad).abs().max()) < bound * biggest, name
    return wanted


def parts_add_up(whole, parts, groups) -> tuple[dict, dict]:
    """Two equal learners, one given 6 images, the other three shares of them: losses are means and stats are sums, so
    loss, gradient, log and centres agree (float64). -> the whole one's losses and log."""
    total, losses, stats = whole(groups, Step())
    shares = [parts([v.rows(slice(i, i + 2)) for v in groups], Step(part=i // 2, parts=3)) for i in (0, 2, 4)]
    mean = sum(s[0] for s in shares) / 3
    assert relative(mean, total) < 1e-12
    ours, theirs = gradients(mean, parts.student), gradients(total, whole.student)
    biggest = max(float(v.abs().max()) for v in theirs.values())
    assert all(float((ours[n] - v).abs().max()) < 1e-12 * biggest for n, v in theirs.items())
    logged = whole.finish_step(stats, 1.0)
    summed = parts.finish_step({k: sum(s[2][k] for s in shares) for k in stats}, 1.0)
    assert all(relative(summed[name], value) < 1e-11 for name, value in logged.items())
    for name, objective in whole.objectives.items():
        assert relative(parts.objectives[name].centre, objective.centre) < 1e-12
    return losses, logged


def near_in_bf16(make, views):
    """Under autocast, which has 8 bits, losses are within 2 % of float64 and in float32, gradients point the same way,
    numbers for the log are finite. make(**options): a learner; views(learner, **options): its groups."""
    learner, exact = make(kind=torch.float32, spread=0.1), make(spread=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        total, losses, stats = learner(views(learner, kind=torch.float32), Step())
    whole, wanted, _ = exact(views(exact), Step())
    assert all(v.dtype == torch.float32 for v in [*losses.values(), *stats.values()])
    assert all(relative(v, wanted[k]) < 0.02 for k, v in losses.items())
    ours, theirs = gradients(total, learner.student), gradients(whole, exact.student)
    for name, grad in theirs.items():
        if grad is not None and grad.numel() > 100:
            assert torch.cosine_similarity(ours[name].double().flatten(), grad.flatten(), 0) > 0.95, name
    assert all(torch.isfinite(v) for v in learner.finish_step(stats, 0.9).values())
