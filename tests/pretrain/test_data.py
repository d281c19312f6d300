"""Training images from every layout, and batches that depend on nothing but seed and data."""

import io
import logging
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import reference_views as reference
from conftest import SHARED
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.data import decode as decoder
from selfpatch_bench.pretrain.data.images import Unreadable, decode, open_source
from selfpatch_bench.pretrain.data.loader import batches, steps_per_epoch
from selfpatch_bench.pretrain.data.pixels import apply, pre_resize
from selfpatch_bench.pretrain.data.shares import divide
from selfpatch_bench.pretrain.data.views import Views, ViewSpec, draw_all

SMALL = Views([ViewSpec(1, 32, blur_p=1.0), ViewSpec(1, 32, solarize_p=0.2), ViewSpec(3, 16, (0.05, 0.4))])
COUNT = 23


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))


def encoded(seed: int, kind: str = "JPEG", height: int = 50, width: int = 64, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(reference.picture(seed, height, width)).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """COUNT drawn pictures of different sizes in class folders."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(COUNT):
        path = root / f"class{i % 3}" / f"{i:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(i, height=40 + i, width=70 - i))
    return root


def everything(items) -> list:
    """All that is in some batches, comparable."""
    return [
        (b.epoch, b.step, b.index.tolist(), b.names, [[t.tolist() for t in (g.x, g.box, g.flip)] for g in b.groups])
        for b in items
    ]


# ---------------------------------------------------------------- batches


def test_a_batch_holds_the_views_that_its_seeds_say(folder):
    source = open_source(folder)
    items = list(batches(source, SMALL, seed=3, epoch=2, batch=5))
    assert [b.step for b in items] == [0, 1, 2, 3] == list(range(steps_per_epoch(COUNT, 5)))
    for b in items:
        assert [(g.x.shape, g.x.dtype) for g in b.groups] == [
            ((2, 5, 3, 32, 32), torch.uint8),
            ((3, 5, 3, 16, 16), torch.uint8),
        ]
        assert [g.box.shape for g in b.groups] == [(2, 5, 4), (3, 5, 4)]
        assert [g.mask for g in b.groups] == [None, None]
        for k, number in enumerate(b.index.tolist()):
            image = source.read(number)
            drawn = draw_all(SMALL, *image.shape[:2], 3, 2, number)
            assert b.names[k] == source.name(number)
            for group, first in zip(b.groups, (0, 2), strict=True):
                for v in range(len(group.x)):
                    view = drawn[first + v]
                    assert np.array_equal(group.x[v, k], apply(view, image))
                    assert group.box[v, k].tolist() == list(view.box)
                    assert group.flip[v, k].item() == view.flip
    seen = torch.cat([b.index for b in items]).tolist()
    assert len(set(seen)) == len(seen) == 20  # no image twice in an epoch


def test_order_and_views_change_with_seed_and_epoch(folder):
    source = open_source(folder)
    runs = {
        (seed, epoch): next(batches(source, SMALL, seed=seed, epoch=epoch, batch=COUNT))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    orders = {tuple(b.index.tolist()) for b in runs.values()}
    assert len(orders) == 4
    boxes = {tuple(b.groups[0].box[:, b.index.argsort()].flatten().tolist()) for b in runs.values()}
    assert len(boxes) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder, workers):
    source = open_source(folder)
    alone = everything(batches(source, SMALL, seed=1, epochs=2, batch=5))
    assert len(alone) == 8
    assert everything(batches(source, SMALL, seed=1, epochs=2, batch=5, workers=workers)) == alone


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 3), (2, 3)])
def test_ranks_and_micro_steps_share_the_global_batch(folder, world, accumulation):
    source = open_source(folder)
    whole = list(batches(source, SMALL, seed=1, batch=6))
    ranks = [
        batches(source, SMALL, seed=1, batch=6, rank=r, world=world, accumulation=accumulation) for r in range(world)
    ]
    for b in whole:
        parts = [next(rank) for rank in ranks for _ in range(accumulation)]
        assert {p.step for p in parts} == {b.step}
        assert torch.equal(b.index, torch.cat([p.index for p in parts]))
        for g, *of in zip(b.groups, *[p.groups for p in parts], strict=True):
            assert torch.equal(g.x, torch.cat([o.x for o in of], 1))
            assert torch.equal(g.box, torch.cat([o.box for o in of], 1))
            assert torch.equal(g.flip, torch.cat([o.flip for o in of], 1))
    assert all(next(rank, None) is None for rank in ranks)


@pytest.mark.parametrize(
    ("batch", "world", "per_gpu", "given", "text"),
    [
        (1024, 8, 64, None, "1024 = 64 x 8 x 2"),
        (1024, 1, 64, None, "1024 = 64 x 1 x 16"),
        (512, 8, 64, None, "512 = 64 x 8 x 1"),
        (24, 1, 64, None, "24 = 24 x 1 x 1"),
        (96, 1, 64, None, "96 = 48 x 1 x 2"),  # the fewest that stay below
        (90, 3, 8, None, "90 = 6 x 3 x 5"),
        (1024, 8, 64, 1, "1024 = 128 x 8 x 1"),  # as a run of an older version was begun
    ],
)
def test_shares(batch, world, per_gpu, given, text):
    shares = divide(batch, world, per_gpu, given)
    assert str(shares) == text
    assert shares.count == world * shares.accumulation


def test_shares_that_cannot_be():
    with pytest.raises(UserError, match=r"loop\.batch=1000: must be a multiple of the 3 processes, as 999 or 1002 is"):
        divide(1000, 3, 64)
    with pytest.raises(UserError, match=r"a multiple of 6 \(2 processes times loop\.accumulation=3\), as 6 is"):
        divide(4, 2, 64, 3)
    assert [divide(96, 1, n).smaller for n in (64, 32, 3, 1)] == [24, 16, 1, None]


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 6])
def test_a_resumed_run_goes_on_with_the_same_batches(folder, stop):
    source = open_source(folder)
    through = everything(batches(source, SMALL, seed=1, epochs=2, batch=5))
    rest = batches(source, SMALL, seed=1, epoch=stop // 4, start_step=stop % 4, epochs=2, batch=5)
    assert everything(rest) == through[stop:]


def test_skipped_steps_are_not_read(folder, monkeypatch):
    source = open_source(folder)
    read = []
    monkeypatch.setattr(source, "data", lambda i: read.append(i) or type(source).data(source, i))
    list(batches(source, SMALL, seed=1, batch=5, start_step=3))
    assert len(read) == 5


def test_the_global_random_streams_are_left_alone(folder):
    """A resumed run continues torch's stream (drop path) from its checkpoint; loading must not move it."""
    source = open_source(folder)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(batches(source, SMALL, seed=1, batch=5))
    list(batches(source, SMALL, seed=1, batch=5, workers=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)


def test_shared_draws_are_one_per_step_and_view(folder):
    views = Views(SMALL.rows, pre_resize=48, share="batch")
    source = open_source(folder)
    items = list(batches(source, views, seed=1, epochs=2, batch=6))
    for b in items:
        for g in b.groups:
            assert (g.box == g.box[:, :1]).all()
            assert (g.flip == g.flip[:, :1]).all()
            assert (g.box[..., :2] + g.box[..., 2:]).max() <= 48
    assert len({tuple(b.groups[1].box[:, 0].flatten().tolist()) for b in items}) == len(items)
    number = items[4].index[2].item()  # epoch 1, step 1 = step 3 + 1 of the run
    image = pre_resize(source.read(number), 48)
    view = draw_all(views, 1, 1, 1, 3 + 1)[1]
    assert np.array_equal(items[4].groups[0].x[1, 2], apply(view, image))
    half = list(batches(source, views, seed=1, epochs=2, batch=6, rank=1, world=2))
    assert torch.equal(half[4].groups[0].x, items[4].groups[0].x[:, 3:])


@pytest.mark.parametrize(("batch", "world", "named"), [(5, 2, "batch=5"), (COUNT + 1, 1, "fewer"), (0, 1, "batch=0")])
def test_a_batch_that_cannot_be_made_is_refused(folder, batch, world, named):
    with pytest.raises(UserError, match=named):
        batches(open_source(folder), SMALL, seed=0, batch=batch, world=world)


# ---------------------------------------------------------------- bad images


def damage(folder: Path, tmp_path: Path, numbers: list[int], total: int) -> Path:
    """A flat folder of `total` pictures, those with these numbers cut in half."""
    flat = tmp_path / "flat"
    flat.mkdir()
    data = (folder / "class0/00.jpg").read_bytes()
    for i in range(total):
        (flat / f"{i:03d}.jpg").write_bytes(data[: len(data) // 2] if i in numbers else data)
    return flat


TINY = Views([ViewSpec(1, 8)])


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_replaced_and_named_once(folder, tmp_path, caplog, workers):
    source = open_source(damage(folder, tmp_path, [7, 8, 199], 300))
    with caplog.at_level(logging.WARNING):
        items = list(batches(source, TINY, seed=0, epochs=2, batch=50, workers=workers))
    index = torch.cat([b.index for b in items]).tolist()
    assert len(index) == 600
    assert not {7, 8, 199} & set(index)
    assert index.count(9) == 6  # itself, in place of 7 and of 8; two epochs
    assert index.count(200) == 4
    for name in ("007.jpg", "008.jpg", "199.jpg"):
        assert len([r for r in caplog.records if name in r.getMessage() and "truncated" in r.getMessage()]) == 1
    plain = list(batches(source, TINY, seed=0, epochs=2, batch=50))
    assert everything(plain) == everything(items)


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_one_percent_stop_the_run(folder, tmp_path, workers):
    source = open_source(damage(folder, tmp_path, [3, 50, 90, 120], 300))
    with pytest.raises(UserError, match=r"4 of 300 images cannot be read, more than 1 %: .*jpg.*truncated") as error:
        list(batches(source, TINY, seed=0, batch=30, workers=workers))
    assert "\n" not in str(error.value)


def test_neighbours_that_are_all_damaged_stop_the_run(folder, tmp_path):
    source = open_source(damage(folder, tmp_path, list(range(100, 300)), 300))
    with pytest.raises(UserError, match="more than 1 %"):
        next(batches(source, TINY, seed=0, batch=30))


def test_a_failure_in_a_worker_is_one_line(folder):
    source = open_source(folder)
    views = Views([ViewSpec(1, 8, jitter_p=1)])
    views.rows[0].jitter = (0.4, 0.4, 0.2, 0.1)
    items = batches(source, views, seed=0, batch=5, workers=1)
    views.rows[0].scale = ("wide", "narrow")  # after the check, so that it is met in the worker
    with pytest.raises(UserError, match=r"epoch 0, step 0, images \d+ .*TypeError") as error:
        next(items)
    assert "\n" not in str(error.value)
    assert "draw" in str(error.value.__cause__)  # the worker's own traceback is kept


# ---------------------------------------------------------------- workers' ends

RUN = """
import sys, time
from selfpatch_bench.pretrain.data.loader import batches
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.data.views import Views, ViewSpec

if __name__ == "__main__":
    items = batches(open_source(sys.argv[1]), Views([ViewSpec(1, 8)]), seed=0, epochs=10**6, batch=5, workers=2)
    next(items)
    print("ready", flush=True)
    time.sleep(100)
"""


def descendants(pid: int) -> set[int]:
    """Living processes below pid, from /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


def living(pids: set[int]) -> set[int]:
    return pids & descendants(0)


def gone(pids: set[int], seconds: float = 20) -> bool:
    deadline = time.time() + seconds
    while living(pids) and time.time() < deadline:
        time.sleep(0.05)
    return not living(pids)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@needs_proc
def test_workers_end_with_a_killed_run(folder, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    run = subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "ready\n"
        below = descendants(run.pid)
        assert len(below) >= 2
        # A Ctrl-C goes to the whole group and does not end them: the main process may still want to save.
        for pid in below:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
        assert len(living(below)) >= 2
        run.kill()
        run.wait()
        assert gone(below)
    finally:
        run.kill()


STOPPED = """
import os, signal, sys
from selfpatch_bench.pretrain.data.loader import batches
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.data.views import Views, ViewSpec

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)
    items = batches(open_source(sys.argv[1]), Views([ViewSpec(1, 8)]), seed=0, epochs=100, batch=5, workers=2)
    first = next(items)
    os.killpg(0, signal.SIGTERM)
    print(1 + sum(1 for _ in items), flush=True)
"""


def test_a_signal_to_the_group_leaves_workers_at_work(folder, tmp_path):
    """As torchrun sends it; all processes of a run then finish the same step, for which each still needs its batch."""
    script = tmp_path / "run.py"
    script.write_text(STOPPED)
    run = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, timeout=100, start_new_session=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) == 100 * steps_per_epoch(len(open_source(folder)), 5)


@needs_proc
def test_workers_end_with_the_iterator_and_a_dead_one_is_reported(folder):
    source = open_source(folder)
    next(batches(source, TINY, seed=0, batch=5, workers=1))  # the fork server stays
    before = descendants(os.getpid())
    items = batches(source, TINY, seed=0, epochs=10**6, batch=5, workers=2)
    next(items)
    workers = descendants(os.getpid()) - before
    assert len(workers) == 2
    items.close()
    assert gone(workers)
    items = batches(source, TINY, seed=0, epochs=10**6, batch=5, workers=1)
    next(items)
    (worker,) = descendants(os.getpid()) - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(UserError, match="a data worker died") as error:
        list(items)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- layouts


def contents(source) -> dict:
    return {source.name(i): source.read(i).tobytes() for i in range(len(source))}


def write_tar(path: Path, members: dict[str, bytes], kind=tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_folders_of_any_depth(folder, tmp_path):
    source = open_source(folder)
    assert len(source) == COUNT
    names = [source.name(i) for i in range(COUNT)]
    assert names == sorted(f"class{i % 3}/{i:02d}.jpg" for i in range(COUNT))
    flat = tmp_path / "flat"
    (flat / "a/b").mkdir(parents=True)
    (flat / "x.PNG").write_bytes(encoded(0, "PNG"))
    (flat / "a/b/y.jpeg").write_bytes(encoded(1))
    (flat / "a/notes.txt").write_text("no image")
    (flat / "._x.PNG").write_bytes(b"what a file manager leaves")
    (flat / "linked").symlink_to(folder / "class1")
    (flat / "a/round").symlink_to(flat)  # a loop
    names = list(contents(open_source(flat)))
    assert names == ["a/b/y.jpeg", *(f"linked/{i:02d}.jpg" for i in range(1, COUNT, 3)), "x.PNG"]


def test_a_list_file(folder, tmp_path):
    names = ["class1/01.jpg", "class0/00.jpg", "class2/02.jpg"]
    listed = folder.parent / f"{tmp_path.name}.txt"
    listed.write_text(f"# comment\n{folder.name}/{names[0]}\n\n{folder.name}/{names[1]} 17\n{folder / names[2]}\n")
    expected = [decode((folder / n).read_bytes()) for n in names]
    source = open_source(listed)
    assert [source.read(i).tobytes() for i in range(len(source))] == [e.tobytes() for e in expected]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(names))
    source = open_source(listed, root=folder)
    assert [source.name(i) for i in range(3)] == names
    assert np.array_equal(source.read(2), expected[2])
    with pytest.raises(UserError, match=r"class1/01\.jpg .*not found below"):
        open_source(listed)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tar_shards(tmp_path, kind):
    long = "x" * 60 + "/" + "y" * 120 + ".jpg" if kind != tarfile.USTAR_FORMAT else "short.jpg"
    shards = [
        {"000.jpg": encoded(0), "000.cls": b"7", "001.png": encoded(1, "PNG"), "001.json": b"{}"},
        {"é ü.jpg": encoded(2), long: encoded(3), "._000.jpg": b"none"},
    ]
    root = tmp_path / "shards"
    root.mkdir()
    for k, members in enumerate(shards):
        write_tar(root / f"{k}.tar", members, kind)
    expected = {
        f"{k}.tar/{name}": decode(data).tobytes()
        for k, members in enumerate(shards)
        for name, data in members.items()
        if name.endswith(("jpg", "png")) and not name.startswith("._")
    }
    source = open_source(root)
    assert contents(source) == expected
    assert list(contents(source)) == list(expected)
    one = open_source(root / "1.tar")
    assert list(contents(one)) == [n for n in expected if n.startswith("1.tar")]
    items = everything(batches(source, TINY, seed=0, batch=4, epochs=2))
    assert everything(batches(source, TINY, seed=0, batch=4, epochs=2, workers=1)) == items


def test_the_index_of_shards_is_made_once(tmp_path, monkeypatch):
    root = tmp_path / "shards"
    root.mkdir()
    write_tar(root / "0.tar", {"0.jpg": encoded(0), "1.jpg": encoded(1)})
    first = contents(open_source(root))
    opened = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    assert contents(open_source(root)) == first
    assert not opened
    write_tar(root / "0.tar", {"0.jpg": encoded(2)})
    assert contents(open_source(root)) == {"0.tar/0.jpg": decode(encoded(2)).tobytes()}
    assert len(opened) == 2  # one of them writes
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(b"damaged")
    assert len(contents(open_source(root))) == 1
    assert len(opened) == 3


def test_a_shard_that_shrank_after_it_was_indexed(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{i}.jpg": encoded(i) for i in range(3)})
    source = open_source(path)
    with open(path, "r+b") as file:
        file.truncate(source.place[2, 1].item() + 100)
    with pytest.raises(Unreadable, match=r"a\.tar ends within it"):
        source.read(2)
    assert source.read(1).shape == (50, 64, 3)


def nothing(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda p: p, "no such file or folder"),
        (nothing, "no images found"),
        (lambda p: write_tar(p.with_suffix(".tar"), {"a.txt": b"1"}), "no images found"),
        (lambda p: (p.with_suffix(".tar").write_bytes(b"junk" * 500), p.with_suffix(".tar"))[1], "not a whole"),
        (lambda p: (p.write_text("a.jpg\nb.jpg\n"), p)[1], "not found below"),
        (lambda p: (p.write_text("\n# none\n"), p)[1], "no images found"),
        (lambda p: (p.with_suffix(".jpg").write_bytes(encoded(0)), p.with_suffix(".jpg"))[1], "its folder"),
        (lambda p: (p.write_bytes(b"\0\1\2"), p)[1], "neither"),
    ],
)
def test_nothing_to_train_on_is_said_in_one_line(tmp_path, make, named):
    with pytest.raises(UserError, match=named) as error:
        open_source(make(tmp_path / "data"))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_truncated_shard_and_a_mixed_folder_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{i}.jpg": encoded(i) for i in range(3)})
    os.truncate(path, os.path.getsize(path) // 3)
    with pytest.raises(UserError, match=r"a\.tar: not a whole"):
        open_source(tmp_path)
    (tmp_path / "b.jpg").write_bytes(encoded(0))
    with pytest.raises(UserError, match="both images"):
        open_source(tmp_path)


# ---------------------------------------------------------------- decoding


def pictures_of_all_kinds() -> dict[str, bytes]:
    image = Image.fromarray(reference.picture(5, 90, 121))
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(reference.picture(6, 90, 121)[..., 0]))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    kinds = {
        "plain": (image, "JPEG", {"quality": 90}),
        "4:4:4": (image, "JPEG", {"quality": 95, "subsampling": 0}),
        "poor": (image, "JPEG", {"quality": 10}),
        "progressive": (image, "JPEG", {"progressive": True}),
        "gray": (image.convert("L"), "JPEG", {}),
        "cmyk": (image.convert("CMYK"), "JPEG", {}),
        "turned": (image, "JPEG", {"exif": exif}),
        "comment": (image, "JPEG", {"comment": b"\xff\xd9" * 50}),
        "png": (image, "PNG", {}),
        "alpha": (alpha, "PNG", {}),
        "gray alpha": (alpha.convert("LA"), "PNG", {}),
        "palette": (image.quantize(20), "PNG", {}),
        "palette with a clear colour": (image.quantize(20), "PNG", {"transparency": 3}),
        "bits": (image.convert("1"), "PNG", {}),
        "webp": (image, "WEBP", {"lossless": True}),
        "tiff": (image, "TIFF", {}),
        "bmp": (image, "BMP", {}),
    }
    found = {}
    for name, (picture, kind, options) in kinds.items():
        file = io.BytesIO()
        picture.save(file, kind, **options)
        found[name] = file.getvalue()
    found["with a tail"] = found["plain"] + b"appended by some camera"
    return found


ALL_KINDS = pictures_of_all_kinds()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_of_picture_is_decoded_as_pillow_does(kind):
    """JPEG decoders may differ by a level or two in the colour conversion; both use libjpeg-turbo, other formats are
    lossless."""
    found, expected = decode(ALL_KINDS[kind]), np.asarray(reference.decode(ALL_KINDS[kind]))
    assert found.shape == expected.shape == (90, 121, 3)
    assert found.dtype == np.uint8
    assert found.flags.writeable  # torch takes no other arrays
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_usual_jpegs_take_the_fast_path(monkeypatch):
    monkeypatch.setattr(decoder, "open_picture", lambda *_: pytest.fail("Pillow was asked"))
    for kind in ("plain", "4:4:4", "poor", "progressive", "gray", "turned", "comment"):
        decode(ALL_KINDS[kind])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["plain", "progressive", "gray", "cmyk", "png", "webp"])
def test_truncated_pictures_are_unreadable(kind, share):
    data = ALL_KINDS[kind]
    with pytest.raises(Unreadable):
        decode(data[: int(share * len(data))])


def test_no_picture_at_all_is_unreadable():
    for data in (b"", b"<html>404</html>", b"\xff\xd8\xff\xd9", b"\xff\xd8" + b"\xff" * 100 + b"\xff\xd9"):
        with pytest.raises(Unreadable):
            decode(data)


@pytest.mark.shared
def test_photographs_are_decoded_as_pillow_does():
    root = SHARED / "data/photos"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    source = open_source(root)
    for i in range(0, len(source), 5):
        expected = np.asarray(Image.open(root / source.name(i)).convert("RGB"))
        assert np.abs(source.read(i).astype(int) - expected).max() <= 2, source.name(i)
