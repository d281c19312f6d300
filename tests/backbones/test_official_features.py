"""Features of a drawn picture against those of the official DINO code (tests/golden/make/features.py)."""

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import REPO
from selfpatch_bench.benchmarks import load

DRAWN = REPO / "tests/golden/drawn"


@pytest.mark.parametrize(("name", "size"), [("native", None), ("square", (224, 224))])
@torch.no_grad()
def test_class_token_and_patches(name, size):
    """At the picture's own size, 7 x 9 patches on positions stored for 14 x 14, and at 224; float32: 1e-5."""
    golden = np.load(DRAWN / "network.npz")
    encoder = load(DRAWN / "network.pth", heads=2)
    picture = Image.open(DRAWN / "data/voc07/VOC2007/JPEGImages/000001.jpg").convert("RGB")
    picture = picture.resize(size, Image.BILINEAR) if size else picture
    mean, std = golden["mean_std"]
    assert (encoder.card.mean, encoder.card.std) == (pytest.approx(mean), pytest.approx(std))
    pixels = (np.asarray(picture, np.float32) / 255 - mean) / std
    found = encoder(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    for ours, key in ((found.image[0], "class"), (found.patches[0][0].flatten(1).T, "patches")):
        wanted = golden[f"{name}.{key}"]
        assert np.abs(ours.numpy() - wanted).max() < 1e-5 * np.abs(wanted).max(), key
