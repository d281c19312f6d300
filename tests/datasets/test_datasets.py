import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import golden_cases, shared_cases
from official_runs import videos_of
from selfpatch_bench.benchmarks.datasets import davis as datasets
from selfpatch_bench.benchmarks.datasets import files
from selfpatch_bench.benchmarks.datasets.davis import VAL_NAMES, open_davis
from selfpatch_bench.benchmarks.datasets.files import read_frame
from selfpatch_bench.benchmarks.datasets.masks import read_mask, write_mask
from selfpatch_bench.benchmarks.datasets.roots import data_roots
from selfpatch_bench.benchmarks.datasets.videos.results import read_result
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain.common.errors import UserError

FRAMES, MASKS, LIST = "JPEGImages/480p", "Annotations/480p", "ImageSets/2017/val.txt"
H, W = 48, 80


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SELFPATCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Three sequences of five frames with 2, 1 and 2 objects, named a, b and c."""
    root = make_videos(tmp_path_factory.mktemp("davis") / "v", sequences=3, frames=5, size=(H, W))
    names = (root / LIST).read_text().split()
    for old, new in zip(names, "abc", strict=True):
        for part in (FRAMES, MASKS):
            (root / part / old).rename(root / part / new)
    (root / LIST).write_text("a\nb\nc\n")
    return root


@pytest.fixture
def root(drawn, tmp_path):
    """A copy to spoil. Its files are dated an hour ago, so that the cache takes them."""
    copy = Path(shutil.copytree(drawn, tmp_path / "davis"))
    _age(copy)
    return copy


def _age(root):
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))


def _refused(*words, call=open_davis, **how):
    """call(**how) raises a UserError that has all the words."""
    with pytest.raises(UserError) as caught:
        call(**how)
    message = str(caught.value)
    for word in words:
        assert str(word) in message, message
    assert "\n" not in message


def _frame(root, name, i):
    return root / FRAMES / name / f"{i:05d}.jpg"


def _mask(root, name, i):
    return root / MASKS / name / f"{i:05d}.png"


# ------------------------------------------------------------------------------------------- what is opened
def test_opens(root):
    data = open_davis(root)
    sequences = data.content.sequences
    assert (data.name, data.root, data.notes) == ("davis2017", root, [])
    assert data.summary == "3 sequences, 15 frames, 5 objects"
    assert [(s.name, len(s.frames), len(s.masks), s.size, s.objects, s.binary) for s in sequences] == [
        ("a", 5, 5, (H, W), 2, False),
        ("b", 5, 5, (H, W), 1, False),
        ("c", 5, 5, (H, W), 2, False),
    ]
    first = sequences[0]
    assert first.frames == [_frame(root, "a", i) for i in range(5)]
    assert first.masks == [_mask(root, "a", i) for i in range(5)]
    assert np.array_equal(first.truth(3), read_mask(first.masks[3]))
    frame = read_frame(first.frames[2])
    assert np.array_equal(frame, cv2.imread(str(first.frames[2]))[..., ::-1])
    assert (frame.shape, frame.dtype) == ((H, W, 3), np.uint8)


def test_limit_and_frames(root):
    davis = open_davis(root, limit=2, frames=3)
    assert [(s.name, len(s.frames), len(s.masks)) for s in davis.content.sequences] == [("a", 3, 3), ("b", 3, 3)]
    assert davis.differs == "2 sequences, none of DAVIS-2017 val, the first 3 frames"
    assert open_davis(root, frames=5).differs == "3 sequences, none of DAVIS-2017 val"
    # what is not used is not looked at
    _mask(root, "c", 4).unlink()
    _mask(root, "a", 4).write_text("spoiled")
    open_davis(root, limit=2, frames=4)
    _refused("limit=0", root=root, limit=0)
    _refused("limit=-1", root=root, limit=-1)
    _refused("frames=2", "3", root=root, frames=2)
    _refused("frames=0", root=root, frames=0)


def test_root(root, tmp_path):
    _refused(tmp_path / "absent", "no such folder", root=tmp_path / "absent")
    _refused("is not a folder", root=root / LIST)
    _refused(tmp_path, "JPEGImages/480p", "Annotations/480p", root=tmp_path)
    parent = tmp_path / "unpacked"
    parent.mkdir()
    root.rename(parent / "DAVIS")
    davis = open_davis(parent)
    assert davis.root == parent / "DAVIS"
    assert len(davis.content.sequences) == 3
    shutil.rmtree(parent / "DAVIS" / "Annotations")
    with pytest.raises(UserError) as caught:
        open_davis(parent / "DAVIS")
    assert "no Annotations/480p;" in str(caught.value)


def test_which_list(root, tmp_path):
    for year, names in (("480p", "c\n"), ("2016", "b\nc\n")):
        (root / "ImageSets" / year).mkdir()
        (root / "ImageSets" / year / "val.txt").write_text(names)
    davis = open_davis(root)
    assert [s.name for s in davis.content.sequences] == ["a", "b", "c"]
    assert len(davis.notes) == 1
    assert all(f"ImageSets/{year}/val.txt" in davis.notes[0] for year in ("2017", "2016", "480p"))
    (root / LIST).unlink()
    assert [s.name for s in open_davis(root).content.sequences] == ["b", "c"]
    (root / "ImageSets/2016/val.txt").unlink()
    assert [s.name for s in open_davis(root).content.sequences] == ["c"]
    (root / "ImageSets/480p/val.txt").unlink()
    _refused("ImageSets/2017/val.txt", "ImageSets/2016/val.txt", "ImageSets/480p/val.txt", "--list", root=root)
    own = tmp_path / "own.txt"
    own.write_bytes(b"\xef\xbb\xbf# two of them\r\n\r\nc\r\n  a  \r\n")
    assert [s.name for s in open_davis(root, list_file=own).content.sequences] == ["c", "a"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["names no sequence"]),
        ("\n# nothing\n  \n", ["names no sequence"]),
        ("a\nb\na\n", ["line 3", "sequence a", "twice"]),
        ("a\n../b\n", ["line 2", "../b"]),
        ("..\n", ["line 1"]),
        ("a b c\n", ["line 1", "a b c"]),
        ("a b\n", ["line 1", "a b"]),
        ("/J/a/0.jpg /A/b/0.png\n", ["line 1", "not a frame and its annotation"]),
        ("/J/a/0.jpg /A/a/1.png\n", ["line 1", "not a frame and its annotation"]),
        ("/J/a/0.png /J/a/0.png\n", ["line 1", "not a frame and its annotation"]),
        ("/J/../a/0.jpg /A/a/0.png\n", ["line 1", "'..'"]),
        ("/J/a/0.jpg /A/a/0.png\n/J/a/0.jpg /A/a/0.png\n", ["line 2", "J/a/0.jpg", "twice"]),
        ("a\n/J/a/0.jpg /A/a/0.png\n", ["line 2", "a is listed twice"]),
        ("/J/a/0.jpg /A/a/0.png\na\n", ["line 2", "a is listed twice"]),
    ],
)
def test_bad_lists(root, tmp_path, text, words):
    path = tmp_path / "list.txt"
    path.write_text(text)
    _refused(path, *words, root=root, list_file=path)


def test_unreadable_list(root, tmp_path):
    _refused(tmp_path / "absent.txt", "cannot be read", root=root, list_file=tmp_path / "absent.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    _refused(tmp_path / "bytes.txt", "cannot be read", root=root, list_file=tmp_path / "bytes.txt")


def test_pairs_of_paths(root):
    """The official DAVIS-2016 lists: names, frames and their order come from the pairs."""
    (root / "ImageSets/480p").mkdir()
    order = [("c", 0), ("c", 1), ("c", 2), ("c", 3), ("a", 4), ("a", 3), ("a", 1)]
    lines = [f"/{FRAMES}/{n}/{i:05d}.jpg /{MASKS}/{n}/{i:05d}.png" for n, i in order]
    (root / "ImageSets/480p/val.txt").write_text("\n".join(lines) + "\n")
    (root / LIST).unlink()
    davis = open_davis(root)
    assert [s.name for s in davis.content.sequences] == ["c", "a"]
    assert davis.content.sequences[1].frames == [_frame(root, "a", i) for i in (4, 3, 1)]
    assert davis.content.sequences[1].masks == [_mask(root, "a", i) for i in (4, 3, 1)]
    _mask(root, "a", 3).unlink()
    _refused(_mask(root, "a", 3), "does not exist", root=root)


def test_order_of_unpadded_numbers(root):
    for part, end in ((FRAMES, "jpg"), (MASKS, "png")):
        for i in range(5):
            (root / part / "b" / f"{i:05d}.{end}").rename(root / part / "b" / f"{i + 8}.{end}")
    sequence = open_davis(root).content.sequences[1]
    assert [p.stem for p in sequence.frames] == ["8", "9", "10", "11", "12"]
    assert [p.stem for p in sequence.masks] == ["8", "9", "10", "11", "12"]


def test_foreign_files_are_ignored(root):
    for part in (FRAMES, MASKS):
        (root / part / "a" / "Thumbs.db").write_text("x")
        (root / part / "a" / "._00000.png").write_text("x")
        (root / part / "a" / ".00000.png.77.tmp").write_text("x")
    assert len(open_davis(root).content.sequences[0].frames) == 5


# ------------------------------------------------------------------------------------------- missing files
def test_missing_files(root):
    _mask(root, "b", 2).unlink()
    _refused(_mask(root, "b", 2), "missing", root=root)
    _mask(root, "b", 3).unlink()
    _refused(_mask(root, "b", 2), "1 more", root=root)


def test_annotation_without_frame(root):
    _frame(root, "a", 0).unlink()
    _refused(_frame(root, "a", 0), "missing", root=root)


def test_missing_sequence(root):
    (root / LIST).write_text("a\nzebra\n")
    _refused(root / FRAMES / "zebra", "no such folder", root=root)
    (root / FRAMES / "zebra").mkdir()
    _refused(root / FRAMES / "zebra", "holds no .jpg", root=root)
    shutil.copy(_frame(root, "a", 0), _frame(root, "zebra", 0))
    _refused(root / MASKS / "zebra", "no such folder", root=root)
    (root / MASKS / "zebra").mkdir()
    _refused(root / MASKS / "zebra", "holds no .png", root=root)
    shutil.copy(_mask(root, "a", 0), _mask(root, "zebra", 0))
    (left_out,) = open_davis(root).notes
    assert "zebra (1 frames)" in left_out
    assert "3 frames are needed" in left_out


def test_the_same_frame_twice(root):
    shutil.copy(_frame(root, "a", 2), root / FRAMES / "a" / "00002.jpeg")
    _refused(FRAMES + "/a/00002.jpg", "00002.jpeg", root=root)


# ------------------------------------------------------------------------------------------- what is in them
def test_sizes(root):
    Image.open(_frame(root, "b", 3)).resize((W + 1, H)).save(_frame(root, "b", 3))
    _refused(_frame(root, "b", 3), f"{H}x{W + 1}", f"{H}x{W}", root=root)


def test_mask_size(root):
    write_mask(_mask(root, "c", 4), np.ones((H - 1, W), np.uint8))
    _refused(_mask(root, "c", 4), f"{H - 1}x{W}", f"{H}x{W}", root=root)


def test_objects_that_the_first_mask_skips(root):
    """Labels 1 and 3: the official evaluator counts the maximum; the user is told."""
    labels = read_mask(_mask(root, "a", 0))
    labels[labels == 2] = 3
    write_mask(_mask(root, "a", 0), labels)
    davis = open_davis(root)
    assert davis.content.sequences[0].objects == 3
    assert len(davis.notes) == 1
    assert "[2]" in davis.notes[0]
    assert str(_mask(root, "a", 0)) in davis.notes[0]


def test_void_is_background(root):
    for i in (0, 2):
        labels = read_mask(_mask(root, "a", i))
        labels[:3] = 255
        write_mask(_mask(root, "a", i), labels)
    sequence = open_davis(root).content.sequences[0]
    assert (sequence.objects, sequence.binary) == (2, False)
    assert (sequence.truth(2)[:3] == 0).all()
    assert np.array_equal(sequence.truth(2)[3:], read_mask(sequence.masks[2])[3:])


def test_binary_masks(root):
    shown = []
    for i in range(5):
        on = read_mask(_mask(root, "a", i)) > 0
        shown.append(on)
        # as palette, grey and 1-bit files
        if i < 2:
            write_mask(_mask(root, "a", i), on.astype(np.uint8) * 255)
        else:
            Image.fromarray(on if i == 2 else on.astype(np.uint8) * 255).save(_mask(root, "a", i))
    davis = open_davis(root)
    assert [(s.objects, s.binary) for s in davis.content.sequences] == [(1, True), (1, False), (2, False)]
    assert "binary masks" in davis.differs
    for i, on in enumerate(shown):
        assert np.array_equal(davis.content.sequences[0].truth(i), on.astype(np.uint8))
    write_mask(_mask(root, "a", 3), shown[3].astype(np.uint8))
    _refused(_mask(root, "a", 3), "index 1", "binary", root=root)


def test_damaged_frames(root):
    path = _frame(root, "b", 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    _refused(path, "truncated", root=root)
    path.write_bytes(whole[:30])
    _refused(path, "cannot be read", root=root)
    path.write_bytes(b"")
    _refused(path, "no JPEG", root=root)
    path.write_text("not a picture, although it is called one")
    _refused(path, "no JPEG", root=root)
    path.unlink()
    path.mkdir()
    _refused(path, root=root)


@pytest.mark.parametrize("turn", range(1, 9))
def test_frames_are_their_stored_pixels(root, turn):
    """Masks are drawn on the stored pixels: a tag that asks for turned ones changes nothing, and is counted."""
    exif = Image.Exif()
    exif[0x0112] = turn
    path = _frame(root, "b", 1)
    image, found = Image.fromarray(read_frame(path)), []
    for tags in (Image.Exif(), exif):
        image.save(path, exif=tags)
        with open(path, "ab") as file:
            file.write(bytes(9000))  # a file is whole with much of other data behind its end
        found.append(read_frame(path))
    assert (found[0] == found[1]).all()
    data = open_davis(root)
    assert data.content.sequences[1].size == (H, W)
    assert [note for note in data.notes if "1 of 15 pictures" in note and str(path) in note] == data.notes
    assert len(data.notes) == (turn > 1)


def test_frames_as_png(root):
    for i in range(5):
        Image.open(_frame(root, "b", i)).save(_frame(root, "b", i).with_suffix(".png"))
        _frame(root, "b", i).unlink()
    sequence = open_davis(root).content.sequences[1]
    assert read_frame(sequence.frames[0]).shape == (H, W, 3)
    whole = sequence.frames[2].read_bytes()
    sequence.frames[2].write_bytes(whole[: len(whole) // 2])
    _refused(sequence.frames[2], "truncated", root=root)


def test_damaged_masks(root):
    path = _mask(root, "b", 1)
    whole = path.read_bytes()
    for data, word in ((whole[:-5], "truncated"), (b"", "empty"), (b"text" * 9, "no PNG")):
        path.write_bytes(data)
        _refused(path, word, root=root)


def test_read_frame_names_the_file(tmp_path):
    for name, data in (("a.jpg", b"text"), ("b.jpg", b""), ("c.jpg", b"\xff\xd8\xff\xe0" + b"\0" * 50)):
        (tmp_path / name).write_bytes(data)
        _refused(tmp_path / name, call=read_frame, path=tmp_path / name)
    _refused(tmp_path / "absent.jpg", call=read_frame, path=tmp_path / "absent.jpg")


# ------------------------------------------------------------------------------------------- fingerprint and cache
def test_fingerprint(root, tmp_path):
    print_ = open_davis(root).fingerprint
    assert len(print_.removeprefix("whole-sha256:")) == 64
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    assert open_davis(moved).fingerprint == print_
    others = [open_davis(root, limit=2).fingerprint, open_davis(root, frames=4).fingerprint]
    assert open_davis(root, limit=3, frames=5).fingerprint == print_
    (moved / "ImageSets/2017/val.txt").write_text("c\na\nb\n")  # the order is no part of it
    assert open_davis(moved).fingerprint == print_
    labels = read_mask(_mask(moved, "b", 2))
    labels[0, 0] ^= 1
    write_mask(_mask(moved, "b", 2), labels)
    others.append(open_davis(moved).fingerprint)
    shutil.copy(_mask(root, "b", 2), _mask(moved, "b", 2))
    assert open_davis(moved).fingerprint == print_
    with open(_frame(moved, "b", 2), "ab") as file:  # another size of a picture
        file.write(b"\0")
    others.append(open_davis(moved).fingerprint)
    assert len({print_, *others}) == 5


def _count(monkeypatch, name):
    seen, real = [], getattr(files, name)

    def counted(path):
        seen.append(path)
        return real(path)

    counted.__name__ = real.__name__
    monkeypatch.setattr(datasets, name, counted)
    return seen


def test_cache_saves_reading_and_notices_changes(root, cache, monkeypatch):
    # the times of a copy's creation (ctime) are fresh: let the clock of the cache be later
    real = files.time.time_ns
    monkeypatch.setattr(files.time, "time_ns", lambda: real() + 5_000_000_000)
    masks, frames = _count(monkeypatch, "look_at_mask"), _count(monkeypatch, "look_at_picture")
    path = _mask(root, "a", 3)
    path.write_bytes(path.read_bytes().ljust(4000, b"\0"))  # bytes after the end chunk do no harm
    first = open_davis(root)
    assert (len(masks), len(frames)) == (15, 15)
    assert len(list(cache.rglob("*.json"))) == 1
    del masks[:], frames[:]
    again = open_davis(root)
    assert (masks, frames) == ([], [])
    assert again.fingerprint == first.fingerprint
    assert again == first
    open_davis(root, limit=1, frames=3)  # a part of it is known too, and does not make it forget the rest
    open_davis(root)
    assert (masks, frames) == ([], [])
    # same size, other content, and even the old modification time: the change time tells
    stat = path.stat()
    path.write_bytes(_mask(root, "a", 2).read_bytes().ljust(4000, b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    changed = open_davis(root)
    assert masks == [path]
    assert changed.fingerprint != first.fingerprint


def test_fresh_files_are_not_trusted(root, monkeypatch):
    """A file written a moment ago may be written again within the clock's tick, at the same size."""
    masks = _count(monkeypatch, "look_at_mask")
    for path in root.rglob("*.png"):
        path.touch()
    open_davis(root)
    open_davis(root)
    assert len(masks) == 30


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 2}', '{"version": 2, "root": "ROOT", "files": {"x": 3}}']
)
def test_damaged_cache_only_costs_time(root, cache, monkeypatch, content):
    monkeypatch.setattr(files.time, "time_ns", lambda: 2**62)
    wanted = open_davis(root).fingerprint
    (stored,) = cache.rglob("*.json")
    stored.write_text(content.replace("ROOT", str(root.resolve())))
    assert open_davis(root).fingerprint == wanted
    assert len(stored.read_text()) > 1000  # written anew


def test_unwritable_cache_is_no_error(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(files.time, "time_ns", lambda: 2**62)
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "file"))
    assert len(open_davis(root).content.sequences) == 3


# ------------------------------------------------------------------------------------------- the official set
@pytest.fixture
def official(tmp_path, monkeypatch):
    """Thirty sequences of the official names with 1999 frames and 61 objects in all, 3x4 pixels each."""
    root, names = tmp_path / "official", sorted(VAL_NAMES)
    assert len(names) == 30
    monkeypatch.setattr(files.time, "time_ns", lambda: 2**62)  # fresh files go into the cache too
    Image.new("RGB", (4, 3)).save(tmp_path / "f.jpg")
    for name, labels in (("two", [1, 1, 2, 2]), ("three", [1, 2, 3, 3])):
        write_mask(tmp_path / f"{name}.png", np.tile(np.uint8(labels), (3, 1)))
    for k, name in enumerate(names):
        for part in (FRAMES, MASKS):
            (root / part / name).mkdir(parents=True)
        for i in range(67 if k < 29 else 56):
            shutil.copy(tmp_path / "f.jpg", _frame(root, name, i))
            shutil.copy(tmp_path / ("three.png" if k == 0 else "two.png"), _mask(root, name, i))
    (root / LIST).parent.mkdir(parents=True)
    (root / LIST).write_text("\n".join(names))
    return root


def test_official(official, tmp_path):
    davis = open_davis(official)
    assert davis.summary == "30 sequences, 1999 frames, 61 objects"
    assert davis.official
    assert davis.differs == ""
    six = open_davis(official, limit=6)
    assert not six.official
    assert six.differs == "6 of 30 sequences"
    assert open_davis(official, frames=16).differs == "the first 16 frames"
    last = sorted(VAL_NAMES)[-1]
    _frame(official, last, 55).unlink()
    _mask(official, last, 55).unlink()
    assert open_davis(official).differs == "1998 frames instead of 1999"
    for path in (official / MASKS / last).iterdir():
        path.unlink()
        shutil.copy(tmp_path / "three.png", path)
    assert open_davis(official).differs == "1998 frames instead of 1999, 62 objects instead of 61"
    for part in (FRAMES, MASKS):
        (official / part / last).rename(official / part / "zebra")
    (official / LIST).write_text("\n".join([*sorted(VAL_NAMES)[:-1], "zebra"]))
    assert open_davis(official).differs == "29 of 30 sequences, 1 other sequence"


# ------------------------------------------------------------------------------------------- result folders
@pytest.fixture
def results(root, tmp_path):
    folder = tmp_path / "method"
    for name in "ab":
        shutil.copytree(root / MASKS / name, folder / name)
    return folder


def test_results(root, results):
    (results / "zebra").mkdir()
    (results / "notes.txt").write_text("x")
    data = open_davis(root, results=results)
    assert data.notes == [f"{results}: no masks of 1 sequences: c; left out"]
    assert data.fingerprint == open_davis(root, limit=2).fingerprint
    assert data.differs == "2 sequences, none of DAVIS-2017 val"
    a, b = data.content.sequences
    masks = data.content.results
    assert (a.name, b.name) == ("a", "b")
    assert masks["b"] == [results / "b" / f"{i:05d}.png" for i in range(5)]
    assert np.array_equal(read_result(masks["a"][3], a.objects), a.truth(3))
    # one object: any non-zero value is it
    for i, value in enumerate((1, 255, 2, 7, 255)):
        write_mask(results / "b" / f"{i:05d}.png", b.truth(i) * np.uint8(value))
    changed = open_davis(root, results=results)
    for i in range(5):
        assert np.array_equal(read_result(masks["b"][i], b.objects), b.truth(i))
    assert changed.content.results_fingerprint != data.content.results_fingerprint
    # more results than frames in use are no mistake
    assert len(open_davis(root, frames=3, results=results).content.results["a"]) == 3


def test_bad_results(root, results, tmp_path):
    _refused("no such folder", root=root, results=tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "3 sequences", "a, b, c", root=root, results=tmp_path / "empty")
    for name, i in (("a", 1), ("a", 2), ("b", 3)):
        path = results / name / f"{i:05d}.png"
        whole = path.read_bytes()
        path.unlink()
        _refused(path, "missing", root=root, results=results)
        write_mask(path, np.zeros((H, W + 2), np.uint8))
        _refused(path, f"{H}x{W + 2}", f"{H}x{W}", root=root, results=results)
        path.write_bytes(whole[:40])
        _refused(path, "truncated", root=root, results=results)
        path.write_bytes(whole)
    path = results / "a" / "00001.png"
    for index, word in ((3, "2 objects"), (255, "binary")):
        write_mask(path, np.full((H, W), index, np.uint8))
        _refused(path, f"index {index}", word, root=root, results=results)


# ------------------------------------------------------------------------------------------- --data
def test_data_roots(tmp_path, monkeypatch):
    monkeypatch.delenv("SELFPATCH_DATA", raising=False)
    for name in ("one", "two", "davis2017=old"):
        (tmp_path / name).mkdir()
    one, two = tmp_path / "one", tmp_path / "two"
    assert data_roots([str(one)], "davis2017") == one
    named = [f"davis2017={one}", f"coco={two}"]
    assert data_roots(named, "davis2017") == one
    assert data_roots(named, "coco") == two
    monkeypatch.chdir(tmp_path)
    assert data_roots(["davis2017=old"], "davis2017") == Path("davis2017=old")  # a path that exists is a path
    assert data_roots([str(tmp_path / "davis2017=old")], "coco") == tmp_path / "davis2017=old"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_roots(["coco=~/two"], "coco") == two

    def refused(values, *words):
        _refused(*words, call=data_roots, values=values, task_dataset="davis2017")

    refused([], "davis2017", "--data davis2017=ROOT", "or set SELFPATCH_DATA")
    refused([f"coco={two}"], "davis2017", "--data has coco")
    refused([str(one), str(two)], "NAME=ROOT")
    refused([str(one), f"coco={two}"], "NAME=ROOT")
    refused([f"coco={two}", f"coco={one}"], "coco is given twice")
    refused(["davis2017="], "no root after")
    refused(["absent"], "absent does not exist")
    refused(["davis2017=absent"], "absent does not exist")


def test_data_roots_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "sets" / "coco").mkdir(parents=True)
    (tmp_path / "far").mkdir()

    def refused(*words):
        _refused(*words, call=data_roots, values=[], task_dataset="davis2017")

    monkeypatch.setenv("SELFPATCH_DATA", str(tmp_path / "sets"))
    assert data_roots([], "coco") == tmp_path / "sets" / "coco"
    assert data_roots([f"coco={tmp_path / 'far'}"], "coco") == tmp_path / "far"  # --data wins
    refused("no root of davis2017", f"or add it to SELFPATCH_DATA={tmp_path}")
    table = tmp_path / "sets.yaml"
    monkeypatch.setenv("SELFPATCH_DATA", str(table))
    refused("SELFPATCH_DATA", "no such file")
    table.write_text(f"coco: sets/coco\ndavis2017: {tmp_path / 'far'}\nimagenet: gone\n")
    assert data_roots([], "coco") == tmp_path / "sets" / "coco"  # beside the yaml file
    assert data_roots([], "davis2017") == tmp_path / "far"
    _refused("gone does not exist", "SELFPATCH_DATA", call=data_roots, values=[], task_dataset="imagenet")
    for text in ("- a\n- b\n", "coco: 3\n", "davis2017:\n"):
        table.write_text(text)
        refused(table, "must map names")
    table.write_text("a: [\n")
    refused(table, "yaml")


# ------------------------------------------------------------------------------------------- real data
def _roots():
    return sorted({p.values[0].parents[2] for p in shared_cases("data/*/ImageSets/*/val.txt")})


@pytest.mark.shared
@pytest.mark.parametrize("root", _roots(), ids=lambda p: p.name)
def test_real_sets(root):
    davis = open_davis(root)
    names = {p.name for p in (root / FRAMES).iterdir()}
    assert davis.content.sequences
    assert {s.name for s in davis.content.sequences} <= names
    common = len({s.name for s in davis.content.sequences} & VAL_NAMES)
    if 0 < common < 30:
        assert davis.differs.startswith(f"{common} of 30 sequences")
    for s in davis.content.sequences:
        assert len(s.frames) == len(list((root / FRAMES / s.name).iterdir()))
        assert read_frame(s.frames[0]).shape == (*s.size, 3)
        with Image.open(s.masks[0]) as image:
            first = np.array(image)
        assert s.binary == (set(np.unique(first)) == {0, 255})
        expected = first == 255 if s.binary else np.where(first == 255, 0, first)
        assert np.array_equal(s.truth(0), expected)
        assert s.objects == expected.max()
        assert s.truth(len(s.masks) - 1).max() <= s.objects
    assert open_davis(root).fingerprint == davis.fingerprint


@pytest.mark.shared
@pytest.mark.parametrize("folder", shared_cases("data/*/osvos_results"))
def test_real_results(folder):
    sequences = open_davis(folder.parent, results=folder).content.sequences
    present = {p.name for p in folder.iterdir()}
    assert {s.name for s in sequences} == present & {s.name for s in open_davis(folder.parent).content.sequences}
    for s in sequences:
        for i in (0, len(s.frames) - 1):
            path = folder / s.name / f"{s.frames[i].stem}.png"
            with Image.open(path) as image:
                raw = np.array(image)
            assert np.array_equal(read_result(path, s.objects), raw > 0 if s.objects == 1 else raw)


@pytest.mark.parametrize("scores", golden_cases("*/scores.json"))
def test_counts_of_the_reference_runs(scores, tmp_path):
    """Frames and objects of every sequence are those the official evaluator scored."""
    case = json.loads(scores.read_text())
    root = videos_of(case, tmp_path)
    davis = open_davis(root, frames=case.get("frames"))
    by_name = {s.name: s for s in davis.content.sequences}
    assert case["sequences"]
    for name, expected in case["sequences"].items():
        assert len(by_name[name].frames) == expected["frames"]
        assert by_name[name].objects == len(expected["objects"])
