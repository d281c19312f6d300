"""A method's masks of the videos of a set, FOLDER/SEQUENCE/00000.png ..., checked before they are scored."""

from pathlib import Path

import numpy as np

from ....pretrain.common.errors import UserError
from ..base import check_size, listing, more
from ..files import Known, look_at_mask
from ..masks import VOID, read_mask, why_grey
from . import INSIST, Sequence, Videos
from .names import FRAME_ENDINGS, MASK_ENDINGS, in_order, misnamed


def with_results(sequences: list[Sequence], folder: Path, insist: bool, notes: list[str], doubts: list[str]) -> Videos:
    """The sequences that the folder has a sub-folder of, with its masks, all checked that are scored.

    As in the official evaluator, the first and the last frame's are not looked at, and may be absent. insist: take
    masks that look like grey values, with a doubt. Raises UserError: no annotations to score by, no sequence at all, a
    missing mask, a wrong size, a label above the number of objects, masks of grey values, names unlike the frames'.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of masks")
    if not sequences[0].scored:
        raise UserError(f"--masks {folder}: this set has only its first masks annotated, nothing to score others by")
    used = [s for s in sequences if (folder / s.name).is_dir()]
    if not used:
        raise UserError(
            f"{folder}: no folder of any of the {len(sequences)} sequences {_what_instead(folder, sequences)}"
        )
    if absent := [s.name for s in sequences if not (folder / s.name).is_dir()]:
        notes.append(f"{folder}: no masks of {len(absent)} sequences: {', '.join(absent)}; left out")
    results = {s.name: _masks_of(s, folder / s.name) for s in used}
    known = Known(folder)
    known.look([path for paths in results.values() for path in paths[1:-1]], look_at_mask)
    grey = [s.name for s in used if _check(s, results[s.name], known.seen, insist)]
    if grey:
        doubts.append(f"--masks of grey values in {listing(grey)}")
    if copies := [s.name for s in used if _is_truth(s, results[s.name], known.seen)]:
        doubts.append(f"--masks are the annotations themselves in {len(copies)} of {len(used)} sequences")
    known.look([path for paths in results.values() for path in (paths[0], paths[-1]) if path], _look_at_end)
    return Videos(used, results, known.fingerprint_of_masks(path for path, facts in known.seen.items() if facts))


def _what_instead(folder: Path, sequences: list[Sequence]) -> str:
    """What is in a folder without results of any sequence, in words."""
    wanted = f"({', '.join(s.name for s in sequences[:3])} ...)"
    names = {s.name for s in sequences}
    if (folder.name in names or len(sequences) == 1) and any(
        p.suffix.lower() in MASK_ENDINGS for p in folder.iterdir()
    ):
        return f"{wanted}; it holds masks itself: put them into a folder named like their sequence, and give that one's"
    for inside in sorted(p for p in folder.iterdir() if p.is_dir()):
        if any((inside / name).is_dir() for name in names):
            return f"{wanted}; they are in {inside}"
    return wanted


def _masks_of(s: Sequence, folder: Path) -> list[Path | None]:
    """The mask file of each frame; None for the first or last one without. Raises UserError naming what is missing."""
    files = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix == ".png" and not p.name.startswith(".")}
    stems = [frame.stem for frame in s.frames]
    lacking = [stem for stem in stems[1:-1] if stem not in files]
    # Of a set that is cut to some frames there may be masks of all.
    every = {p.stem for p in s.frames[0].parent.iterdir() if p.suffix.lower() in FRAME_ENDINGS}
    if slip := misnamed(in_order(every), files) or (lacking and misnamed(stems[1:-1], files)):
        raise UserError(f"{folder}: {slip}")
    if lacking:
        jpeg = any(p.suffix.lower() in (".jpg", ".jpeg") for p in folder.iterdir())
        hint = "; there are .jpg files: JPEG does not keep labels, masks are PNGs" if jpeg else ""
        wanted = "every frame but the first and the last needs its mask"
        raise UserError(f"{folder / lacking[0]}.png: is missing{more(lacking)}: {wanted}{hint}")
    return [files.get(stem) for stem in stems]


def _check(s: Sequence, paths: list[Path | None], seen: dict[Path, dict], insist: bool) -> bool:
    """The rules on sizes and labels of the masks that are scored; -> whether they look like grey values."""
    scored = {path: seen[path] for path in paths[1:-1]}
    for path, facts in scored.items():
        check_size(path, facts["size"], s.size, "the frames have")
        highest = facts["labels"][-1]
        if s.objects > 1 and highest > s.objects:
            hint = "; a binary mask cannot be scored against several objects" if highest == VOID else ""
            if not hint and (why := why_grey(scored.values(), max(f["labels"][-1] for f in scored.values()))):
                hint = f"; grey values, it seems, not labels: {why}"
            raise UserError(f"{path}: index {highest}, but the sequence has {s.objects} objects{hint}")
    if (why := why_grey(scored.values())) and not insist:
        rule = "; then every pixel that is not 0 is the object" if s.objects == 1 else ""
        raise UserError(f"{paths[1].parent}: grey values, it seems, not labels: {why}; {INSIST}{rule}")
    return bool(why)


def _is_truth(s: Sequence, paths: list[Path | None], seen: dict[Path, dict]) -> bool:
    """Whether the masks that are scored are the annotations, and not all empty; read until one differs."""
    if all(seen[path]["labels"] == [0] for path in paths[1:-1]):
        return False
    return all(np.array_equal(read_result(path, s.objects), s.truth(i)) for i, path in enumerate(paths[1:-1], 1))


def _look_at_end(path: Path) -> dict:
    """Facts of a mask that is not scored; none of one that cannot be read."""
    try:
        return look_at_mask(path)
    except UserError:
        return {}


def read_result(path: Path, objects: int) -> np.ndarray:
    """A method's mask as labels uint8 [H, W]. Where the sequence has one object, any non-zero pixel is it."""
    labels = read_mask(path)
    return (labels != 0).astype(np.uint8) if objects == 1 else labels
