"""Commands that look at checkpoints, public and one's own, and at what there is."""

from pathlib import Path
from typing import Annotated

import typer

from ..run.options import CardFields, Format, Heads, Out, Part, Weights, with_heads


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    heads: Heads = None,
    card: CardFields = None,
    format: Format = None,
    weights: Weights = None,
    part: Part = None,
):
    """Say what a checkpoint file is: format, card, accounting of every tensor, fingerprint.

    Examples:

        selfpatch inspect checkpoint.pth

        selfpatch inspect vit.safetensors --heads 6 --card mean=0.5 --card std=0.5
    """
    from ..commands.inspect import report

    print(report(file, format, with_heads(card, heads), weights, part))


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors")],
    heads: Heads = None,
    card: CardFields = None,
    format: Format = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Unpickle without checks: RUNS whatever code the file holds.")
    ] = False,
):
    """Write any checkpoint as one .safetensors with its card, which every command takes without more words.

    Examples:

        selfpatch convert mae_pretrain_vit_base.pth mae_b16.safetensors --heads 12

        selfpatch convert vit.pth vit.safetensors --heads 6 --card mean=0.5 --card std=0.5 --format timm

        selfpatch convert old_lab_file.pth net.safetensors --heads 6 --trust-pickle
    """
    from ..commands.convert import convert_command

    return convert_command(file, out, format, with_heads(card, heads), trust_pickle)


def zoo(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[fetch] [NAME...]", help="None: all.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for what is fetched.")] = Path("checkpoints"),
):
    """Public checkpoints: their authors' addresses, sizes and checksums, and what to tell `run` of them; fetch some.

    `fetch` goes on where it broke off, checks the file by all that is stated of it, and only then gives it its name; a
    file that was put there by hand is checked alike. Facts of a checked file are written to selfpatch-zoo.yaml beside
    it, where `run` finds them. Nothing is fetched by any other command.

    Examples:

        selfpatch zoo

        selfpatch zoo dino_vits16 selfpatch_vits16

        selfpatch zoo fetch dino_vits16 mae_vitb16 --out checkpoints
    """
    if words and words[0] == "fetch":
        from ..hub.fetch import fetch_command

        return fetch_command(words[1:], out)
    from ..hub.zoo import listing

    print(listing(words or []))


def ls(
    thing: Annotated[str, typer.Argument(metavar="tasks|formats|backbones|recipes|ablations|records|published")],
    out: Out = Path("results"),
):
    """List tasks, checkpoint formats, networks of your own, recipes, records or published tables, and their places.

    Examples:

        selfpatch ls tasks

        selfpatch ls records --out results

        selfpatch ls formats --plugins ~/my_plugins
    """
    from ..commands.ls import listing

    print(listing(thing, out))


def doctor(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Data set to check, NAME=ROOT; may be repeated. Those in SELFPATCH_DATA are too."),
    ] = None,
    out: Out = Path("results"),
):
    """Check Python, torch, CUDA, cv2, disk, optional parts and data; each failing line comes with its fix.

    Examples:

        selfpatch doctor

        selfpatch doctor --data davis2017=/data/DAVIS --data coco=/data/coco
    """
    from ..commands.doctor import doctor_command

    return doctor_command(data or [], out)
