"""Two sets are the same set only where their names, sizes and contents are; the memory of hashes is right or absent."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch_bench.benchmarks.datasets import identity
from selfpatch_bench.benchmarks.datasets.files import Known, look_at_picture
from selfpatch_bench.benchmarks.datasets.identity import Item, read_contents
from selfpatch_bench.benchmarks.datasets.imagenet import open_classes
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.data import content
from selfpatch_bench.pretrain.data.content import hash_content

SIZE = 20_000  # bytes of a file here: more than two parts
NAMES = [f"{k:02d}" for k in range(40)]
ITEMS = [Item(name, name) for name in NAMES]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/contents"


@pytest.fixture
def root(tmp_path) -> Path:
    folder, noise = tmp_path / "set", np.random.default_rng(0)
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(noise.bytes(SIZE))
    return folder


@pytest.fixture
def settled(monkeypatch):
    """All files count as written long ago."""
    monkeypatch.setattr(identity, "fresh", lambda stamp, now: False)


@pytest.fixture
def reads(monkeypatch) -> list:
    """The files that are read."""
    seen = []
    monkeypatch.setattr(identity, "hash_content", lambda path, *how: seen.append(path) or hash_content(path, *how))
    return seen


def change(path: Path, at: int) -> None:
    """One byte, while size and modification time stay what they were."""
    about, data = path.stat(), bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def hashes(root: Path) -> list[bytes]:
    return [row.tobytes() for row in read_contents(root, ITEMS).hashes]


@pytest.mark.parametrize("limit", [40 * SIZE, 40 * SIZE - 1])
def test_a_large_set_is_read_in_parts(root, limit, monkeypatch):
    """Of a set of at most the limit every byte counts, else the middle and the end of every file."""
    monkeypatch.setattr(identity, "LIMIT", limit)
    before = read_contents(root, ITEMS)
    assert before.whole == (limit == 40 * SIZE)
    assert before.sizes.tolist() == [SIZE] * 40
    for at, counts in ((0, before.whole), (SIZE // 2, True), (SIZE - 1, True)):
        change(root / "07", at)
        after = read_contents(root, ITEMS)
        differ = (after.hashes != before.hashes).any(1)
        assert differ.tolist() == [name == "07" and counts for name in NAMES], at
        before = after
    kind = "whole-sha256:" if before.whole else "parts-sha256:"
    assert identity.fingerprint(before.whole, [("a", 1, "")]).startswith(kind)


def test_a_part_of_a_file_is_hashed_like_a_file(root, tmp_path):
    """As the members of a shard are; also one that is shorter than two parts, or empty."""
    data = (root / "00").read_bytes()
    for start, size in ((0, SIZE), (100, 9000), (100, 2 * content.PART), (5, 3), (7, 0)):
        (tmp_path / "member").write_bytes(data[start : start + size])
        for most in (None, 0, 9500):
            assert hash_content(root / "00", most, start, size) == hash_content(tmp_path / "member", most)


def test_times_are_no_part_of_it(root, tmp_path, settled):
    before = hashes(root)
    for name in NAMES:
        os.utime(root / name, (1, 1))
    assert hashes(root) == before
    assert hashes(shutil.copytree(root, tmp_path / "copy")) == before


def test_known_files_are_not_read_again(root, settled, reads, cache):
    before = hashes(root)
    assert len(reads) == 40
    del reads[:]
    assert hashes(root) == before
    assert hashes(root.parent / "." / root.name) == before
    assert not reads
    for name, spoil in {
        "03": lambda path: change(path, 5),  # size and mtime kept: the change time tells
        "04": lambda path: path.write_bytes(b"shorter"),
        "05": lambda path: os.replace(shutil.copy2(root / "06", root.parent / "new"), path),  # another file, older time
        "08": lambda path: os.utime(path, (1, 1)),
    }.items():
        spoil(root / name)
        del reads[:]
        after = hashes(root)
        assert reads == [str(root / name)]
        assert [a != b for a, b in zip(after, before, strict=True)] == [n == name and n != "08" for n in NAMES]
        before = after


def test_a_file_written_a_moment_ago_is_not_trusted(root, reads, cache):
    hashes(root)
    hashes(root)
    assert len(reads) == 80
    assert not cache.exists()


@pytest.mark.parametrize("spoil", [lambda data: data[:-10], lambda data: data[:20] + b"x" + data[21:], lambda _: b""])
def test_a_damaged_memory_only_costs_time(root, settled, reads, cache, spoil):
    before = hashes(root)
    for file in cache.rglob("*.hashes"):
        file.write_bytes(spoil(file.read_bytes()))
    assert hashes(root) == before
    assert len(reads) == 80


def test_a_memory_that_cannot_be_written_is_no_error(root, settled, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "file"))
    assert len(hashes(root)) == 40


def test_interrupted_reading_goes_on_where_it_was(root, settled, reads, monkeypatch):
    monkeypatch.setattr(identity, "_CHUNK", 5)
    monkeypatch.setattr(identity, "THREADS", 1)
    (root / "30").chmod(0)
    real = identity.hash_content

    def failing(path, *how):
        if path.endswith("30"):
            raise PermissionError(13, "Permission denied")
        return real(path, *how)

    monkeypatch.setattr(identity, "hash_content", failing)
    with pytest.raises(UserError, match=r"/30: cannot be read: Permission denied"):
        hashes(root)
    monkeypatch.setattr(identity, "hash_content", real)
    first = len(reads)
    assert first >= 30
    hashes(root)
    assert len(reads) - first == 10


def test_processes_at_the_same_time_lose_nothing(root, settled, reads, cache):
    """Each adds a file of its own; many are joined into one."""
    halves = [read_contents(root, ITEMS[k::4]) and k for k in range(4)]
    threads = [threading.Thread(target=read_contents, args=(root, ITEMS[k:])) for k in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 40
    for k in range(12):
        (root / NAMES[k]).write_bytes(b"%d" % k)
        hashes(root)
    assert len(list(cache.rglob("*.hashes"))) < 10
    del reads[:]
    hashes(root)
    assert not reads


def test_what_is_no_file_is_named(root):
    os.mkfifo(root / "pipe")
    for name, said in (("pipe", "is no regular file"), ("absent", "No such file")):
        with pytest.raises(UserError, match=f"/{name}: .*{said}"):
            read_contents(root, [*ITEMS, Item(name, name)])


def test_a_fingerprint_of_a_checked_set(root):
    """Pictures count with their content; masks and annotations, which the check reads whole, with all of it."""
    for k in range(2):
        Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(root / f"{k}.png", compress_level=0)
    paths = [root / "0.png", root / "1.png"]

    def mark(**facts) -> str:
        known = Known(root)
        known.look(paths, look_at_picture)
        known.seen[paths[1]] |= facts
        return known.fingerprint(paths)

    before = mark()
    assert before.startswith("whole-sha256:")
    assert len({before, mark(sha256="aa"), mark(sha256="bb"), mark(bytes=7)}) == 4
    change(paths[0], -30)  # among the pixels
    assert mark() != before


def class_folders(root: Path, pixels: np.random.Generator) -> Path:
    """Uncompressed pictures: all sets made here have the same names and sizes."""
    for split, count in (("train", 3), ("val", 2)):
        for name in "abc":
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = pixels.integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(image).save(root / split / name / f"{i}.bmp")
    return root


def test_ignored_orientation_tags_of_class_folders_are_noted(tmp_path):
    root, exif = class_folders(tmp_path / "A", np.random.default_rng(1)), Image.Exif()
    exif[0x0112] = 3
    assert not open_classes(root).as_data().notes
    Image.new("RGB", (8, 8)).save(root / "val/b/9.jpg", exif=exif)
    (note,) = open_classes(root).as_data().notes
    assert note.startswith(f"{root}/val: the orientation tags of 1 of ")


def test_class_folders_of_the_same_names_and_sizes(tmp_path):
    noise = np.random.default_rng(1)
    first, second = (class_folders(tmp_path / name, noise) for name in "AB")
    marks = [open_classes(root).as_data().fingerprint for root in (first, second)]
    moved = shutil.copytree(first, tmp_path / "moved")
    one, same = (open_classes(root).as_data() for root in (first, moved))
    assert one.fingerprint == same.fingerprint == marks[0] != marks[1]
    change(moved / "val/b/1.bmp", -1)
    other = open_classes(moved).as_data()
    assert other.fingerprint != one.fingerprint
    assert other.content.train.fingerprint == one.content.train.fingerprint  # its features stay known
    assert other.content.val.fingerprint != one.content.val.fingerprint
    assert open_classes(first, limit=3).as_data().content.train.fingerprint == one.content.train.fingerprint
