"""From a checkpoint of a run to a file for the evaluation (`selfpatch export`), ours or of an official code base."""

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..benchmarks.backbones.encoder import Encoder, encoder_for
from ..benchmarks.checkpoints.open import fingerprint, names, open_checkpoint
from ..benchmarks.formats import selfpatch_bench
from ..benchmarks.formats._conv import swin_card
from .checkpoint import Run, read
from .common.atomic import replacing
from .common.card import ARCHITECTURES, Card, vit_card
from .common.errors import UserError
from .config import Config, from_dict
from .model.backbone import build_backbone
from .model.swin import Swin

ENDINGS = {"teacher": "safetensors", "student": "student.safetensors"}
OFFICIAL = ("selfpatch", "dino")


def portable(state: Mapping[str, Tensor], cfg: Config) -> tuple[dict[str, Tensor], Card]:
    """State dict of a `Network` and its configuration -> weights as the encoder names them, float32, and their card.

    Backbone and readout stay; heads and the token for masked patches, which belong to training, are left out. Raises
    UserError for a network that the encoder does not know.
    """
    size = cfg.network.image_size or cfg.views.specs()[cfg.views.groups()[0][0]].size
    with torch.device("meta"):  # states heads and eps, which weights never do
        plan = build_backbone(
            cfg.network.backbone, size, cfg.network.class_token, overrides=dict(cfg.network.overrides)
        )
    weights = {}
    for key, value in state.items():
        part, _, name = key.partition(".")
        if part == "backbone" and name != "masked_embed":
            weights[name] = value.float()
        elif part == "readout":  # of a token's readout, all there is is the ViT's own final norm
            weights[key if cfg.network.readout == "class_attention" else name] = value.float()
    act = plan.blocks[0].mlp.act
    known = {
        "norm_eps": plan.final_eps,
        "act": "gelu (erf)" if type(act) is nn.GELU and act.approximate == "none" else str(act),
        "readout": cfg.network.readout,
        "mean": tuple(cfg.data.mean),
        "std": tuple(cfg.data.std),
    }
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    try:
        if isinstance(plan, Swin):
            card = swin_card(shapes, **known)
        else:
            card = vit_card(shapes, heads=plan.blocks[0].attn.num_heads, pos_resize=cfg.network.positions, **known)
    except UserError as error:
        raise UserError(f"network.backbone={cfg.network.backbone}: the encoder has no such network: {error}") from None
    with torch.device("meta"):
        wanted = encoder_for(card).named_shapes()
    other = [k for k in wanted.keys() | weights.keys() if k not in weights or wanted.get(k) != tuple(weights[k].shape)]
    if other:
        raise UserError(
            f"network.backbone={cfg.network.backbone} with readout={cfg.network.readout} and "
            f"readout_depth={cfg.network.readout_depth}: the encoder has no such network; what differs: {names(other)}"
        )
    return weights, card


def encoder_of(state: Mapping[str, Tensor], cfg: Config) -> Encoder:
    """State dict of a `Network` and its configuration -> what `load` would make of its export, without the file.

    On the device of the weights, which are copied: training may go on. Raises UserError as `portable` does.
    """
    weights, card = portable(state, cfg)
    with torch.device("meta"):
        encoder = encoder_for(card)
    encoder.assign({k: v.detach().clone() for k, v in weights.items()})
    encoder.fingerprint = fingerprint(weights)
    return encoder


def export(
    run: Path, out: Path | None = None, format: str | None = None, step: int | None = None, which: str | None = None
) -> Path:
    """Write the network of a run's checkpoint to one file; -> its path.

    out: the file; by default RUN/exports/step-XXXXXXXX.safetensors (student: step-XXXXXXXX.student.safetensors;
    official layouts: step-XXXXXXXX.FORMAT.pth), where an export that is there already is taken as it is. format: None,
    ours, or the layout of an official code base, `selfpatch` or `dino`, which holds both networks, heads and centres.
    step: of which checkpoint; None: the newest. which: teacher or student; None: the one that the recipe's method is
    evaluated by (checkpoint.export). Raises UserError, and leaves nothing half written.
    """
    run = Path(run)
    if format not in (None, *OFFICIAL):
        raise UserError(f"--format {format}: it is {' or '.join(OFFICIAL)}, or none for our own .safetensors")
    if which not in (None, *ENDINGS):
        raise UserError(f"--which {which}: it is {' or '.join(ENDINGS)}")
    if format and which not in (None, "teacher"):
        raise UserError(f"--which {which}: the layout of {format} holds both networks, so leave it away")
    folder = Run(run)
    steps = checkpoints(folder)
    which = which or usual_side(folder)
    ending = f"{format}.pth" if format else ENDINGS[which]
    if step is not None and step not in steps:
        raise UserError(f"--step {step}: {run} has checkpoints of the steps {', '.join(map(str, steps))}")
    number = max(steps) if step is None else step
    if out is None and (there := run / "exports" / f"step-{number:08d}.{ending}").is_file():
        return there
    # The newest may be damaged: then the one before it counts, as when the run is resumed.
    state = folder.newest()[1] if step is None else read(steps[step])
    path = Path(out) if out else run / "exports" / f"step-{state['step']:08d}.{ending}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} cannot be made: {error.strerror or error}") from None
    cfg = from_dict(state["config"], (), f"{run}: checkpoint of step {state['step']}")
    if format:
        _write_official(path, state, cfg, format)
    else:
        weights, card = portable(state[which], cfg)
        about = {"recipe": cfg.recipe, "seed": cfg.seed, "step": state["step"], "epoch": state["epoch"], "which": which}
        selfpatch_bench.write(path, weights, card, about)
    return path


def checkpoints(folder: Run) -> dict[int, Path]:
    """Checkpoints by step, at least one. Raises UserError."""
    if not folder.config_file.is_file():
        raise UserError(f"{folder.folder}: no pretraining run is there (it would have a config.yaml)")
    if not (found := folder.steps()):
        raise UserError(f"{folder.folder}: the run has no checkpoint yet")
    return found


def usual_side(folder: Run) -> str:
    """The network that a run is evaluated by."""
    return folder.config([]).checkpoint.export if folder.config_file.is_file() else "teacher"


def exports(run: Path, every: int | None = None) -> list[Path]:
    """Files that stand for a run in an evaluation: the export of its newest checkpoint, or of every one whose step is a
    multiple of `every`, oldest first; what is not exported yet is exported. Raises UserError if there is none."""
    run = Path(run)
    name = re.compile(r"step-(\d{8,})\." + re.escape(ENDINGS[usual_side(Run(run))]))
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


# ---------------------------------------------------------------------------------------------- official layouts
def _write_official(path: Path, state: dict, cfg: Config, format: str) -> None:
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


def export_command(
    run: Path, out: Path | None = None, format: str | None = None, step: int | None = None, which: str | None = None
) -> int:
    """`selfpatch export`: see `export`. Says what the file is; -> exit status."""
    path = export(run, out, format, step, which)
    found = open_checkpoint(path, format=format)
    print(f"{path}: format {found.reading.format}, {found.accounting}")
    return 0
