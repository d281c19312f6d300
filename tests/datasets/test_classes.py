"""Class folders and shards with labels: no class that is none, no picture that is there twice without a word."""

import io
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import shared_cases
from selfpatch_bench.benchmarks.datasets.imagenet import open_classes
from selfpatch_bench.pretrain.common.errors import UserError

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 7, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def root(tmp_path) -> Path:
    """Six training and three validation pictures, all different."""
    for k in range(9):
        split, name = ("train", "val")[k >= 6], CLASSES[k % 3]
        path = tmp_path / "set" / split / name / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(k))
    return tmp_path / "set"


def pack(root: Path, labels=lambda name: {"cls": str(CLASSES.index(name)).encode()}, shard="00") -> Path:
    """The same pictures as shards, train/00.tar and val/00.tar; labels: the other members of an image's sample."""
    for split in ("train", "val"):
        other = root.parent / "shards" / split
        other.mkdir(parents=True, exist_ok=True)
        with tarfile.open(other / f"{shard}-{split}.tar", "w") as tar:
            for path in sorted((root / split).rglob("*.png")):
                sample = {"png": path.read_bytes(), **labels(path.parent.name)}
                for ending, data in sample.items():
                    info = tarfile.TarInfo(f"{path.stem}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return root.parent / "shards"


def test_shards_have_the_labels_of_their_members(root):
    folders, shards = open_classes(root), open_classes(pack(root))
    data = shards.as_data()
    assert data.summary == folders.as_data().summary == "3 classes, 6 + 3 images"
    assert (shards.classes, data.notes) == (["0", "1", "2"], [])
    for ours, theirs in ((shards.train, folders.train), (shards.val, folders.val)):
        found = {ours.read(i).tobytes(): label for i, label in enumerate(ours.labels)}
        assert found == {theirs.read(i).tobytes(): label for i, label in enumerate(theirs.labels)}
    other = pack(root, lambda name: {"cls": str(2 - CLASSES.index(name)).encode()})
    assert open_classes(other).as_data().fingerprint != data.fingerprint


@pytest.mark.parametrize("labels", [lambda name: {}, lambda name: {} if name == "bee" else {"cls": b"1"}])
def test_a_shard_is_no_class(root, labels):
    """Whatever it is called: with names that are those of val/'s, or of classes."""
    for shard in ("00", "n01440764"):
        with pytest.raises(UserError, match=r"train: tar shards need a \.cls member for every image: .*\.png has none"):
            open_classes(pack(root, labels, shard))


def test_classes_of_one_split_only(root):
    other = pack(root, lambda name: {"cls": name.encode()})
    shutil.rmtree(root / "val")
    shutil.copytree(other / "val", root / "val")
    assert open_classes(root).classes == list(CLASSES)  # folders and labels may be mixed, where they name the same
    shutil.rmtree(root / "train/cat")
    with pytest.raises(UserError, match="class cat is in val/ but not in train/"):
        open_classes(root)


@pytest.mark.parametrize(("inside", "what"), [("train/val", 3), ("val/train", 6), ("train/test", 3)])
def test_a_split_inside_the_other(root, inside, what):
    shutil.copytree(root / ("train" if what == 6 else "val"), root.parent / "copy")
    (root.parent / "copy").rename(root / inside)
    text = f"{inside}/ holds {what} images: of a split, not of a class? It belongs beside {inside.partition('/')[0]}/"
    with pytest.raises(UserError, match=re.escape(text)):
        open_classes(root)


def test_pictures_of_both_splits_are_counted(root):
    assert open_classes(root).as_data().notes == []
    shutil.copy(root / "val/ant/6.png", root / "train/bee/copy.png")
    shutil.copy(root / "val/cat/8.png", root / "train/cat/copy.png")
    data = open_classes(root).as_data()
    both = "2 of 3 validation images are in train/ too (val/ant/6.png = train/bee/copy.png)"
    assert data.notes == [f"{root}: {both}"]
    (root / "train/dog").symlink_to(root / "train/bee")
    shutil.copytree(root / "val/bee", root / "val/dog")
    notes = open_classes(root).as_data().notes
    assert notes[0] == f"{root / 'train'}: dog is a link to the same folder as bee: its images are used twice"
    assert notes[1] == f"{root}: 3 training images are those of another class (train/dog/1.png = train/bee/1.png)"


@pytest.mark.shared
@pytest.mark.parametrize("case", shared_cases("cases/knn_webdataset*"))
def test_cases_that_once_failed(case):
    found = open_classes(case / "D")
    assert not any(".tar" in name for name in found.classes)
    assert len(found.train) > len(found.val) > 0
    assert found.as_data().fingerprint.startswith("whole-sha256:")
