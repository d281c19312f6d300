"""What lies below a folder and inside shards: nothing is left out, or used twice, in silence."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.data.listing import scan

DATA = b"no picture, but nobody decodes it"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DATA + name.encode())
    return root


def pack(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            tar.addfile(info)
    return path


def names(root: Path) -> list[str]:
    return list(open_source(root).names)


# ------------------------------------------------------------------------------------------------ folders
def test_files_that_are_left_out_are_counted(tmp_path):
    root = put(tmp_path / "d", "a/1.jpg", "a/2.GIF", "a/3.heic", "b/4.heic", "b/5.avif", "b/6.tar.gz", "b/7.TAR")
    put(root, "b/8.tar.bz2", "b/noname", "b/9.txt", "b/LICENSE.md", "b/.hidden.gif", "b/x.png.part")
    os.mkfifo(root / "b/pipe.jpg")
    (root / "b/gone.jpg").symlink_to(root / "nowhere")
    (root / "b/round.jpg").symlink_to(root / "b/round.jpg")
    found = scan(root)
    assert found.images == ["a/1.jpg"]
    assert found.left_out == {
        ".heic": 2,
        **dict.fromkeys((".GIF", ".avif", ".tar.gz", ".TAR", ".tar.bz2", "without an ending", ".part"), 1),
        "pipes, sockets or devices": 1,
        "broken links": 2,
    }
    note, empty = open_source(root).notes
    assert empty == "no images in 1 of 2 folders: b"
    assert note.startswith("left out: 2 .heic, 2 broken links, 1 .GIF, 1 .TAR, ")
    assert note.endswith(", 2 of other kinds")


def test_no_images_says_what_there_was(tmp_path):
    with pytest.raises(UserError, match=r"no images found .*left out: 2 \.TAR, 1 \.tar\.gz"):
        open_source(put(tmp_path / "d", "1.TAR", "2.TAR", "3.tar.gz"))
    assert open_source(put(tmp_path / "e", "1.jpg", "a.txt", "c.json")).notes == []


def test_a_class_folder_without_images_is_named(tmp_path):
    """It is no class, in no split: the number of classes would be another one without a word."""
    root = put(tmp_path / "d", "ant/1.jpg", "bee/deep/2.gif", "cat/3.txt", "dog/deep/4.png")
    assert open_source(root).notes == ["left out: 1 .gif", "no images in 2 of 4 folders: bee, cat"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_linked_class_folder_is_kept(tmp_path, monkeypatch, order):
    """Whatever the order in which a folder's entries come."""
    real = os.scandir

    class Ordered(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", lambda path: Ordered(sorted(real(path), key=lambda e: e.name)[::order]))
    root = put(tmp_path / "d", "cat/1.jpg", "cat/deep/2.jpg", "dog/3.jpg")
    put(tmp_path / "elsewhere", "4.jpg")
    (root / "owl").symlink_to(tmp_path / "elsewhere")
    assert open_source(root).notes == []
    (root / "ant").symlink_to(root / "cat")
    (root / "cat/up").symlink_to(root)
    source = open_source(root)
    assert list(source.names) == [
        *("ant/1.jpg", "ant/deep/2.jpg", "cat/1.jpg", "cat/deep/2.jpg", "dog/3.jpg", "owl/4.jpg"),
    ]
    assert source.notes == [
        "left out: 2 links to a folder around them",
        "cat is a link to the same folder as ant: its images are used twice",
    ]


def test_a_maze_of_links_ends(tmp_path):
    for name in "abcdef":
        put(tmp_path / "d", f"{name}/1.jpg")
    for name in "abcdef":
        for other in "abcdef":
            (tmp_path / "d" / name / f"to_{other}").symlink_to(tmp_path / "d" / other)
    with pytest.raises(UserError, match="reached through more than 100 links"):
        open_source(tmp_path / "d")


def test_validation_folders_among_training_images_are_counted(tmp_path):
    root = put(tmp_path / "d", *(f"train/a/{k}.jpg" for k in range(5)), "val/a/0.jpg", "val/b/1.jpg", "Test/2.jpg")
    assert open_source(root).notes == [
        "1 of 8 images lie in folders called Test/",
        "2 of 8 images lie in folders called val/",
    ]
    assert open_source(root / "val").notes == []


# ------------------------------------------------------------------------------------------------ shards
def test_labels_of_shards(tmp_path):
    members = {
        "a/1.jpg": DATA,
        "a/1.cls": b"7",
        "2.cls": b"07\n",
        "2.png": DATA,
        "3.x.jpg": DATA,
        "3.cls": b"tabby cat",
    }
    pack(tmp_path / "d/0.tar", members | {"4.jpg": DATA, "5.cls": b"1", "1.cls": b"9"})
    pack(tmp_path / "d/1.tar", {"4.cls": b"8", "4.jpg": DATA})
    for _ in range(2):  # read, and from the index that is kept
        source = open_source(tmp_path / "d")
        assert dict(zip(source.names, source.labels, strict=True)) == {
            **{"0.tar/a/1.jpg": "7", "0.tar/2.png": "7", "0.tar/3.x.jpg": "tabby cat", "0.tar/4.jpg": ""},
            "1.tar/4.jpg": "8",
        }
        assert source.notes == []
    one = open_source(pack(tmp_path / "one.tar", {"1.jpg": DATA}))
    assert list(open_source(tmp_path / "one.tar").labels) == list(one.labels) == [""]


@pytest.mark.parametrize("label", [b"", b" \n", b"1\n2", b"\x80\x04K\x01.", b"x" * 300])
def test_what_is_no_label_is_named(tmp_path, label):
    pack(tmp_path / "a.tar", {"1.jpg": DATA, "1.cls": label})
    with pytest.raises(UserError, match=r"a\.tar: 1\.cls: .* is no class"):
        open_source(tmp_path / "a.tar")


def test_members_that_are_left_out_are_counted(tmp_path):
    members = {"1.jpg": DATA, "1.json": b"{}", "1.cls": b"3", "2.gif": DATA, "3.heic": DATA, "4.heic": DATA}
    pack(tmp_path / "a.tar", members | {"1.seg.png": DATA, "._5.gif": DATA}, links={"6.jpg": "1.jpg"})
    for _ in range(2):
        source = open_source(tmp_path / "a.tar")
        assert list(source.names) == ["a.tar/1.jpg", "a.tar/1.seg.png"]
        assert source.notes == [
            "left out: 2 .heic, 1 .gif, 1 links or special members",
            "1 images have the key of another (1.jpg, 1.seg.png): every one of them is used",
        ]


def cut_at_a_member(data: bytes) -> bytes:
    """Three members of a header and a block each: Python's tarfile reads two of them without a word."""
    return data[: 2 * 1024]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut_at_a_member, "end mark is missing at byte 2048"),
        (lambda data: data[: 3 * 1024], "end mark is missing at byte 3072"),
        (lambda data: data[:1024] + b"x" * 512 + data[1536:], "end mark is missing at byte 1024"),
        (lambda data: data[:1300], ""),
        (lambda data: data + data, "more behind its end mark at byte 3072"),
    ],
)
def test_a_shard_that_is_not_whole_is_named(tmp_path, spoil, said):
    path = pack(tmp_path / "d/a.tar", {f"{k}.jpg": DATA for k in range(3)})
    pack(tmp_path / "d/b.tar", {"1.jpg": DATA})
    whole = path.read_bytes()
    assert len(names(tmp_path / "d")) == 4
    path.write_bytes(spoil(whole))
    with pytest.raises(UserError, match=rf"d/a\.tar: not a whole, uncompressed tar file: .*{said}"):
        open_source(tmp_path / "d")
    path.write_bytes(whole[: 3 * 1024 + 512])  # one block of zeros is enough
    assert len(names(tmp_path / "d")) == 4


@pytest.mark.parametrize("name", ["pictures.txt", "pictures.tar"])
def test_pipes_and_devices_are_no_data(name, tmp_path):
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: is no regular file"):
            open_source(tmp_path / name)
        (tmp_path / name).unlink()


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n", encoding="utf-8-sig")
    assert list(open_source(tmp_path / "list.txt").names) == ["a.jpg", "b.jpg"]
