"""Initial weights from a checkpoint file of any format that the evaluation reads (`init=FILE`)."""

import torch

from ..benchmarks.errors import UserError
from ..benchmarks.loading import names, open_checkpoint, ready
from .network import Network


def start_from(network: Network, path: str) -> str:
    """Copy backbone and readout of a checkpoint into a network; -> a line that accounts for every tensor.

    Every tensor that the format keeps must have its place, of the same shape, and the backbone must be complete. A
    readout (final norm, class attention) that the file lacks keeps its initialisation, as the heads do. Raises
    UserError for anything else, so that nothing is left out in silence.
    """
    found = open_checkpoint(path)
    if any(not same(r.weights, found.reading.weights) for r in found.rivals):
        ready(found)  # says which formats it could be; formats that differ in the card alone give the same start
    heads = network.backbone.blocks[0].attn.num_heads
    if found.card.heads not in (None, heads):
        raise UserError(f"init={path}: has {found.card.heads} attention heads, the network {heads}")
    given = {place(k): v for k, v in found.reading.weights.items()}
    wanted = dict(network.backbone.named_parameters(prefix="backbone"))
    readout = dict(network.readout.named_parameters(prefix="readout"))
    token = wanted.pop("backbone.masked_embed", None)
    lacking = wanted.keys() - given.keys()
    own = sorted(readout.keys() - given.keys())
    if any(k.startswith("readout.cls_") for k in given):  # a class-attention readout comes whole or not at all
        lacking |= set(own)
    surplus = given.keys() - wanted.keys() - readout.keys()
    both = wanted | readout
    other = [
        f"{k} {list(v.shape)} instead of {list(both[k].shape)}"
        for k, v in given.items()
        if k in both and v.shape != both[k].shape
    ]
    problems = [f"it lacks {names(lacking)}"] if lacking else []
    problems += [f"the network has no place for {names(surplus)}"] if surplus else []
    problems += [f"other shapes: {names(other, 4)}"] if other else []
    if problems:
        hint = hints(found.card, network)
        raise UserError(
            f"init={path} does not fit network.backbone={network.cfg.backbone}: {'; '.join(problems)}{hint}"
        )
    with torch.no_grad():
        for key, value in given.items():
            both[key].copy_(value)
    kept = f"; {len(own)} of the readout keep their initialisation" if own else ""
    kept += "; so does the mask token" if token is not None else ""
    return f"init={path}: format {found.reading.format}, {found.accounting}{kept}"


def place(key: str) -> str:
    """Name in the loader's network -> in ours, where the final norm belongs to the readout."""
    if key.startswith("norm."):
        return f"readout.{key}"
    return key if key.startswith("readout.") else f"backbone.{key}"


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def hints(card, network: Network) -> str:
    """Which options would make the network the file's."""
    token = network.backbone.cls_token is not None
    found = [f"network.class_token={str(card.class_token).lower()}"] if card.class_token != token else []
    if card.grid * card.patch != network.backbone.patch_embed.img_size[0]:
        found.append(f"network.image_size={card.grid * card.patch}")
    if card.readout == "class_attention" and network.cfg.readout != "class_attention":
        found.append("network.readout=class_attention")
    return f" (the file is one of {', '.join(found)})" if found else ""
