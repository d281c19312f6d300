"""Textures drawn from a random generator: smooth noise, palettes, and a few families of surfaces."""

import colorsys
import math

import cv2
import numpy as np

TEXTURES = ("cloud", "stripes", "checks", "cells", "dots", "waves")


def noise(rng: np.random.Generator, h: int, w: int, cell: float, octaves: int = 4) -> np.ndarray:
    """Smooth noise float32 [h, w] in 0..1; the coarsest waves are `cell` pixels wide, each octave halves them."""
    field = rng.random((int(h / cell) + 3, int(w / cell) + 3), np.float32)
    for octave in range(1, octaves):  # a pyramid: only its last step is as large as the picture
        field = cv2.resize(field, None, None, 2, 2, cv2.INTER_CUBIC)
        field += 0.5**octave * rng.random(field.shape, np.float32)
    step = cell / 2 ** (octaves - 1)
    field = field[: int(h / step) + 2, : int(w / step) + 2]
    total = cv2.resize(field, None, None, step, step, cv2.INTER_CUBIC)[:h, :w]
    low, high = float(total.min()), float(total.max())
    return (total - low) * (1 / max(high - low, 1e-6))


def palette(rng: np.random.Generator, near: np.ndarray | None = None) -> np.ndarray:
    """Four colours from dark to light, float32 [4, 3] RGB 0..255; `near` gives a palette hard to tell from that one."""
    if near is not None:
        return np.clip(near + rng.normal(0, 9, near.shape), 0, 255).astype(np.float32)
    hue, spread, strength = rng.random(), rng.uniform(-0.16, 0.16), rng.uniform(0.3, 0.7)
    light = np.linspace(rng.uniform(0.2, 0.4), rng.uniform(0.8, 0.98), 4)
    rows = [colorsys.hsv_to_rgb((hue + spread * k) % 1, strength * (1.15 - 0.2 * k), light[k]) for k in range(4)]
    return np.array(rows, np.float32) * 255


def _sharp(wave: np.ndarray, by: float) -> np.ndarray:
    return np.clip(wave * by * 0.5 + 0.5, 0, 1)


def texture(rng: np.random.Generator, surface: str, h: int, w: int, colours: np.ndarray, size: float) -> np.ndarray:
    """A texture, uint8 RGB [h, w, 3], whose features are about `size` pixels wide."""
    y, x = np.mgrid[:h, :w].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    bend_x, bend_y = (size * (noise(rng, h, w, 4 * size, 2) - 0.5) for _ in range(2))
    u = cos * x + sin * y + bend_x
    v = cos * y - sin * x + bend_y
    if surface == "cloud":
        tone = noise(rng, h, w, 3 * size, 5)
    elif surface == "stripes":
        tone = _sharp(np.sin(np.pi * u / size), 4)
    elif surface == "checks":
        tone = _sharp(np.sin(np.pi * u / size) * np.sin(np.pi * v / size), 6)
    elif surface == "cells":
        seeds = np.ones((h, w), np.uint8)
        many = max(4, int(h * w / (1.6 * size) ** 2))
        seeds[rng.integers(0, h, many), rng.integers(0, w, many)] = 0
        far, cell = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
        tone = np.clip(0.25 + 0.75 * rng.random(many + 1, np.float32)[cell] - 0.28 * far / size, 0, 1)
        tone = cv2.GaussianBlur(tone, (3, 3), 0)
    elif surface == "dots":
        row = np.floor(v / (1.5 * size))
        du = np.mod(u + row * 0.75 * size, 1.5 * size) - 0.75 * size
        dv = np.mod(v, 1.5 * size) - 0.75 * size
        tone = 0.15 + 0.85 * np.clip((0.5 * size - np.hypot(du, dv)) / 1.5 + 0.5, 0, 1)
    else:  # waves: rings of slowly turning colour
        tone = 0.5 + 0.5 * np.sin(2.2 * np.pi * (noise(rng, h, w, 5 * size, 2) + 0.15 * u / size))
    tone = 0.86 * tone + 0.14 * noise(rng, h, w, 2.5 * size, 4)
    steps = np.linspace(0, 1, len(colours))
    table = np.stack([np.interp(np.linspace(0, 1, 256), steps, colours[:, c]) for c in range(3)], 1).astype(np.float32)
    picture = table[(np.clip(tone, 0, 1) * 255).astype(np.uint8)]
    grain = 0.88 + 0.24 * noise(rng, h, w, max(3.0, size / 2), 3)  # no surface is perfectly even
    return np.clip(picture * grain[..., None], 0, 255).astype(np.uint8)
