"""Backbone, readout and heads: one class, of which student and teacher are two instances."""

import copy
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.errors import UserError
from ..geometry import neighbours
from ..objectives import INPUTS, Aggregated, HeadSpec, Spec
from ..options import Network as NetworkConfig
from .backbone import Tokens, build_backbone, tokens
from .heads import WeightNormLinear
from .readout import ClassAttentionReadout, build_readout

Outputs = list[dict[str, Tensor] | None]  # per group: head name -> [V, B, K] or [V, B, N, K]


class Network(nn.Module):
    """One side, student or teacher.

    `network(groups)`: groups with x [V, B, 3, S, S] (and mask [V, B, h, w]), or None for one that this side does not
    see -> Outputs. Parameters: `backbone.*` (timm's names), `readout.*`, `heads.NAME.*`.
    """

    def __init__(self, cfg: NetworkConfig, spec: Spec, side: str, image_size: int, groups: int = 1, seed: int = 0):
        """spec: the merged needs of the objectives. image_size: whose grid the positions have. groups: how many there
        are, for heads with an instance for each. seed: every part is initialised by a stream of its own, so that a
        head more or less leaves the others as they are. Raises UserError for a network that cannot be built."""
        super().__init__()
        self.cfg, self.side = cfg, side
        drop_path = cfg.drop_path if side == "student" else cfg.teacher_drop_path
        mask_token = spec.needs_mask and side == "student"
        with own_stream(seed, "backbone"):
            self.backbone = build_backbone(cfg, image_size, drop_path, mask_token)
        self.dim = self.backbone.num_features
        with own_stream(seed, "readout"):
            self.readout = build_readout(cfg, self.backbone)
        self.specs: dict[str, HeadSpec] = {}
        self.heads = nn.ModuleDict()
        for name, declared in spec.heads.items():
            if (head := declared.on(side)) is None:
                continue
            if head.shares is None:
                with own_stream(seed, f"heads.{name}"):
                    modules = [head.factory(self.width(head.input)) for _ in range(groups if head.per_group else 1)]
                self.heads[name] = nn.ModuleList(modules) if head.per_group else modules[0]
            elif head.shares not in self.heads:
                raise UserError(f"head {name} shares the module of {head.shares}, which is not declared before it")
            elif head.derive is not None:
                with own_stream(seed, f"heads.{name}"):
                    self.heads[name] = head.derive(self.heads[head.shares])
            self.specs[name] = head
        for part in self.heads.modules():
            if isinstance(part, WeightNormLinear):
                part.exact = side == "teacher"

    def width(self, source: str | Aggregated) -> int:
        """Width of a head's input; that of another head's output is found by running it."""
        if isinstance(source, Aggregated) or source in INPUTS:
            return self.dim
        if source not in self.heads:
            raise UserError(
                f"a head takes the output of {source}, which is no head declared before it on the same side"
            )
        head = self.heads[source]
        head = copy.deepcopy(head[0] if isinstance(head, nn.ModuleList) else head).eval().to("meta")
        return head(torch.zeros(1, self.width(self.specs[source].input), device="meta")).shape[-1]

    def forward(self, groups: Sequence) -> Outputs:
        seen = [g for g, group in enumerate(groups) if group is not None]
        inputs = {g: self.represent(groups[g], g) for g in seen}
        shapes = {g: groups[g].x.shape[:2] for g in seen}
        out: dict[int, dict[str, Tensor]] = {g: {} for g in seen}
        for name, spec in self.specs.items():
            at = [g for g in seen if g == 0 or spec.groups == "all"]
            rows = {g: inputs[g][spec.input] for g in at}
            for g, y in self.apply_head(name, rows, shapes).items():
                inputs[g][name] = y
                out[g][name] = y if spec.input == "masked" else y.unflatten(0, shapes[g])
        return [out.get(g) for g in range(len(groups))]

    def represent(self, group, g: int) -> dict:
        """One group -> the inputs that heads ask for: "image" [M, D], "patch" [M, N, D] ..., M = V * B, view-major."""
        mask = group.mask.flatten(0, 1) if hasattr(self.backbone, "masked_embed") and group.mask is not None else None
        toks = tokens(self.backbone, group.x.flatten(0, 1), mask, self.cfg.positions)
        wanted = {s.input for s in self.specs.values() if g == 0 or s.groups == "all"}
        cached = None  # before the norm below: the order of these two is that in which their gradients are added up
        if isinstance(self.readout, ClassAttentionReadout) and attends(wanted):
            cached = self.readout.keys_values(toks.patch)
        inputs: dict = {"raw": toks.patch}
        if wanted & {"patch", "tokens"}:
            inputs["patch"] = self.readout.norm(toks.patch)
        if "masked" in wanted:
            hidden = group.masked()
            at = inputs.get("patch", toks.patch).flatten(0, 1).index_select(0, hidden)
            inputs["masked"] = at if "patch" in inputs else self.readout.norm(at)
        if wanted & {"image", "tokens"}:
            inputs["image"] = self.image(toks, cached, inputs.get("patch"))
        if "tokens" in wanted:
            inputs["tokens"] = torch.cat([inputs["image"][:, None], inputs["patch"]], 1)
        for source in wanted:
            if isinstance(source, Aggregated):
                inputs[source] = self.aggregate(toks, source, cached)
        return inputs

    def image(self, toks: Tokens, cached=None, normed: Tensor | None = None) -> Tensor:
        """Tokens -> image vectors [M, D]"""
        if isinstance(self.readout, ClassAttentionReadout):
            return self.readout.image(cached or self.readout.keys_values(toks.patch))
        if self.cfg.readout == "token":
            return self.readout.norm(toks.cls)
        return (self.readout.norm(toks.patch) if normed is None else normed).mean(1)

    def aggregate(self, toks: Tokens, how: Aggregated, cached=None) -> Tensor:
        """Tokens -> for every patch the summary of its neighbours [M, N, D], normed"""
        index, valid = most_similar(toks.patch, toks.hw, how)
        if how.pool == "class_attention":
            return self.readout.aggregate(toks.patch, index, valid, cached)
        chosen = toks.patch[torch.arange(len(index), device=index.device)[:, None, None], index]  # [M, N, k, D]
        if valid is None:
            return self.readout.norm(chosen.mean(2))
        return self.readout.norm((chosen * valid[..., None]).sum(2) / valid.sum(2, keepdim=True))

    def apply_head(self, name: str, rows: dict[int, Tensor], shapes: dict) -> dict[int, Tensor]:
        """Inputs per group -> outputs per group, leading axis M. One call for all, where batch statistics allow."""
        spec = self.specs[name]
        head = self.heads[name if name in self.heads else spec.shares]
        if spec.bn_scope is None and not isinstance(head, nn.ModuleList):
            flat = [x.reshape(-1, x.shape[-1]) for x in rows.values()]
            y = head(torch.cat(flat) if len(flat) > 1 else flat[0]).split([len(x) for x in flat])
            return {g: p.view(*x.shape[:-1], p.shape[-1]) for (g, x), p in zip(rows.items(), y, strict=True)}
        outputs = {}
        for g, x in rows.items():
            own = head[g] if isinstance(head, nn.ModuleList) else head
            views = x.unflatten(0, shapes[g]).unbind() if spec.bn_scope == "view" else [x]
            outputs[g] = torch.cat([own(v) for v in views])
        return outputs


@torch.no_grad()
def most_similar(patches: Tensor, hw: tuple[int, int], how: Aggregated) -> tuple[Tensor, Tensor | None]:
    """The k neighbours of every patch with the highest cosine similarity to it.

    patches [M, N, D] raw, N = h * w -> index [M, N, k], valid [M, N, k] or None (all are); k is smaller where there
    are fewer neighbours. In float32 at least, whatever autocast says: half precision makes ties of near neighbours.
    """
    index, valid = neighbours(*hw, how.radius, how.wrap, patches.device)
    k = min(how.k, index.shape[1])
    nearest = []
    with torch.autocast(patches.device.type, enabled=False):
        unit = F.normalize(patches.to(torch.promote_types(patches.dtype, torch.float32)), dim=-1)
        step = max(1, 2**26 // len(index) ** 2)  # bounds the [M, N, N] similarities
        for part in unit.split(step):
            near = (part @ part.transpose(1, 2)).gather(2, index.expand(len(part), -1, -1))
            nearest.append((near if valid is None else near.masked_fill(~valid, -torch.inf)).topk(k, -1)[1])
    best = torch.cat(nearest)  # [M, N, k], into the neighbour lists
    chosen = index.expand(len(best), -1, -1).gather(2, best)
    return chosen, None if valid is None else valid.expand(len(best), -1, -1).gather(2, best)


def attends(wanted: Iterable[str | Aggregated]) -> bool:
    """Whether any of these inputs runs the class-attention blocks."""
    return any(w in ("image", "tokens") or getattr(w, "pool", None) == "class_attention" for w in wanted)


@contextmanager
def own_stream(seed: int, name: str) -> Iterator[None]:
    """Random numbers inside come from a stream of (seed, name); the global one stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        yield
