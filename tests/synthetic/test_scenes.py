import numpy as np
import pytest
from PIL import Image

from selfpatch_bench.benchmarks.datasets.masks import read_mask
from selfpatch_bench.benchmarks.synthetic import scenes
from selfpatch_bench.benchmarks.synthetic.drawing import STUFF, THINGS, draw_scene
from selfpatch_bench.benchmarks.synthetic.scenes import make_pictures, make_videos
from selfpatch_bench.benchmarks.synthetic.textures import TEXTURES, noise, palette, texture
from selfpatch_bench.pretrain.common.errors import UserError


def _tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("kind", TEXTURES)
@pytest.mark.parametrize(("h", "w", "size"), [(128, 128, 18), (61, 250, 3.3), (9, 7, 20), (300, 40, 31.7)])
def test_textures(kind, h, w, size):
    drawn = texture(np.random.default_rng(3), kind, h, w, palette(np.random.default_rng(4)), size)
    assert drawn.shape == (h, w, 3)
    assert drawn.dtype == np.uint8
    if h * w > 1000:
        assert drawn.std((0, 1)).max() > 10  # a texture, not a flat colour
    again = texture(np.random.default_rng(3), kind, h, w, palette(np.random.default_rng(4)), size)
    assert np.array_equal(drawn, again)


def test_noise_is_smooth_and_scaled():
    fine, coarse = (noise(np.random.default_rng(0), 120, 200, cell, 2) for cell in (8, 60))
    for field in (fine, coarse):
        assert field.shape == (120, 200)
        # (x - low) / (high - low) in float32: both ends within a rounding of it
        assert field.min() == 0
        assert abs(field.max() - 1) < 1e-6
    assert np.abs(np.diff(fine)).mean() > 3 * np.abs(np.diff(coarse)).mean()


def _share_inside(points, h, w, n=8):
    """Share of every pixel's n x n sub-points inside the polygon, by the even-odd rule (no OpenCV)."""
    sub = (np.arange(n) + 0.5) / n - 0.5
    y = (np.arange(h)[:, None] + sub).ravel()
    x = (np.arange(w)[:, None] + sub).ravel()
    inside = np.zeros((len(y), len(x)), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
        rows = (y0 > y) != (y1 > y)
        if rows.any():
            at = x0 + (y[rows] - y0) * (x1 - x0) / (y1 - y0)
            inside[rows] ^= x[None] < at[:, None]
    return inside.reshape(h, n, w, n).mean((1, 3))


@pytest.mark.parametrize("seed", range(4))
def test_mask_is_the_contour(seed):
    """The mask holds exactly the pixels at least half inside the front object's contour.

    Pixels whose share is within 0.15 of one half are left out: the drawing counts 8 x 8 sub-pixels and paints
    those the outline touches, which widens it by a sixteenth of a pixel. A quarter of a pixel's offset fails."""
    size = (96, 128)
    scene = draw_scene((seed, 5), size, 6, objects=2)
    for t in (0, 5):
        front = scene.things[1]
        place = front.place(t / 5)
        share = _share_inside(front.outline @ place[:, :2].T + place[:, 2], *size)
        sure = np.abs(share - 0.5) > 0.15
        assert sure.mean() > 0.97
        labels = scene.frame(t).labels
        assert np.array_equal((labels == 2)[sure], (share > 0.5)[sure])


@pytest.mark.parametrize("seed", range(3))
def test_picture_and_mask_agree(seed):
    """A white object on black ground: a pixel is lighter than half where, and only where, the mask says so."""
    scene = draw_scene((seed, 6), (96, 128), 5, objects=1)
    scene.ground[:] = 0
    scene.things[0].skin[:] = 255
    scene.light = 0
    for t in range(5):
        frame = scene.frame(t)
        grey = frame.picture.astype(float).mean(2)
        clear = np.abs(grey - 127.5) > 8  # sensor noise: sigma 2.5 over three channels, so 5.5 sigma
        assert clear.mean() > 0.97
        assert np.array_equal((grey > 127.5)[clear], (frame.labels == 1)[clear])
        soft = (grey > 30) & (grey < 225)
        assert soft.sum() > 10  # anti-aliased


def test_frames_in_any_order_and_seeds():
    first = draw_scene((1, 2), (60, 80), 4, 2)
    again = draw_scene((1, 2), (60, 80), 4, 2)
    backwards = [again.frame(t) for t in (3, 2, 1, 0)][::-1]
    for t in range(4):
        frame = first.frame(t)
        assert np.array_equal(frame.picture, backwards[t].picture)
        assert np.array_equal(frame.labels, backwards[t].labels)
        assert frame.stuff.shape == (60, 80)
        assert frame.stuff.max() < len(STUFF)
    assert not np.array_equal(draw_scene((1, 3), (60, 80), 4, 2).frame(0).picture, first.frame(0).picture)
    assert all(0 <= thing.class_id < len(THINGS) for thing in first.things)
    assert draw_scene((1, 2), (60, 80), 4, 3, class_id=7).things[-1].class_id == 7


def test_motion_is_smooth_and_real():
    """Each object moves, and no frame moves it further than a tenth of the width: within a radius of 12 patches."""
    h, w, frames = 120, 214, 10
    for seed in range(6):
        scene = draw_scene((seed, 8), (h, w), frames, objects=2)
        for thing in scene.things:
            way = np.array([thing.place(t / (frames - 1))[:, 2] for t in range(frames)])
            steps = np.hypot(*np.diff(way, axis=0).T)
            assert steps.max() < 0.1 * w
            assert steps.sum() > 0.1 * w


def test_camouflage_wears_the_grounds_colours():
    def distance(hidden):
        total = []
        for seed in range(8):
            frame = draw_scene((seed, 9), (96, 128), 1, 1, camouflage=hidden).frame(0)
            colours = frame.picture.reshape(-1, 3).astype(float)
            ground = colours[frame.labels.ravel() == 0]
            mine = colours[frame.labels.ravel() == 1][::7]
            total.append(np.mean([np.abs(ground[::5] - c).sum(1).min() for c in mine]))
        return np.mean(total)

    assert distance(True) < 0.6 * distance(False)  # distance of an object's pixel to the ground's nearest colour


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("v") / "videos", sequences=4, frames=5, size=(72, 128), seed=3)


def test_videos_layout(videos):
    names = (videos / "ImageSets/2017/val.txt").read_text().split()
    assert len(set(names)) == 4
    for name, objects in zip(names, (2, 1, 2, 2), strict=True):
        frames = sorted((videos / "JPEGImages/480p" / name).iterdir())
        masks = sorted((videos / "Annotations/480p" / name).iterdir())
        assert [p.name for p in frames] == [f"{t:05d}.jpg" for t in range(5)]
        assert [p.name for p in masks] == [f"{t:05d}.png" for t in range(5)]
        for frame, mask in zip(frames, masks, strict=True):
            with Image.open(frame) as image, Image.open(mask) as indexed:
                assert (image.size, image.mode, indexed.mode) == ((128, 72), "RGB", "P")
            labels = read_mask(mask)
            assert labels.shape == (72, 128)
            assert set(np.unique(labels)) <= set(range(objects + 1))
        assert set(np.unique(read_mask(masks[0]))) == set(range(objects + 1))


def test_same_seed_same_bytes(videos, tmp_path):
    how = {"sequences": 4, "frames": 5, "size": (72, 128)}
    same = make_videos(tmp_path / "same", seed=3, **how)
    assert _tree(same) == _tree(videos)
    other = make_videos(tmp_path / "other", seed=4, **how)
    assert not set(_tree(other).values()) & set(_tree(videos).values())


def test_objects_argument(tmp_path):
    root = make_videos(tmp_path / "v", sequences=3, frames=3, size=(120, 214), objects=[3, 1])
    names = (root / "ImageSets/2017/val.txt").read_text().split()
    assert [read_mask(root / f"Annotations/480p/{n}/00000.png").max() for n in names] == [3, 1, 3]
    with pytest.raises(UserError, match="do not fit"):
        make_videos(tmp_path / "crowd", sequences=1, frames=3, size=(24, 24), objects=25)
    assert not (tmp_path / "crowd").exists()


def test_nothing_is_redone_or_overwritten(videos, tmp_path, monkeypatch):
    how = {"sequences": 1, "frames": 3, "size": (48, 64)}
    root = make_videos(tmp_path / "v", **how)
    before = _tree(root)
    monkeypatch.setattr(scenes, "draw_scene", lambda *_, **__: pytest.fail("drawn again"))
    assert make_videos(root, **how) == root
    for other in ({**how, "frames": 4}, {**how, "seed": 1}):
        with pytest.raises(UserError, match="not empty"):
            make_videos(root, **other)
    assert _tree(root) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="mine"):
        make_pictures(tmp_path / "mine", 2)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def fail_third(path, labels):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "write_mask", fail_third)
    with pytest.raises(KeyboardInterrupt):
        make_videos(tmp_path / "v", sequences=1, frames=5, size=(48, 64))
    assert len(written) == 3
    assert list(tmp_path.iterdir()) == []


def test_into_an_empty_folder(tmp_path):
    assert len(list(make_pictures(tmp_path, 2, (32, 40)).glob("*.jpg"))) == 2


def test_pictures_flat(tmp_path):
    root = make_pictures(tmp_path / "p", 5, size=(64, 48), seed=2)
    files = sorted(root.glob("*.jpg"))
    assert [p.name for p in files] == [f"{i:06d}.jpg" for i in range(5)]
    assert len({p.read_bytes() for p in files}) == 5
    with Image.open(files[0]) as image:
        assert (image.size, image.mode) == ((48, 64), "RGB")
    more = make_pictures(tmp_path / "more", 7, size=(64, 48), seed=2)  # picture i does not depend on their number
    assert [p.read_bytes() for p in sorted(more.glob("*.jpg"))[:5]] == [p.read_bytes() for p in files]


def test_pictures_in_classes(tmp_path):
    root = make_pictures(tmp_path / "p", 12, size=(40, 40), classes=4)
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    assert len(folders) == 4
    assert {p.name.replace("_", " ") for p in folders} <= set(THINGS)
    assert [len(list(p.glob("*.jpg"))) for p in folders] == [3, 3, 3, 3]
    with pytest.raises(UserError, match="classes=25"):
        make_pictures(tmp_path / "q", 3, classes=25)
