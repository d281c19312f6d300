"""`selfpatch demo`: the whole way on small data that it makes itself, offline.

Pictures of scenes, two short pretraining runs from the same initial weights (SelfPatch, and the same without its patch
term), videos of scenes with exact masks, and all networks on them, with what their differences say. Its numbers come
from these minutes and say nothing about networks trained on ImageNet for weeks.
"""

from pathlib import Path

import torch

from ...pretrain import train
from ...pretrain.checkpoint import Run
from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD, Card
from ...pretrain.common.processes import refuse_in_child
from ...pretrain.common.progress import line_console
from ...pretrain.common.weights import save_weights
from ...pretrain.config import Config, load_recipe
from ...pretrain.export import portable
from ...pretrain.step import Learner
from ...pretrain.train import absolute_paths
from ..backbones.encoder import Encoder
from ..results.layout import table_command
from ..results.record import DONE, Record, records
from ..results.render import markdown_table
from ..run.runner import Options, run_command
from ..synthetic.scenes import make_pictures, make_videos
from ..tasks.davis import TASK
from .compare import in_words, verdict_of
from .pretrain import HOOKS

PATCH = 8
PICTURES, STEPS = 320, 160
# Of a seed that no setting was chosen on. Gains differ so much from video to video that eight are too few to show one.
VIDEOS, DRAWING = 24, 2022
# Of the videos' frames. Patches of 8 pixels, some 50 on an object: on a coarser grid (patches of 16 at 240 pixels)
# gains differ more from video to video; on a finer one random weights do better (74 J&F at 240 pixels).
SIDE = 160
# The recipe, small enough for two cores: half the blocks of ViT-Ti, a quarter of the side of the views, few prototypes,
# and schedules for so few steps instead of hundreds of thousands. The crops are smaller parts of the pictures, so that
# objects are about as large in the views as in the frames. A centre that follows at once, a narrow bottleneck and a
# slower teacher keep the run from ending uniform: KL 0.2, rank 5.
SMALL = (
    "network.backbone=vit_tiny_patch8", "network.overrides.depth=6", "network.drop_path=0",
    "views.rows.0.size=56", "views.rows.0.scale=[0.1,0.6]", "views.rows.1.size=56", "views.rows.1.scale=[0.1,0.6]",
    "views.rows.2.size=24", "views.rows.2.scale=[0.03,0.15]", "views.rows.2.count=4", "objectives.dino.outputs=1024",
    "objectives.dino.hidden=512", "objectives.dino.bottleneck=64", "objectives.dino.centre_momentum=0.5",
    "objectives.selfpatch.outputs=512", "objectives.selfpatch.hidden=512", "objectives.selfpatch.bottleneck=64",
    "objectives.selfpatch.centre_momentum=0.5", "optim.freeze_epochs=0",
    "loop.batch=16", f"loop.steps={STEPS}", "loop.precision=float32", "loop.device=cpu", "data.workers=0",
    "schedule.lr=0.0005", "schedule.lr_batch=16", "schedule.warmup_epochs=1", "schedule.weight_decay_end=0.04",
    "schedule.ema=0.99", "log.every=10",
)  # fmt: skip
RUNS = {"baseline": 0.0, "selfpatch": 0.1}  # weight of the patch term
ALPHA = 0.05  # of a difference that is said to be shown


def configure(pictures: Path, weight: float) -> Config:
    """The demo's run with this weight of the patch term; the seed, and so the initial weights, are the same for all."""
    values = [*SMALL, f"objectives.selfpatch.weight={weight}"]
    cfg = load_recipe("selfpatch", values)
    cfg.data.path = str(pictures)
    return absolute_paths(cfg)


def random_network(path: Path, cfg: Config) -> None:
    """The network with which the runs start."""
    weights, card = portable(Learner(cfg).teacher.state_dict(), cfg)
    save_weights(path, weights, card, {"about": f"random initialisation, seed {cfg.seed}"})


def colour_baseline(path: Path, cells: int = 2) -> None:
    """A "network" whose patch tokens are the mean colours of cells x cells parts of the patch, and a constant.

    It is a ViT whose single block adds nothing, so that it takes the same way as any checkpoint.
    """
    dim, part = 3 * cells * cells + 1, PATCH // cells
    card = Card("vit", PATCH, dim, 1, 1, False, False, readout="mean", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    weights = {k: torch.zeros_like(v) for k, v in Encoder(card).vit.state_dict().items()}
    means = torch.kron(torch.eye(cells**2).view(-1, cells, cells), torch.full((part, part), 1 / part**2))
    for channel in range(3):  # the mean of each part [cells^2, 16, 16]
        weights["patch_embed.proj.weight"][channel * cells**2 : (channel + 1) * cells**2, channel] = means
    weights["patch_embed.proj.bias"][-1] = 1.0  # tells dark from bright, which a cosine alone would not
    save_weights(path, weights, card, {"about": "colour baseline"})


def scores(out: Path) -> dict[str, Record]:
    """Name of a model -> its newest record."""
    done = (r for r in records(out, "davis") if r.status == DONE)
    return {r.model.name: r for r in sorted(done, key=lambda r: r.created)}


def differences(found: dict[str, Record]) -> str:
    """J&F_m of every model minus that of the random weights, and of SelfPatch minus its baseline, in percentage points,
    with `compare`'s test of each. Where that shows no difference, neither is called better."""
    (metric,) = [m for m in TASK.metrics if m.name == "JF_m"]
    order = ("models/random", "models/colour", *(f"{run}/" for run in RUNS))
    names = [name for start in order for name in found if name.startswith(start)]
    pairs = [(names[0], name) for name in names[1:]]
    if len(names) == len(order):
        pairs.append((names[2], names[3]))
    rows, unclear = [], []
    for one, other in pairs:
        a, b = found[one], found[other]
        gap, verdict = b.metrics["JF_m"] - a.metrics["JF_m"], verdict_of([a], [b], "JF_m")
        rows.append([f"{other} - {one}", f"{gap:+.1f}", in_words(gap, metric, verdict)])
        if verdict is None or verdict.p is None or verdict.p >= ALPHA:
            unclear.append(f"{other} and {one}: no difference is shown, in either direction")
    return "\n".join([*markdown_table(["difference", "J&F_m", "what it says"], rows), "", *unclear])


def demo_command(out: Path, full: bool = False) -> int:
    """Make the data, pretrain, evaluate, print the table and where everything lies; -> exit status.

    What is there already is not made again; an interrupted demo goes on. full: COCO and ADE20K as well (demo_full.py).
    """
    refuse_in_child()
    console = line_console()
    if full:
        from ..mm.ops import require

        require()
    data = make_videos(out / "videos", sequences=VIDEOS, seed=DRAWING)
    pictures = make_pictures(out / "pictures", PICTURES)
    console.print(f"videos with exact masks: {data}\npictures to train on: {pictures}")
    models = out / "models"
    models.mkdir(parents=True, exist_ok=True)
    random_network(models / "random.safetensors", configure(pictures, 0.0))
    colour_baseline(models / "colour.safetensors")
    files = [str(models / f"{name}.safetensors") for name in ("random", "colour")]
    for name, weight in RUNS.items():
        console.print(f"pretraining {name}: weight of the patch term {weight}, {STEPS} steps")
        run = Run(out / "runs" / name)
        if status := train.run(configure(pictures, weight), run.folder, run.config_file.is_file(), HOOKS):
            return status
        files.append(str(run.folder))
    options = Options(data=[str(data)], out=out, own={"pictures": True}, overrides=[f"size={SIDE}"])
    status = run_command(files, ["davis"], options)
    if full:
        from .demo_full import full as evaluate_all

        status |= evaluate_all(out, [files[0], files[-1]])  # random weights, and SelfPatch's
    console.print()
    print(table_command(out, ["md"], None, None, False))
    print(differences(scores(out)))
    console.print(
        "\nbaseline: the same network, views and steps without the patch term. Each is a single short run: what is\n"
        "said of their difference is said of these two networks, not of the methods"
    )
    for what, where in (
        ("records", out / "records"),
        ("masks", f"{out / 'artifacts'}/davis/KEY/masks"),
        ("pictures", f"{out / 'artifacts'}/davis/KEY/pictures"),
        ("runs", f"{out / 'runs'} (configuration, log.jsonl, checkpoints, exports)"),
    ):
        console.print(f"{what:<9} {where}")
    return status
