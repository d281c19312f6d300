"""The goldens of the frozen evaluations: drawn ones in tests/golden/drawn, and those of the shared folder."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import REPO, SHARED
from selfpatch_bench.benchmarks.checkpoints.open import build
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.tasks import TaskConfig
from selfpatch_bench.benchmarks.tasks._registry import get_task
from trained import rescaled

DRAWN = REPO / "tests/golden/drawn"
BOTH = pytest.mark.parametrize("golden", ["drawn", pytest.param("shared", marks=pytest.mark.shared)])


@dataclass(frozen=True)
class Golden:
    """folder: of the values. data: name of a data set -> its root."""

    name: str
    folder: Path
    data: dict[str, Path]

    def read(self, task: str) -> tuple[dict, dict[str, np.ndarray]]:
        """What NAME.json and NAME.npz hold; a skip where they are absent."""
        file = self.folder / f"{task}.json"
        if not file.exists():
            pytest.skip(f"{file} is absent")
        arrays = file.with_suffix(".npz")
        return json.loads(file.read_text()), dict(np.load(arrays)) if arrays.exists() else {}

    def network(self, folder: Path, task: str):
        """The encoder that the values were made with. folder: for the rescaled file."""
        heads = self.read(task)[0]["heads"]
        if self.name == "drawn":
            return build(open_checkpoint(self.folder / "network.pth", card={"heads": heads}))
        if (real := next(iter(SHARED.glob("checkpoints/real/*.pth")), None)) is None:
            pytest.skip(f"{SHARED}/checkpoints/real holds no network")
        return build(open_checkpoint(rescaled(real, folder / "rescaled.pth"), card={"heads": heads}))


@functools.cache
def golden_of(name: str) -> Golden:
    if name == "drawn":
        data = DRAWN / "data"
        roots = {key: data / key for key in ("copydays", "revisited", "voc", "ade")}
        roots |= {"distractors": data / "voc/VOC2012/JPEGImages", "whitening": data / "lowshot/train"}
        return Golden(name, DRAWN, roots)
    data = SHARED / "data"
    roots = {key: data / f"{key}_like" for key in ("copydays", "revisited", "voc", "ade")}
    roots["distractors"] = data / "coco/train2017"
    roots["whitening"] = next(iter(sorted(data.glob("tiny_imagenet/train/*"))), data)  # its first class
    return Golden(name, SHARED / "golden", roots)


def only_voc(root: Path, train: list[str], val: list[str], folder: Path) -> Path:
    """A VOC folder of some pictures of another, by links."""
    here = root / "VOC2012"
    lists = folder / "VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug"):
        (folder / "VOC2012" / name).symlink_to((here / name).resolve())
    for name, pictures in (("trainaug", train), ("val", val)):
        (lists / f"{name}.txt").write_text("\n".join(pictures))
    return folder


def only_ade(root: Path, train: list[str], val: list[str], folder: Path) -> Path:
    """The same in ADE20K's layout; train, val: files of pictures."""
    for split, pictures in (("training", train), ("validation", val)):
        for kind, ending in (("images", ".jpg"), ("annotations", ".png")):
            place = folder / kind / split
            place.mkdir(parents=True)
            for name in pictures:
                file = Path(name).with_suffix(ending).name
                (place / file).symlink_to((root / kind / split / file).resolve())
    return folder


def run_task(name: str, encoder, root: Path, *values: str, out: Path = Path(), seed: int = 0, **own) -> dict:
    """What the task's `run` gives, and its `data`. values: key=value; own: its flags."""
    task = get_task(name)
    protocol, _, _ = task.parse(SimpleNamespace(overrides=values))
    cfg = TaskConfig(protocol, root=root, seed=seed, own={flag.key: own.get(flag.key) for flag in task.flags})
    cfg.data = task.check(cfg)
    return task.run(encoder, cfg, out) | {"data": cfg.data}
