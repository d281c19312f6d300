import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import shared_cases
from selfpatch_bench.benchmarks.datasets.annotations.json_lists import JsonLists
from selfpatch_bench.benchmarks.datasets.files import look_at_mask
from selfpatch_bench.benchmarks.datasets.masks import davis_palette, read_mask, write_mask
from selfpatch_bench.pretrain.common.errors import UserError


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 6, (37, 53)).astype(np.uint8)


def test_palette_known_colours():
    """Colours printed in the VOC devkit's documentation, and the last one (its void)."""
    palette = davis_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 5: (128, 0, 128)}
    known |= {8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 64: (32, 0, 0), 255: (224, 224, 192)}
    for index, colour in known.items():
        assert tuple(palette[index]) == colour
    assert len(np.unique(palette, axis=0)) == 256


def test_round_trip(tmp_path, labels):
    labels[0, 0], labels[1, 1] = 255, 200
    write_mask(tmp_path / "deep" / "m.png", labels)
    assert np.array_equal(read_mask(tmp_path / "deep" / "m.png"), labels)
    with Image.open(tmp_path / "deep" / "m.png") as image:
        assert (image.mode, image.format, image.size) == ("P", "PNG", (53, 37))
        assert np.array_equal(np.array(image.getpalette()).reshape(-1, 3), davis_palette())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["m.png"]  # no temporary file is left


def test_write_keeps_the_old_file_when_it_fails(tmp_path, labels, monkeypatch):
    path = tmp_path / "m.png"
    write_mask(path, labels)
    before = path.read_bytes()

    def half(self, file, **_):
        file.write(b"\x89PNG half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(UserError, match="cannot be written: disk full"):
        write_mask(path, labels + 1)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


@pytest.mark.parametrize("bad", [np.zeros((3, 3), np.int64), np.zeros((3, 3, 1), np.uint8)])
def test_write_refuses_other_arrays(tmp_path, bad):
    with pytest.raises(ValueError, match="uint8"):
        write_mask(tmp_path / "m.png", bad)
    assert not (tmp_path / "m.png").exists()


def test_indices_count_not_the_palette(tmp_path, labels):
    image = Image.fromarray(labels).convert("L")
    image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(tmp_path / "other.png")
    with Image.open(tmp_path / "other.png") as check:
        assert check.mode == "P"
    assert np.array_equal(read_mask(tmp_path / "other.png"), labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_indexed_with_few_bits(tmp_path, labels, bits):
    """Other tools write indexed PNGs of 1, 2 or 4 bits a pixel."""
    few = labels % 2**bits if bits < 4 else labels
    image = Image.frombytes("P", few.shape[::-1], few.tobytes())
    image.putpalette(davis_palette()[: 2**bits].tobytes())
    image.save(tmp_path / "m.png", bits=bits)
    assert (tmp_path / "m.png").read_bytes()[24] == bits  # the header's bit depth
    assert np.array_equal(read_mask(tmp_path / "m.png"), few)


def test_other_modes(tmp_path, labels):
    on = labels > 2
    for name, image, expected in [
        ("grey", Image.fromarray(labels), labels),
        ("grey16", Image.fromarray(labels.astype(np.uint16)), labels),
        ("bits", Image.fromarray(on), on * 255),
        ("grey alpha", Image.fromarray(np.stack([labels, labels * 0 + 9], 2), "LA"), labels),
        ("painted", Image.fromarray(davis_palette()[labels]), labels),
        ("painted alpha", Image.fromarray(np.dstack([davis_palette()[labels], labels * 0 + 255])), labels),
        ("white", Image.fromarray(np.repeat(on[..., None], 3, 2).astype(np.uint8) * 255), on * 255),
    ]:
        image.save(tmp_path / f"{name}.png")
        read = read_mask(tmp_path / f"{name}.png")
        assert read.dtype == np.uint8, name
        assert np.array_equal(read, expected), name
        assert read.flags.writeable


def _refused(path, *words):
    with pytest.raises(UserError) as caught:
        read_mask(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_foreign_colour_is_named(tmp_path, labels):
    rgb = davis_palette()[labels].copy()
    rgb[3, 4] = (10, 20, 30)
    Image.fromarray(rgb).save(tmp_path / "m.png")
    _refused(tmp_path / "m.png", "(10, 20, 30)")


def test_labels_in_transparent_pixels(tmp_path, labels):
    """A mask whose alpha channel holds the object: its values say that everything is one."""
    alpha = (labels > 2).astype(np.uint8) * 255
    for image in (np.stack([labels * 0 + 255, alpha], 2), np.dstack([davis_palette()[labels * 0 + 1], alpha])):
        Image.fromarray(image).save(tmp_path / "m.png")
        _refused(tmp_path / "m.png", "transparent", "alpha")
    Image.fromarray(np.dstack([davis_palette()[labels * (labels > 2)], alpha])).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), labels * (labels > 2))


def test_value_above_255(tmp_path, labels):
    deep = labels.astype(np.uint16)
    deep[0, 0] = 1000
    Image.fromarray(deep).save(tmp_path / "m.png")
    _refused(tmp_path / "m.png", "1000")


@pytest.mark.parametrize("kind", ["sparse", "fifo", "folder", "socket"])
def test_what_is_no_file_of_a_mask_or_of_annotations(tmp_path, kind, monkeypatch):
    """Said at once: 40 GB are not read, and nothing waits for who would write."""
    monkeypatch.chdir(tmp_path)  # a socket's path has 100 characters at most
    path = Path("x.png")
    if kind == "sparse":
        with path.open("wb") as file:
            file.truncate(40 << 30)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        os.mkfifo(path) if kind == "fifo" else path.mkdir()
    words = {"sparse": "40 GB|are more than|begins with zeros", "folder": "a directory"}.get(kind, "no.* regular file")
    for read in (read_mask, look_at_mask, lambda p: list(JsonLists(p, ["images"]))):
        with pytest.raises(UserError, match=rf"^x\.png: .*({words})"):
            read(path)


def test_unreadable_files(tmp_path, labels):
    path = tmp_path / "m.png"
    write_mask(path, labels)
    whole = path.read_bytes()
    for cut in (1, 12, len(whole) // 2, len(whole) - 12, 20):  # -12: only the end chunk is lost
        path.write_bytes(whole[:-cut] if cut < len(whole) // 2 else whole[:cut])
        _refused(path, "truncated")
    flipped = bytearray(whole)
    flipped[whole.index(b"IDAT") + 20] ^= 4
    path.write_bytes(flipped)
    _refused(path, "checksum", "IDAT")
    path.write_bytes(b"")
    _refused(path, "empty")
    path.write_text("a list of names, not a picture")
    _refused(path, "no PNG")
    Image.fromarray(labels).save(path, format="JPEG")
    _refused(path, "no PNG")
    _refused(tmp_path / "absent.png", "No such file")
    _refused(tmp_path, "directory")


@pytest.mark.shared
@pytest.mark.parametrize("folder", shared_cases("golden/*/masks") + shared_cases("data/*/Annotations/480p"))
def test_masks_of_others(folder, tmp_path):
    """The official tools' own files: same indices as Pillow gives, same palette, and a rewrite that reads the same."""
    for sequence in sorted(folder.iterdir()):
        path = sorted(sequence.glob("*.png"))[0]
        read = read_mask(path)
        with Image.open(path) as image:
            assert np.array_equal(read, np.array(image))
            if image.mode == "P":
                theirs = np.array(image.getpalette()).reshape(-1, 3)
                used = np.unique(read)
                assert np.array_equal(theirs[used], davis_palette()[used])
        write_mask(tmp_path / "again.png", read)
        assert np.array_equal(read_mask(tmp_path / "again.png"), read)
