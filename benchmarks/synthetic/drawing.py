"""Scenes: textured cut-outs that move over textured ground, drawn from a seed, with exact masks. No photographs.

`draw_scene` makes a `Scene`, the whole description of one video (layers, motion, classes); `Scene.frame(t)` renders it,
so that every layout (videos, instances, label maps) is written from the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .textures import TEXTURES, noise, palette, texture

SHAPES = ("blob", "polygon", "ellipse", "star")
THINGS = tuple(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)  # class of an object
STUFF = TEXTURES  # class of the ground
_FINE = 8  # sub-pixels per side for the objects' edges
_SKIN = 128  # side of an object's texture; the object reaches to 0.9 of the half


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
            _paint(thing, thing.place(s), k, picture, labels)
        rng = np.random.default_rng([*self.seed, t])
        picture *= 1 + self.light * np.sin(2 * np.pi * s)
        picture += rng.standard_normal(picture.shape, np.float32) * 2.5
        return Frame(np.clip(picture + 0.5, 0, 255).astype(np.uint8), labels, stuff)


def _paint(thing: Thing, place: np.ndarray, k: int, picture: np.ndarray, labels: np.ndarray) -> None:
    """Draw a thing and its shadow into a picture float32 [H, W, 3], and k into the labels where it covers half."""
    h, w = labels.shape
    corner = place[:, 2] - 1.6 * thing.radius
    x0, y0 = (int(c) for c in np.clip(np.floor(corner), 0, (w - 1, h - 1)))
    x1, y1 = (int(c) for c in np.clip(np.ceil(corner + 3.2 * thing.radius), (x0 + 1, y0 + 1), (w, h)))
    box, place[:, 2] = np.s_[y0:y1, x0:x1], place[:, 2] - (x0, y0)
    cover = covered(thing.outline, place, y1 - y0, x1 - x0)
    drop = 0.12 * thing.radius
    shadow = cv2.warpAffine(cover, np.float64([[1, 0, drop], [0, 1, drop]]), (x1 - x0, y1 - y0))
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.8 * drop + 0.5)
    grow = np.float64([[2 / _SKIN, 0, -1], [0, 2 / _SKIN, -1], [0, 0, 1]])  # texture -> unit circle
    skin = cv2.warpAffine(thing.skin, place @ grow, (x1 - x0, y1 - y0), borderMode=cv2.BORDER_REFLECT)
    ground = picture[box] * (1 - 0.4 * shadow[..., None])
    picture[box] = ground + (skin - ground) * cover[..., None]
    labels[box][cover >= 0.5] = k


def covered(outline: np.ndarray, place: np.ndarray, h: int, w: int) -> np.ndarray:
    """Share of every pixel that lies inside a placed outline, float32 [h, w]; pixel centres are whole numbers."""
    points = outline @ place[:, :2].T + place[:, 2]
    fine = np.zeros((h * _FINE, w * _FINE), np.uint8)
    cv2.fillPoly(fine, [np.round((points * _FINE + (_FINE - 1) / 2) * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    return cv2.resize(fine, (w, h), None, 0, 0, cv2.INTER_AREA).astype(np.float32) / 255


# ------------------------------------------------------------------------------------------------ from a seed
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
    margin = max(4, min(size) // 8)
    ground, stuff, colours = _ground(rng, size, margin)
    angle, turn = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
    things = []
    for k in range(objects):
        thing_class = int(rng.integers(len(THINGS))) if class_id is None or k < objects - 1 else class_id
        near = colours[int(rng.integers(len(colours)))] if camouflage and k == 0 else None
        skin = _skin(rng, TEXTURES[thing_class // len(SHAPES)], near)
        things.append(_thing(rng, thing_class, skin, size, frames, objects, angle + turn * 2 * np.pi * k / objects))
    pan = rng.uniform(-1, 1, 2) * margin * min(1.0, frames / 20)
    return Scene(size, frames, ground, stuff, pan, things, rng.uniform(0.02, 0.06), (*seed, 1))


def _ground(rng: np.random.Generator, size: tuple[int, int], margin: int) -> tuple[np.ndarray, np.ndarray, list]:
    """Ground uint8 RGB and its classes uint8, `margin` pixels wider on every side than `size`, and its palettes: one
    texture, and one or two hills in front of it."""
    h, short = size[0], min(size)
    big = (h + 2 * margin, size[1] + 2 * margin)
    surfaces = rng.permutation(len(STUFF))
    colours = [palette(rng)]
    ground = texture(rng, STUFF[surfaces[0]], *big, colours[0], short * rng.uniform(0.05, 0.1))
    stuff = np.full(big, surfaces[0], np.uint8)
    for k in range(1, int(rng.integers(2, 4))):
        colours.append(palette(rng))
        level = h * (0.35 + 0.3 * k) - h * rng.uniform(0, 0.25) + margin
        edge = level + h * 0.35 * (noise(rng, 2, big[1], short * 0.9, 3)[0] - 0.5)
        below = np.arange(big[0], dtype=np.float32)[:, None] - edge[None]
        soft = np.clip(below + 0.5, 0, 1)[..., None]
        hill = texture(rng, STUFF[surfaces[k]], *big, colours[k], short * rng.uniform(0.04, 0.09))
        hill = hill * (0.75 + 0.25 * np.clip(below / (0.12 * h), 0, 1))[..., None]
        ground = (ground * (1 - soft) + hill * soft).astype(np.uint8)
        stuff[below >= 0] = surfaces[k]
    return ground, stuff, colours


def _skin(rng: np.random.Generator, surface: str, near: np.ndarray | None) -> np.ndarray:
    """An object's texture, uint8 RGB [128, 128, 3], darker to the lower right, in colours like `near` where given."""
    skin = texture(rng, surface, _SKIN, _SKIN, palette(rng, near), rng.uniform(12, 22))
    y, x = np.mgrid[-1 : 1 : 1j * _SKIN, -1 : 1 : 1j * _SKIN]
    return np.clip(skin * (0.92 - 0.14 * (x + y) - 0.12 * (x * x + y * y))[..., None], 0, 255).astype(np.uint8)


def _thing(rng, class_id: int, skin: np.ndarray, size, frames: int, objects: int, way: float) -> Thing:
    """One of `objects` things; it starts on an ellipse at about the angle `way` and moves to the other side."""
    h, w = size
    short, centre, reach = min(size), np.array([w / 2, h / 2]), np.array([w * 0.3, h * 0.24])
    way += rng.uniform(-0.25, 0.25)
    towards = np.array([np.cos(way), np.sin(way)])
    start = centre + reach * towards
    end = centre - reach * towards * rng.uniform(0.5, 1) + rng.normal(0, 0.08 * short, 2)
    end = np.clip(end, 0.15 * short, np.array([w, h]) - 0.15 * short)
    far = float(np.hypot(*(end - start)))
    end = start + (end - start) * min(1.0, 0.03 * w * frames / max(far, 1e-6))  # 3 % of the width a frame
    radius = short * rng.uniform(0.2, 0.27) / max(1.0, objects / 2) ** 0.5
    spin, breath, phase = rng.uniform(-0.06, 0.06) * frames, rng.uniform(0.05, 0.15), rng.uniform(0, 7)
    swing = rng.uniform(-0.12, 0.12) * short
    outline = _outline(rng, SHAPES[class_id % len(SHAPES)])
    return Thing(class_id, outline, skin, radius, start, end, swing, rng.uniform(0, 7), spin, breath, phase)


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
