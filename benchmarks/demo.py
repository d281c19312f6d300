"""`selfpatch demo`: the whole way on small data that it makes itself, offline."""

from pathlib import Path

import torch
from rich.console import Console

from .card import IMAGENET_MEAN, IMAGENET_STD, Card
from .encoder import Encoder
from .formats.selfpatch_bench import write
from .runner import Options, run_command
from .scenes import make_videos
from .tables import table_command

PATCH = 16


def random_network(path: Path, seed: int = 0) -> None:
    """A SelfPatch ViT-Ti/16 as it is before any training."""
    card = Card(
        "vit", PATCH, 192, 12, 3, False, False, readout="class_attention", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(card)
    weights = dict(encoder.vit.state_dict()) | {f"readout.{k}": v for k, v in encoder.readout.state_dict().items()}
    write(path, weights, card, {"about": f"random initialisation, seed {seed}"})


def colour_baseline(path: Path, cells: int = 2) -> None:
    """A "network" whose patch tokens are the mean colours of cells x cells parts of the patch, and a constant.

    It is a ViT whose single block adds nothing, so that it takes the same way as any checkpoint.
    """
    dim, part = 3 * cells * cells + 1, PATCH // cells
    card = Card("vit", PATCH, dim, 1, 1, False, False, readout="mean", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    weights = {k: torch.zeros_like(v) for k, v in Encoder(card).vit.state_dict().items()}
    kernel = weights["patch_embed.proj.weight"]
    for channel in range(3):
        for row in range(cells):
            for column in range(cells):
                to = (channel * cells + row) * cells + column
                rows, columns = (slice(i * part, (i + 1) * part) for i in (row, column))
                kernel[to, channel, rows, columns] = 1 / part**2
    weights["patch_embed.proj.bias"][-1] = 1.0  # tells dark from bright, which a cosine alone would not
    write(path, weights, card, {"about": "colour baseline"})


def demo_command(out: Path) -> int:
    """Make the data and the two networks, evaluate, print the table and where everything lies."""
    console = Console()
    data = make_videos(out / "videos")
    models = out / "models"
    models.mkdir(parents=True, exist_ok=True)
    random_network(models / "random.safetensors")
    colour_baseline(models / "colour.safetensors")
    console.print(f"videos with exact masks: {data}", highlight=False)
    options = Options(data=[str(data)], out=out, pictures=True)
    files = [str(models / f"{name}.safetensors") for name in ("random", "colour")]
    status = run_command(files, ["davis"], options)
    console.print()
    print(table_command(out, ["md"], None, None, False))
    console.print(f"records   {out / 'records'}\nmasks     {out / 'artifacts'}/davis/KEY/masks", highlight=False)
    console.print(f"pictures  {out / 'artifacts'}/davis/KEY/pictures", highlight=False)
    return status
