"""DAVIS and sets in its layout: checked to the last file before any long work, and fingerprinted."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...pretrain.common.errors import UserError
from .base import Data, check_positive, check_size, find_layout, instead, more, read_lines
from .files import Known, check_whole, look_at_mask, look_at_picture, note_turns
from .masks import VOID, read_mask

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
        """Annotation i as labels uint8 [H, W]: void (255) is background, a binary sequence's 255 is object 1."""
        labels = read_mask(self.masks[i])
        if self.binary:
            return (labels == VOID).astype(np.uint8)
        labels[labels == VOID] = 0
        return labels


@dataclass(frozen=True)
class Videos:
    """The content of a checked set, and a method's masks for all of its frames where such are scored."""

    sequences: list[Sequence]
    results: dict[str, list[Path]] = field(default_factory=dict)
    results_fingerprint: str = ""


def open_davis(
    root: Path | str,
    list_file: Path | str | None = None,
    limit: int | None = None,
    frames: int | None = None,
    results: Path | str | None = None,
) -> Data:
    """Open a data set in the DAVIS layout and check all of it (of what `limit` sequences and `frames` leave in use).

    root: the folder with JPEGImages/480p and Annotations/480p, or one with DAVIS/ that has them.
    list_file: names of sequences, one a line, or the official DAVIS-2016's pairs of paths; default the first of LISTS.
    results: a folder of a method's masks (results/SEQUENCE/00000.png ...); only its sequences are in use then.
    The number of objects is the first mask's maximum, void (255) aside; a sequence whose first mask has only 0 and 255
    is binary, 255 being the object. Content: `Videos`. UserError naming the file: no layout, no list, an empty list, a
    name twice, missing frames or annotations, fewer than 3 frames, sizes that differ, an empty first mask, an index
    above the number of objects, a damaged mask, a frame whose header or end is damaged (frames are not decoded here:
    see `files.read_frame`); of results: no sequence at all, a missing frame, a wrong size, an index too high.
    """
    check_positive(limit=limit, frames=frames)
    if frames is not None and frames < 3:
        raise UserError(f"frames={frames}: J&F leaves out the first and the last frame: 3 are needed")
    root = find_layout(root, "DAVIS", (FRAMES, ANNOTATIONS), "give the folder that holds both", inside="DAVIS")
    list_file, notes = _choose_list(root, list_file)
    listed = list(_read_list(list_file).items())[:limit]
    pairs = {name: _pair(root, name, paths) for name, paths in listed}
    cut = frames if frames and any(len(every) > frames for every, _ in pairs.values()) else None
    pairs = {name: (every[:frames], masks[:frames]) for name, (every, masks) in pairs.items()}
    known = Known(root)
    known.look([path for every, _ in pairs.values() for path in every], look_at_picture)
    known.look([path for _, masks in pairs.values() for path in masks], look_at_mask)
    note_turns([frame for frames, _ in pairs.values() for frame in frames], known.seen, notes)
    content = Videos([_check(name, *paths, known.seen, notes) for name, paths in pairs.items()])
    if results:
        content = _with_results(content.sequences, Path(results).expanduser(), notes)
    used = content.sequences
    differs = ", ".join(_differs(used, cut))
    counts = f"{sum(len(s.frames) for s in used)} frames, {sum(s.objects for s in used)} objects"
    mark = known.fingerprint(path for s in used for path in (*s.frames, *s.masks))
    return Data("davis2017", root, mark, not differs, differs, f"{len(used)} sequences, {counts}", notes, content)


def _choose_list(root: Path, list_file: Path | str | None) -> tuple[Path, list[str]]:
    """The list of sequences, and a note where the set has several."""
    if list_file is not None:
        return Path(list_file).expanduser(), []
    present = [name for name in LISTS if (root / name).is_file()]
    if not present:
        raise UserError(f"{root}: no list of sequences: none of {', '.join(LISTS)}; give one with --list FILE")
    others = [f"sequences from {present[0]} (there is also {', '.join(present[1:])})"] * (len(present) > 1)
    return root / present[0], others


def _read_list(path: Path) -> dict[str, list[tuple[str, str]] | None]:
    """Sequence name -> None, or its (frame, mask) paths where the list has the pairs of the official DAVIS-2016."""
    listed: dict = {}
    for number, line in enumerate(read_lines(path), 1):
        words, where = line.split(), f"{path}, line {number}"
        if not words or line.startswith("#"):
            continue
        if len(words) == 2 and all(len(Path(word).parts) > 1 for word in words):
            frame, mask = (word.lstrip("/") for word in words)
            if ".." in Path(frame).parts + Path(mask).parts:
                raise UserError(f"{where}: '..' in a path; paths start at the data set's root")
            name = Path(frame).parent.name
            if frame == mask or (Path(mask).parent.name, Path(mask).stem) != (name, Path(frame).stem):
                raise UserError(f"{where}: {frame} and {mask} are not a frame and its annotation")
            pairs = listed.setdefault(name, [])
            if pairs is None or (frame, mask) in pairs:
                raise UserError(f"{where}: {frame if pairs else name} is listed twice")
            pairs.append((frame, mask))
        elif len(words) == 1 and Path(line).name == line and line not in (".", ".."):
            if line in listed:
                raise UserError(f"{where}: sequence {line} is listed twice")
            listed[line] = None
        else:
            raise UserError(f"{where}: '{line}' is neither a sequence's name nor a pair of a frame and a mask")
    if not listed:
        raise UserError(f"{path}: the list names no sequence")
    return listed


def _pair(root: Path, name: str, listed: list[tuple[str, str]] | None) -> tuple[list[Path], list[Path]]:
    """Frames and masks of a sequence in order, both complete."""
    if listed is not None:
        frames, masks = [root / frame for frame, _ in listed], [root / mask for _, mask in listed]
        absent = [path for path in frames + masks if not path.is_file()]
        what = "is in the list but does not exist"
    else:
        by_frame = _pictures(root / FRAMES / name, (".jpg", ".jpeg", ".png"))
        by_mask = _pictures(root / ANNOTATIONS / name, (".png",))
        order = _in_order(by_frame.keys() | by_mask.keys())
        frames = [by_frame.get(n, root / FRAMES / name / f"{n}.jpg") for n in order]
        masks = [by_mask.get(n, root / ANNOTATIONS / name / f"{n}.png") for n in order]
        present = {*by_frame.values(), *by_mask.values()}
        absent = [path for path in frames + masks if path not in present]
        what = "is missing: every frame needs its annotation, and every annotation its frame"
    if absent:
        raise UserError(f"{absent[0]}: {what}{more(absent)}")
    if len(frames) < 3:
        raise UserError(f"{frames[0].parent}: {len(frames)} frames; J&F leaves out the first and last: 3 are needed")
    return frames, masks


def _pictures(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Frame name -> file."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the list of sequences names it")
    files: dict[str, Path] = {}
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if path.suffix.lower() not in endings or name.startswith("."):
            continue
        if path.stem in files:
            raise UserError(f"{path}: the same frame as {files[path.stem].name}")
        files[path.stem] = path
    if not files:
        raise UserError(f"{folder}: holds no {' or '.join(endings)} file")
    return files


def _in_order(names: Iterable[str]) -> list[str]:
    """Frame names in time: by number where all are numbers ('10' after '9'), else by name."""
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numbers else None)


def _check(name: str, frames: list[Path], masks: list[Path], seen: dict[Path, dict], notes: list[str]) -> Sequence:
    """The rules on sizes and indices."""
    size = tuple(seen[frames[0]]["size"])
    for path in frames + masks:
        check_size(path, seen[path]["size"], size, f"{frames[0]} has")
    check_whole(frames, seen)
    first = set(seen[masks[0]]["labels"])
    binary = VOID in first and first <= {0, VOID}
    objects = 1 if binary else max(first - {VOID})
    if not objects:
        raise UserError(f"{masks[0]}: the first mask is empty, there is no object to follow")
    allowed = {0, VOID} if binary else {*range(objects + 1), VOID}
    for path in masks:
        if strange := set(seen[path]["labels"]) - allowed:
            has = "is binary (0 and 255)" if binary else f"has {objects} objects"
            raise UserError(f"{path}: index {max(strange)}, but the first mask, {masks[0].name}, {has}")
    if not binary and (gaps := sorted(set(range(1, objects)) - first)):
        notes.append(f"{masks[0]}: no pixel of objects {gaps}; {objects} are counted, as the official evaluator does")
    return Sequence(name, frames, masks, size, objects, binary)


def _differs(sequences: list[Sequence], cut: int | None) -> list[str]:
    """How this is not DAVIS-2017 val, by names and counts; `cut`: the number of frames all were cut to, if any was."""
    names = {s.name for s in sequences}
    common, others = len(names & VAL_NAMES), len(names - VAL_NAMES)
    parts, plural = [], "s" * (others > 1)
    if not common:
        parts.append(f"{others} sequence{plural}, none of DAVIS-2017 val")
    elif names != VAL_NAMES:
        parts += [f"{common} of {len(VAL_NAMES)} sequences"] + [f"{others} other sequence{plural}"] * (others > 0)
    if cut:
        parts.append(f"the first {cut} frames")
    if any(s.binary for s in sequences):
        parts.append("binary masks")
    if parts:
        return parts
    frames, objects = sum(len(s.frames) for s in sequences), sum(s.objects for s in sequences)
    return instead(frames, VAL_FRAMES, "frames") + instead(objects, VAL_OBJECTS, "objects")


def _with_results(sequences: list[Sequence], folder: Path, notes: list[str]) -> Videos:
    """The sequences that a folder of results has a sub-folder of, with its masks, all of them checked."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of masks")
    used = [s for s in sequences if (folder / s.name).is_dir()]
    if not used:
        wanted = ", ".join(s.name for s in sequences[:3])
        raise UserError(f"{folder}: no folder of any of the {len(sequences)} sequences ({wanted} ...)")
    results = {s.name: [folder / s.name / f"{frame.stem}.png" for frame in s.frames] for s in used}
    if absent := [s.name for s in sequences if s.name not in results]:
        notes.append(f"{folder}: no masks of {len(absent)} sequences: {', '.join(absent)}; left out")
    every = [path for paths in results.values() for path in paths]
    for path in every:
        if not path.is_file():
            raise UserError(f"{path}: is missing: every frame needs its mask, the first and the last too")
    known = Known(folder)
    seen = known.look(every, look_at_mask)
    for s in used:
        for path in results[s.name]:
            check_size(path, seen[path]["size"], s.size, "the frames have")
            highest = seen[path]["labels"][-1]
            if s.objects > 1 and highest > s.objects:
                hint = "; a binary mask cannot be scored against several objects" if highest == VOID else ""
                raise UserError(f"{path}: index {highest}, but the sequence has {s.objects} objects{hint}")
    return Videos(used, results, known.fingerprint_of_masks(every))


def read_result(path: Path, objects: int) -> np.ndarray:
    """A method's mask as labels uint8 [H, W]. Where the sequence has one object, any non-zero pixel is it."""
    labels = read_mask(path)
    return (labels != 0).astype(np.uint8) if objects == 1 else labels
