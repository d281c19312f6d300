"""The face: `selfpatch COMMAND THING [--flag value] [key=value ...]`.

Nothing heavy is imported before a command runs, so that help is instant.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ...pretrain.common.errors import UserError
from .options import (
    CardFields,
    Checkpoints,
    DataRoots,
    Device,
    Format,
    Heads,
    Limit,
    ModelsFile,
    Out,
    Plugins,
    Seeds,
    Tasks,
    Weights,
    card_fields,
    comma_list,
    seed_list,
    spell_out_card,
    split_arguments,
    use_plugins,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Pretrain vision transformers with patch-level self-supervision, evaluate any checkpoint, "
    "and get the paper's table with your row in it.\n\n"
    "`selfpatch demo` shows the whole way on small data that it makes itself.",
)


PRETRAIN_EXAMPLES = """
Examples:

    selfpatch pretrain selfpatch --data IMAGENET/train --out runs/sp

    selfpatch pretrain selfpatch --data photos network.backbone=vit_tiny_patch16 loop.batch=8 loop.epochs=10

    selfpatch pretrain --resume runs/sp

    torchrun --no-python --nproc-per-node 8 selfpatch pretrain dino --data IMAGENET/train --out runs/dino
"""


@app.command(epilog=PRETRAIN_EXAMPLES)
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
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda; else a GPU if there is one.")] = None,
    slurm: Annotated[
        str | None, typer.Option("--slurm", help="Submit as a job: `partition=gpu,nodes=2,timeout_min=1440`.")
    ] = None,
    plugins: Plugins = None,
):
    """Pretrain a network by a recipe; the run's folder holds its configuration, checkpoints and log.

    A killed run goes on with `--resume` and ends with the weights of one that was never stopped: bit for bit on a CPU,
    up to the order of additions on GPUs. `key=value` sets a value of the recipe.
    """
    use_plugins(plugins)
    from ..commands.pretrain import pretrain_command

    names = [r for r in recipe or [] if "=" not in r]
    if len(names) > 1:
        raise UserError(f"one recipe at a time, not {' and '.join(names)}")
    values = [r for r in recipe or [] if "=" in r]
    raise typer.Exit(pretrain_command(names[0] if names else None, data, out, resume, values, device, seed, slurm))


ABLATE_EXAMPLES = """
Examples:

    selfpatch ablate selfpatch_poster --data COCO/train2017 --video /data/DAVIS --gpus 8

    selfpatch ablate selfpatch_poster --data photos --video DAVIS --quick --cells dino,baseline,selfpatch
"""


@app.command(epilog=ABLATE_EXAMPLES)
def ablate(
    ablation: Annotated[list[str], typer.Argument(metavar="NAME [key=value...]", help="`selfpatch ls ablations`.")],
    data: Annotated[str, typer.Option("--data", help="Images to pretrain on, as for `pretrain`.")],
    video: Annotated[str, typer.Option("--video", help="Root of DAVIS, to evaluate on.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of runs and records; else ablations/NAME.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few steps on small views: a look at the mechanics.")] = False,
    cells: Annotated[list[str] | None, typer.Option("--cells", help="Only these cells; a list or repeated.")] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Processes of each pretraining, one for a GPU.")] = 1,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda; else a GPU if there is one.")] = None,
    plugins: Plugins = None,
):
    """Pretrain and evaluate a grid of runs, and print a paper's ablation tables with its numbers beside ours.

    Every cell is a run of its own; the same command goes on where an earlier one stopped. `key=value` sets a value of
    every cell's recipe.
    """
    use_plugins(plugins)
    from ..commands.ablate import ablate_command

    names = [a for a in ablation if "=" not in a]
    if len(names) != 1:
        raise UserError(f"one ablation at a time, not {' and '.join(names) or 'none'}")
    [name], values = names, [a for a in ablation if "=" in a]
    folder = out or Path("ablations") / name
    status = ablate_command(name, data, video, folder, values, quick, comma_list(cells) or None, gpus, device)
    raise typer.Exit(status)


RUN_EXAMPLES = """
Examples:

    selfpatch run dino_deitsmall16_pretrain.pth --heads 6 --format dino --task davis --data /data/DAVIS

    selfpatch run a.pth b.pth --task davis --data davis2017=/data/DAVIS --limit 3 --pictures

    selfpatch run vit.pth --heads 3 --card mean=0.5 --card std=0.5 --task davis --data /data/DAVIS radius=6 frames=20

    selfpatch run runs/selfpatch --every 1000 --task davis --data /data/DAVIS

    selfpatch run --task davis --masks results/my_method --data /data/DAVIS

    selfpatch run --models models.yaml --task davis,knn --data davis2017=/data/DAVIS --data imagenet=/data/imagenet

    selfpatch run vit_small.pth --heads 6 --task coco_maskrcnn_1x --data /data/coco --gpus 8 --row 'DINO|ViT-S/16'

    selfpatch run a.pth b.pth --task coco_maskrcnn_1x,ade20k_semfpn_40k --data coco=/data/coco --data ade20k=/data/ADE

    selfpatch run vit.pth --task ade20k_semfpn_40k --data /data/ADE --gpus 4 batch=16 --scale-lr blocks=1,3,5,7

    selfpatch run vit.pth --task coco_maskrcnn_1x --data /data/coco --eval-only fine_tuned/last.pth

    selfpatch run vit.pth --task coco_maskrcnn_1x --data /data/coco --slurm partition=gpu,nodes=2,gpus_per_node=4

    torchrun --no-python --nnodes 2 --nproc-per-node 4 selfpatch run vit.pth --task coco_maskrcnn_1x
"""


@app.command(epilog=RUN_EXAMPLES)
def run(
    checkpoints: Checkpoints = None,
    task: Tasks = None,
    data: DataRoots = None,
    out: Out = Path("results"),
    heads: Heads = None,
    card: CardFields = None,
    format: Format = None,
    weights: Weights = None,
    name: Annotated[str | None, typer.Option("--name", help="Name in tables; else parent folder/stem.")] = None,
    row: Annotated[
        str | None,
        typer.Option("--row", help="Published row 'METHOD|BACKBONE' that it reproduces (checked), for differences."),
    ] = None,
    seed: Seeds = None,
    limit: Limit = None,
    device: Device = "auto",
    precision: Annotated[str | None, typer.Option("--precision", help="float32 or bf16 (recorded).")] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Score the masks in this folder (DIR/SEQUENCE/00000.png).")
    ] = None,
    list_file: Annotated[Path | None, typer.Option("--list", help="File of sequence names, for the set's own.")] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Contact sheets and animations as well.")] = False,
    rerun: Annotated[bool, typer.Option("--rerun", help="Add a record even if there is one.")] = False,
    every: Annotated[
        int | None,
        typer.Option("--every", min=1, help="Of a pretraining run, all kept checkpoints whose step is a multiple."),
    ] = None,
    gpus: Annotated[
        int, typer.Option("--gpus", min=1, help="Fine-tuning: processes, one for a GPU; the batch stays the recipe's.")
    ] = 1,
    scale_lr: Annotated[
        bool, typer.Option("--scale-lr", help="Fine-tuning with batch=N: learning rate in proportion to it (recorded).")
    ] = False,
    eval_only: Annotated[
        Path | None, typer.Option("--eval-only", help="Evaluate this fine-tuned model (.pth) instead of training.")
    ] = None,
    slurm: Annotated[
        str | None, typer.Option("--slurm", help="Submit as a job: `partition=gpu,nodes=2,gpus_per_node=8`.")
    ] = None,
    models: ModelsFile = None,
    plugins: Plugins = None,
):
    """Run checkpoints through tasks; each result becomes one record.

    The folder of a pretraining run stands for its newest checkpoint, which is exported if it is not yet.

    A models.yaml lists checkpoints, `- {path: a.pth, name: DINO, format: dino, heads: 6}`: paths from its folder, any
    field of the card, `weights`, `row`, or `zoo: NAME` for what `selfpatch zoo` knows. They are recorded as if by hand.

    A second run skips what is done, but takes a new `--name` or `--row` for it; an interrupted one goes on where it
    stopped. `key=value` sets a value of the protocol (it is recorded, and keeps the result out of the
    published columns).

    COCO and ADE20K (extra `mm`) are fine-tuned by the recipes of `mm_configs/`, in processes of their own. Their
    `key=value` are amp=off|fp16|bf16, batch=, per_gpu= (images of a step, and at once on a GPU), lr=, epochs=,
    iterations=, warmup=, workers=, blocks=2,5,8,11, pos_resize=, with_cp=true (less memory), classes=N (a set of your
    own), or any dotted key of the mm configuration.
    """
    use_plugins(plugins)
    from ..run.runner import Options, run_command

    paths, values = split_arguments(checkpoints)
    options = Options(
        data=data or [],
        out=out,
        card=card_fields(heads, card),
        format=format,
        weights=weights,
        name=name,
        row=row,
        seeds=seed_list(seed),
        limit=limit,
        device=device,
        masks=masks,
        list_file=list_file,
        pictures=pictures,
        rerun=rerun,
        every=every,
        gpus=gpus,
        scale_lr=scale_lr,
        eval_only=eval_only,
        models=models,
        overrides=values + ([f"precision={precision}"] if precision else []),
    )
    if slurm is not None:
        from ..run.slurm import submit

        raise typer.Exit(submit(paths, comma_list(task), options, slurm))
    try:
        raise typer.Exit(run_command(paths, comma_list(task), options))
    except KeyboardInterrupt:  # here, because typer turns it into a bare exit
        raise UserError("interrupted: the same command goes on from here", 130) from None


EXPORT_EXAMPLES = """
Examples:

    selfpatch export runs/selfpatch

    selfpatch export runs/selfpatch --step 5000 --out selfpatch.safetensors

    selfpatch export runs/selfpatch --format selfpatch
"""


@app.command(epilog=EXPORT_EXAMPLES)
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
    plugins: Plugins = None,
):
    """Write a run's network as one file for the evaluation: backbone, readout and card; or in an official layout."""
    use_plugins(plugins)
    from ..commands.export import export_command

    raise typer.Exit(export_command(run, out, format, step, which))


INSPECT_EXAMPLES = """
Examples:

    selfpatch inspect checkpoint.pth

    selfpatch inspect vit.safetensors --heads 6 --card mean=0.5 --card std=0.5
"""


@app.command(epilog=INSPECT_EXAMPLES)
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    heads: Heads = None,
    card: CardFields = None,
    format: Format = None,
    weights: Weights = None,
    plugins: Plugins = None,
):
    """Say what a checkpoint file is: format, card, accounting of every tensor, fingerprint."""
    use_plugins(plugins)
    from ..commands.inspect import report

    print(report(file, format, card_fields(heads, card), weights))


CONVERT_EXAMPLES = """
Examples:

    selfpatch convert mae_pretrain_vit_base.pth mae_b16.safetensors --heads 12

    selfpatch convert vit.pth vit.safetensors --heads 6 --card mean=0.5 --card std=0.5 --format timm

    selfpatch convert old_lab_file.pth net.safetensors --heads 6 --trust-pickle
"""


@app.command(epilog=CONVERT_EXAMPLES)
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors")],
    heads: Heads = None,
    card: CardFields = None,
    format: Format = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Unpickle without checks: RUNS whatever code the file holds.")
    ] = False,
    plugins: Plugins = None,
):
    """Write any checkpoint as one .safetensors with its card, which every command takes without more words."""
    use_plugins(plugins)
    from ..commands.convert import convert_command

    raise typer.Exit(convert_command(file, out, format, card_fields(heads, card), trust_pickle))


TABLE_EXAMPLES = """
Examples:

    selfpatch table

    selfpatch table --against selfpatch_poster --format md,latex

    selfpatch table --against 'dino_paper:Table 5' --task davis
"""


@app.command(epilog=TABLE_EXAMPLES)
def table(
    out: Out = Path("results"),
    format: Annotated[list[str] | None, typer.Option("--format", help="md, csv, latex; a list or repeated.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Published source, or SOURCE:TABLE (`selfpatch ls published`).")
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="Only these tasks.")] = None,
    limited: Annotated[bool, typer.Option("--limited", help="Also show results of --limit runs, marked.")] = False,
    plugins: Plugins = None,
):
    """Print the records as a table, beside published rows."""
    use_plugins(plugins)
    from ..results.layout import table_command

    print(table_command(out, comma_list(format) or ["md"], against, comma_list(task) or None, limited), end="")


COMPARE_EXAMPLES = """
Examples:

    selfpatch compare a.pth b.pth --heads 6 --task davis --data /data/DAVIS

    selfpatch compare runs/baseline runs/selfpatch --task davis --data /data/DAVIS --limit 10

    selfpatch compare a.safetensors b.safetensors --task coco_maskrcnn_1x --data /data/coco --seed 0,1,2

    selfpatch compare --models models.yaml --task davis --data /data/DAVIS
"""


@app.command(epilog=COMPARE_EXAMPLES)
def compare(
    checkpoints: Checkpoints = None,
    task: Tasks = None,
    data: DataRoots = None,
    out: Out = Path("results"),
    heads: Heads = None,
    card: CardFields = None,
    format: Format = None,
    weights: Weights = None,
    seed: Seeds = None,
    limit: Limit = None,
    device: Device = "auto",
    models: ModelsFile = None,
    plugins: Plugins = None,
):
    """Run what is missing, then say how checkpoints differ and whether it is more than chance.

    Differences of protocol, network and data come first; then every metric beside the first checkpoint's, with the
    task's noise, and a test: Welch's over seeds, a sign-flip test over sequences (video), McNemar's over images
    (k-NN, linear). Fewer than six sequences or images are too few to tell.
    """
    use_plugins(plugins)
    from ..commands.compare import compare_command
    from ..run.runner import Options

    paths, values = split_arguments(checkpoints)
    options = Options(
        data=data or [],
        out=out,
        card=card_fields(heads, card),
        format=format,
        weights=weights,
        seeds=seed_list(seed),
        limit=limit,
        device=device,
        models=models,
        overrides=values,
    )
    try:
        raise typer.Exit(compare_command(paths, comma_list(task), options))
    except KeyboardInterrupt:
        raise UserError("interrupted: the same command goes on from here", 130) from None


ZOO_EXAMPLES = """
Examples:

    selfpatch zoo

    selfpatch zoo dino_vits16 selfpatch_vits16

    selfpatch zoo fetch dino_vits16 mae_vitb16 --out checkpoints
"""


@app.command(epilog=ZOO_EXAMPLES)
def zoo(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[fetch] [NAME...]", help="None: all.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for what is fetched.")] = Path("checkpoints"),
    plugins: Plugins = None,
):
    """Public checkpoints: their authors' addresses, sizes and checksums, and what to tell `run` of them; fetch some.

    `fetch` goes on where it broke off, checks the file by all that is stated of it, and only then gives it its name; a
    file that was put there by hand is checked alike. Facts of a checked file are written to selfpatch-zoo.yaml beside
    it, where `run` finds them. Nothing is fetched by any other command.
    """
    use_plugins(plugins)
    if words and words[0] == "fetch":
        from ..hub.fetch import fetch_command

        try:
            raise typer.Exit(fetch_command(words[1:], out))
        except KeyboardInterrupt:
            raise UserError("interrupted: the same command goes on from here", 130) from None
    from ..hub.zoo import listing

    print(listing(words or []))


LS_EXAMPLES = """
Examples:

    selfpatch ls tasks

    selfpatch ls records --out results

    selfpatch ls formats --plugins ~/my_plugins
"""


@app.command("ls", epilog=LS_EXAMPLES)
def list_things(
    kind: Annotated[str, typer.Argument(metavar="tasks|formats|recipes|ablations|records|published")],
    out: Out = Path("results"),
    plugins: Plugins = None,
):
    """List tasks, checkpoint formats, pretraining recipes, records or published tables, and where each comes from."""
    use_plugins(plugins)
    from ..commands.ls import listing

    print(listing(kind, out))


DOCTOR_EXAMPLES = """
Examples:

    selfpatch doctor

    selfpatch doctor --data davis2017=/data/DAVIS --data coco=/data/coco
"""


@app.command(epilog=DOCTOR_EXAMPLES)
def doctor(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Data set to check, NAME=ROOT; may be repeated. Those in SELFPATCH_DATA are too."),
    ] = None,
    out: Out = Path("results"),
    plugins: Plugins = None,
):
    """Check Python, torch, CUDA, cv2, disk, optional parts and data; each failing line comes with its fix."""
    use_plugins(plugins)
    from ..commands.doctor import doctor_command

    raise typer.Exit(doctor_command(data or [], out))


DEMO_EXAMPLES = """
Examples:

    selfpatch demo

    selfpatch demo --out /tmp/demo

    selfpatch demo --full
"""


@app.command(epilog=DEMO_EXAMPLES)
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything it makes.")] = Path("runs/demo"),
    full: Annotated[
        bool, typer.Option("--full", help="COCO and ADE20K recipes at reduced size too (extra `mm`; 25 minutes).")
    ] = False,
):
    """Draw pictures and videos, pretrain briefly with and without the patch term, evaluate, print a table. Offline."""
    from ..commands.demo import demo_command

    raise typer.Exit(demo_command(out, full))


def main() -> None:
    """Console script: runs a command; a user's mistake is one line on stderr and a non-zero exit status."""
    try:
        app(args=spell_out_card(sys.argv[1:]))
    except UserError as error:
        print(f"{'' if error.status == 130 else 'error: '}{error}", file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {str(error.filename)[:80]}...: this name is too long for a file", file=sys.stderr)
        sys.exit(2)
