"""Start from a checkpoint: whatever `read_weights` makes of a file; the core alone reads our own exports."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.card import Card
from ..common.errors import UserError
from ..common.positions import resize_positions
from ..common.shapes import shapes_of
from ..common.weights import KEY, check_fit, load_weights, names
from .learner import Learner
from .network import Network
from .swin import Swin


class Rival(NamedTuple):
    """Another format that the file could be of: its name, the names of its weights, and how its reading differs."""

    format: str
    names: frozenset[str]
    differs: str


class Found(NamedTuple):
    """A file's network: weights by timm's names, their card, the format, and formats that read it differently."""

    weights: dict[str, Tensor]
    card: Card
    format: str
    rivals: Sequence[Rival] = ()


def read_own(path: str | Path, format: str | None = None) -> Found:
    """Of our own exports (.safetensors with a card). Raises UserError for other files."""
    return Found(*load_weights(path), format or KEY)


@torch.no_grad()
def load_initial(
    learner: Learner,
    path: str | Path,
    format: str | None = None,
    read_weights: Callable[[str | Path, str | None], Found] = read_own,
) -> str:
    """Backbone and, where it has one that fits, readout of a checkpoint become the student's and the teacher's weights.

    Stored positions of another grid are resized by the file's own rule. A class token or readout that only one side has
    is left out or keeps its initial values; everything else must fit. format: of the file, instead of detection. -> one
    line that says what was taken and what was not. Raises UserError, with nothing changed, when the file cannot be read
    or belongs to another network.
    """
    found = read_weights(path, format)
    card, weights = found.card, dict(found.weights)
    student = learner.student
    learned = not isinstance(student.backbone, Swin)  # positions that depend on the grid
    resized = learned and card.grid**2 != student.backbone.patch_embed.num_patches
    # Without resizing, equal names give equal weights, whatever the format says about positions.
    if rivals := [r for r in found.rivals if resized or r.names != weights.keys()]:
        others = " or ".join(f"{r.format} ({r.differs})" for r in rivals)
        raise UserError(f"init={path}: could be {found.format} or {others}: give init_format=NAME")
    _same_architecture(path, card, student)
    if learned:
        weights["pos_embed"] = _positions(path, weights["pos_embed"], card, student.backbone)
    given = {_name_in_network(key): value for key, value in weights.items()}
    own = {k: v for k, v in student.state_dict().items() if not k.startswith("heads.")}
    spare, kept = given.keys() - own.keys(), own.keys() - given.keys()
    left_out = {k for k in spare | kept if k.startswith(("readout.", "backbone.cls_token", "backbone.masked_embed"))}
    taken, wanted = ({k: v for k, v in shapes_of(part).items() if k not in left_out} for part in (given, own))
    check_fit(taken, wanted, f"init={path}", f"network.backbone={student.cfg.backbone}")
    student.load_state_dict({k: v for k, v in given.items() if k in own}, strict=False)
    learner.ema.copy()
    said = [f"init={path}: format {found.format}, {len(given) - len(spare)}/{len(given)} tensors taken"]
    said += [f"not taken: {names(spare)}"] if spare else []
    said += [f"initialised afresh: {names(kept)}"] if kept else []
    if card.heads is None:
        said.append(f"attention heads are not in the file: {student.backbone.blocks[0].attn.num_heads} assumed")
    data = learner.cfg.data
    if card.mean and card.std and (list(card.mean), list(card.std)) != (list(data.mean), list(data.std)):
        said.append(f"it wants mean={card.mean} std={card.std}, this run has data.mean={data.mean} data.std={data.std}")
    return "; ".join(said)


def _name_in_network(key: str) -> str:
    """The loader's name of a weight -> Network's."""
    return key if key.startswith("readout.") else f"readout.{key}" if key.startswith("norm.") else f"backbone.{key}"


def _same_architecture(path, card, student: Network) -> None:
    """Raise UserError unless what shapes cannot tell agrees too."""
    vit = student.backbone
    ours = {"patch": vit.patch_embed.patch_size[0], "dim": vit.embed_dim, "norm_eps": vit.final_eps}
    if isinstance(vit, Swin):
        stages = [stage.blocks for stage in vit.layers]
        ours |= {"family": "swin", "window": stages[0][0].window_size[0], "depths": tuple(map(len, stages))}
        ours |= {"heads": tuple(blocks[0].attn.num_heads for blocks in stages)}
    else:
        ours |= {"family": "vit", "depth": len(vit.blocks), "heads": vit.blocks[0].attn.num_heads}
        ours |= {"registers": vit.num_reg_tokens}
    theirs = {key: getattr(card, key) for key in ours}
    differ = [f"{k} {theirs[k]} instead of {v}" for k, v in ours.items() if theirs[k] not in (v, None)]
    if differ:
        raise UserError(
            f"init={path}: another network than network.backbone={student.cfg.backbone}: {', '.join(differ)}"
        )


def _positions(path, stored: Tensor, card, vit) -> Tensor:
    """Positions for our grid, with an entry for the class token if ours have one."""
    own = vit.pos_embed.shape[1] - vit.patch_embed.num_patches
    extra = stored.shape[1] - card.grid**2
    if own > extra:
        raise UserError(f"init={path}: has no position for the class token, which network.class_token=true wants")
    patches = resize_positions(stored[:, extra:], tuple(vit.patch_embed.grid_size), card.pos_resize)
    return torch.cat([stored[:, :own], patches], 1)
