"""Which files a set of videos in the DAVIS layout has: its list of sequences, and each one's frames and annotations.

Frames and masks belong together by their names. Where these do not fit, the usual slips are named: numbers that are off
by one or padded otherwise, masks saved as JPEG.
"""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ....pretrain.common.errors import UserError
from ..base import find_layout, more, read_lines

FRAMES, ANNOTATIONS = "JPEGImages/480p", "Annotations/480p"
LISTS = ("ImageSets/2017/val.txt", "ImageSets/2016/val.txt", "ImageSets/480p/val.txt")
TEST_LISTS = ("ImageSets/2017/test-dev.txt", "ImageSets/2017/test-challenge.txt")  # without annotations to score by
FRAME_ENDINGS, MASK_ENDINGS = (".jpg", ".jpeg", ".png"), (".png",)


def find_videos(root: Path | str) -> Path:
    """The folder with FRAMES and ANNOTATIONS. Raises UserError that says what is there instead."""
    try:
        return find_layout(root, "DAVIS", (FRAMES, ANNOTATIONS), "give the folder that holds both", inside="DAVIS")
    except UserError as error:
        parent = Path(root).expanduser() / "JPEGImages"
        inside = sorted(p for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        if not inside or (parent / "480p").exists():
            raise
        if any(p.suffix.lower() in FRAME_ENDINGS for p in inside[0].iterdir()):
            hint = f"{parent} holds the sequences themselves: they belong into 480p/ below it, and the masks likewise"
        else:
            hint = f"{parent} holds {', '.join(p.name for p in inside[:3])}; only 480p is read"
        raise UserError(f"{error} ({hint})") from None


def choose_list(root: Path, list_file: Path | str | None) -> tuple[Path, list[str]]:
    """The list of sequences, and a note where the set has several."""
    if list_file is not None:
        return Path(list_file).expanduser(), []
    present = [name for name in LISTS if os.path.lexists(root / name)]
    if not present:
        present = [name for name in TEST_LISTS if os.path.lexists(root / name)][:1]
    if not present:
        there = ", ".join(sorted(p.relative_to(root).as_posix() for p in root.glob("ImageSets/*/*.txt"))[:4])
        hint = f" (there is {there})" if there else ""
        raise UserError(f"{root}: no list of sequences: none of {', '.join(LISTS)}; give one with --list FILE{hint}")
    others = [f"sequences from {present[0]} (there is also {', '.join(present[1:])})"] * (len(present) > 1)
    return root / present[0], others


def read_list(path: Path, root: Path) -> dict[str, list[tuple[str, str]] | None]:
    """Sequence name -> None, or its (frame, mask) paths where the list has the pairs of the official DAVIS-2016. Names
    and paths may have spaces."""
    listed: dict = {}
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}, line {number}"
        if not line or line.startswith("#"):
            continue
        if "/" in line.strip("/") and line.split() != [line]:
            frame, mask = _pair_of_paths(line, where)
            name = Path(frame).parent.name
            pairs = listed.setdefault(name, [])
            if pairs is None or (frame, mask) in pairs:
                raise UserError(f"{where}: {frame if pairs else name} is listed twice")
            pairs.append((frame, mask))
            continue
        known = line.split() == [line] or (root / FRAMES / line).is_dir() or (root / ANNOTATIONS / line).is_dir()
        if Path(line).name != line or line in (".", "..") or not known:
            raise UserError(f"{where}: '{line}' is neither a sequence's name nor a pair of a frame and a mask")
        if line in listed:
            raise UserError(f"{where}: sequence {line} is listed twice")
        listed[line] = None
    if not listed:
        raise UserError(f"{path}: the list names no sequence")
    return listed


def _pair_of_paths(line: str, where: str) -> tuple[str, str]:
    """FRAME and MASK of a line that has both; of the spaces, that one parts them which gives two paths of one frame."""
    halves = [(line[: gap.start()].lstrip("/"), line[gap.end() :].lstrip("/")) for gap in re.finditer(r"\s+", line)]
    fitting = [(f, m) for f, m in halves if f != m and _place(f) == _place(m) and len(Path(f).parts) > 1]
    if ".." in re.split(r"[\s/]", line):
        raise UserError(f"{where}: '..' in a path; paths start at the data set's root")
    if len(fitting) != 1:
        raise UserError(f"{where}: '{line}': these are not a frame and its annotation")
    return fitting[0]


def _place(path: str) -> tuple[str, str]:
    """Sequence and frame of a path."""
    return Path(path).parent.name, Path(path).stem


def pair(root: Path, name: str, listed: list[tuple[str, str]] | None) -> tuple[list[Path], list[Path | None]]:
    """Frames in order, and the annotation of each, None where there is none; the first one has its own.

    Raises UserError for a sequence without frames or annotations, an annotation without its frame, a first frame
    without annotation, and, of a list of pairs, for what is not there.
    """
    if listed is not None:
        frames, masks = [root / frame for frame, _ in listed], [root / mask for _, mask in listed]
        if absent := [path for path in frames + masks if not path.is_file()]:
            raise UserError(f"{absent[0]}: is in the list but does not exist{more(absent)}")
        return frames, masks
    folder, place = root / FRAMES / name, root / ANNOTATIONS / name
    by_frame, by_mask = pictures(folder, FRAME_ENDINGS), pictures(place, MASK_ENDINGS)
    order = in_order(by_frame)
    if slip := misnamed(order, by_mask):
        raise UserError(f"{place}: {slip}")
    if lost := in_order(by_mask.keys() - by_frame.keys()):
        raise UserError(f"{folder / lost[0]}.jpg: is missing: {needs(lost)}")
    if order[0] not in by_mask:
        absent = [n for n in order if n not in by_mask]
        raise UserError(f"{place / order[0]}.png: is missing: {needs(absent)}")
    return [by_frame[n] for n in order], [by_mask.get(n) for n in order]


def needs(absent: Collection[str]) -> str:
    """Why files must be there."""
    return f"every frame needs its annotation, and every annotation its frame{more(absent)}"


def pictures(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Frame name -> file. Raises UserError for a folder without any, and for a frame that is there twice."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the list of sequences names it")
    files: dict[str, Path] = {}
    names = sorted(os.listdir(folder))
    for name in names:
        path = folder / name
        if path.suffix.lower() not in endings or name.startswith("."):
            continue
        if path.stem in files:
            raise UserError(f"{path}: the same frame as {files[path.stem].name}")
        files[path.stem] = path
    if not files:
        raise UserError(f"{folder}: holds no {' or '.join(endings)} file{_instead(names, endings)}")
    return files


def _instead(names: Iterable[str], endings: tuple[str, ...]) -> str:
    """What a folder holds instead, in words."""
    there = {Path(name).suffix.lower() for name in names if not name.startswith(".")} - {""}
    if not there:
        return ""
    lossy = endings == MASK_ENDINGS and there & {".jpg", ".jpeg"}
    why = ": JPEG does not keep labels, masks are PNGs" if lossy else ""
    return f", but {', '.join(sorted(there))}{why}"


def in_order(names: Collection[str]) -> list[str]:
    """Frame names in time: by number where all are numbers ('10' after '9'), else by name."""
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numbers else None)


def misnamed(frames: Collection[str], masks: Collection[str]) -> str:
    """How the names of masks miss those of the frames, in words; '' where none is wrong, whatever is absent."""
    frames, masks = in_order(frames), in_order(masks)
    if not masks or frames == masks:
        return ""
    said = f"masks {_span(masks)}, but frames {_span(frames)}: a mask needs its frame's name"
    ours, theirs = _numbers(frames), _numbers(masks)
    steps = {a - b for a, b in zip(theirs, ours, strict=False)}
    if len(theirs) == len(ours) and len(steps) == 1 and 0 not in steps:
        return f"{said} (the numbers are off by {abs(steps.pop())})"
    return f"{said} (it is spelled otherwise)" if theirs and not set(frames) & set(masks) else ""


def _span(names: list[str]) -> str:
    return f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]


def _numbers(names: list[str]) -> list[int]:
    """The last number in each name; [] if one has none."""
    found = [re.findall(r"\d+", name) for name in names]
    return [int(numbers[-1]) for numbers in found] if all(found) else []
