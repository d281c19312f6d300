"""PASCAL VOC 2012 with the annotation of `trainaug` (Hariharan et al., 2011): checked to the last file."""

from pathlib import Path

from ....pretrain.common.errors import UserError
from ..base import Data, check_size, find_layout, more, read_lines, share_of_splits, summary_of_splits
from ..files import Known, check_whole, look_at_mask, look_at_picture, note_turns
from . import IGNORED, Labelled, LabelledSet, check_judged

IMAGES = {"train": 10_582, "val": 1_449}
NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# Folders of pictures and lists: VOC's own, and open-hummingbird-eval's.
LAYOUTS = (("JPEGImages", "ImageSets/Segmentation"), ("images", "sets"))
LABELS = {"train": "SegmentationClassAug", "val": "SegmentationClass"}
LISTS = {"train": "trainaug", "val": "val"}


def open_voc(root: Path | str, limit: int | None = None) -> Data:
    """Open VOC 2012 and check all of it. limit: the first so many validation pictures of the list.

    root: the folder with JPEGImages, SegmentationClass, SegmentationClassAug and ImageSets/Segmentation/{trainaug,val}
    .txt, or one with VOC2012/ that has them; or open-hummingbird-eval's folder with images/ and sets/. Content: a
    LabelledSet. Raises UserError naming the file: no layout, an empty list, a picture or a label map that is missing or
    damaged, other sizes, a label that is neither 0 to 20 nor 255.
    """
    root, (pictures, lists) = _layout(Path(root).expanduser())
    known, notes, used, counts, splits = Known(root), [], [], {}, {}
    for split, name in LISTS.items():
        names = list(dict.fromkeys(line.split()[0] for line in read_lines(root / lists / f"{name}.txt") if line))
        if not names:
            raise UserError(f"{root / lists / name}.txt: names no picture")
        names = names[: limit if split == "val" else None]
        images = [root / pictures / f"{one}.jpg" for one in names]
        labels = [root / LABELS[split] / f"{one}.png" for one in names]
        if absent := [path for path in (*images, *labels) if not path.is_file()]:
            raise UserError(f"{absent[0]}: is missing{more(absent)}; {name}.txt names it")
        known.look(images, look_at_picture)
        known.look(labels, look_at_mask)
        check_labels(images, labels, known.seen, len(NAMES))
        check_judged(labels, known.seen, range(len(NAMES)))
        check_whole(images, known.seen)
        note_turns(images, known.seen, notes)
        splits[split], counts[split] = Labelled(split, images, labels), len(names)
        used += images + labels
    differs = ", ".join(share_of_splits(counts, IMAGES))
    content = LabelledSet(splits["train"], splits["val"], len(NAMES), IGNORED, NAMES)
    mark, summary = known.fingerprint(used), summary_of_splits(counts, len(NAMES))
    return Data("voc2012", root, mark, not differs, differs, summary, notes, content)


def _layout(root: Path) -> tuple[Path, tuple[str, str]]:
    """Of hummingbird's layout where its list is there, else of VOC's, whose absence is said."""
    own = [layout for layout in LAYOUTS[1:] if (root / layout[1] / "trainaug.txt").is_file()]
    layout = own[0] if own else LAYOUTS[0]
    parts = [layout[0], *LABELS.values(), *(f"{layout[1]}/{name}.txt" for name in LISTS.values())]
    inside = "VOC2012" if (root / "VOC2012").is_dir() else "VOCdevkit/VOC2012"
    advice = "give VOC2012, the folder with JPEGImages/ (SegmentationClassAug and trainaug.txt are SBD's, added to it)"
    return find_layout(root, "VOC 2012", parts, advice, inside), layout


def check_labels(images: list[Path], labels: list[Path], seen: dict[Path, dict], classes: int) -> None:
    """UserError for a label map that is not one: several channels, another size, a label beyond the classes."""
    for image, path in zip(images, labels, strict=True):
        facts = seen[path]
        if facts["mode"] not in ("L", "P", "1"):
            raise UserError(f"{path}: a PNG of mode {facts['mode']}; label maps have one channel of 8 bits")
        check_size(path, facts["size"], seen[image]["size"], f"{image.name} has")
        if wrong := [label for label in facts["labels"] if classes <= label != IGNORED]:
            raise UserError(f"{path}: label {wrong[0]}; labels go from 0 to {classes - 1}, and 255 is not judged")
