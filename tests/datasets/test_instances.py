"""Files of COCO instances that are not what they seem: refused, or noted with numbers."""

import json

import numpy as np
import pytest

from selfpatch_bench.benchmarks.datasets.annotations import instances as module
from selfpatch_bench.benchmarks.datasets.annotations.instances import TRAIN, VAL, read_instances
from selfpatch_bench.benchmarks.datasets.annotations.outlines import look_at_runs, read_compressed
from selfpatch_bench.pretrain.common.errors import UserError

HEIGHT, WIDTH, IMAGES, EACH = 100, 200, 8, 5


def _objects(seed: int) -> dict:
    """A sound file: five ellipses with 16 corners in each of eight pictures, three classes."""
    rng = np.random.default_rng(seed)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(1, IMAGES + 1)]
    angles, annotations = np.arange(16) * np.pi / 8, []
    for k in range(IMAGES * EACH):
        w, h = rng.uniform(10, 90), rng.uniform(10, 60)
        x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
        corners = np.stack([x + w / 2 + w / 2 * np.cos(angles), y + h / 2 + h / 2 * np.sin(angles)], 1)
        shape = {"segmentation": [corners.ravel().tolist()], "bbox": [x, y, w, h], "area": 0.77 * w * h}
        numbers = {"id": k + 1, "image_id": k // EACH + 1, "category_id": k % 3 + 1, "iscrowd": 0}
        annotations.append(numbers | shape)
    categories = [{"id": i, "name": name} for i, name in enumerate(("cup", "pen", "key"), 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


SOUND = json.dumps(_objects(0))


def _read(folder, change, name=TRAIN) -> dict:
    content = json.loads(SOUND)
    change(content)
    (folder / name).write_text(json.dumps(content))
    return read_instances(folder / name)


def _each(**values):
    """Change every annotation: name -> function of the annotation."""

    def change(content):
        for a in content["annotations"]:
            a.update({name: value(a) for name, value in values.items()})

    return change


def _one(**values):
    return lambda content: content["annotations"][6].update(values)


def _some(count, **values):
    def change(content):
        for a in content["annotations"][:count]:
            a.update(values)

    return change


def _corners(box):
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def _rectangle(box):
    left, top, right, bottom = _corners(box)
    return [[left, top, right, top, right, bottom, left, bottom]]


def _shares(values):
    return [v / (WIDTH if i % 2 == 0 else HEIGHT) for i, v in enumerate(values)]


def test_sound_files_are_not_noted(tmp_path):
    for name in (TRAIN, VAL):
        facts = _read(tmp_path, lambda c: None, name)
        assert facts["notes"] == []
        assert facts["annotations"] == IMAGES * EACH
        assert facts["images"][0] == [1, "1.jpg", HEIGHT, WIDTH, EACH]


def _to_runs(a):
    """A rectangle of run lengths where the box is, to the pixel."""
    x, y, w, h = (int(v) for v in a["bbox"])
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *runs] if flat[0] else runs}


def test_run_lengths_are_outlines_too(tmp_path):
    for change in (_each(segmentation=_to_runs),):
        assert _read(tmp_path, change)["notes"] == []
    with pytest.raises(UserError, match=r"40 of 40 boxes .* as left, top, right, bottom"):
        _read(tmp_path, _each(segmentation=_to_runs, bbox=lambda a: _corners(a["bbox"])))


REFUSED_ANYWHERE = {
    "corners beside polygons": (
        _each(bbox=lambda a: _corners(a["bbox"])),
        "40 of 40 boxes (annotation 1 first) fit their outlines as left, top, right, bottom",
    ),
    "corners in one picture of eight": (
        lambda c: [a.update(bbox=_corners(a["bbox"])) for a in c["annotations"][:5]],
        "5 of 40 boxes (annotation 1 first) fit their outlines as left, top, right, bottom",
    ),
    "corners, and outlines made of them": (
        _each(bbox=lambda a: _corners(a["bbox"]), segmentation=lambda a: _rectangle(_corners(a["bbox"]))),
        "but none as left, top, right, bottom",
    ),
    "centres": (
        _each(bbox=lambda a: [a["bbox"][0] + a["bbox"][2] / 2, a["bbox"][1] + a["bbox"][3] / 2, *a["bbox"][2:]]),
        "fit their outlines as centre, width and height",
    ),
    "rows before columns": (
        _each(bbox=lambda a: [a["bbox"][i] for i in (1, 0, 3, 2)]),
        "fit their outlines as top, left, height, width",
    ),
    "shares beside polygons": (
        _each(bbox=lambda a: _shares(a["bbox"])),
        "fit their outlines as shares of the picture (0 to 1)",
    ),
    "shares everywhere": (
        _each(bbox=lambda a: _shares(a["bbox"]), segmentation=lambda a: [_shares(a["segmentation"][0])]),
        "40 of 40 boxes (annotation 1 first) lie within 0 and 1",
    ),
    "shares in outlines": (
        _each(segmentation=lambda a: [_shares(a["segmentation"][0])]),
        "40 of 40 outlines (annotation 1 first) lie within 0 and 1",
    ),
    "another scale": (
        _each(
            bbox=lambda a: [4 * v for v in a["bbox"]], segmentation=lambda a: [[4 * v for v in a["segmentation"][0]]]
        ),
        "leave their pictures, by up to",
    ),
    "corners far away": (_one(segmentation=[[0, 0, 9, 1e8, 3, 3]]), "reach far out of their pictures, by 9.99999e+07"),
    "nan": (
        _one(segmentation=[[1, 2, 3, float("nan"), 5, 6]]),
        "annotation 7 (number 7 of the list): nan in a polygon",
    ),
    "infinity": (_one(segmentation=[[1, 2, 3, float("inf"), 5, 6]]), "annotation 7 (number 7 of the list): inf in a"),
    "text in a polygon": (_one(segmentation=[[1, 2, "3", 4, 5, 6]]), "'3' in a polygon; finite numbers are needed"),
    "none in a polygon": (_one(segmentation=[[1, 2, None, 4, 5, 6]]), "None in a polygon"),
    "true in a polygon": (_one(segmentation=[[1, 2, True, 4, 5, 6]]), "True in a polygon"),
    "a list in a polygon": (_one(segmentation=[[[1, 2], [3, 4], [5, 6]]]), "[1, 2] in a polygon"),
    "huge whole numbers": (_one(segmentation=[[1, 2, 10**400, 4, 5, 6]]), "in a polygon; finite numbers are needed"),
    "a flat polygon": (_one(segmentation=[1, 2, 3, 4, 5, 6]), "it is a list of polygons, or run lengths"),
    "text as outline": (_one(segmentation="1 2 3 4 5 6"), "it is a list of polygons, or run lengths"),
    "runs too short": (
        _one(segmentation={"size": [HEIGHT, WIDTH], "counts": [5, 5]}),
        "annotation 7 (number 7 of the list): run lengths that add up to 10, in a picture of 100x200 = 20000 pixels",
    ),
    "runs too long": (_one(segmentation={"size": [HEIGHT, WIDTH], "counts": [19999, 2]}), "add up to 20001"),
    "negative runs": (_one(segmentation={"size": [HEIGHT, WIDTH], "counts": [20001, -1]}), "are out of range"),
    "no whole runs": (_one(segmentation={"size": [HEIGHT, WIDTH], "counts": [2e4]}), "run lengths without counts"),
    "compressed runs": (_one(segmentation={"size": [HEIGHT, WIDTH], "counts": "52203"}), "run lengths that"),
    "no compressed runs": (
        _one(segmentation={"size": [HEIGHT, WIDTH], "counts": "\x7f\x00"}),
        "COCO's compressed form",
    ),
    "absurd sizes": (_one(segmentation={"size": [10**9, 10**9], "counts": [10**18]}), "size [1000000000, 1000000000]"),
    "absurd counts": (_one(segmentation={"size": [HEIGHT, WIDTH], "counts": [10**300]}), "are out of range"),
    "sizes swapped": (
        _one(segmentation={"size": [WIDTH, HEIGHT], "counts": [20000]}),
        "run lengths of size [200, 100] in a picture of [100, 200]",
    ),
    "absurd picture": (lambda c: c["images"][0].update(width=10**12), "has height 100 and width 1000000000000"),
    "huge id": (_one(id=10**30), "no whole number as id"),
    "huge box": (_one(bbox=[1, 1, 1e300, 5]), "four numbers are needed"),
    "ids from 0": (
        _each(category_id=lambda a: a["category_id"] - 1),
        "category_id 0, which is not among the categories (13 more): are they numbered from 0 instead of 1?",
    ),
    "ids without gaps": (
        lambda c: c["categories"][2].update(id=7),
        "category_id 3, which is not among the categories (12 more): are they numbered 1 to 3, instead of",
    ),
    "unknown image": (_some(3, image_id=77), "image_id 77, which is not among the images (2 more)"),
    "more runs than pixels": (
        _one(segmentation={"size": [HEIGHT, WIDTH], "counts": "0" * 200_000}),
        "run lengths of 200,000 parts, in a picture of 100x200 pixels",
    ),
    "over-long name": (lambda c: c["images"][0].update(file_name="é" * 128), "longer than file systems take"),
    "over-long path": (lambda c: c["images"][0].update(file_name="x/" * 3000), "longer than file systems take"),
    "no text as name": (lambda c: c["images"][0].update(file_name="\ud800.jpg"), "'\\ud800.jpg', which is no UTF-8"),
    "annotation twice": (_some(3, id=9), "annotation id 9 occurs twice"),
}


@pytest.mark.parametrize("case", REFUSED_ANYWHERE)
def test_refused_in_both_files(tmp_path, case):
    change, message = REFUSED_ANYWHERE[case]
    for name in (TRAIN, VAL):
        with pytest.raises(UserError) as caught:
            _read(tmp_path, change, name)
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert len(str(caught.value)) < 400 + len(str(tmp_path))


ODD = (1.5, True, "1", None, [[1]], {"a": 1}, float("nan"), float("inf"), 10**400, [[[[[[1]]]]]])
FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "iscrowd", "area", "bbox", "segmentation"),
}
SOUND_IN = [("file_name", "1"), ("name", "1"), ("area", 1.5), ("iscrowd", True)]
SOUND_IN += [("segmentation", None), ("segmentation", [[1]])]  # nothing, and a polygon too short: left out


@pytest.mark.parametrize(("part", "field"), [(part, field) for part in FIELDS for field in FIELDS[part]])
def test_values_of_another_kind(tmp_path, part, field):
    """One line that names the file, whatever stands in a field, and inside of boxes, polygons and run lengths."""
    content = json.loads(SOUND)
    content |= {"images": content["images"][:1], "annotations": content["annotations"][:EACH]}
    entry, path = content[part][0], tmp_path / TRAIN
    inside = {"bbox": lambda v: [1, v, 3, 4], "segmentation": lambda v: [[1, 2, v, 4, 5, 6]]}.get(field)
    values = [v for v in ODD if (field, v) not in SOUND_IN]
    values += [inside(v) for v in ODD if v != 1.5] if inside else []
    if field == "segmentation":
        values += [{"size": [HEIGHT, WIDTH], "counts": v} for v in ODD] + [{"size": v, "counts": [20000]} for v in ODD]
    for value in values:
        entry[field] = value
        path.write_text(json.dumps(content))
        with pytest.raises(UserError) as caught:
            read_instances(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: "), value
        assert "\n" not in text
        assert len(text) < 300 + len(str(path))


NOTHING = {
    "no area": (_each(area=lambda a: 0), "40 annotations; mmdet leaves out 40 of area 0"),
    "negative areas": (_each(area=lambda a: -1), "40 of area 0"),
    "ignored": (_each(ignore=lambda a: 1), "40 marked 'ignore'"),
    "crowds": (_each(iscrowd=lambda a: 1), "40 in crowds"),
    "thin": (_each(bbox=lambda a: [*a["bbox"][:2], a["bbox"][2], 0.5]), "40 under one pixel wide or high"),
    "lines": (_each(segmentation=lambda a: [[1, 1, 5, 5]]), "40 without a polygon of three corners"),
    "no annotations": (lambda c: c["annotations"].clear(), "holds no object to train on: 0 annotations"),
    "small pictures": (
        lambda c: ([i.update(height=31) for i in c["images"]], _each(bbox=lambda a: [1, 1, 9, 9])(c),
                   _each(segmentation=lambda a: _rectangle(a["bbox"]), area=lambda a: 81)(c)),
        "40 in pictures under 32 pixels",
    ),
    "everything for another reason": (
        lambda c: (_some(40, iscrowd=1)(c), _some(30, area=0)(c), _some(10, ignore=True)(c)),
        "mmdet leaves out 10 marked 'ignore', 20 of area 0, 10 in crowds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTHING)
def test_nothing_to_train_on(tmp_path, case):
    change, message = NOTHING[case]
    with pytest.raises(UserError, match="holds no object to train on") as caught:
        _read(tmp_path, change)
    assert message in str(caught.value)


TRAINING_NOTES = {
    "half of the pictures are empty": (
        lambda c: c.update(annotations=c["annotations"][:20]),
        ["mmdet trains on 4 of 8 pictures; left out: 4 without annotation, 0 under 32 pixels"],
    ),
    "left out": (
        lambda c: (_some(5, area=0)(c), _some(2, iscrowd=1)(c), _some(1, ignore=1)(c),
                   c["annotations"][9].update(iscrowd=1)),
        ["mmdet trains on 34 of 40 annotations; left out: 1 marked 'ignore', 4 of area 0, 1 in crowds"],
    ),
    "one line": (
        _one(segmentation=[[1, 1, 5, 5]]),
        ["mmdet trains on 39 of 40 annotations; left out: 1 without a polygon of three corners",
         "1 of 40 annotations (first: 7) have a polygon of fewer than three corners or of half a corner"],
    ),
    "half a corner beside a whole polygon": (
        lambda c: c["annotations"][6]["segmentation"].append([1, 1, 5, 5, 6, 6, 7]),
        ["1 of 40 annotations (first: 7) have a polygon of fewer than three corners or of half a corner"],
    ),
    "a class without objects": (
        lambda c: c["categories"].append({"id": 4, "name": "fork"}),
        ["1 of 4 classes occur in no training annotation (fork): nothing can be learnt of them"],
    ),
    "a class of crowds alone": (
        lambda c: [a.update(iscrowd=1) for a in c["annotations"] if a["category_id"] == 2],
        ["mmdet trains on 27 of 40 annotations; left out: 13 in crowds", "1 of 3 classes occur in no training"],
    ),
    "boxes that leave the picture": (
        lambda c: [a["bbox"].__setitem__(2, 190) for a in c["annotations"][:3]],
        ["2 of 40 boxes (annotation 2 first) leave their pictures, by up to", "not where their outlines are"],
    ),
    "percent": (
        _each(bbox=lambda a: [v / 3 for v in a["bbox"]], segmentation=lambda a: [[v / 3 for v in a["segmentation"][0]]],
              area=lambda a: a["area"] / 9),
        ["none of 40 boxes goes beyond 33 % of the width and 33 % of the height: are they in pixels"],
    ),
    "areas of another unit": (
        _each(area=lambda a: a["area"] / 20000),
        ["areas are 3.85e-05 times those of the boxes (median): are they in pixels?"],
    ),
    "annotated twice": (
        lambda c: c["annotations"].extend([{**a, "id": a["id"] + 100} for a in c["annotations"][:10]]),
        ["10 of 50 annotations have picture, class and box of another one"],
    ),
    "a file listed twice": (
        lambda c: c["images"][3].update(file_name="1.jpg"),
        ["1 of 8 images are files that are listed already ('1.jpg' 2 times)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAINING_NOTES)
def test_notes_on_training(tmp_path, case):
    change, wanted = TRAINING_NOTES[case]
    notes = _read(tmp_path, change)["notes"]
    assert len(notes) == len(wanted)
    for note, text in zip(notes, wanted, strict=True):
        assert text in note


def test_validation_is_judged_as_it_is_evaluated(tmp_path):
    """The evaluation keeps what training leaves out, and reads outlines where training does not."""
    (note,) = _read(tmp_path, _each(area=lambda a: 0), VAL)["notes"]
    assert note.startswith("40 of 40 annotations (first: 1) have no area: AP_s, AP_m and AP_l")
    (note,) = _read(tmp_path, _one(ignore=1), VAL)["notes"]
    assert "the mark 'ignore'" in note
    (note,) = _read(tmp_path, lambda c: c.update(annotations=c["annotations"][:20]), VAL)["notes"]
    assert note == "4 of 8 pictures hold no annotation"
    for change in (_one(segmentation=[[1, 1, 5, 5]]), _one(segmentation=[[1, 1, 5, 5, 6, 6, 7]])):
        with pytest.raises(UserError, match=r"annotation 7 .* which the evaluation misreads"):
            _read(tmp_path, change, VAL)
    with pytest.raises(UserError, match=r"annotation 7 .*no segmentation"):
        _read(tmp_path, _one(segmentation=[], area=0), VAL)
    assert len(_read(tmp_path, _one(segmentation=[], area=0))["notes"]) == 1  # mmdet does not train on it anyway


def test_survivors_are_those_of_mmdets_rules(tmp_path):
    """Against mmdet's condition written out for one annotation at a time (CocoDataset.parse_data_info)."""
    rng = np.random.default_rng(1)

    def change(content):
        for a in content["annotations"]:
            x, y, w, h = a["bbox"]
            a["bbox"] = [x + rng.choice([0, 0, 0, 300]), y, w * rng.choice([1, 1, 0.005]), h]
            a["area"] *= rng.choice([1, 1, 0, -1])
            a["ignore"], a["iscrowd"] = int(rng.random() < 0.2), int(rng.random() < 0.2)

    def trained(a):
        x, y, w, h = a["bbox"]
        inside = max(0, min(x + w, WIDTH) - max(x, 0)) * max(0, min(y + h, HEIGHT) - max(y, 0))
        return not a["ignore"] and inside and a["area"] > 0 and w >= 1 and h >= 1 and not a["iscrowd"]

    facts = _read(tmp_path, change)
    wanted = [0] * IMAGES
    for a in json.loads((tmp_path / TRAIN).read_text())["annotations"]:
        wanted[a["image_id"] - 1] += bool(trained(a))
    assert [image[-1] for image in facts["images"]] == wanted


def test_compressed_runs_are_read_as_the_coco_tools_do():
    mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (100, 300), (640, 480)):
        for share in (0, 0.02, 0.5, 1):
            pixels = np.asfortranarray(rng.random((height, width)) < share)
            pixels[: height // 2] = pixels[: height // 2, :1]  # long runs too
            code = mask.encode(pixels.astype(np.uint8))["counts"].decode()
            runs = read_compressed(code)
            expected = np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T
            assert (expected == pixels).all()
            size, sides = look_at_runs({"size": [height, width], "counts": code})
            y, x = np.nonzero(pixels)
            assert size == (height, width)
            if len(y):
                assert sides == (x.min(), y.min(), x.max() + 1, y.max() + 1)
            with pytest.raises(UserError, match=r"add up to|out of range"):
                look_at_runs({"size": [height + 1, width], "counts": code})


def test_pieces_change_nothing(tmp_path, monkeypatch):
    """What is read does not depend on where one piece of the file ends and the next begins."""
    whole = _read(tmp_path, lambda c: None)
    for piece in (97, 1000, 5000):
        monkeypatch.setattr(module.JsonLists, "PIECE", piece)
        assert read_instances(tmp_path / TRAIN) == whole
