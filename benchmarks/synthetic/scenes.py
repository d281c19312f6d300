"""The project's own pictures: textured cut-outs that move over textured ground, drawn from a seed, with exact masks.

Nothing here is a photograph. `draw_scene` makes a `Scene`, the whole description of one video (layers, motion,
classes); `Scene.frame(t)` renders it, so that other layouts (instances, label maps) can be written from the same.
"""

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ...pretrain.common.atomic import temporary_name
from ...pretrain.common.errors import UserError
from ..datasets.masks import write_mask
from .textures import TEXTURES, noise, palette, texture

SHAPES = ("blob", "polygon", "ellipse", "star")
THINGS = tuple(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)  # class of an object
STUFF = TEXTURES  # class of the ground
_VERSION = 1  # of the drawing: part of what makes two sets the same
_FINE = 8  # sub-pixels per side for the objects' edges
_SKIN = 128  # side of an object's texture; the object reaches to 0.9 of the half


def _outline(rng: np.random.Generator, shape: str) -> np.ndarray:
    """A closed smooth contour, float32 [180, 2], that fits in the unit circle."""
    turn = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    if shape == "polygon":
        corners = np.sort((np.arange(n := int(rng.integers(3, 7))) + rng.uniform(-0.25, 0.25, n)) * 2 * np.pi / n)
        points = np.stack([np.cos(corners), np.sin(corners)], 1) * rng.uniform(0.75, 1, (n, 1))
        share = np.linspace(0, n, 180, endpoint=False)
        k, part = share.astype(int), (share % 1)[:, None]
        points = points[k] * (1 - part) + points[(k + 1) % n] * part
        points = sum(np.roll(points, s, 0) for s in range(-4, 5)) / 9  # rounded corners
    else:
        if shape == "ellipse":
            radius = 1 / np.hypot(np.cos(turn), np.sin(turn) / rng.uniform(0.5, 0.8))
        elif shape == "star":
            radius = 1 + rng.uniform(0.18, 0.32) * np.cos(turn * int(rng.integers(4, 7)))
        else:
            radius = 1 + sum(rng.uniform(-0.3, 0.3) / k**0.5 * np.cos(k * turn + rng.uniform(0, 7)) for k in (2, 3, 4))
        points = np.stack([np.cos(turn), np.sin(turn)], 1) * radius[:, None]
    return (points / np.abs(np.hypot(*points.T)).max()).astype(np.float32)


@dataclass
class Thing:
    """A cut-out. Positions are (x, y) in pixels, angles in radians, `turn` over the whole video."""

    class_id: int  # index into THINGS
    outline: np.ndarray  # float32 [180, 2] in the unit circle
    skin: np.ndarray  # uint8 RGB [128, 128, 3]
    radius: float
    start: np.ndarray
    end: np.ndarray
    swing: float  # pixels off the straight way
    angle: float
    turn: float
    breath: float  # relative change of the radius
    phase: float

    def place(self, s: float) -> np.ndarray:
        """Affine map float64 [2, 3] from the unit circle to the picture at time s in 0..1."""
        way = self.end - self.start
        across = np.array([-way[1], way[0]]) / max(float(np.hypot(*way)), 1e-6)
        centre = self.start + s * way + across * self.swing * np.sin(np.pi * s)
        radius = self.radius * (1 + self.breath * np.sin(2 * np.pi * s + self.phase))
        cos, sin = np.cos(self.angle + self.turn * s) * radius, np.sin(self.angle + self.turn * s) * radius
        return np.array([[cos, -sin, centre[0]], [sin, cos, centre[1]]])


@dataclass
class Frame:
    """picture uint8 RGB [H, W, 3]; labels uint8 [H, W], 0 the ground and k the k-th thing where it is seen; stuff uint8
    [H, W], the class of the ground below (index into STUFF)"""

    picture: np.ndarray
    labels: np.ndarray
    stuff: np.ndarray


@dataclass
class Scene:
    """One video of `frames` frames of `size` (H, W). Things are in order of depth, the last one in front."""

    size: tuple[int, int]
    frames: int
    ground: np.ndarray  # uint8 RGB [H + 2m, W + 2m, 3]
    ground_stuff: np.ndarray  # uint8 [H + 2m, W + 2m]
    pan: np.ndarray  # (x, y) pixels over the whole video, below m
    things: list[Thing]
    light: float  # relative change of brightness
    seed: tuple[int, ...]  # of the sensor noise

    def frame(self, t: int) -> Frame:
        """Render frame t; frames may be rendered in any order."""
        (h, w), s = self.size, t / max(1, self.frames - 1)
        margin = (self.ground.shape[0] - h) / 2
        shift = np.hstack([np.eye(2), (margin + (s - 0.5) * self.pan)[:, None]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        picture = cv2.warpAffine(self.ground, shift, (w, h), flags=flags).astype(np.float32)
        stuff = cv2.warpAffine(self.ground_stuff, shift, (w, h), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
        labels = np.zeros((h, w), np.uint8)
        for k, thing in enumerate(self.things, 1):
            place = thing.place(s)
            corner = place[:, 2] - 1.6 * thing.radius
            x0, y0 = (int(c) for c in np.clip(np.floor(corner), 0, (w - 1, h - 1)))
            x1, y1 = (int(c) for c in np.clip(np.ceil(corner + 3.2 * thing.radius), (x0 + 1, y0 + 1), (w, h)))
            box, place[:, 2] = np.s_[y0:y1, x0:x1], place[:, 2] - (x0, y0)
            cover = _cover(thing.outline @ place[:, :2].T + place[:, 2], y1 - y0, x1 - x0)
            drop = 0.12 * thing.radius
            shadow = cv2.warpAffine(cover, np.float64([[1, 0, drop], [0, 1, drop]]), (x1 - x0, y1 - y0))
            shadow = cv2.GaussianBlur(shadow, (0, 0), 0.8 * drop + 0.5)
            grow = np.float64([[2 / _SKIN, 0, -1], [0, 2 / _SKIN, -1], [0, 0, 1]])  # texture -> unit circle
            skin = cv2.warpAffine(thing.skin, (place @ grow), (x1 - x0, y1 - y0), borderMode=cv2.BORDER_REFLECT)
            ground = picture[box] * (1 - 0.4 * shadow[..., None])
            picture[box] = ground + (skin - ground) * cover[..., None]
            labels[box][cover >= 0.5] = k
        rng = np.random.default_rng([*self.seed, t])
        picture *= 1 + self.light * np.sin(2 * np.pi * s)
        picture += rng.standard_normal(picture.shape, np.float32) * 2.5
        return Frame(np.clip(picture + 0.5, 0, 255).astype(np.uint8), labels, stuff)


def _cover(points: np.ndarray, h: int, w: int) -> np.ndarray:
    """Share of every pixel that lies inside the contour, float32 [h, w]; pixel centres are whole numbers."""
    fine = np.zeros((h * _FINE, w * _FINE), np.uint8)
    cv2.fillPoly(fine, [np.round((points * _FINE + (_FINE - 1) / 2) * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    return cv2.resize(fine, (w, h), None, 0, 0, cv2.INTER_AREA).astype(np.float32) / 255


def draw_scene(
    seed: Sequence[int],
    size: tuple[int, int],
    frames: int = 10,
    objects: int = 1,
    camouflage: bool = False,
    class_id: int | None = None,
) -> Scene:
    """A scene from a seed (a list of whole numbers): equal seeds give equal scenes.

    In camouflage the first object wears the colours of the ground, so that its texture and motion must tell it;
    `class_id` sets the class of the last object, the one in front.
    """
    rng = np.random.default_rng([*seed])
    h, w = size
    short, margin = min(h, w), max(4, min(h, w) // 8)
    big = (h + 2 * margin, w + 2 * margin)
    kinds = rng.permutation(len(STUFF))
    colours = [palette(rng)]
    ground = texture(rng, STUFF[kinds[0]], *big, colours[0], short * rng.uniform(0.05, 0.1))
    stuff = np.full(big, kinds[0], np.uint8)
    for k in range(1, int(rng.integers(2, 4))):  # hills in front of what lies behind
        colours.append(palette(rng))
        level = h * (0.35 + 0.3 * k) - h * rng.uniform(0, 0.25) + margin
        edge = level + h * 0.35 * (noise(rng, 2, big[1], short * 0.9, 3)[0] - 0.5)
        below = np.arange(big[0], dtype=np.float32)[:, None] - edge[None]
        soft = np.clip(below + 0.5, 0, 1)[..., None]
        hill = texture(rng, STUFF[kinds[k]], *big, colours[k], short * rng.uniform(0.04, 0.09))
        hill = hill * (0.75 + 0.25 * np.clip(below / (0.12 * h), 0, 1))[..., None]
        ground = (ground * (1 - soft) + hill * soft).astype(np.uint8)
        stuff[below >= 0] = kinds[k]
    angle, turn = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
    centre, reach = np.array([w / 2, h / 2]), np.array([w * 0.3, h * 0.24])
    things = []
    for k in range(objects):
        kind = int(rng.integers(len(THINGS))) if class_id is None or k < objects - 1 else class_id
        near = colours[int(rng.integers(len(colours)))] if camouflage and k == 0 else None
        skin = texture(rng, TEXTURES[kind // len(SHAPES)], _SKIN, _SKIN, palette(rng, near), rng.uniform(12, 22))
        y, x = np.mgrid[-1 : 1 : 1j * _SKIN, -1 : 1 : 1j * _SKIN]
        skin = np.clip(skin * (0.92 - 0.14 * (x + y) - 0.12 * (x * x + y * y))[..., None], 0, 255).astype(np.uint8)
        way = angle + turn * 2 * np.pi * k / objects + rng.uniform(-0.25, 0.25)
        start = centre + reach * (np.cos(way), np.sin(way))
        goal = centre - reach * (np.cos(way), np.sin(way)) * rng.uniform(0.5, 1) + rng.normal(0, 0.08 * short, 2)
        goal = np.clip(goal, 0.15 * short, np.array([w, h]) - 0.15 * short)
        far = float(np.hypot(*(goal - start)))
        goal = start + (goal - start) * min(1.0, 0.03 * w * frames / max(far, 1e-6))  # 3 % of the width a frame
        radius = short * rng.uniform(0.2, 0.27) / max(1.0, objects / 2) ** 0.5
        spin, breath, phase = rng.uniform(-0.06, 0.06) * frames, rng.uniform(0.05, 0.15), rng.uniform(0, 7)
        swing = rng.uniform(-0.12, 0.12) * short
        outline = _outline(rng, SHAPES[kind % len(SHAPES)])
        things.append(Thing(kind, outline, skin, radius, start, goal, swing, rng.uniform(0, 7), spin, breath, phase))
    pan = rng.uniform(-1, 1, 2) * margin * min(1.0, frames / 20)
    return Scene(size, frames, ground, stuff, pan, things, rng.uniform(0.02, 0.06), (*seed, 1))


# ---------------------------------------------------------------------------------------------------- on disk
def _save_jpeg(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    path.write_bytes(data.tobytes())


def _all(draw, count: int) -> list:
    """[draw(i) for i in range(count)] on all cores: numpy and OpenCV release the interpreter while they draw."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(draw, range(count)))


def _once(root: Path | str, what: dict, draw) -> Path:
    """Draw into a folder that appears complete or not at all; a folder that already holds the same is left as it is."""
    root = Path(root)
    note = json.dumps({"drawn by": "selfpatch scenes", "version": _VERSION, **what}, sort_keys=True) + "\n"
    if root.is_dir() and any(root.iterdir()):
        mark = root / "drawn.json"
        if mark.is_file() and mark.read_text() == note:
            return root
        raise UserError(f"{root}: is not empty and holds something else than the pictures to draw; give another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(root)
    try:
        draw(temporary)
        (temporary / "drawn.json").write_text(note)
        os.replace(temporary, root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


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
                _save_jpeg(folder / "JPEGImages/480p" / name / f"{t:05d}.jpg", frame.picture)
                write_mask(folder / "Annotations/480p" / name / f"{t:05d}.png", frame.labels)
            return name

        names = _all(one, sequences)
        listing = folder / "ImageSets/2017/val.txt"
        listing.parent.mkdir(parents=True)
        listing.write_text("".join(f"{name}\n" for name in names))

    what = {"videos": sequences, "frames": frames, "size": list(size), "seed": seed, "objects": counts}
    return _once(root, what, draw)


def _opening(seed: int, i: int, size: tuple[int, int], frames: int, objects: int) -> Scene:
    """The first scene of a series whose first frame shows at least half of every object."""
    for attempt in range(20):
        scene = draw_scene((seed, 0, i, attempt), size, frames, objects, camouflage=i % 2 == 1)
        labels, (h, w) = scene.frame(0).labels, size
        seen = np.bincount(labels.ravel(), minlength=objects + 1)[1:]
        whole = [_cover(t.outline @ (p := t.place(0))[:, :2].T + p[:, 2], h, w).sum() for t in scene.things]
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
            kind = int(order[i % classes]) if classes else None
            hidden, objects, t = bool(rng.random() < 0.25), int(rng.integers(1, 4)), int(rng.integers(5))
            scene = draw_scene((seed, 1, i, 0), size, 9, objects, hidden, kind)
            name = f"{i:06d}.jpg" if kind is None else f"{THINGS[kind].replace(' ', '_')}/{i:06d}.jpg"
            _save_jpeg(folder / name, scene.frame(t).picture)

        _all(one, count)

    return _once(root, {"pictures": count, "size": list(size), "seed": seed, "classes": classes}, draw)
