"""The options of a run: a dataclass for each section, and above each field what it means (see `comments`)."""

import inspect
import re
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from .common.card import POSITION_RULES
from .common.ranges import bounded, one_of
from .data.views import PIXELS, Views

STEPS = 10**8  # of a run: its schedules are tables


@dataclass
class Data:
    """The images; mean and std are ImageNet's."""

    # Images to train on: class folders, a flat folder, a list file or tar shards.
    path: str | None = None
    # Where the paths of a list file start.
    root: str | None = None
    # Mean of red, green and blue that the pixels are normalised by, in 0..1.
    mean: tuple[float, float, float] = bounded((0.485, 0.456, 0.406), at_least=0, at_most=1)
    # Standard deviation of red, green and blue, in 0..1.
    std: tuple[float, float, float] = bounded((0.229, 0.224, 0.225), above=0, at_most=1)
    # Processes that make views, for each training process (null: as many as there are cores for each).
    workers: int | None = bounded(None, at_least=0, at_most=1024)
    # Micro-batches that each worker makes ahead.
    prefetch: int = bounded(2, at_least=1, at_most=1024)


@dataclass
class Network:
    """Backbone and readout of student and teacher."""

    # vit_{tiny,small,base,large}_patchP, swin_{tiny,small,base,large}, or any ViT or Swin of timm.
    backbone: str = "vit_small_patch16"
    # Whether the backbone has a class token (null: as the architecture has it).
    class_token: bool | None = None
    # What the image vector is read from: token | class_attention | mean.
    readout: str = one_of("token", "class_attention", "mean")
    # Blocks of class attention.
    readout_depth: int = bounded(2, at_least=1, at_most=100)
    # Largest rate of stochastic depth of the student (DINO's).
    drop_path: float = bounded(0.1, at_least=0, below=1)
    # The same of the teacher.
    teacher_drop_path: float = bounded(0.0, at_least=0, below=1)
    # How positions are resized for views of other sizes: a rule of common/card.py, POSITION_RULES.
    positions: str = one_of(*POSITION_RULES)
    # Pixels of the image whose patch grid the stored positions have (null: that of the global views).
    image_size: int | None = bounded(None, at_least=1, at_most=PIXELS)
    # Arguments of timm's constructor.
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class ObjectiveEntry:
    """One objective. In a recipe name, weight and options stand side by side: {name: selfpatch, weight: 0.1, k: 4}."""

    # Name of the plug-in.
    name: str
    # Factor of its loss in the sum; 0 leaves it and its heads out.
    weight: float = bounded(1.0, at_least=0, at_most=10**6)
    # Options of the objective: its own Config.
    options: Any = None


@dataclass
class Optim:
    """AdamW; clipping and freezing are DINO's."""

    # Decay rates of AdamW's two moments.
    betas: tuple[float, float] = bounded((0.9, 0.999), at_least=0, below=1)
    # What AdamW adds to the denominator.
    eps: float = bounded(1e-8, above=0)
    # Largest L2 norm of a gradient (null: none).
    clip: float | None = bounded(3.0, above=0)
    # Of which the norm is: of every tensor (per_tensor), or of all gradients together (global).
    clip_mode: str = one_of("per_tensor", "global")
    # Also decay biases; other 1-D weights are never decayed.
    decay_biases: bool = False
    # Parameters whose name contains one of these are not decayed.
    no_decay: list[str] = field(default_factory=list)
    # Parameters whose name contains one of these get no update in the first epochs.
    freeze: list[str] = field(default_factory=lambda: ["last_layer"])
    # How many epochs these are.
    freeze_epochs: int = bounded(1, at_least=0)


@dataclass
class Schedule:
    """What changes from step to step; the defaults are DINO's."""

    # Peak learning rate for a batch of lr_batch images, scaled in proportion to the batch.
    lr: float = bounded(5e-4, at_least=0, at_most=1000)
    # Images of the batch that lr is given for.
    lr_batch: int = bounded(256, at_least=1, at_most=10**9)
    # Learning rate at the end.
    min_lr: float = bounded(1e-6, at_least=0, at_most=1000)
    # Scale min_lr and warmup_lr with the batch, too.
    scale_min_lr: bool = False
    # Epochs of the linear warm-up.
    warmup_epochs: float = bounded(10.0, at_least=0)
    # Learning rate that the warm-up starts from.
    warmup_lr: float = bounded(0.0, at_least=0, at_most=1000)
    # dino: the cosine follows the warm-up | timm: it began with the run, and every value is used one step late.
    lr_rule: str = one_of("dino", "timm")
    # Weight decay at the start.
    weight_decay: float = bounded(0.04, at_least=0, at_most=1000)
    # Weight decay at the end, reached along a cosine.
    weight_decay_end: float = bounded(0.4, at_least=0, at_most=1000)
    # EMA momentum of the teacher at the start.
    ema: float = bounded(0.996, at_least=0, at_most=1)
    # EMA momentum at the end, reached along a cosine.
    ema_end: float = bounded(1.0, at_least=0, at_most=1)
    # The momentum is that of so many steps later (1: an update before the next forward pass).
    ema_shift: int = bounded(0, at_least=0, at_most=1000)


@dataclass
class Loop:
    """Length, batch and device."""

    # Passes over the images.
    epochs: int = bounded(100, at_least=1, at_most=STEPS)
    # Optimiser steps, in place of epochs; the schedules span these.
    steps: int | None = bounded(None, at_least=1, at_most=STEPS)
    # Images of an optimiser step, over all processes and micro-steps.
    batch: int = bounded(1024, at_least=1, at_most=10**9)
    # Images that a process holds at once, at most: the fewest equal micro-steps are made that stay below.
    per_gpu: int = bounded(64, at_least=1, at_most=10**9)
    # Micro-steps of an optimiser step, in place of those that follow from per_gpu (null).
    accumulation: int | None = bounded(None, at_least=1, at_most=10**9)
    # auto (bf16 on a GPU or processor that multiplies in it, else float32) | float32 | bf16 | fp16 | float64.
    precision: str = one_of("auto", "float32", "bf16", "fp16", "float64")
    # What a GPU's matrix products of float32 are: highest (float32, as the official code's) | high (TensorFloat-32).
    matmul: str = one_of("highest", "high")
    # auto (a GPU if there is one) | cpu | cuda | cuda:N.
    device: str = "auto"
    # Compile blocks, heads and losses (torch.compile).
    compile: bool = False
    # Use torch's fused attention (null: whichever is faster).
    fused_attention: bool | None = None
    # Compute what is inside the student's blocks a second time for the gradient, to keep less: same numbers, slower.
    checkpointing: bool = False
    # Have a GPU add in the same order each time, so that a resumed run equals an unbroken one there too; slower.
    deterministic: bool = False


@dataclass
class Saving:
    """The run's stored states."""

    # Optimiser steps between two saved states (null: only at the end of epochs).
    every_steps: int | None = bounded(None, at_least=1)
    # The state after every so many epochs is kept beside the newest two (0: none is).
    keep_every: int = bounded(20, at_least=0)
    # The network that the method is evaluated by: teacher | student.
    export: str = one_of("teacher", "student")


@dataclass
class Log:
    """The run's log."""

    # Optimiser steps between two lines.
    every: int = bounded(10, at_least=1)
    # Also write event files for TensorBoard.
    tensorboard: bool = False


@dataclass
class Watch:
    """Evaluation of the running network (checkpoint.export); it changes nothing of the training."""

    # Epochs between two evaluations; there is one at the end, too (null: none at all).
    every: int | None = bounded(None, at_least=1)
    # Folder of labelled images for k-NN: train/ and val/ with a folder for each class.
    knn: str | None = None
    # Images of each of the two, taken from the classes in turn (null: all).
    knn_images: int | None = bounded(None, at_least=1)
    # Folder in the DAVIS layout.
    davis: str | None = None
    # Its first sequences that are evaluated.
    sequences: int = bounded(2, at_least=1)
    # Frames of each (null: all).
    frames: int | None = bounded(None, at_least=1)
    # Pixels of the shorter side of the frames.
    davis_size: int = bounded(480, at_least=1, at_most=PIXELS)
    # Images whose patch similarity and attention are drawn.
    pictures: int = bounded(4, at_least=0)
    # Folder whose first images these are (null: the training images).
    images: str | None = None
    # Pixels of the squares that the network sees of them and of the images for k-NN.
    size: int = bounded(224, at_least=1, at_most=PIXELS)


@dataclass
class Config:
    """A run."""

    # Name of the recipe.
    recipe: str = ""
    # Seed of views, initial weights and stochastic depth.
    seed: int = bounded(0, at_least=0, below=2**63)
    # Checkpoint to start from.
    init: str | None = None
    # Its format, where the file could be of several.
    init_format: str | None = None
    data: Data = field(default_factory=Data)
    views: Views = field(default_factory=Views)
    network: Network = field(default_factory=Network)
    # What is minimised: the weighted sum of the losses of these.
    objectives: list[Any] = field(default_factory=list)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    loop: Loop = field(default_factory=Loop)
    checkpoint: Saving = field(default_factory=Saving)
    log: Log = field(default_factory=Log)
    watch: Watch = field(default_factory=Watch)


def comments(section: type) -> dict[str, str]:
    """What the options of a dataclass mean: field -> the comment above it in the source, its own or a base's."""
    found: dict[str, str] = {}
    for owner in reversed([c for c in section.__mro__ if is_dataclass(c)]):
        above: list[str] = []
        for line in map(str.strip, inspect.getsource(owner).splitlines()):
            if line.startswith("#"):
                above.append(line.lstrip("# "))
                continue
            if above and (name := re.match(r"(\w+):", line)):
                found[name[1]] = " ".join(above)
            above = []
    return found
