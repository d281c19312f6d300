"""ADE20K and sets in its layout: checked to the last file before any long work, and fingerprinted. No mm here."""

import os
from pathlib import Path

from ...pretrain.common.errors import UserError
from .base import (
    ANY,
    SPLITS,
    Data,
    absent_classes,
    check_positive,
    check_size,
    find_layout,
    more,
    read_lines,
    share_of_splits,
    summary_of_splits,
)
from .files import Known, check_whole, look_at_mask, look_at_picture, note_turns
from .masks import why_grey
from .overlap import same_pictures

IMAGES = {"train": 20210, "val": 2000}  # of the scene parsing benchmark (Zhou et al., 2017)
CLASSES = 150
MOST = 254  # classes of a set of its own: labels have 8 bits


def open_ade20k(
    root: Path | str, limit: int | None = None, classes: int | str | None = None, train: bool = True
) -> Data:
    """Open a set in ADE20K's layout and check all of it (of the validation pictures those that `limit` leaves in use).

    root: the folder with images/{training,validation}/*.jpg and annotations/{training,validation}/*.png, or one with
    ADEChallengeData2016/ that has them. limit: the first so many validation pictures, by name. classes: None stands
    for ADE20K's 150; a number, for a set of its own, whose labels are 1 to that (0 is not judged) and whose names are
    in classes.txt if there is one; ANY: as many as classes.txt names, without one ADE20K's. train: whether the training
    split is needed. Content: the names of a set's own classes; none for ADE20K's, which mmseg has. Label maps are
    decoded once and then remembered (`files.Known`); where they look smoothed, that is a doubt. UserError naming the
    file: no layout, a picture without its label map or the other way round, other sizes, a label out of range, damaged
    files, no label at all.
    """
    check_positive(limit=limit, classes=None if classes == ANY else classes)
    if classes not in (None, ANY) and classes > MOST:
        raise UserError(f"classes={classes}: at most {MOST}, for labels of 8 bits")
    splits = ("train", "val") if train else ("val",)
    parts = [f"{folder}/{SPLITS[split]}" for split in splits for folder in ("images", "annotations")]
    advice = "give ADEChallengeData2016, the folder with images/ and annotations/"
    root = find_layout(root, "ADE20K", parts, advice, inside="ADEChallengeData2016")  # as its archive unpacks
    names = _names(root, classes)
    number = len(names) or CLASSES
    known, notes, used, pictures, found = Known(root), [], [], {}, {}
    for split in splits:
        images, labels = pairs(root, SPLITS[split], limit if split == "val" else None)
        known.look(images, look_at_picture)
        known.look(labels, look_at_mask)
        _check(images, labels, known.seen, number, notes)
        check_whole(images, known.seen, notes if split == "train" else None)
        note_turns(images, known.seen, notes)
        if split == "train" or limit is None:
            found[split] = {label for path in labels for label in known.seen[path]["labels"]}
        pictures[split] = images
        used += images + labels
    own = names or tuple(map(str, range(1, number + 1)))
    notes += [f"{root / 'annotations'}: {note}" for note in _on_classes(found, own)]
    if train:
        notes += same_pictures(pictures["train"], pictures["val"], known.seen)
    counts = {split: len(images) for split, images in pictures.items()}
    differs = ", ".join(share_of_splits(counts, IMAGES) + [f"{number} classes of its own"] * bool(names))
    summary = summary_of_splits(counts, number)
    why = why_grey(known.seen[path] for path in used if "labels" in known.seen[path])
    doubts = [f"label maps of grey values: {why}"] if why else []
    return Data("ade20k", root, known.fingerprint(used), not differs, differs, summary, notes, names, doubts)


def _names(root: Path, classes: int | str | None) -> tuple[str, ...]:
    """Names of the labels 1, 2 ... of a set's own classes, from classes.txt or numbered; none for ADE20K's."""
    file = root / "classes.txt"
    if not os.path.lexists(file):  # what is there and cannot be read is refused, not passed over
        return () if classes in (None, ANY) else tuple(f"class {i}" for i in range(1, classes + 1))
    names = tuple(filter(None, read_lines(file)))
    if not names or len(set(names)) < len(names) or len(names) > MOST:
        raise UserError(f"{file}: a name a line is needed, none of them twice, at most {MOST}")
    if classes is None:
        raise UserError(f"{file}: {len(names)} classes of its own, not ADE20K's; say so by classes={len(names)}")
    if classes not in (ANY, len(names)):
        raise UserError(f"{file}: {len(names)} names, but classes={classes}")
    return names


def pairs(root: Path, split: str, limit: int | None) -> tuple[list[Path], list[Path]]:
    """Pictures and their label maps, both complete."""
    image_folder, label_folder = root / "images" / split, root / "annotations" / split
    images, labels = _listing(image_folder, ".jpg"), _listing(label_folder, ".png")
    if not images:
        raise UserError(f"{image_folder}: holds no .jpg file")
    names = list(images)[:limit]
    if absent := [label_folder / f"{name}.png" for name in names if name not in labels]:
        raise UserError(f"{absent[0]}: is missing{more(absent)}: every picture needs its label map")
    if odd := sorted(labels.keys() - images.keys()):
        raise UserError(f"{labels[odd[0]]}: the picture to it, {image_folder / odd[0]}.jpg, is missing{more(odd)}")
    return [images[n] for n in names], [labels[n] for n in names]


def _listing(folder: Path, ending: str) -> dict[str, Path]:
    """Relative name without ending -> file, of all such files below the folder in mm's order (of their paths)."""
    walk = ((base, name) for base, _, names in os.walk(folder, followlinks=True) for name in names)
    paths = [Path(base, name) for base, name in walk if name.endswith(ending) and not name.startswith(".")]
    return {path.relative_to(folder).as_posix().removesuffix(ending): path for path in sorted(paths, key=str)}


def _check(images: list[Path], labels: list[Path], seen: dict[Path, dict], highest: int, notes: list[str]) -> None:
    """Label maps that mmseg reads as they are here: 8 bits, grey, as large as their pictures, labels 0 to `highest`."""
    for image, path in zip(images, labels, strict=True):
        facts, label = seen[path], seen[path]["labels"][-1]
        if facts["mode"] not in ("L", "P"):
            mode = facts["mode"]
            raise UserError(
                f"{path}: a PNG of mode {mode}; label maps are 8-bit PNGs of one channel, the label as the value"
            )
        check_size(path, facts["size"], seen[image]["size"], f"{image.name} has")
        if label > highest:
            hint = _hint(labels, seen, highest) if label == 255 else ""
            raise UserError(f"{path}: label {label}; labels go from 0 (not judged) to {highest}{hint}")
    if empty := [path for path in labels if seen[path]["labels"] == [0]]:
        text = f"{empty[0]}: holds no label but 0, which is not judged{more(empty)}"
        if len(empty) == len(labels):
            raise UserError(text)
        notes.append(text)


def _hint(labels: list[Path], seen: dict[Path, dict], highest: int) -> str:
    """What may be meant where label 255 occurs."""
    others = {label for path in labels for label in seen[path]["labels"]} - {255}
    text = "; what is not judged is 0 here, not 255"
    if 0 in others and max(others) < highest:
        text += f": if 0 to {highest - 1} are the classes, add 1 to each label and write 0 for 255"
    return text


def _on_classes(found: dict[str, set[int]], names: tuple[str, ...]) -> list[str]:
    """Notes on classes that occur in no label map of a split, and on labels that seem to begin with 0. found: the
    labels of each split."""
    notes = []
    for split, effect in (("train", "nothing can be learnt of them"), ("val", "mIoU is the mean over the others")):
        absent = [name for label, name in enumerate(names, 1) if split in found and label not in found[split]]
        notes += absent_classes(absent, len(names), f"{SPLITS[split]} label map", effect)
    every = set().union(*found.values())
    if 0 in every and max(every) == len(names) - 1:
        text = f"labels go from 0 to {max(every)}, with {len(names)} classes"
        notes.append(f"{text}: 0 is not judged here; if it is the first class, add 1 to every label")
    return notes
