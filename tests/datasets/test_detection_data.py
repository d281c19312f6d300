"""COCO and ADE20K layouts: what is accepted, what is refused and how it is said."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from selfpatch_bench.benchmarks.datasets import ade20k as segmentation_data
from selfpatch_bench.benchmarks.datasets import coco as detection_data
from selfpatch_bench.benchmarks.datasets import files
from selfpatch_bench.benchmarks.datasets.ade20k import open_ade20k
from selfpatch_bench.benchmarks.datasets.coco import CATEGORIES, open_coco
from selfpatch_bench.benchmarks.synthetic.small_sets import ADE_CLASSES, COCO_CLASSES, make_ade20k, make_coco
from selfpatch_bench.pretrain.common.errors import UserError

TRAIN, VAL = "annotations/instances_train2017.json", "annotations/instances_val2017.json"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return make_coco(folder / "coco", (5, 4), (48, 64)), make_ade20k(folder / "ade", (4, 3), (48, 64))


@pytest.fixture
def coco(sets, tmp_path):
    return shutil.copytree(sets[0], tmp_path / "coco")


@pytest.fixture
def ade(sets, tmp_path):
    return shutil.copytree(sets[1], tmp_path / "ade")


def _unusual(data) -> list[str]:
    """The notes but for those on any set of so few pictures: a crowd is left out, and some classes do not occur."""
    usual = ("left out: 1 in crowds", "classes occur in no")
    return [note for note in data.notes if not any(text in note for text in usual)]


def _edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# -------------------------------------------------------------------------------------------------------------- COCO
def test_coco_opens(coco):
    found = open_coco(coco, classes=3)
    assert (found.name, found.root, found.content, found.official) == ("coco", coco, COCO_CLASSES, False)
    assert found.differs == "4 of 5000 images, 5 of 118287 training images, 3 classes of its own"
    assert found.summary == "5 training and 4 validation pictures, 3 classes"
    assert found.notes == [
        f"{coco / TRAIN}: mmdet trains on 13 of 14 annotations; left out: 1 in crowds",
        f"{coco / TRAIN}: 1 of 3 classes occur in no training annotation (polygon): nothing can be learnt of them",
    ]


def test_coco_limit_and_without_training(coco):
    shutil.rmtree(coco / "train2017")
    (coco / TRAIN).unlink()
    names = [image["file_name"] for image in json.loads((coco / VAL).read_text())["images"]]
    for name in names[2:]:
        (coco / "val2017" / name).unlink()  # what the limit leaves out need not be there
    found = open_coco(coco, limit=2, classes=3, train=False)
    assert found.summary == "2 validation pictures, 3 classes"
    assert found.differs == "2 of 5000 images, 3 classes of its own"
    with pytest.raises(UserError, match=r"does not exist, but instances_val2017.json lists it"):
        open_coco(coco, limit=3, classes=3, train=False)
    with pytest.raises(UserError, match=r"it has no annotations/instances_train2017.json and no train2017"):
        open_coco(coco, limit=2, classes=3)


def _as_coco(content):
    """COCO's own 80 categories, the annotations keeping their ids (1, 2 and 4 are among COCO's)."""
    content["categories"] = [{"id": i, "name": name} for i, name in CATEGORIES]


def test_coco_official_is_by_counts_and_categories(coco, monkeypatch):
    for part in (TRAIN, VAL):
        _edit(coco / part, _as_coco)
    numbers = {s: len(json.loads((coco / p).read_text())["annotations"]) for s, p in (("train", TRAIN), ("val", VAL))}
    monkeypatch.setattr(detection_data, "IMAGES", {"train": 5, "val": 4})
    monkeypatch.setattr(detection_data, "ANNOTATIONS", numbers)
    found = open_coco(coco)
    assert (found.official, found.differs, len(found.content)) == (True, "", 80)
    assert open_coco(coco, classes=80).official  # the same 80: nothing differs
    assert open_coco(coco, limit=1).differs == "1 of 4 images"
    _edit(coco / TRAIN, lambda c: c["annotations"].pop())
    assert open_coco(coco).differs == f"{numbers['train'] - 1} of {numbers['train']} training annotations"
    monkeypatch.setattr(detection_data, "IMAGES", {"train": 5, "val": 3})
    assert open_coco(coco).differs == "4 images instead of 3"


def test_categories_are_the_published_ones():
    assert len(CATEGORIES) == 80
    assert (CATEGORIES[0], CATEGORIES[-1]) == ((1, "person"), (90, "toothbrush"))
    assert dict(CATEGORIES)[44] == "bottle"
    assert {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}.isdisjoint(dict(CATEGORIES))  # the ids that COCO leaves out


def _first(part, **values):
    return lambda content: content[part][0].update(values)


BROKEN = {
    "category of another": (_first("categories", name="other"), "3 categories (other, polygon, star), not COCO's 80"),
    "one category fewer": (lambda c: c["categories"].pop(0), "category_id 1, which is not among the categories"),
    "category twice": (_first("categories", name="star"), "category star occurs twice"),
    "category without a name": (
        _first("categories", name=None),
        "every category needs a whole number as id and a name",
    ),
    "no annotations": (lambda c: c.pop("annotations"), "no list 'annotations': not a file of COCO instances"),
    "no file name": (lambda c: c["images"][0].pop("file_name"), "an image without a whole number as id or without"),
    "path outside": (_first("images", file_name="../x.jpg"), "file_name '../x.jpg'; a relative path is needed"),
    "no height": (_first("images", height=None), "has height None and width 64"),
    "other size": (_first("images", height=49), "48x64 pixels (HxW), but instances_train2017.json says 49x64"),
    "image twice": (lambda c: c["images"].append(c["images"][0]), "image id 1 occurs twice"),
    "absent": (_first("images", file_name="gone.jpg"), "gone.jpg: does not exist, but instances_train2017.json lists"),
    "unknown image": (_first("annotations", image_id=99), "annotation 1 (number 1 of the list): image_id 99, which"),
    "annotation id 0": (_first("annotations", id=0), "id 0, which COCO's evaluation takes for 'no match'"),
    "annotation id": (_first("annotations", id="a"), "annotation a (number 1 of the list): no whole number as id"),
    "id twice": (_first("annotations", id=2), "annotation id 2 occurs twice"),
    "three numbers": (_first("annotations", bbox=[1, 2, 3]), "bbox [1, 2, 3]; four numbers are needed"),
    "nan": (_first("annotations", bbox=[1, 2, float("nan"), 3]), "bbox [1, 2, nan, 3]; four numbers"),
    "negative width": (_first("annotations", bbox=[1, 2, -3, 3]), "four numbers are needed: left, top, width, height"),
    "no area": (_first("annotations", area=None), "area None"),
    "iscrowd": (lambda c: c["annotations"][0].pop("iscrowd"), "iscrowd None; it is 0 or 1"),
    "no outline": (_first("annotations", segmentation=[]), "no segmentation (polygons or run lengths)"),
    "runs of another size": (
        _first("annotations", segmentation={"size": [4, 4], "counts": [16]}),
        "run lengths of size [4, 4] in a picture of [48, 64]",
    ),
    "no object": (lambda c: c["annotations"].clear(), "instances_train2017.json: holds no object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_annotations(coco, case):
    """One line that names the file and says what is wrong."""
    change, message = BROKEN[case]
    _edit(coco / TRAIN, change)
    with pytest.raises(UserError) as caught:
        open_coco(coco, classes=None if "not COCO's 80" in message else 3)
    assert message in str(caught.value)
    assert str(coco) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_refusals(coco):
    with pytest.raises(UserError, match="of a set of your own, classes=3"):
        open_coco(coco)
    with pytest.raises(UserError, match="3 categories, but classes=4"):
        open_coco(coco, classes=4)
    for bad in (0, -1, True, 1.5):
        with pytest.raises(UserError, match="must be a whole number of at least 1"):
            open_coco(coco, limit=bad, classes=3)
    with pytest.raises(UserError, match="no such folder"):
        open_coco(coco / "absent", classes=3)
    with pytest.raises(UserError, match="give the folder with annotations/"):
        open_coco(coco / "val2017", classes=3)
    text = (coco / VAL).read_text()
    for broken in (text[:-50], "", "[1, 2]", "\x00\x01"):
        (coco / VAL).write_text(broken)
        with pytest.raises(UserError, match=r"instances_val2017.json: (broken json|no list 'images')"):
            open_coco(coco, classes=3)
    (coco / VAL).write_text(text.replace("polygon", "square"))
    with pytest.raises(UserError, match="other categories than"):
        open_coco(coco, classes=3)


def test_order_of_categories_counts(coco):
    """mm takes the labels by the file's order: COCO's categories shuffled would name every class wrongly."""
    for part in (TRAIN, VAL):
        _edit(coco / part, lambda c: (_as_coco(c), c["categories"].reverse()))
    with pytest.raises(UserError, match="COCO's categories in another order"):
        open_coco(coco)


def test_limit_that_leaves_no_object(coco):
    def empty_first(content):
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != content["images"][0]["id"]]

    _edit(coco / VAL, empty_first)
    with pytest.raises(UserError, match="the first 1 pictures hold no object: nothing to score"):
        open_coco(coco, limit=1, classes=3)
    assert open_coco(coco, limit=2, classes=3).summary == "5 training and 2 validation pictures, 3 classes"


def test_pictures(coco):
    """A cut file is refused where it is scored, and only told where it is trained on; what is no picture is refused."""
    for split, name in (("train", "000000000002.jpg"), ("val", "000000100002.jpg")):
        path = coco / f"{split}2017" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 3 // 4])
        if split == "train":
            assert [n for n in open_coco(coco, classes=3).notes if "truncated" in n and name in n]
        else:
            with pytest.raises(UserError, match=f"{name}: truncated"):
                open_coco(coco, classes=3)
        path.write_bytes(b"GIF89a")
        with pytest.raises(UserError, match=f"{name}: cannot be read as a picture: no JPEG or PNG"):
            open_coco(coco, classes=3)
        path.write_bytes(whole + bytes(9000))  # data of some camera behind the end do no harm
        assert not _unusual(open_coco(coco, classes=3))
        path.write_bytes(whole)
    assert not _unusual(open_coco(coco, classes=3))


def test_training_pictures_among_the_validation_ones(tmp_path):
    """By content whatever the name is, and by the name alone."""
    same = make_coco(tmp_path / "same", 3, (48, 64), same=True)
    (note,) = _unusual(open_coco(same, classes=3))
    first = "the first: 000000000001.jpg, 000000000001.jpg in training"
    assert note == f"3 of 3 validation pictures are training pictures, byte for byte ({first})"
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(same / "val2017/000000000001.jpg")
    (same / "val2017/000000000002.jpg").rename(same / "val2017/other.jpg")
    _edit(same / VAL, lambda c: c["images"][1].update(file_name="other.jpg"))
    by_content, by_name = _unusual(open_coco(same, classes=3))
    assert by_content.startswith("2 of 3 validation pictures are training pictures")
    assert "(the first: other.jpg, 000000000002.jpg in training)" in by_content
    assert by_name == "1 validation pictures are named like training pictures (000000000001.jpg)"
    ade = make_ade20k(tmp_path / "ade", (8, 2), (48, 64), same=True)
    (note,) = _unusual(open_ade20k(ade, classes=9))
    assert note.startswith("2 of 2 validation pictures are training pictures, byte for byte")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_stored_pixels(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x"
    Image.fromarray(np.zeros((20, 33, 3), np.uint8)).save(path, kind, exif=exif)
    facts = {"size": [20, 33], "bytes": path.stat().st_size, "whole": True}
    assert files.look_at_picture(path) == facts | ({"turn": orientation} if orientation > 1 else {})


def test_turned_pictures_are_counted(coco, ade):
    exif = Image.Exif()
    exif[0x0112] = 3
    for opened, picture in (
        (lambda: open_coco(coco, classes=3), coco / "val2017/000000100001.jpg"),
        (lambda: open_ade20k(ade, classes=9), ade / "images/validation/ADE_val_00000001.jpg"),
    ):
        assert not _unusual(opened())
        with Image.open(picture) as image:
            image.save(picture, quality="keep", exif=exif)
        (note,) = _unusual(opened())
        assert str(picture) in note
        assert "the stored pixels count; so it is with 1 of " in note


def test_fingerprint(coco, ade, tmp_path):
    """It is that of the content in use: the same elsewhere, another one for other annotations, pictures or limits."""
    for root, opened, limit, picture, note in (
        (coco, lambda r, n=None: open_coco(r, n, 3), 2, "val2017/000000100001.jpg", VAL),
        (ade, lambda r, n=None: open_ade20k(r, n, 9), 2, "images/validation/ADE_val_00000001.jpg", None),
    ):
        first = opened(root).fingerprint
        moved = shutil.copytree(root, tmp_path / f"moved-{root.name}")
        assert opened(moved).fingerprint == first
        assert opened(root, limit).fingerprint != first
        with open(moved / picture, "ab") as file:
            file.write(b"\0")  # behind the end marker: another size
        changed = opened(moved).fingerprint
        assert changed != first
        # One label, or one digit of the annotations: as many bytes as before
        path = moved / (note or "annotations/training/ADE_train_00000001.png")
        if note:
            path.write_text(path.read_text().replace('"area": 1', '"area": 2', 1))
        else:
            labels = np.array(Image.open(path))
            Image.fromarray(labels).save(path, compress_level=0)
            changed, size = opened(moved).fingerprint, path.stat().st_size
            labels[0, 0] = labels[0, 0] % 9 + 1
            Image.fromarray(labels).save(path, compress_level=0)
            assert path.stat().st_size == size
        assert opened(moved).fingerprint not in (first, changed)


def test_known_files_are_not_read_again(coco, ade, monkeypatch):
    monkeypatch.setattr(files.time, "time_ns", lambda: 2**62)  # fresh files go into the cache too
    before = open_coco(coco, classes=3), open_ade20k(ade, classes=9)

    def unread(module, name):
        def look(path):
            raise AssertionError(f"{path} is read again")

        look.__name__ = name
        monkeypatch.setattr(module, name, look)

    unread(detection_data, "read_instances")
    unread(detection_data, "look_at_picture")
    unread(segmentation_data, "look_at_picture")
    unread(segmentation_data, "look_at_mask")
    assert (open_coco(coco, classes=3), open_ade20k(ade, classes=9)) == before
    (coco / VAL).write_text((coco / VAL).read_text() + " ")
    with pytest.raises(AssertionError, match=r"instances_val2017.json is read again"):
        open_coco(coco, classes=3)


# ------------------------------------------------------------------------------------------------------------ ADE20K
def test_ade_opens(ade, tmp_path):
    found = open_ade20k(ade, classes=9)
    assert (found.name, found.root, found.content) == ("ade20k", ade, ADE_CLASSES)
    assert found.differs == "3 of 2000 images, 4 of 20210 training images, 9 classes of its own"
    assert found.summary == "4 training and 3 validation pictures, 9 classes"
    (ade / "classes.txt").unlink()
    assert open_ade20k(ade, classes=9).content == tuple(f"class {i}" for i in range(1, 10))
    own = open_ade20k(ade, limit=2)  # labels up to 9 are within ADE20K's 150
    assert (own.content, own.differs) == ((), "2 of 2000 images, 4 of 20210 training images")
    assert own.summary == "4 training and 2 validation pictures, 150 classes"
    inside = tmp_path / "archive"
    inside.mkdir()
    ade.rename(inside / "ADEChallengeData2016")
    assert open_ade20k(inside).root == inside / "ADEChallengeData2016"
    assert open_ade20k(inside).fingerprint == open_ade20k(inside / "ADEChallengeData2016").fingerprint
    shutil.rmtree(inside / "ADEChallengeData2016/images/training")
    assert open_ade20k(inside, train=False).differs == "3 of 2000 images"
    with pytest.raises(UserError, match="it has no images/training and no annotations/training"):
        open_ade20k(inside)


def test_ade_official_is_by_counts(ade, monkeypatch):
    monkeypatch.setattr(segmentation_data, "IMAGES", {"train": 4, "val": 3})
    assert open_ade20k(ade, classes=9).differs == "9 classes of its own"
    (ade / "classes.txt").unlink()
    assert open_ade20k(ade).official
    assert open_ade20k(ade, limit=1).differs == "1 of 3 images"


def _labels(path, change):
    labels = np.array(Image.open(path))
    change(labels)
    Image.fromarray(labels).save(path)


def test_ade_label_range(ade):
    """0 to 150 at most, or to the number of classes."""
    path = ade / "annotations/training/ADE_train_00000002.png"
    (ade / "classes.txt").unlink()
    _labels(path, lambda x: x.__setitem__((5, 5), 150))
    open_ade20k(ade)
    with pytest.raises(UserError, match=r"ADE_train_00000002.png: label 150; labels go from 0 \(not judged\) to 9$"):
        open_ade20k(ade, classes=9)
    _labels(path, lambda x: x.__setitem__((5, 5), 151))
    with pytest.raises(UserError, match="label 151; labels go from 0"):
        open_ade20k(ade)
    _labels(path, lambda x: x.__setitem__((5, 5), 255))
    with pytest.raises(UserError, match=r"label 255; .* what is not judged is 0 here, not 255"):
        open_ade20k(ade)
    _labels(path, lambda x: x.fill(0))
    (note,) = _unusual(open_ade20k(ade))
    assert "ADE_train_00000002.png: holds no label but 0" in note
    for other in (ade / "annotations/validation").iterdir():
        _labels(other, lambda x: x.fill(0))
    with pytest.raises(UserError, match=r"holds no label but 0, which is not judged \(2 more\)"):
        open_ade20k(ade)


def test_ade_classes_that_do_not_occur(ade):
    """Half of 18 classes are in no label map; of the validation maps that are only looked at, nothing is said."""
    (ade / "classes.txt").unlink()
    notes = open_ade20k(ade, classes=9).notes
    missing = {split: _missing(ade / "annotations" / split, 9) for split in ("training", "validation")}
    assert len(notes) == sum(map(bool, missing.values()))
    train, val = open_ade20k(ade, classes=18).notes
    for split, note, effect in (("training", train, "nothing can be learnt of them"), ("validation", val, "mIoU is")):
        count = 9 + len(missing[split])
        assert f"annotations: {count} of 18 classes occur in no {split} label map (" in note
        assert effect in note
    assert open_ade20k(ade, limit=1, classes=18).notes == [train]


def _missing(folder, number):
    return set(range(1, number + 1)) - {i for path in folder.iterdir() for i in np.unique(np.array(Image.open(path)))}


def test_ade_smoothed_label_maps(ade):
    """Resized with interpolation: classes between two others along every edge, where neither is."""
    assert open_ade20k(ade, classes=9).doubts == []
    for path in (ade / "annotations").rglob("*.png"):
        labels = np.zeros((48, 64), np.uint8)
        labels[10:30, 10:40] = 60
        smooth = Image.fromarray(labels).resize((31, 23), Image.Resampling.BILINEAR)
        smooth.resize(Image.open(path).size, Image.Resampling.BILINEAR).save(path)
    (ade / "classes.txt").write_text("\n".join(map(str, range(1, 61))))
    (doubt,) = open_ade20k(ade, classes=60).doubts
    assert "labels occur only between others, like the greys of smoothed edges" in doubt


def test_ade_labels_off_by_one(ade):
    """Classes written as 0 to 8 instead of 1 to 9: noted; with 255 for what is not judged: refused with the cause."""
    (ade / "classes.txt").unlink()
    for path in (ade / "annotations").glob("*/*.png"):
        Image.fromarray(np.array(Image.open(path)) % 9).save(path)
    (note,) = [note for note in open_ade20k(ade, classes=9).notes if "add 1 to every label" in note]
    assert note.startswith(f"{ade / 'annotations'}: labels go from 0 to 8, with 9 classes: 0 is not judged here")
    for path in (ade / "annotations").glob("*/*.png"):
        labels = np.array(Image.open(path))
        labels[:3] = 255
        Image.fromarray(labels).save(path)
    with pytest.raises(
        UserError, match=r"label 255; .*: if 0 to 8 are the classes, add 1 to each label and write 0 for"
    ):
        open_ade20k(ade, classes=9)


def test_ade_pairs_and_files(ade):
    image, label = ade / "images/validation/ADE_val_00000002.jpg", ade / "annotations/validation/ADE_val_00000002.png"

    def refused(match):
        with pytest.raises(UserError, match=match):
            open_ade20k(ade, classes=9)

    kept = label.read_bytes()
    label.unlink()
    refused("ADE_val_00000002.png: is missing: every picture needs its label map")
    assert open_ade20k(ade, limit=1, classes=9).differs.startswith("1 of 2000 images")
    label.write_bytes(kept[: len(kept) // 2])
    refused("ADE_val_00000002.png: cannot be read as a mask: it is truncated")
    Image.fromarray(np.ones((48, 65), np.uint8)).save(label)
    refused(r"ADE_val_00000002.png: 48x65 pixels \(HxW\), but ADE_val_00000002.jpg has 48x64")
    # Painted with the palette: the label reader would take it, mmseg would not
    Image.fromarray(np.full((48, 64, 3), (128, 0, 0), np.uint8)).save(label)
    refused("a PNG of mode RGB; label maps are 8-bit PNGs")
    label.write_bytes(kept)
    pixels = image.read_bytes()
    image.write_bytes(pixels[:-20])
    refused("ADE_val_00000002.jpg: truncated")
    image.unlink()
    refused("ADE_val_00000002.png: the picture to it, .*ADE_val_00000002.jpg, is missing")
    shutil.rmtree(ade / "images/validation")
    (ade / "images/validation").mkdir()
    refused("images/validation: holds no .jpg file")


def test_ade_classes(ade):
    with pytest.raises(UserError, match="9 classes of its own, not ADE20K's; say so by classes=9"):
        open_ade20k(ade)
    with pytest.raises(UserError, match="9 names, but classes=8"):
        open_ade20k(ade, classes=8)
    with pytest.raises(UserError, match="at most 254"):
        open_ade20k(ade, classes=255)
    (ade / "classes.txt").write_text("a\na\n")
    with pytest.raises(UserError, match="a name a line is needed, none of them twice"):
        open_ade20k(ade, classes=2)
    (ade / "classes.txt").unlink()
    (ade / "classes.txt").symlink_to("elsewhere.txt")
    with pytest.raises(UserError, match=r"classes.txt: cannot be read: .*No such file"):
        open_ade20k(ade, classes=9)
    with pytest.raises(UserError, match="not an ADE20K layout"):
        open_ade20k(ade / "images")


# ------------------------------------------------------------------------------------------------- the real pictures
@pytest.mark.shared
def test_real_coco(need):
    root = need("data/coco")
    found = open_coco(root)
    content = {s: json.loads((root / f"annotations/instances_{s}2017.json").read_text()) for s in ("train", "val")}
    counts = {split: len(c["images"]) for split, c in content.items()}
    assert found.differs == f"{counts['val']} of 5000 images, {counts['train']} of 118287 training images"
    assert tuple((c["id"], c["name"]) for c in content["val"]["categories"]) == CATEGORIES
    assert found.content == tuple(name for _, name in CATEGORIES)


CASES = {  # of the shared folder: what is said, None for a control
    "coco_ok": None,
    "ade_ok": None,
    "coco_area_zero": "mmdet leaves out 8 of area 0",
    "coco_norm_boxes": "8 of 8 boxes (annotation 1 first) lie within 0 and 1",
    "coco_no_ann_images": "mmdet trains on 2 of 4 pictures; left out: 2 without annotation",
}


@pytest.mark.shared
@pytest.mark.parametrize("name", CASES)
def test_cases(need, name):
    root = need(f"cases/{name}/D")
    try:
        notes = open_ade20k(root, classes=3).notes if name.startswith("ade") else open_coco(root, classes=2).notes
    except UserError as error:
        notes = [str(error)]
    assert (not notes) if CASES[name] is None else (CASES[name] in notes[0])


@pytest.mark.shared
def test_real_ade(need):
    samples = need("data/ade20k_samples")
    found = open_ade20k(samples, train=False)
    n = len(list((samples / "annotations/validation").glob("*.png")))
    assert (found.summary, found.differs) == (f"{n} validation pictures, 150 classes", f"{n} of 2000 images")
    like = need("data/ade_like")
    train, val = (len(list((like / "images" / name).iterdir())) for name in ("training", "validation"))
    assert open_ade20k(like).summary == f"{train} training and {val} validation pictures, 150 classes"
