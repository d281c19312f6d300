"""`selfpatch export`: a run's network as a file of ours, or in an official code base's layout, which is read back."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...pretrain import export as ours
from ...pretrain.checkpoint import Run
from ...pretrain.common.atomic import replacing
from ...pretrain.common.card import ARCHITECTURES, Card
from ...pretrain.common.errors import UserError
from ...pretrain.config import Config
from ...pretrain.export import portable
from ..hub.open import open_checkpoint

OFFICIAL = ("selfpatch", "dino")


def export(
    run: Path, out: Path | None = None, format: str | None = None, step: int | None = None, which: str | None = None
) -> Path:
    """Write the network of a run's checkpoint to one file; -> its path.

    format: None, ours (pretrain.export.export, which see); or the layout of an official code base, `selfpatch` or
    `dino`, which holds both networks, heads and centres (step-XXXXXXXX.FORMAT.pth). Raises UserError, and leaves
    nothing half written.
    """
    if format is None:
        return ours.export(run, out, step, which)
    if format not in OFFICIAL:
        raise UserError(f"--format {format}: it is {' or '.join(OFFICIAL)}, or none for our own .safetensors")
    if which not in (None, "teacher"):
        raise UserError(f"--which {which}: the layout of {format} holds both networks, so leave it away")
    path, state = ours.chosen(Run(run), step, out, f"{format}.pth")
    if state:
        write_official(path, state, ours.config_of(run, state), format)
    return path


def write_official(path: Path, state: dict, cfg: Config, format: str) -> None:
    """Write an official layout and read it back: it takes its place only if the loader makes the same network of it."""
    weights, card = portable(state["teacher"], cfg)
    tree = official(state, cfg, card, format)
    with replacing(path, sync=True) as temporary:
        with temporary.open("wb") as file:
            torch.save(tree, file)
        found = open_checkpoint(temporary, format=format)
        mine, theirs = card.as_dict(), found.card.as_dict()
        other = [
            f"{k} {mine[k]}, which the layout's readers take for {theirs[k]}" for k in mine if mine[k] != theirs[k]
        ]
        if other:
            raise UserError(f"--format {format}: the layout cannot say {'; '.join(other)}")
        read_back = found.reading.weights
        if read_back.keys() != weights.keys() or not all(torch.equal(v, read_back[k]) for k, v in weights.items()):
            raise UserError(f"--format {format}: {path} came back with other weights: the disk or the memory fails")


def official(state: dict, cfg: Config, card: Card, format: str) -> dict:
    """A checkpoint of ours -> what the official code saves, except the optimiser.

    selfpatch: alinlab/SelfPatch 81aef14, main_selfpatch.py; dino: facebookresearch/dino 7c446df, main_dino.py. Raises
    UserError for a network or heads that the layout has no place for.
    """
    options = {e.name: e.options for e in cfg.objectives if e.weight}
    places = {"selfpatch": {"dino": "c_head", "selfpatch": "p_head"}, "dino": {"dino": "head"}}[format]
    readout = {"selfpatch": "class_attention", "dino": "token"}[format]
    wrong = [f"the objective {name}" for name in options if name not in places]
    wrong += ["no objective dino"] * ("dino" not in options)
    wrong += [f"network.readout={card.readout}"] * (card.readout != readout)
    wrong += [f"{'a' if card.class_token else 'no'} class token"] * (card.class_token != (format == "dino"))
    wrong += ["register tokens"] * bool(card.registers) + ["LayerScale"] * card.layer_scale
    if wrong:
        raise UserError(f"--format {format}: its layout has no place for {', '.join(wrong)}")
    heads = {f"heads.{options[name].head}.": f"{place}." for name, place in places.items() if name in options}
    inside = "ca_head." if format == "selfpatch" else "backbone."
    prefixes = {"backbone.": "backbone.", "readout.": inside} | heads

    def renamed(network: Mapping[str, Tensor], before: str = "") -> dict[str, Tensor]:
        pairs = ((k, v, next((p for p in prefixes if k.startswith(p)), None)) for k, v in network.items())
        return {before + prefixes[p] + k.removeprefix(p): v.float().contiguous() for k, v, p in pairs if p}

    centre = state["objectives"]["dino.centre"]
    losses = {"center": centre[None] if format == "selfpatch" else centre}
    if "selfpatch" in options:
        losses["patch_center"] = state["objectives"]["selfpatch.centre"]
    return {
        "student": renamed(state["student"], "module."),
        "teacher": renamed(state["teacher"]),
        "epoch": state["epoch"],
        "args": _arguments(cfg, card, options),
        "dino_loss": losses,
    }


def _arguments(cfg: Config, card: Card, options: dict) -> Namespace:
    """The official scripts' arguments, as far as this run has them, and the number of heads."""
    sizes = [f"vit_{name}" for name, pair in ARCHITECTURES.items() if pair == (card.dim, card.heads)]
    dino, patch = options["dino"], options.get("selfpatch")
    # A name stands for a depth, against which readers hold the file.
    other = cfg.network.backbone if "depth" not in cfg.network.overrides else f"vit of {card.depth} blocks"
    return Namespace(
        arch=sizes[0] if sizes and card.depth == 12 else other,
        patch_size=card.patch,
        num_heads=card.heads,
        out_dim=dino.outputs,
        norm_last_layer=dino.norm_last_layer,
        teacher_temp=dino.teacher_temperature,
        warmup_teacher_temp=dino.teacher_temperature_start,
        warmup_teacher_temp_epochs=dino.teacher_temperature_epochs,
        drop_path_rate=cfg.network.drop_path,
        momentum_teacher=cfg.schedule.ema,
        epochs=cfg.loop.epochs,
        seed=cfg.seed,
        **({"out_dim_selfpatch": patch.outputs, "k_num": patch.k} if patch else {}),
    )


def export_command(run: Path, format: str | None = None, **options) -> int:
    """`selfpatch export`: as `export`. Says what the file is; -> exit status."""
    path = export(run, format=format, **options)
    found = open_checkpoint(path, format=format)
    print(f"{path}: format {found.reading.format}, {found.accounting}")
    return 0
