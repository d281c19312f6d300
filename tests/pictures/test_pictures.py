import numpy as np
import pytest
from PIL import Image

from selfpatch_bench.benchmarks.datasets.davis import open_davis
from selfpatch_bench.benchmarks.datasets.files import read_frame
from selfpatch_bench.benchmarks.datasets.masks import read_mask, write_mask
from selfpatch_bench.benchmarks.pictures.masks import animation, contact_sheet, overlay
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain.common.errors import UserError


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    root = make_videos(folder / "v", sequences=1, frames=11, size=(180, 320), seed=1, objects=2)
    return open_davis(root).content.sequences[0]


def test_overlay_colours_objects_only():
    frame = np.full((40, 60, 3), 100, np.uint8)
    labels = np.zeros((40, 60), np.uint8)
    labels[10:20, 10:20], labels[20:30, 10:20] = 1, 2
    painted = overlay(frame, labels, 0.5)
    assert painted[15, 15].tolist() == [178, 50, 50]  # half of 100 and half of (255, 0, 0)
    assert painted[25, 15].tolist() == [50, 178, 50]
    assert painted[10, 15].tolist() == [255, 0, 0]  # rim of 1
    assert painted[20, 15].tolist() == [0, 255, 0]  # rim of 2 towards 1
    assert painted[9, 15].tolist() == [40, 40, 40]  # dark line outside
    assert (painted[labels == 0] == 100).all(1).sum() == (labels == 0).sum() - 60  # all but that line is untouched
    assert (frame == 100).all()


def test_contact_sheet(sequence, tmp_path):
    out = contact_sheet(sequence.frames, sequence.masks, tmp_path / "sub" / "sheet.png", sequence.name)
    assert [p.name for p in out.parent.iterdir()] == ["sheet.png"]
    with Image.open(out) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        sheet = np.array(image)
    gap, head, foot = 8, 34, 20
    assert sheet.shape == (head + 2 * (180 + foot + gap), 4 * (320 + gap) + gap, 3)
    # 8 of 11 frames, evenly: each tile is its frame where there is neither mask nor rim
    chosen = [0, 1, 3, 4, 6, 7, 9, 10]
    for k, i in enumerate(chosen):
        y, x = head + k // 4 * (180 + foot + gap), gap + k % 4 * (320 + gap)
        tile, frame, labels = sheet[y : y + 180, x : x + 320], read_frame(sequence.frames[i]), sequence.truth(i)
        assert np.array_equal(tile, overlay(frame, labels))
    assert (sheet[:head] < 128).any()  # the title
    assert (sheet[head + 182 : head + 198, gap : gap + 60] < 128).any()  # the frame's number


def test_short_sheet_and_large_frames(sequence, tmp_path):
    out = contact_sheet(sequence.frames[:2], sequence.masks[:2], tmp_path / "two.png", "two")
    with Image.open(out) as image:
        assert image.size[0] == 2 * 328 + 8
    big = tmp_path / "big.png"
    Image.fromarray(read_frame(sequence.frames[0])).resize((1001, 563)).save(big)
    write_mask(tmp_path / "m.png", np.ones((563, 1001), np.uint8))
    with Image.open(contact_sheet([big], [tmp_path / "m.png"], tmp_path / "one.png", "big")) as image:
        assert image.size == (336, 34 + 180 + 28)


def test_binary_masks_show_as_the_first_object(sequence, tmp_path):
    binary = (read_mask(sequence.masks[0]) > 0).astype(np.uint8)
    for name, labels in [("a", binary), ("b", binary * 255)]:
        write_mask(tmp_path / f"{name}.png", labels)
        contact_sheet(sequence.frames[:1], [tmp_path / f"{name}.png"], tmp_path / f"sheet-{name}.png", "same")
    assert (tmp_path / "sheet-a.png").read_bytes() == (tmp_path / "sheet-b.png").read_bytes()
    void = binary.copy()
    void[:20] = 255
    write_mask(tmp_path / "c.png", void)
    without = binary.copy()
    without[:20] = 0
    write_mask(tmp_path / "d.png", without)
    for name in "cd":
        contact_sheet(sequence.frames[:1], [tmp_path / f"{name}.png"], tmp_path / f"sheet-{name}.png", "same")
    assert (tmp_path / "sheet-c.png").read_bytes() == (tmp_path / "sheet-d.png").read_bytes()


def test_animation(sequence, tmp_path):
    out = animation(sequence.frames, sequence.masks, tmp_path / "a.webp", rate=10)
    with Image.open(out) as film:
        assert (film.format, film.n_frames, film.size) == ("WEBP", 11, (320, 180))
        assert film.info["loop"] == 0
        for i in (0, 5, 10):
            film.seek(i)
            film.load()
            assert film.info["duration"] == 100
            shown = np.array(film.convert("RGB")).astype(int)[40:]  # below the number
            wanted = overlay(read_frame(sequence.frames[i]), sequence.truth(i))[40:]
            # lossy at quality 75: 10 grey levels on average; another frame of the video is at more than 15
            assert np.abs(shown - wanted).mean() < 10


def test_animation_is_bounded(sequence, tmp_path):
    out = animation(sequence.frames, sequence.masks, tmp_path / "a.webp", width=121, rate=10, most=4)
    with Image.open(out) as film:
        assert (film.n_frames, film.size) == (4, (120, 68))
        film.seek(1)
        film.load()
        assert film.info["duration"] == 275  # 11 frames' time in 4


def test_errors(sequence, tmp_path):
    with pytest.raises(ValueError, match="11 frames and 10 masks"):
        contact_sheet(sequence.frames, sequence.masks[1:], tmp_path / "x.png", "x")
    with pytest.raises(ValueError, match="at least one"):
        animation([], [], tmp_path / "x.webp")
    (tmp_path / "bad.jpg").write_text("no picture")
    for make, name in ((contact_sheet, "x.png"), (animation, "x.webp")):
        with pytest.raises(UserError, match=r"bad\.jpg"):
            make([tmp_path / "bad.jpg"], sequence.masks[:1], tmp_path / name, *(["t"] if make is contact_sheet else []))
        assert not (tmp_path / name).exists()
