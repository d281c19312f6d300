"""Data sets as they lie on disk: found, checked to the last file before any long work, and fingerprinted."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ...pretrain.common.errors import UserError
from .files import Known, digest, look_at_frame, look_at_mask, read_frame
from .masks import VOID, binary_to_object, read_mask

__all__ = ["DavisSet", "ResultMasks", "Sequence", "open_davis", "read_frame", "result_masks", "truth"]

FRAMES, ANNOTATIONS = "JPEGImages/480p", "Annotations/480p"
LISTS = ("ImageSets/2017/val.txt", "ImageSets/2016/val.txt", "ImageSets/480p/val.txt")
# DAVIS-2017 val as it was published (Pont-Tuset et al., 2017): what a comparable number must be computed on.
_VAL = """
    bike-packing blackswan bmx-trees breakdance camel car-roundabout car-shadow cows dance-twirl dog dogs-jump
    drift-chicane drift-straight goat gold-fish horsejump-high india judo kite-surf lab-coat libby loading
    mbike-trick motocross-jump paragliding-launch parkour pigs scooter-black shooting soapbox
    """
VAL_NAMES = frozenset(_VAL.split())
VAL_FRAMES, VAL_OBJECTS = 1999, 61


@dataclass(frozen=True)
class Sequence:
    """One video. Frame i belongs to mask i; `size` is (H, W) of all of them; a binary one has the single object 255."""

    name: str
    frames: list[Path]
    masks: list[Path]
    size: tuple[int, int]
    objects: int
    binary: bool

    def truth(self, i: int) -> np.ndarray:
        return truth(self, i)


@dataclass(frozen=True)
class DavisSet:
    """A checked data set in the DAVIS layout. `list_file` is None for a set that was not read from a list; `notes` are
    lines for the user; `cut` is the number of frames every sequence was cut to, if one was."""

    root: Path
    list_file: Path | None
    sequences: list[Sequence]
    notes: list[str] = field(default_factory=list)
    cut: int | None = None
    files: dict[Path, tuple[int, str]] = field(default_factory=dict, repr=False)  # bytes, sha256 ('' for frames)

    @property
    def frame_count(self) -> int:
        return sum(len(s.frames) for s in self.sequences)

    @property
    def object_count(self) -> int:
        return sum(s.objects for s in self.sequences)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of sorted relative paths, sizes and annotation bytes of the frames and masks in use (hex sha256)."""
        used = [path for s in self.sequences for path in (*s.frames, *s.masks)]
        return digest((path.relative_to(self.root).as_posix(), *self.files[path]) for path in used)

    @property
    def official(self) -> bool:
        return not self.differs

    @property
    def differs(self) -> str:
        """How this is not DAVIS-2017 val ('6 of 30 sequences, binary masks'); empty if it is (names and counts)."""
        names, parts = {s.name for s in self.sequences}, []
        if names != VAL_NAMES:
            known, others = len(names & VAL_NAMES), len(names - VAL_NAMES)
            plural = "s" * (others > 1)
            if known:
                parts += [f"{known} of {len(VAL_NAMES)} sequences"] + [f"{others} other sequence{plural}"] * (
                    others > 0
                )
            else:
                parts.append(f"{others} sequence{plural}, none of DAVIS-2017 val")
        if self.cut:
            parts.append(f"the first {self.cut} frames")
        if any(s.binary for s in self.sequences):
            parts.append("binary masks")
        if names == VAL_NAMES and not parts:
            for is_, should, what in (
                (self.frame_count, VAL_FRAMES, "frames"),
                (self.object_count, VAL_OBJECTS, "objects"),
            ):
                parts += [f"{is_} {what} instead of {should}"] * (is_ != should)
        return ", ".join(parts)

    def keep(self, names: Iterable[str]) -> "DavisSet":
        """The same set with only the sequences named."""
        names = set(names)
        return replace(self, sequences=[s for s in self.sequences if s.name in names])


def truth(sequence: Sequence, i: int) -> np.ndarray:
    """Annotation i as labels uint8 [H, W]: void (255) is background, a binary sequence's 255 is object 1."""
    labels = read_mask(sequence.masks[i])
    if sequence.binary:
        return binary_to_object(labels)
    labels[labels == VOID] = 0
    return labels


def _layout(root: Path | str) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: {'is not a folder' if root.exists() else 'no such folder'}; give the DAVIS root")
    for folder in (root, root / "DAVIS"):  # the official archives unpack to DAVIS/
        if (folder / FRAMES).is_dir() and (folder / ANNOTATIONS).is_dir():
            return folder
    absent = " and ".join(part for part in (FRAMES, ANNOTATIONS) if not (root / part).is_dir())
    raise UserError(f"{root}: not a DAVIS layout: it has no {absent}; give the folder that holds both")


def _positive(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{name}={value}: must be a whole number of at least 1")


def _read_list(path: Path) -> dict[str, list[tuple[str, str]] | None]:
    """Sequence name -> None, or its (frame, mask) paths where the list has the pairs of the official DAVIS-2016."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of sequences: {error}") from None
    found: dict = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        if len(words) == 2 and all(len(Path(w).parts) > 1 for w in words):
            frame, mask = (w.lstrip("/") for w in words)
            if ".." in Path(frame).parts + Path(mask).parts:
                raise UserError(f"{where}: '..' in a path; paths start at the data set's root")
            name = Path(frame).parent.name
            if frame == mask or (Path(mask).parent.name, Path(mask).stem) != (name, Path(frame).stem):
                raise UserError(f"{where}: {frame} and {mask} are not a frame and its annotation")
            pairs = found.setdefault(name, [])
            if pairs is None or (frame, mask) in pairs:
                raise UserError(f"{where}: {frame if pairs else name} is listed twice")
            pairs.append((frame, mask))
        elif len(words) == 1 and Path(words[0]).name == words[0] and words[0] not in (".", ".."):
            if words[0] in found:
                raise UserError(f"{where}: sequence {words[0]} is listed twice")
            found[words[0]] = None
        else:
            raise UserError(f"{where}: '{line.strip()}' is neither a sequence's name nor a pair of a frame and a mask")
    if not found:
        raise UserError(f"{path}: the list names no sequence")
    return found


def _in_order(names: Iterable[str]) -> list[str]:
    """Frame names in time: by number where all are numbers ('10' after '9'), else by name."""
    names = list(names)
    return sorted(names, key=(lambda n: (int(n), n)) if all(re.fullmatch("[0-9]+", n) for n in names) else None)


def _pictures(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Frame name -> file."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the list of sequences names it")
    found: dict[str, Path] = {}
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        path = folder / entry.name
        if path.suffix.lower() not in endings or entry.name.startswith("."):
            continue
        if path.stem in found:
            raise UserError(f"{path}: the same frame as {found[path.stem].name}")
        found[path.stem] = path
    if not found:
        raise UserError(f"{folder}: holds no {' or '.join(endings)} file")
    return found


def _pair(root: Path, name: str, listed: list[tuple[str, str]] | None) -> tuple[list[Path], list[Path]]:
    """Frames and masks of a sequence in order, both complete."""
    if listed is not None:
        frames, masks = [root / f for f, _ in listed], [root / m for _, m in listed]
        absent = [p for p in frames + masks if not p.is_file()]
        what = "is in the list but does not exist"
    else:
        by_frame = _pictures(root / FRAMES / name, (".jpg", ".jpeg", ".png"))
        by_mask = _pictures(root / ANNOTATIONS / name, (".png",))
        order = _in_order(by_frame.keys() | by_mask.keys())
        frames = [by_frame.get(n, root / FRAMES / name / f"{n}.jpg") for n in order]
        masks = [by_mask.get(n, root / ANNOTATIONS / name / f"{n}.png") for n in order]
        absent = [p for p, n in zip(frames, order, strict=True) if n not in by_frame]
        absent += [p for p, n in zip(masks, order, strict=True) if n not in by_mask]
        what = "is missing: every frame needs its annotation, and every annotation its frame"
    if absent:
        raise UserError(f"{absent[0]}: {what}" + (f" ({len(absent) - 1} more)" if len(absent) > 1 else ""))
    if len(frames) < 3:
        raise UserError(f"{frames[0].parent}: {len(frames)} frames; J&F leaves out the first and last: 3 are needed")
    return frames, masks


def _check(name: str, frames: list[Path], masks: list[Path], frame_facts, mask_facts, notes: list[str]) -> Sequence:
    """The rules on sizes and indices."""
    size = tuple(frame_facts[0])
    for path, facts in zip(frames + masks, frame_facts + mask_facts, strict=True):
        if tuple(facts[:2]) != size:
            raise UserError(f"{path}: {facts[0]}x{facts[1]} pixels (HxW), but {frames[0]} has {size[0]}x{size[1]}")
    first = set(mask_facts[0][3])
    binary = VOID in first and first <= {0, VOID}
    objects = 1 if binary else max(first - {VOID})
    if not objects:
        raise UserError(f"{masks[0]}: the first mask is empty, there is no object to follow")
    allowed = {0, VOID} if binary else {*range(objects + 1), VOID}
    for path, facts in zip(masks, mask_facts, strict=True):
        if strange := set(facts[3]) - allowed:
            has = "is binary (0 and 255)" if binary else f"has {objects} objects"
            raise UserError(f"{path}: index {max(strange)}, but the first mask, {masks[0].name}, {has}")
    if not binary and (gaps := sorted(set(range(1, objects)) - first)):
        notes.append(f"{masks[0]}: no pixel of objects {gaps}; {objects} are counted, as the official evaluator does")
    return Sequence(name, frames, masks, size, objects, binary)


def open_davis(
    root: Path | str, list_file: Path | str | None = None, limit: int | None = None, frames: int | None = None
) -> DavisSet:
    """Open a data set in the DAVIS layout and check all of it (of what `limit` sequences and `frames` leave in use).

    root: the folder with JPEGImages/480p and Annotations/480p, or one with DAVIS/ that has them.
    list_file: names of sequences, one a line, or the official DAVIS-2016's pairs of paths; default the first of LISTS.
    The number of objects is the first mask's maximum, void (255) aside; a sequence whose first mask has only 0 and 255
    is binary, 255 being the object. UserError naming the file: no layout, no list, an empty list, a name twice, missing
    frames or annotations, fewer than 3 frames, sizes that differ, an empty first mask, an index above the number of
    objects, a damaged mask, a frame whose header or end is damaged (frames are not decoded here: see `read_frame`).
    """
    _positive("limit", limit)
    _positive("frames", frames)
    if frames is not None and frames < 3:
        raise UserError(f"frames={frames}: J&F leaves out the first and the last frame: 3 are needed")
    root, notes = _layout(root), []
    if list_file is None:
        present = [name for name in LISTS if (root / name).is_file()]
        if not present:
            raise UserError(f"{root}: no list of sequences: none of {', '.join(LISTS)}; give one with --list FILE")
        list_file = root / present[0]
        if len(present) > 1:
            notes.append(f"sequences from {present[0]} (there is also {', '.join(present[1:])})")
    list_file = Path(list_file).expanduser()
    names = list(_read_list(list_file).items())[:limit]
    pairs = {name: _pair(root, name, listed) for name, listed in names}
    cut = frames if frames and any(len(f) > frames for f, _ in pairs.values()) else None
    pairs = {name: (f[:frames], m[:frames]) for name, (f, m) in pairs.items()}
    all_frames = [path for f, _ in pairs.values() for path in f]
    all_masks = [path for _, m in pairs.values() for path in m]
    known = Known(root)
    facts = dict(zip(all_frames, known.look(all_frames, look_at_frame), strict=True))
    facts |= dict(zip(all_masks, known.look(all_masks, look_at_mask), strict=True))
    sequences = [_check(n, f, m, [facts[p] for p in f], [facts[p] for p in m], notes) for n, (f, m) in pairs.items()]
    files = {p: (p.stat().st_size, facts[p][2] if len(facts[p]) > 2 else "") for p in all_frames + all_masks}
    return DavisSet(root, list_file, sequences, notes, cut, files)


@dataclass(frozen=True)
class ResultMasks:
    """A method's masks for `davis`, which holds only the sequences that are there. `absent`: sequences of the set that
    are not; `extra`: sub-folders that are no sequence of the set."""

    root: Path
    davis: DavisSet
    masks: dict[str, list[Path]]
    absent: list[str]
    extra: list[str]
    fingerprint: str

    def read(self, sequence: Sequence, i: int) -> np.ndarray:
        """Labels uint8 [H, W] of frame i; see `read_result`."""
        return read_result(self.masks[sequence.name][i], sequence.objects)


def read_result(path: Path, objects: int) -> np.ndarray:
    """A method's mask as labels uint8 [H, W]. Where the sequence has one object, any non-zero pixel is it."""
    labels = read_mask(path)
    return (labels != 0).astype(np.uint8) if objects == 1 else labels


def result_masks(folder: Path | str, davis: DavisSet) -> ResultMasks:
    """Pair a result folder (folder/SEQUENCE/00000.png ...) with a data set.

    Sequences without a sub-folder are left out and named. UserError naming the file: no sequence at all, a missing
    frame (the first and the last count), a wrong size, an index above the number of objects, an unreadable mask.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of masks")
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    kept = davis.keep(inside)
    if not kept.sequences:
        wanted = ", ".join(s.name for s in davis.sequences[:3])
        raise UserError(f"{folder}: no folder of any of the {len(davis.sequences)} sequences ({wanted} ...)")
    masks = {s.name: [folder / s.name / f"{frame.stem}.png" for frame in s.frames] for s in kept.sequences}
    every = [path for paths in masks.values() for path in paths]
    for path in every:
        if not path.is_file():
            raise UserError(f"{path}: is missing: every frame needs its mask, the first and the last too")
    seen = dict(zip(every, Known(folder).look(every, look_at_mask), strict=True))
    for s in kept.sequences:
        for path in masks[s.name]:
            height, width, _, labels = seen[path]
            if (height, width) != s.size:
                raise UserError(f"{path}: {height}x{width} pixels (HxW), but the frames have {s.size[0]}x{s.size[1]}")
            if s.objects > 1 and labels[-1] > s.objects:
                hint = "; a binary mask cannot be scored against several objects" if labels[-1] == VOID else ""
                raise UserError(f"{path}: index {labels[-1]}, but the sequence has {s.objects} objects{hint}")
    fingerprint = digest((p.relative_to(folder).as_posix(), p.stat().st_size, seen[p][2]) for p in every)
    names = {s.name for s in davis.sequences}
    absent = [s.name for s in davis.sequences if s.name not in masks]
    return ResultMasks(folder, kept, masks, absent, [n for n in inside if n not in names], fingerprint)
