"""mm's pipelines read pictures as every other evaluation does."""

import os

import cv2
import numpy as np
import pytest
from PIL import Image

from selfpatch_bench.pretrain.common.errors import UserError

pytest.importorskip("mmengine", exc_type=ImportError)


@pytest.fixture(scope="module")
def pixels():
    from selfpatch_bench.benchmarks.mm import ops

    ops.install()
    from selfpatch_bench.benchmarks.mm import pixels

    return pixels


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pixels(pixels, tmp_path, kind, orientation):
    """Those that mmcv gives, where it is asked not to turn them."""
    from mmcv.transforms import LoadImageFromFile

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / "x")
    stored = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(stored).save(path, kind, exif=exif)
    found = pixels.LoadStoredPixels().transform({"img_path": path})
    expected = LoadImageFromFile(color_type="color_ignore_orientation").transform({"img_path": path})
    assert found["img"].flags.c_contiguous
    assert (found["img"] == expected["img"]).all()
    assert (found["img_shape"], found["ori_shape"]) == ((24, 40), (24, 40))
    turned = cv2.imread(path).shape[:2]
    assert turned == ((40, 24) if orientation > 4 else (24, 40))  # what mmcv gives unasked


def test_pictures_that_cannot_be_read(pixels, tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    for path in (tmp_path / "fifo.jpg", tmp_path / "text.jpg", tmp_path / "absent.jpg"):
        with pytest.raises(UserError, match=f"{path.name}: cannot be read as a picture"):
            pixels.LoadStoredPixels().transform({"img_path": str(path)})
        assert pixels.LoadStoredPixels(ignore_empty=True).transform({"img_path": str(path)}) is None


def test_every_pipeline_is_told(pixels):
    """Wherever it stands in a loader's configuration, nested ones too; other readers than the usual one are kept."""
    from mmengine.config import ConfigDict

    usual = {"type": "LoadImageFromFile", "backend_args": None}
    loader = ConfigDict(
        dataset={
            "type": "RepeatDataset",
            "dataset": {
                "pipeline": [usual, {"type": "RandomChoice", "transforms": [[{"type": "mmdet.LoadImageFromFile"}]]}]
            },
            "pipeline": [{"type": "LoadImageFromFile", "imdecode_backend": "tifffile"}, {"type": "LoadAnnotations"}],
        }
    )
    pixels.read_stored(loader)
    inner, outer = loader.dataset.dataset.pipeline, loader.dataset.pipeline
    assert inner[0] == {"type": "LoadStoredPixels", "backend_args": None}
    assert inner[1].transforms[0][0].type == "LoadStoredPixels"
    assert [step.type for step in outer] == ["LoadImageFromFile", "LoadAnnotations"]
