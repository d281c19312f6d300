"""Views of an image: what is drawn (this file), apart from the pixel work (pixels.py).

A recipe's views are a table of rows and three options (specification of the official code in methods.md 1.2, 2.2, 3.2,
4.2, 5.2; one table for all methods, 7.2). The draws of one view are a fixed row of uniform numbers made by hashing
(seed, epoch, image, view): nothing depends on a worker, a rank or on what was drawn before, and the parameters of any
view can be drawn again without decoding anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..common.errors import UserError
from ..common.ranges import bounded, bounds, check_values, one_of

PIXELS = 8192  # the longest side of a picture to make
_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014
_TRIES = 10  # torchvision's RandomResizedCrop gives up after ten
_COUNT = 16 + 4 * _TRIES  # uniform numbers of one view
OPERATIONS = ("brightness", "contrast", "saturation", "hue")


@dataclass
class ViewSpec:
    """One row of a recipe: `count` views drawn alike."""

    # Views of this row.
    count: int = bounded(1, at_least=0, at_most=1000)
    # Pixels of the square view.
    size: int = bounded(224, at_least=1, at_most=PIXELS)
    # Range of the crop's share of the source area.
    scale: tuple[float, float] = bounded((0.4, 1.0), above=0, at_most=1)
    # Range of the crop's width / height.
    ratio: tuple[float, float] = bounded((3 / 4, 4 / 3), at_least=0.01, at_most=100)
    # How the crop is resized: bicubic | bilinear.
    interpolation: str = one_of("bicubic", "bilinear")
    # Probability of mirroring.
    flip: float = bounded(0.5, at_least=0, at_most=1)
    # Strengths of the changes of brightness, contrast, saturation and hue.
    jitter: tuple[float, float, float, float] = bounded((0.4, 0.4, 0.2, 0.1), at_least=0, at_most=100)
    # Probability of these four.
    jitter_p: float = bounded(0.8, at_least=0, at_most=1)
    # Probability of grayscale.
    gray_p: float = bounded(0.2, at_least=0, at_most=1)
    # Probability of the Gaussian blur.
    blur_p: float = bounded(0.5, at_least=0, at_most=1)
    # Range of its standard deviation, in pixels of the view (Pillow's radius).
    blur_radius: tuple[float, float] = bounded((0.1, 2.0), at_least=0, at_most=100)
    # Probability of solarizing.
    solarize_p: float = bounded(0.0, at_least=0, at_most=1)
    # Grey level from which it inverts.
    solarize_threshold: int = bounded(128, at_least=0, at_most=256)
    # global | local; targets are global views (null: global if the size is that of the first row).
    role: str | None = one_of(None, "global", "local")

    def check(self, name: str) -> None:
        """UserError for ranges that no view can be drawn with; `name`: of this row."""
        for key in ("scale", "ratio", "blur_radius"):
            _check_range(f"{name}.{key}", getattr(self, key))
        if self.jitter[3] > 0.5:
            raise UserError(f"{name}.jitter={list(self.jitter)}: the fourth (hue) must be at most 0.5")


@dataclass
class Mask:
    """Which patches of the global views are hidden from the student, see masks.py."""

    # none, or block: rectangles, until the view's share of patches is hidden.
    kind: str = one_of("none", "block")
    # Shares of hidden patches, one of which is drawn for every view.
    ratio: list[float] = field(default_factory=lambda: [0.0, 0.3], metadata=bounds(at_least=0, at_most=1))
    # For each of these how far from it, either way, the view's own may lie.
    spread: list[float] = field(default_factory=lambda: [0.0, 0.2], metadata=bounds(at_least=0, at_most=1))
    # Range of the rectangles' height / width.
    aspect: tuple[float, float] = bounded((0.3, 1 / 0.3), at_least=0.01, at_most=100)

    def check(self, name: str) -> None:
        """UserError for shares that no mask can be drawn with."""
        if not self.ratio or len(self.ratio) != len(self.spread):
            raise UserError(f"{name}: ratio and spread must be lists of the same length, one number at least")
        if any(not 0 <= s <= r <= r + s <= 1 for r, s in zip(self.ratio, self.spread, strict=True)):
            raise UserError(f"{name}: ratio={self.ratio}, spread={self.spread}: shares must stay within 0 and 1")
        _check_range(f"{name}.aspect", self.aspect)


@dataclass
class Views:
    """A recipe's views. View v is the v-th when the rows are written out by their counts. The views of one role and
    size form a group: first the global views, then the local ones in the order of their first row."""

    # The rows of the table, see `ViewSpec`.
    rows: list[ViewSpec] = field(default_factory=list)
    # Squash every image to this many pixels square first, bilinear (PW-Self: 256; null: no).
    pre_resize: int | None = bounded(None, at_least=1, at_most=PIXELS)
    # image: each image draws for itself; batch: all images of a step use the same numbers (PW-Self).
    share: str = one_of("image", "batch")
    # What colours are changed of, after crop and flip: image (the view) | patch (each of the network's grid by itself).
    unit: str = one_of("image", "patch")
    # Patches hidden from the student.
    mask: Mask = field(default_factory=Mask)

    def specs(self) -> list[ViewSpec]:
        """The row of each view."""
        return [row for row in self.rows for _ in range(row.count)]

    def roles(self) -> list[str]:
        """global or local, for each view."""
        specs = self.specs()
        return [spec.role or ("global" if spec.size == specs[0].size else "local") for spec in specs]

    def groups(self) -> list[list[int]]:
        """View numbers of each group; group 0 is the global views'."""
        found: dict[tuple[str, int], list[int]] = {}
        for view, (role, spec) in enumerate(zip(self.roles(), self.specs(), strict=True)):
            found.setdefault((role, spec.size), []).append(view)
        return [found[key] for key in sorted(found, key=lambda key: key[0] != "global")]

    def check(self) -> None:
        """UserError naming the first value that no view can be drawn with."""
        check_values(self, "views")
        for i, row in enumerate(self.rows):
            row.check(f"views.rows[{i}]")
        specs = self.specs()
        if not specs:
            raise UserError("views.rows: at least one view is needed")
        self.mask.check("views.mask")
        sizes = sorted({spec.size for spec, role in zip(specs, self.roles(), strict=True) if role == "global"})
        if not sizes:
            raise UserError("views.rows: at least one view must be global (role: global)")
        if len(sizes) > 1:
            raise UserError(f"views.rows: global views of {sizes[0]} and {sizes[1]} pixels; they must be of one size")
        if (largest := max(spec.size for spec in specs)) > sizes[0]:
            raise UserError(f"views.rows: local views of {largest} pixels are larger than the global ones, {sizes[0]}")


def _check_range(name: str, pair: tuple[float, float]) -> None:
    if pair[0] > pair[1]:
        raise UserError(f"{name}={list(pair)}: the first must not be above the second")


@dataclass(frozen=True, slots=True)
class View:
    """What was drawn for one view of one image; it determines the pixels.

    box = left, top, width, height in source pixels; jitter = (operation, factor) in the order of application; blur =
    radius, 0 for none; solarize = threshold, None for none. patches: what is done to the colours of each patch, in
    place of those four.
    """

    box: tuple[int, int, int, int]
    size: int
    interpolation: str
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    gray: bool
    blur: float
    solarize: int | None
    patches: "PatchColours | None" = None


@dataclass(frozen=True, slots=True)
class PatchColours:
    """What was drawn for the colours of the N square patches of `size` pixels of one view, in row-major order.

    order int [N, 4]: numbers of OPERATIONS in the order of application, -1 for none; factors [N, 4]: by number of the
    operation; gray bool [N]; blur [N], radius, 0 for none; solarize [N], threshold, 256 for none.
    """

    size: int
    order: np.ndarray
    factors: np.ndarray
    gray: np.ndarray
    blur: np.ndarray
    solarize: np.ndarray


def _mix(x):
    """SplitMix64's output function, of an int below 2^64 or an array of uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def hashed(*key: int) -> int:
    """64 bits that depend on every number of the key and on their order."""
    state = 0
    for number in key:
        state = _mix(((state + _GAMMA) & _MASK) ^ (number & _MASK))
    return state


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of 0..n-1, int64 [n]: the order of hashed numbers, so the same with every version of numpy."""
    numbers = np.arange(n, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(hashed(*key))
    return np.argsort(_mix(numbers), kind="stable")


_STEPS = np.arange(1, _COUNT + 1, dtype=np.uint64) * np.uint64(_GAMMA)


def uniforms(views: int, *key: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [views, 56]: row v is the SplitMix64 stream started at hashed(*key, v)."""
    states = _mix(np.uint64((hashed(*key) + _GAMMA) & _MASK) ^ np.arange(views, dtype=np.uint64))
    return (_mix(states[:, None] + _STEPS) >> 11) * 2.0**-53


def draw(spec: ViewSpec, height: int, width: int, numbers: Sequence[float]) -> View:
    """One view of a source of height x width pixels from one row of `uniforms`.

    Every decision has its own places in the row, so none depends on how many numbers another one took:
    0 flip, 1 whether jitter, 2-5 its factors, 6-9 their order, 10 gray, 11-12 blur, 13 solarize, 16... the crop.
    """
    u = numbers.tolist() if isinstance(numbers, np.ndarray) else numbers
    jitter = ()
    if u[1] < spec.jitter_p:
        order = sorted(range(4), key=u[6:10].__getitem__)
        jitter = tuple((OPERATIONS[k], _factor(k, spec.jitter[k], u[2 + k])) for k in order if spec.jitter[k] > 0)
    low, high = spec.blur_radius
    return View(
        box=_crop(height, width, spec.scale, spec.ratio, u[16:]),
        size=spec.size,
        interpolation=spec.interpolation,
        flip=u[0] < spec.flip,
        jitter=jitter,
        gray=u[10] < spec.gray_p,
        blur=low + (high - low) * u[12] if u[11] < spec.blur_p else 0.0,
        solarize=spec.solarize_threshold if u[13] < spec.solarize_p else None,
    )


def _factor(operation: int, strength: float, u: float) -> float:
    """torchvision's ColorJitter: hue in +-strength, the others in 1 +- strength, not below 0."""
    if OPERATIONS[operation] == "hue":
        return strength * (2 * u - 1)
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * u


def _crop(height: int, width: int, scale, ratio, u: Sequence[float]) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params: area uniform, aspect log-uniform, ten tries, then a centre crop."""
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for k in range(0, 4 * _TRIES, 4):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[k])
        aspect = math.exp(log_low + (log_high - log_low) * u[k + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[k + 2] * (width - w + 1)), int(u[k + 3] * (height - h + 1)), w, h
    w, h = width, height
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def draw_patches(spec: ViewSpec, size: int, numbers: np.ndarray) -> PatchColours:
    """The colours of N patches from N rows of `uniforms`, by the places of `draw`."""
    u = numbers
    low, high = spec.blur_radius
    order = u[:, 6:10].argsort(1, kind="stable")
    used = np.array(spec.jitter) > 0
    return PatchColours(
        size=size,
        order=np.where(used[order] & (u[:, 1:2] < spec.jitter_p), order, -1),
        factors=np.stack([_factor(k, spec.jitter[k], u[:, 2 + k]) for k in range(4)], 1),
        gray=u[:, 10] < spec.gray_p,
        blur=np.where(u[:, 11] < spec.blur_p, low + (high - low) * u[:, 12], 0.0),
        solarize=np.where(u[:, 13] < spec.solarize_p, spec.solarize_threshold, 256),
    )


def draw_all(views: Views, height: int, width: int, *key: int, patch: int | None = None) -> list[View]:
    """All views of one image; key = (seed, epoch, image), or (seed, step) where a batch shares its draws.

    height and width are those of the file; boxes are in the pre-resized frame where the recipe has one. patch: side of
    a patch, for views.unit=patch.
    """
    if views.pre_resize is not None:
        height = width = views.pre_resize
    specs = views.specs()
    numbers = uniforms(len(specs), *key).tolist()
    drawn = [draw(spec, height, width, row) for spec, row in zip(specs, numbers, strict=True)]
    if views.unit == "patch":
        for v, (view, spec) in enumerate(zip(drawn, specs, strict=True)):
            colours = draw_patches(spec, patch, uniforms((spec.size // patch) ** 2, *key, v))
            drawn[v] = replace(view, jitter=(), gray=False, blur=0.0, solarize=None, patches=colours)
    return drawn
