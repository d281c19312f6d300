"""The network that timm builds by the name that a file, or what lies beside it, states.

It tells what weights do not show (heads, norm eps, activation, pooling), and whether it is another network than the one
that is built here of the same weights: blurred or dilated, in another order.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import nn

from ...pretrain.common.card import MAX_WIDTH, Card
from ...pretrain.common.errors import UserError, shorten
from ..backbones.build import encoder_for
from .stated import architectures, table_in

# Of a builder's arguments: what names files, or makes no other network of the same weights.
NOT_BUILT_WITH = ("pretrained", "checkpoint", "cache", "script", "export", "no_jit", "feature", "out_indices", "drop")
WINDOWS = "pretrained_window_sizes"  # of Swin V2, which change what is computed
MAX_LAYERS = 128
ACTS = {"GELU": "gelu (erf)", "GELUTanh": "gelu (tanh)", "SiLU": "swiglu"}
HEADS = ("head", "fc", "global_pool", "fc_norm", "attn_pool", "patch_drop", "pos_drop", "norm_pre")
IDLE = ("Identity", "Dropout", "DropPath")  # modules that do nothing when a network is evaluated
POINTWISE = {("ConvMlp", "Mlp"), ("Conv2d", "Linear"), ("LayerNorm2d", "LayerNorm")}  # the same of every place
COMPARED = ("kernel_size", "stride", "dilation", "padding")


def network_in(meta: Mapping) -> tuple[str, nn.Module] | tuple[None, None]:
    """(where it is named, timm's network without memory), or (None, None) where no name is one that timm knows."""
    for where, arch, table in architectures(meta):
        given = table_in(table, "model_args") or table_in(table, "model_kwargs")
        pool = pool_in(table)
        names = [k for k in given if isinstance(k, str) and (k == WINDOWS or not k.startswith(NOT_BUILT_WITH))]
        simple = {k: _hashable(given[k]) for k in names}
        simple |= {"global_pool": pool} if pool else {}
        for options in (simple, {}):  # those of another version are no reason to forget the name
            small = all(_is_small(k, v) for k, v in options.items())
            if small and (network := build(arch, tuple(sorted(options.items())))):
                return f"{where} {shorten(arch)}", network
    return None, None


def _hashable(value):
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def _is_small(key: str, value) -> bool:
    """Is it a value that no network becomes absurdly large by, and that can be compared?"""
    if isinstance(value, tuple):
        return len(value) <= 16 and all(_is_small(key, v) for v in value)
    limit = MAX_LAYERS if key in ("depth", "depths", "layers") else MAX_WIDTH
    return value is None or isinstance(value, str | bool) or (isinstance(value, int | float) and abs(value) <= limit)


@lru_cache(8)
def build(arch: str, options: tuple = ()) -> nn.Module | None:
    """timm's network of that name, without memory; None where timm has none, or not with these options."""
    import timm

    try:
        if not timm.is_model(arch):
            return None
        with torch.device("meta"):
            return timm.create_model(arch, pretrained=False, **dict(options))
    except Exception:  # arguments that its builder does not take
        return None


def pool_in(table: Mapping) -> str | None:
    """timm's word for the pooling that a table states."""
    words = (table_in(table, "model_args").get("global_pool"), table.get("global_pool"), table.get("gp"))
    return next((word for word in words if isinstance(word, str)), None)


def facts_in(meta: Mapping, shapes: Mapping[str, tuple]) -> dict:
    """norm_eps, act and global_pool of the network that is named, where it is a ViT as wide as that of these shapes;
    else what is stated of pooling."""
    _, network = network_in(meta)
    width = shapes.get("blocks.0.norm1.weight", (0,))[0]
    if getattr(network, "embed_dim", None) == width and (facts := facts_of(network)):
        return facts
    pool = next((pool for _, _, table in architectures(meta) if (pool := pool_in(table))), None)
    return {"global_pool": pool} if pool else {}


def heads_in(meta: Mapping, dim: int) -> tuple[int, str] | None:
    """Number of heads of the network that is named, and where, if it is `dim` wide."""
    where, network = network_in(meta)
    heads = facts_of(network).get("num_heads") if getattr(network, "embed_dim", None) == dim else None
    return (heads, where) if heads else None


def facts_of(network: nn.Module) -> dict:
    """What timm's network is beyond what its weights show, where it is a ViT; else {}."""
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.Module) or not hasattr(blocks[0], "attn") or not hasattr(blocks[0], "mlp"):
        return {}
    block, act = blocks[0], _kind(getattr(blocks[0].mlp, "act", None))
    facts = {"num_heads": int(block.attn.num_heads), "norm_eps": float(getattr(block.norm1, "eps", 1e-6))}
    return facts | {"act": ACTS.get(act, act), "global_pool": str(getattr(network, "global_pool", ""))}


def usual_normalisation(meta: Mapping) -> tuple[dict, str]:
    """Mean and std that timm's training takes for the network that its arguments name, where they leave it open, and
    where that is said; ({}, "") for the file of another code."""
    trained = any("mean" in table and table["mean"] is None for _, _, table in architectures(meta))
    where, network = network_in(meta) if trained else (None, None)
    cfg = getattr(network, "pretrained_cfg", None) or {}
    return (
        ({k: tuple(cfg[k]) for k in ("mean", "std")}, f"timm's for {where}") if {"mean", "std"} <= {*cfg} else ({}, "")
    )


def check_same(card: Card, meta: Mapping) -> None:
    """Raises UserError, with its name, for a named network that computes something else of the same weights than this
    card's: a module of the same name is of another kind, or one without weights is missing."""
    where, theirs = network_in(meta)
    if theirs is None or card.own or getattr(theirs, "embed_dim", card.dim) != card.dim:
        return  # a name counts only if its width is that of the weights
    with torch.device("meta"):
        encoder = encoder_for(card if card.heads or card.family != "vit" else card.override({"heads": 1}))
    ours = getattr(encoder, str(getattr(encoder, "network", "")), None)
    mine = dict(ours.named_modules()) if isinstance(ours, type(theirs)) else {}
    for name, module in theirs.named_modules() if mine else ():
        if name and not name.startswith(HEADS) and (text := _differs(module, name, mine)):
            raise UserError(f"{where} is not built here: its {name} is {text}")


@contextmanager
def named_where_it_fits(meta: Mapping, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Whatever is refused, with the name that is stated, if timm's network of that name has all of these weights."""
    try:
        yield
    except UserError as error:
        where, theirs = network_in(meta)
        shapes = {k: v.shape for k, v in theirs.state_dict().items()} if theirs is not None else {}
        if shapes and all(shapes.get(k) == v.shape for k, v in weights.items()):
            raise UserError(f"{error}; {where} is not built here") from None
        raise


def _differs(theirs: nn.Module, name: str, mine: Mapping[str, nn.Module]) -> str | None:
    """`Sequential, here MaxPool2d`: how timm's module differs from ours of that name, if it does."""
    what, ours = _kind(theirs), mine.get(name)
    if what.startswith(IDLE):
        return None
    if ours is None:  # with weights it is accounted for elsewhere; or it is in a block that ours lacks
        gone = not list(theirs.parameters()) and name.rpartition(".")[0] in mine
        return f"{what}, here nothing" if gone else None
    if (what, _kind(ours)) in POINTWISE and getattr(theirs, "kernel_size", (1, 1)) == (1, 1):
        return None
    if _kind(ours) != what and not isinstance(ours, type(theirs)):
        return f"{what}, here {_kind(ours)}"
    weights = [getattr(module, "weight", None) for module in (theirs, ours)]
    if all(isinstance(w, torch.Tensor) for w in weights) and weights[0].shape != weights[1].shape:
        return None  # the file's weights show which
    key = next((k for k in COMPARED if getattr(theirs, k, None) != getattr(ours, k, None)), None)
    return f"of {key} {getattr(theirs, key)}, here {getattr(ours, key, None)}" if key else None


def _kind(module) -> str:
    """The name of its class; timm has a GELU of its own beside torch's."""
    return "GELUTanh" if getattr(module, "approximate", "none") != "none" else type(module).__name__
