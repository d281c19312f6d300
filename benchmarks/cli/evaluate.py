"""Commands from checkpoints to numbers and tables."""

from pathlib import Path
from typing import Annotated

import typer

from ..run.options import Options, Out, comma_list
from .options import split_arguments

Checkpoints = Annotated[list[Path] | None, typer.Argument(metavar="CKPT... [key=value...]", show_default=False)]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Task; a list `a,b` or repeated.")]


def run(
    checkpoints: Checkpoints = None,
    task: Tasks = None,
    *,
    options: Options,
    precision: Annotated[str | None, typer.Option("--precision", help="float32 or bf16 (recorded).")] = None,
    slurm: Annotated[
        str | None, typer.Option("--slurm", help="Submit as a job: `partition=gpu,nodes=2,gpus_per_node=8`.")
    ] = None,
):
    """Run checkpoints through tasks; each result becomes one record.

    The folder of a pretraining run stands for its newest checkpoint, which is exported if it is not yet.

    A models.yaml lists checkpoints, `- {path: a.pth, name: DINO, format: dino, heads: 6}`: paths from its folder, any
    field of the card, `weights`, `row`, or `zoo: NAME` for what `selfpatch zoo` knows. They are recorded as if by hand.

    A second run skips what is done, but takes a new `--name` or `--row` for it; an interrupted one goes on where it
    stopped. `key=value` sets a value of the protocol (it is recorded, and keeps the result out of the
    published columns).

    Tasks have flags of their own: `selfpatch run --task NAME --help`. `--task NAME:VARIANT` is a variant of a task.

    COCO and ADE20K (extra `mm`) are fine-tuned by the recipes of `mm_configs/`, in processes of their own. Their
    `key=value` are amp=off|fp16|bf16, batch=, per_gpu= (images of a step, and at once on a GPU), lr=, epochs=,
    iterations=, warmup=, workers=, blocks=2,5,8,11, pos_resize=, with_cp=true (less memory), classes=N (a set of your
    own), or any dotted key of the mm configuration.

    Examples:

        selfpatch run dino_deitsmall16_pretrain.pth --heads 6 --format dino --task davis --data /data/DAVIS

        selfpatch run a.pth b.pth --task davis --data davis2017=/data/DAVIS --limit 3 --pictures

        selfpatch run vit.pth --heads 3 --card mean=0.5 std=0.5 --task davis --data /data/DAVIS radius=6 frames=20

        selfpatch run runs/selfpatch --every 1000 --task davis --data /data/DAVIS

        selfpatch run --task davis --masks results/my_method --data /data/DAVIS

        selfpatch run --models models.yaml --task davis,knn --data davis2017=/data/DAVIS --data imagenet=/data/imagenet

        selfpatch run vit.pth --heads 6 --task coco_maskrcnn_1x --data /data/coco --gpus 8 --row 'DINO|ViT-S/16'

        selfpatch run a.pth --task coco_maskrcnn_1x,ade20k_semfpn_40k --data coco=/COCO --data ade20k=/ADE

        selfpatch run vit.pth --task ade20k_semfpn_40k --data /ADE --gpus 4 batch=16 --scale-lr blocks=1,3,5,7

        selfpatch run vit.pth --task coco_maskrcnn_1x --data /data/coco --eval-only fine_tuned/last.pth

        selfpatch run vit.pth --task coco_maskrcnn_1x --data /data/coco --slurm partition=gpu,nodes=2,gpus_per_node=4

        torchrun --no-python --nnodes 2 --nproc-per-node 4 selfpatch run vit.pth --task coco_maskrcnn_1x
    """
    paths, options.overrides = split_arguments(checkpoints)
    options.overrides += [f"precision={precision}"] if precision else []
    if slurm is not None:
        from ..run.slurm import submit

        submit(paths, comma_list(task), options, slurm)
        return 0
    from ..run.runner import run_command

    return run_command(paths, comma_list(task), options)


def compare(checkpoints: Checkpoints = None, task: Tasks = None, *, options: Options):
    """Run what is missing, then say how checkpoints differ and whether it is more than chance.

    Differences of protocol, network and data come first; then every metric beside the first checkpoint's, with the
    task's noise, and a test: Welch's over seeds, a sign-flip test over sequences (video), McNemar's over images
    (k-NN, linear). Fewer than six sequences or images are too few to tell.

    Examples:

        selfpatch compare a.pth b.pth --heads 6 --task davis --data /data/DAVIS

        selfpatch compare runs/baseline runs/selfpatch --task davis --data /data/DAVIS --limit 10

        selfpatch compare a.safetensors b.safetensors --task coco_maskrcnn_1x --data /data/coco --seed 0,1,2

        selfpatch compare --models models.yaml --task davis --data /data/DAVIS
    """
    from ..commands.compare import compare_command

    paths, options.overrides = split_arguments(checkpoints)
    return compare_command(paths, comma_list(task), options)


def table(
    out: Out = Path("results"),
    format: Annotated[list[str] | None, typer.Option("--format", help="md, csv, latex; a list or repeated.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Published source, or SOURCE:TABLE (`selfpatch ls published`).")
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="Only these tasks.")] = None,
    limited: Annotated[bool, typer.Option("--limited", help="Also show results of --limit runs, marked.")] = False,
):
    """Print the records as a table, beside published rows.

    Examples:

        selfpatch table

        selfpatch table --against selfpatch_poster --format md,latex

        selfpatch table --against 'dino_paper:Table 5' --task davis
    """
    from ..results.layout import table_command

    print(table_command(out, comma_list(format) or ["md"], against, comma_list(task) or None, limited), end="")
