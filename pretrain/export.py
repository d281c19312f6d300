"""From a checkpoint of a run to one file for the evaluation: backbone, readout and card (`selfpatch export`)."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import Run, read
from .common.card import Card
from .common.errors import UserError
from .common.shapes import shapes_of, swin_card, vit_card
from .common.weights import check_fit, save_weights
from .config import Config, from_dict
from .model.backbone import build_backbone
from .model.readout import readout_of
from .model.swin import Swin, timm_swin
from .model.vit import timm_vit

ENDINGS = {"teacher": "safetensors", "student": "student.safetensors"}


def portable(state: Mapping[str, Tensor], cfg: Config) -> tuple[dict[str, Tensor], Card]:
    """State dict of a `Network` and its configuration -> weights as the encoder names them, float32, and their card.

    Backbone and readout stay; heads and the token for masked patches, which belong to training, are left out. Raises
    UserError for a network that the encoder does not know.
    """
    size = cfg.views.specs()[cfg.views.groups()[0][0]].size
    with torch.device("meta"):  # states heads and eps, which weights never do
        backbone = build_backbone(cfg.network, size)
    weights = {}
    for key, value in state.items():
        part, _, name = key.partition(".")
        if part == "backbone" and name != "masked_embed":
            weights[name] = value.float()
        elif part == "readout":  # of a token's readout, all there is is the ViT's own final norm
            weights[key if cfg.network.readout == "class_attention" else name] = value.float()
    act = backbone.blocks[0].mlp.act
    known = {
        "norm_eps": backbone.final_eps,
        "act": "gelu (erf)" if type(act) is nn.GELU and act.approximate == "none" else str(act),
        "readout": cfg.network.readout,
        "mean": tuple(cfg.data.mean),
        "std": tuple(cfg.data.std),
    }
    shapes = shapes_of(weights)
    options = ("backbone", "readout", "readout_depth")
    network = ", ".join(f"network.{name}={getattr(cfg.network, name)}" for name in options)
    try:
        if isinstance(backbone, Swin):
            card = swin_card(shapes, **known)
        else:
            card = vit_card(shapes, heads=backbone.blocks[0].attn.num_heads, pos_resize=cfg.network.positions, **known)
    except UserError as error:
        raise UserError(f"{network}: the encoder has no such network: {error}") from None
    check_fit(shapes, named_shapes(card), network, f"any that the encoder has ({card.size})")
    return weights, card


def named_shapes(card: Card) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that the evaluation's network of this card has."""
    with torch.device("meta"):
        state = (timm_swin(card) if card.family == "swin" else timm_vit(card)).state_dict()
        if card.readout == "class_attention":
            state |= {f"readout.{k}": v for k, v in readout_of(card).state_dict().items()}
    return shapes_of(state)


def export(run: Path, out: Path | None = None, step: int | None = None, which: str | None = None) -> Path:
    """Write the network of a run's checkpoint to one file; -> its path.

    out: the file; by default RUN/exports/step-XXXXXXXX.safetensors (student: step-XXXXXXXX.student.safetensors), where
    an export that is there already is taken as it is. step: of which checkpoint; None: the newest. which: teacher or
    student; None: the one that the recipe's method is evaluated by (checkpoint.export). Raises UserError, and leaves
    nothing half written.
    """
    if which not in (None, *ENDINGS):
        raise UserError(f"--which {which}: it is {' or '.join(ENDINGS)}")
    which = which or evaluated_side(Run(run))
    path, state = chosen(Run(run), step, out, ENDINGS[which])
    if state:
        cfg = config_of(run, state)
        weights, card = portable(state[which], cfg)
        about = {"recipe": cfg.recipe, "seed": cfg.seed, "step": state["step"], "epoch": state["epoch"], "which": which}
        facts = {"heads": "the run's network.backbone", "mean": "the run's data.mean", "std": "the run's data.std"}
        save_weights(path, weights, card, about | {"facts": facts})
    return path


def chosen(folder: Run, step: int | None, out: Path | None, ending: str) -> tuple[Path, dict | None]:
    """The file to write, in a folder that is there, and the checkpoint's state; None for an export that is there.
    Raises UserError."""
    if not folder.config_file.is_file():
        raise UserError(f"{folder.folder}: no pretraining run is there (it would have a config.yaml)")
    if not (steps := folder.steps()):
        raise UserError(f"{folder.folder}: the run has no checkpoint yet")
    if step is not None and step not in steps:
        raise UserError(f"--step {step}: {folder.folder} has checkpoints of the steps {', '.join(map(str, steps))}")
    number = max(steps) if step is None else step
    exports = folder.folder / "exports"
    if out is None and (there := exports / f"step-{number:08d}.{ending}").is_file():
        return there, None
    # The newest may be damaged: then the one before it counts, as when the run is resumed.
    state = folder.newest()[1] if step is None else read(steps[step])
    path = Path(out) if out else exports / f"step-{state['step']:08d}.{ending}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} cannot be made: {error.strerror or error}") from None
    return path, state


def config_of(run: Path, state: Mapping) -> Config:
    """The configuration in a checkpoint."""
    return from_dict(state["config"], (), f"{run}: checkpoint of step {state['step']}")


def evaluated_side(folder: Run) -> str:
    """The network that a run is evaluated by."""
    return folder.config([]).checkpoint.export if folder.config_file.is_file() else "teacher"


def exports(run: Path, every: int | None = None) -> list[Path]:
    """Files that stand for a run in an evaluation: the export of its newest checkpoint, or of every one whose step is a
    multiple of `every`, oldest first; what is not exported yet is exported. Raises UserError if there is none."""
    run = Path(run)
    name = re.compile(r"step-(\d{8,})\." + re.escape(ENDINGS[evaluated_side(Run(run))]))
    there = {int(m[1]): p for p in run.glob("exports/step-*.safetensors") if (m := name.fullmatch(p.name))}
    steps = sorted(there.keys() | Run(run).steps().keys())
    if every:
        chosen = [step for step in steps if step % every == 0]
        if not chosen:
            raise UserError(
                f"--every {every}: no such checkpoint in {run}, which has {', '.join(map(str, steps)) or 'none'}"
            )
        return [there.get(step) or export(run, step=step) for step in chosen]
    return [there.get(steps[-1]) or export(run)] if steps else [export(run)]
