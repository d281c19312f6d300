"""Commands from images to checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from ...pretrain.common.errors import UserError
from ...pretrain.common.keyvalue import split
from ..run.options import comma_list

Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda; else a GPU if there is one.")]


def one_name(words: list[str] | None, what: str) -> tuple[str | None, list[str]]:
    """Words of the command line -> the one name among them, if any, and `key=value`. Raises UserError for several."""
    names = [word for word in words or [] if not split(word)]
    if len(names) > 1:
        raise UserError(f"one {what} at a time, not {' and '.join(names)}")
    return (names or [None])[0], [word for word in words or [] if split(word)]


def pretrain(
    recipe: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE] [key=value...]", help="`selfpatch ls recipes`.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Images: class folders, a flat folder, a list file, or tar shards.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; else runs/RECIPE.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of weights and views.")] = None,
    device: Device = None,
    slurm: Annotated[
        str | None, typer.Option("--slurm", help="Submit as a job: `partition=gpu,nodes=2,timeout_min=1440`.")
    ] = None,
):
    """Pretrain a network by a recipe; the run's folder holds its configuration, checkpoints and log.

    A killed run goes on with `--resume` and ends with the weights of one that was never stopped: bit for bit on a CPU,
    up to the order of additions on GPUs. `key=value` sets a value of the recipe.

    Examples:

        selfpatch pretrain selfpatch --data IMAGENET/train --out runs/sp

        selfpatch pretrain selfpatch --data photos network.backbone=vit_tiny_patch16 loop.batch=8 loop.epochs=10

        selfpatch pretrain --resume runs/sp

        torchrun --no-python --nproc-per-node 8 selfpatch pretrain dino --data IMAGENET/train --out runs/dino
    """
    from ..commands.pretrain import pretrain_command

    name, values = one_name(recipe, "recipe")
    return pretrain_command(name, data, out, resume, values, device, seed, slurm)


def show(
    recipe: Annotated[list[str], typer.Argument(metavar="RECIPE [key=value...]", help="`selfpatch ls recipes`.")],
    data: Annotated[str | None, typer.Option("--data", help="Images to count, as for `pretrain`.")] = None,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Their number, if they are not here.")] = None,
):
    """Print a recipe as a run would take it: every option with its comment, as yaml that `pretrain` reads back.

    Below stand the steps of the run and of its warm-up, its parameters, its views, and the images of a step. Nothing is
    trained or written.

    Examples:

        selfpatch show selfpatch

        selfpatch show selfpatch --images 1281167 loop.batch=512 loop.epochs=200

        selfpatch show dino --data IMAGENET/train network.backbone=vit_base_patch16
    """
    from ..commands.show import show as resolved

    name, values = one_name(recipe, "recipe")
    if name is None:
        raise UserError("give a recipe (`selfpatch ls recipes`)")
    print(resolved(name, values, data, images))


def ablate(
    ablation: Annotated[list[str], typer.Argument(metavar="NAME [key=value...]", help="`selfpatch ls ablations`.")],
    data: Annotated[str, typer.Option("--data", help="Images to pretrain on, as for `pretrain`.")],
    video: Annotated[str, typer.Option("--video", help="Root of DAVIS, to evaluate on.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of runs and records; else ablations/NAME.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few steps on small views: a look at the mechanics.")] = False,
    cells: Annotated[list[str] | None, typer.Option("--cells", help="Only these cells; a list or repeated.")] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Processes of each pretraining, one for a GPU.")] = 1,
    device: Device = None,
):
    """Pretrain and evaluate a grid of runs, and print a paper's ablation tables with its numbers beside ours.

    Every cell is a run of its own; the same command goes on where an earlier one stopped. `key=value` sets a value of
    every cell's recipe.

    Examples:

        selfpatch ablate selfpatch_poster --data COCO/train2017 --video /data/DAVIS --gpus 8

        selfpatch ablate selfpatch_poster --data photos --video DAVIS --quick --cells dino,baseline,selfpatch
    """
    from ..commands.ablate import ablate_command

    name, values = one_name(ablation, "ablation")
    if name is None:
        raise UserError("one ablation at a time, not none")
    folder = out or Path("ablations") / name
    return ablate_command(name, data, video, folder, values, quick, comma_list(cells) or None, gpus, device)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a pretraining run.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File; else RUN/exports/step-N.safetensors.", show_default=False),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Layout of an official code base: selfpatch or dino (.pth).")
    ] = None,
    step: Annotated[int | None, typer.Option("--step", help="Of which checkpoint; else the newest.")] = None,
    which: Annotated[
        str | None, typer.Option("--which", help="teacher or student; else the one that its method is evaluated by.")
    ] = None,
):
    """Write a run's network as one file for the evaluation: backbone, readout and card; or in an official layout.

    Examples:

        selfpatch export runs/selfpatch

        selfpatch export runs/selfpatch --step 5000 --out selfpatch.safetensors

        selfpatch export runs/selfpatch --format selfpatch
    """
    from ..commands.export import export_command

    return export_command(run, format, out=out, step=step, which=which)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything it makes.")] = Path("runs/demo"),
    full: Annotated[
        bool, typer.Option("--full", help="COCO and ADE20K recipes at reduced size too (extra `mm`; 25 minutes).")
    ] = False,
):
    """Draw pictures and videos, pretrain briefly with and without the patch term, evaluate, print a table. Offline.

    Examples:

        selfpatch demo

        selfpatch demo --out /tmp/demo

        selfpatch demo --full
    """
    from ..commands.demo import demo_command

    return demo_command(out, full)
