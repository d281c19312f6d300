"""ADE20K and sets in its layout: checked to the last file before any long work, and fingerprinted. No mm here."""

import hashlib
import io
import os
from pathlib import Path

from PIL import Image

from ...pretrain.common.errors import UserError
from .coco import ANY, MmData, look_at_picture, more, positive, share, truncated
from .files import Known, digest
from .masks import decode_mask

FOLDERS = {"train": "training", "val": "validation"}
OFFICIAL = {"train": 20210, "val": 2000}  # pictures of the scene parsing benchmark (Zhou et al., 2017)
CLASSES = 150
MOST = 254  # classes of a set of its own: labels have 8 bits


def look_at_labels(path: Path) -> list:
    """[H, W, sha256 of the file, bytes, highest label] of a label map that mm reads as it is here: 8 bits, grey."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    labels = decode_mask(data, path)
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        mode = image.mode
    if mode not in ("L", "P"):
        raise UserError(
            f"{path}: a PNG of mode {mode}; label maps are 8-bit PNGs of one channel, the label as the value"
        )
    return [*labels.shape, hashlib.sha256(data).hexdigest(), len(data), int(labels.max())]


def _listing(folder: Path, ending: str) -> dict[str, Path]:
    """Relative name without ending -> file, of all such files below the folder in mm's order (of their paths)."""
    found = {}
    for base, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.endswith(ending) and not name.startswith("."):
                path = Path(base, name)
                found[path.relative_to(folder).as_posix()[: -len(ending)]] = path
    return dict(sorted(found.items(), key=lambda pair: str(pair[1])))


def _layout(root: Path | str, splits: tuple[str, ...]) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: {'is not a folder' if root.exists() else 'no such folder'}; give the ADE20K root")
    needed = [f"{kind}/{FOLDERS[s]}" for s in splits for kind in ("images", "annotations")]
    for folder in (root, root / "ADEChallengeData2016"):  # the official archive unpacks to the latter
        if all((folder / name).is_dir() for name in needed):
            return folder
    absent = " and no ".join(name for name in needed if not (root / name).is_dir())
    raise UserError(
        f"{root}: not an ADE20K layout: it has no {absent}; give ADEChallengeData2016, the folder with images/ and "
        "annotations/"
    )


def _names(root: Path, classes: int | str | None) -> tuple[int | None, tuple[str, ...]]:
    """(number of a set's own classes, names of the labels 1, 2 ... from classes.txt); (None, empty) for ADE20K's."""
    file = root / "classes.txt"
    names: list[str] = []
    if file.is_file():
        try:
            names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read: {error}") from None
        if not names or len(set(names)) < len(names) or len(names) > MOST:
            raise UserError(f"{file}: a name a line is needed, none of them twice, at most {MOST}")
        if classes == ANY:
            classes = len(names)
        if classes is None:
            raise UserError(f"{file}: {len(names)} classes of its own, not ADE20K's; say so by classes={len(names)}")
        if len(names) != classes:
            raise UserError(f"{file}: {len(names)} names, but classes={classes}")
    classes = None if classes == ANY else classes
    return classes, tuple(names or (f"class {i}" for i in range(1, (classes or 0) + 1)))


def _pairs(root: Path, split: str, limit: int | None) -> tuple[list[Path], list[Path]]:
    """Pictures and their label maps, both complete."""
    image_folder, label_folder = (root / kind / FOLDERS[split] for kind in ("images", "annotations"))
    images, labels = _listing(image_folder, ".jpg"), _listing(label_folder, ".png")
    if not images:
        raise UserError(f"{image_folder}: holds no .jpg file")
    names = list(images)[:limit]
    if absent := [label_folder / f"{name}.png" for name in names if name not in labels]:
        raise UserError(f"{absent[0]}: is missing{more(absent)}: every picture needs its label map")
    if odd := sorted(labels.keys() - images.keys()):
        raise UserError(f"{labels[odd[0]]}: the picture to it, {image_folder / odd[0]}.jpg, is missing{more(odd)}")
    return [images[n] for n in names], [labels[n] for n in names]


def open_ade20k(
    root: Path | str, limit: int | None = None, classes: int | str | None = None, train: bool = True
) -> MmData:
    """Open a set in ADE20K's layout and check all of it (of the validation pictures those that `limit` leaves in use).

    root: the folder with images/{training,validation}/*.jpg and annotations/{training,validation}/*.png, or one with
    ADEChallengeData2016/ that has them. limit: the first so many validation pictures, by name. classes: None stands
    for ADE20K's 150; a number, for a set of its own, whose labels are 1 to that (0 is not judged) and whose names are
    in classes.txt if there is one; ANY: as many as classes.txt names, without one ADE20K's. train: whether the training
    split is needed. Label maps are decoded once and then remembered (`files.Known`). UserError naming the file: no
    layout, a picture without its label map or the other way round, other sizes, a label out of range, damaged files, no
    label at all.
    """
    positive("limit", limit)
    if classes != ANY:
        positive("classes", classes)
    if classes not in (None, ANY) and classes > MOST:
        raise UserError(f"classes={classes}: at most {MOST}, for labels of 8 bits")
    splits = ("train", "val") if train else ("val",)
    root, notes = _layout(root, splits), []
    classes, names = _names(root, classes)
    top = classes or CLASSES
    known, files, counts = Known(root), [], {}
    for split in splits:
        images, labels = _pairs(root, split, limit if split == "val" else None)
        counts[split] = len(images)
        seen = known.look(images, look_at_picture)
        maps = known.look(labels, look_at_labels)
        for image, label, a, b in zip(images, labels, seen, maps, strict=True):
            if a[:2] != b[:2]:
                raise UserError(f"{label}: {b[0]}x{b[1]} pixels (HxW), but {image.name} has {a[0]}x{a[1]}")
            if b[4] > top:
                hint = "; what is not judged is 0 here, not 255" if b[4] == 255 else ""
                raise UserError(f"{label}: label {b[4]}; labels go from 0 (not judged) to {top}{hint}")
        truncated(images, seen, split, notes)
        empty = [path for path, fact in zip(labels, maps, strict=True) if not fact[4]]
        if len(empty) == len(labels):
            raise UserError(f"{labels[0]}: holds no label but 0, which is not judged{more(labels)}")
        if empty:
            notes.append(f"{empty[0]}: holds no label but 0, which is not judged{more(empty)}")
        for paths, facts, sha in ((images, seen, None), (labels, maps, 2)):
            files += [
                (p.relative_to(root).as_posix(), f[3], f[sha] if sha else "") for p, f in zip(paths, facts, strict=True)
            ]
    differs = share(counts["val"], OFFICIAL["val"], "images")
    if train:
        differs += share(counts["train"], OFFICIAL["train"], "training images")
    if classes is not None:
        differs.append(f"{classes} classes of its own")
    pictures = " and ".join(f"{counts[s]} {FOLDERS[s]}" for s in splits)
    summary = f"{pictures} pictures, {top} classes"
    return MmData("ade20k", root, names, top, counts, digest(files), ", ".join(differs), summary, notes)
