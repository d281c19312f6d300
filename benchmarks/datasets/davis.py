"""DAVIS and sets in its layout: checked to the last file before any long work, and fingerprinted.

What the official evaluator (davisvideochallenge/davis2017-evaluation ac7c43f) makes of a set decides: objects that the
first mask lacks are background, and a sequence of two frames, of which it would make nan, is left out.
"""

from pathlib import Path

from ...pretrain.common.errors import UserError
from .base import Data, check_positive, check_size, instead, listing
from .files import Known, check_whole, look_at_mask, look_at_picture, note_turns
from .masks import VOID, why_grey
from .videos import INSIST, Sequence, Videos
from .videos.names import choose_list, find_videos, needs, pair, read_list
from .videos.results import with_results

# DAVIS-2017 val as it was published (Pont-Tuset et al., 2017): what a comparable number must be computed on.
_VAL = """
    bike-packing blackswan bmx-trees breakdance camel car-roundabout car-shadow cows dance-twirl dog dogs-jump
    drift-chicane drift-straight goat gold-fish horsejump-high india judo kite-surf lab-coat libby loading
    mbike-trick motocross-jump paragliding-launch parkour pigs scooter-black shooting soapbox
    """
VAL_NAMES = frozenset(_VAL.split())
VAL_FRAMES, VAL_OBJECTS = 1999, 61


def open_davis(
    root: Path | str,
    list_file: Path | str | None = None,
    limit: int | None = None,
    frames: int | None = None,
    results: Path | str | None = None,
    odd_masks: bool = False,
) -> Data:
    """Open a data set in the DAVIS layout and check all of it (of what `limit` sequences and `frames` leave in use).

    root: the folder with JPEGImages/480p and Annotations/480p, or one with DAVIS/ that has them.
    list_file: names of sequences, one a line, or the official DAVIS-2016's pairs of paths; default the first of LISTS.
    results: a folder of a method's masks (results/SEQUENCE/00000.png ...); only its sequences are in use then.
    odd_masks: take label images that look like grey values, with a doubt that is said beside the number.
    The number of objects is the first mask's maximum, void (255) aside; a sequence whose first mask has only 0 and 255
    is binary, 255 being the object. Labels above the number of objects are background, with a note. Left out with a
    note: sequences of fewer than 3 frames, and those whose first mask is empty. A set of which only the first mask of
    every object is there (test-dev, YouTube-VOS) is not scored. Content: `Videos`. UserError naming the file: no
    layout, no list, an empty list, a name twice, missing frames or annotations, sizes that differ, label images of grey
    values, a damaged mask, a frame whose header or end is damaged (frames are not decoded here: `files.read_frame`);
    and for results as `videos.results.with_results` does.
    """
    check_positive(limit=limit, frames=frames)
    if frames is not None and frames < 3:
        raise UserError(f"frames={frames}: J&F leaves out the first and the last frame: 3 are needed")
    root = find_videos(root)
    list_file, notes = choose_list(root, list_file)
    doubts: list[str] = []
    listed = list(read_list(list_file, root).items())[:limit]
    pairs = {name: pair(root, name, paths) for name, paths in listed}
    cut = frames if frames and any(len(every) > frames for every, _ in pairs.values()) else None
    pairs = {name: (every[:frames], masks[:frames]) for name, (every, masks) in pairs.items()}
    _leave_out(pairs, [n for n, (every, masks) in pairs.items() if len(every) < 3 and None not in masks], notes, _SHORT)
    known = Known(root)
    known.look([path for every, _ in pairs.values() for path in every], look_at_picture)
    known.look([path for _, masks in pairs.values() for path in masks if path], look_at_mask)
    note_turns([frame for frames, _ in pairs.values() for frame in frames], known.seen, notes)
    _leave_out(pairs, [n for n, (_, m) in pairs.items() if {*known.seen[m[0]]["labels"]} == {0}], notes, _EMPTY)
    content = Videos([_check(name, *paths, known.seen) for name, paths in pairs.items()])
    _check_annotated(content.sequences, notes)
    _check_grey(content.sequences, known.seen, odd_masks, notes, doubts)
    _note_later(content.sequences, notes)
    if results:
        content = with_results(content.sequences, Path(results).expanduser(), odd_masks, notes, doubts)
    used = content.sequences
    differs = ", ".join(_differs(used, cut))
    counts = f"{sum(len(s.frames) for s in used)} frames, {sum(s.objects for s in used)} objects"
    mark = known.fingerprint(path for s in used for path in (*s.frames, *filter(None, s.masks)))
    summary = f"{len(used)} sequences, {counts}"
    return Data("davis2017", root, mark, not differs, differs, summary, notes, content, doubts, content.scored)


_SHORT = "3 frames are needed, since J&F leaves out the first and the last (the official evaluator gives nan)"
_EMPTY = "the first mask is empty, there is no object to follow"


def _leave_out(pairs: dict[str, tuple], names: list[str], notes: list[str], why: str) -> None:
    """Take sequences away, with a note. Raises UserError if none is left."""
    if not names:
        return
    counted = [f"{name} ({len(pairs.pop(name)[0])} frames)" for name in names]
    text = f"left out: {listing(counted)}: {why}"
    if not pairs:
        raise UserError(f"no sequence to use; {text}")
    notes.append(f"{text}; --list FILE chooses the sequences")


def _check(name: str, frames: list[Path], masks: list[Path | None], seen: dict[Path, dict]) -> Sequence:
    """The rules on sizes and labels."""
    size = tuple(seen[frames[0]]["size"])
    for path in (*frames, *filter(None, masks)):
        check_size(path, seen[path]["size"], size, f"{frames[0]} has")
    check_whole(frames, seen)
    first = set(seen[masks[0]]["labels"])
    binary = VOID in first and first <= {0, VOID}
    objects = 1 if binary else max(first - {VOID})
    later: dict[int, str] = {}
    met = first | {0, VOID}
    for frame, path in zip(frames, masks, strict=True):
        labels = set(seen[path]["labels"]) if path else set()
        if binary and (strange := labels - {0, VOID}):
            raise UserError(f"{path}: index {max(strange)}, but the first mask, {masks[0].name}, is binary (0 and 255)")
        later |= {label: frame.stem for label in sorted(labels - met) if label > objects}
        if None in masks and path not in (None, masks[0]) and labels <= met:  # no test set: masks were lost
            absent = [masks[0].with_stem(f.stem) for f, m in zip(frames, masks, strict=True) if m is None]
            raise UserError(f"{absent[0]}: is missing: {needs(absent)}")
        met |= labels
    return Sequence(name, frames, masks, size, objects, binary, later)


def _check_annotated(sequences: list[Sequence], notes: list[str]) -> None:
    """All sequences annotated, or none but for the first masks."""
    bare = [s for s in sequences if not s.scored]
    if bare and len(bare) < len(sequences):
        names = listing([s.name for s in bare])
        many = f"{len(bare)} of {len(sequences)} sequences"
        raise UserError(
            f"{bare[0].masks[0].parent}: {many} have only their first masks ({names}); give one kind by --list"
        )
    if bare:
        notes.append("only first masks are annotated: masks of all frames are written, and nothing is scored")


def _check_grey(sequences: list[Sequence], seen: dict, insist: bool, notes: list[str], doubts: list[str]) -> None:
    """Refuse label images of grey values, or insist; a note on each object that no pixel is of."""
    grey, counted, empty = [], 0, 0
    for s in sequences:
        looked = [seen[path] for path in s.masks if path]
        every = {label for one in looked for label in one["labels"]}
        why = "" if s.binary else why_grey(looked, s.objects)
        if why:
            grey.append((s, why))
            counted, empty = counted + s.objects, empty + len({*range(1, s.objects + 1)} - every)
        elif not s.binary and (gaps := sorted({*range(1, s.objects)} - set(looked[0]["labels"]))):
            text = f"no pixel of objects {gaps}; {s.objects} are counted, as the official evaluator does"
            notes.append(f"{s.masks[0]}: {text}")
        if not s.binary and (edges := looked[0].get("edges")) and not why:
            text = f"objects {edges} occur only between others, like smoothed edges; they are counted"
            notes.append(f"{s.masks[0]}: {text}")
    if not grey:
        return
    (first, why), rest = grey[0], f" (and so in {len(grey) - 1} more sequences)" * (len(grey) > 1)
    if not insist:
        made = f"{first.objects} objects"
        made += f", {empty} of {counted} empty, and an empty one scores 1.0" * (empty > 0)
        raise UserError(
            f"{first.masks[0]}: grey values, it seems, not the labels of objects: {why}{rest}; the official evaluator "
            f"makes of it {made}; save object i as value i, or {INSIST}"
        )
    made = f"{empty} of {counted} objects are empty and score 1.0" if empty else f"{counted} objects are counted"
    doubts.append(f"masks of grey values in {listing([s.name for s, _ in grey])}: {made}")


def _note_later(sequences: list[Sequence], notes: list[str]) -> None:
    """A note on objects that the first mask lacks."""
    later = [
        f"{s.name}: {listing([f'{label} (from {frame})' for label, frame in s.later.items()])}"
        for s in sequences
        if s.later
    ]
    if later:
        what = "not scored, as in the official evaluator" if sequences[0].scored else "no masks of theirs are written"
        notes.append(f"objects that the first mask lacks are background, {what}: {listing(later)}")


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
    if not all(s.scored for s in sequences):
        parts.append("only first masks")
    if parts:
        return parts
    frames, objects = sum(len(s.frames) for s in sequences), sum(s.objects for s in sequences)
    return instead(frames, VAL_FRAMES, "frames") + instead(objects, VAL_OBJECTS, "objects")
