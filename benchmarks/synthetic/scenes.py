"""Videos in DAVIS's layout and still pictures, drawn from scenes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...pretrain.common.errors import UserError
from ..datasets.masks import write_mask
from .drawing import THINGS, Scene, covered, draw_scene
from .folders import draw_once, in_parallel, save_jpeg


def make_videos(
    root: Path | str,
    sequences: int = 3,
    frames: int = 10,
    size: tuple[int, int] = (240, 427),
    seed: int = 0,
    objects: int | Sequence[int] | None = None,
) -> Path:
    """Draw a data set in the DAVIS-2017 layout and return its root; nothing is redone where it already is.

    size is (H, W); objects is their number in every sequence, or a list that is gone through again and again (default
    2, 1, 2: two sequences of three have two). Every second sequence has an object in the colours of its ground. In the
    first frame every object is seen; ids follow depth, the highest in front. UserError: a folder with other files.
    """
    counts = [objects] if isinstance(objects, int) else list(objects or (2, 1, 2))

    def draw(folder: Path) -> None:
        def one(i: int) -> str:
            scene = _opening(seed, i, size, frames, counts[i % len(counts)])
            name = f"{THINGS[scene.things[-1].class_id].replace(' ', '-')}-{i:02d}"
            for t in range(frames):
                frame = scene.frame(t)
                save_jpeg(folder / "JPEGImages/480p" / name / f"{t:05d}.jpg", frame.picture)
                write_mask(folder / "Annotations/480p" / name / f"{t:05d}.png", frame.labels)
            return name

        names = in_parallel(one, sequences)
        listing = folder / "ImageSets/2017/val.txt"
        listing.parent.mkdir(parents=True)
        listing.write_text("".join(f"{name}\n" for name in names))

    what = {"videos": sequences, "frames": frames, "size": list(size), "seed": seed, "objects": counts}
    return draw_once(root, what, draw)


def _opening(seed: int, i: int, size: tuple[int, int], frames: int, objects: int) -> Scene:
    """The first scene of a series whose first frame shows at least half of every object."""
    for attempt in range(20):
        scene = draw_scene((seed, 0, i, attempt), size, frames, objects, camouflage=i % 2 == 1)
        labels, (h, w) = scene.frame(0).labels, size
        seen = np.bincount(labels.ravel(), minlength=objects + 1)[1:]
        whole = [covered(thing.outline, thing.place(0), h, w).sum() for thing in scene.things]
        if all(s >= 0.5 * a > 0 for s, a in zip(seen, whole, strict=True)):
            return scene
    raise UserError(f"{objects} objects do not fit beside each other in {size[0]}x{size[1]} pixels")


def make_pictures(
    root: Path | str, count: int, size: tuple[int, int] = (224, 224), seed: int = 0, classes: int = 0
) -> Path:
    """Draw `count` still JPEGs of such scenes (1 to 3 objects) and return the folder; nothing is redone.

    classes=0: all in the folder itself; classes=K: in K class folders of equal size, the class being that of the
    object in front. UserError: more classes than THINGS has, a folder with other files.
    """
    if not 0 <= classes <= len(THINGS):
        raise UserError(f"classes={classes}: there are {len(THINGS)}")

    def draw(folder: Path) -> None:
        folder.mkdir(parents=True)
        order = np.random.default_rng([seed, 77]).permutation(len(THINGS))

        def one(i: int) -> None:
            rng = np.random.default_rng([seed, 2, i])
            class_id = int(order[i % classes]) if classes else None
            hidden, objects, t = bool(rng.random() < 0.25), int(rng.integers(1, 4)), int(rng.integers(5))
            scene = draw_scene((seed, 1, i, 0), size, 9, objects, hidden, class_id)
            name = f"{i:06d}.jpg" if class_id is None else f"{THINGS[class_id].replace(' ', '_')}/{i:06d}.jpg"
            save_jpeg(folder / name, scene.frame(t).picture)

        in_parallel(one, count)

    return draw_once(root, {"pictures": count, "size": list(size), "seed": seed, "classes": classes}, draw)
