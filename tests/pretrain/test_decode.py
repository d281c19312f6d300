"""One rule for the pixels of a picture file: stored ones, 8 bits of known range, no more than a limit, no odd files."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.data.decode import VARIABLE, Unreadable, decode, note_on_turned, read_picture
from selfpatch_bench.pretrain.data.images import open_source

RAMP = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)


def encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_turn_nothing(kind, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (decode(encoded(pixels, kind, exif=exif)) == decode(encoded(pixels, kind))).all()


def test_ignored_tags_are_counted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((4, 4, 3), np.uint8)
    plain, turned, png = encoded(pixels, "JPEG"), encoded(pixels, "JPEG", exif=exif), encoded(pixels, "PNG", exif=exif)
    assert note_on_turned([plain, b"no picture"].__getitem__, 2) == []
    note = "the orientation tags of 2 of {} are ignored: the stored pixels count"
    assert note_on_turned([plain, turned, png].__getitem__, 3) == [note.format("3 pictures")]
    many = [plain, turned, png] + [plain] * 3000
    assert note_on_turned(many.__getitem__, 3003, most=3003) == [note.format("3003 pictures")]
    (found,) = note_on_turned((lambda i: turned), 3003, most=100)
    assert found.startswith("the orientation tags of 100 of 100 pictures looked at are ignored")
    assert note_on_turned([].__getitem__, 0) == []


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_scaled(kind):
    found = decode(encoded(RAMP, kind))
    assert found.shape == (20, 30, 3)
    assert (found == np.rint(RAMP / 257)[..., None]).all()


def test_big_endian_grey():
    """TIFF's other byte order, as microscopes write it."""
    header = struct.pack(">2sHIH", b"MM", 42, 8, 9)
    tags = [(256, 30), (257, 20), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 20), (279, 1200)]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    data = header + entries + bytes(4) + RAMP.astype(">u2").tobytes()
    assert Image.open(io.BytesIO(data)).mode == "I;16B"
    assert (decode(data) == np.rint(RAMP / 257)[..., None]).all()


def test_grey_between_0_and_1():
    grey = (RAMP / 65535).astype(np.float32)
    assert (decode(encoded(grey, "TIFF")) == np.rint(grey * 255)[..., None]).all()


@pytest.mark.parametrize(
    ("pixels", "word"),
    [
        (np.full((4, 4), 255.0, np.float32), "from 255 to 255"),
        (np.full((4, 4), -0.5, np.float32), "from -0.5"),
        (np.full((4, 4), np.nan, np.float32), "nan"),
        (np.full((4, 4), 70000, np.int32), "range is not known"),
        (np.full((4, 4), -3, np.int16), "range is not known"),
    ],
)
def test_unknown_ranges_are_refused(pixels, word):
    with pytest.raises(Unreadable, match=word):
        decode(encoded(pixels, "TIFF"))


# ------------------------------------------------------------------------------------------------- the limit of pixels
def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(encoded(np.zeros((8, 8, 3), np.uint8), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


HUGE = {
    "png": png_header(30000, 30000),
    "png of one line": png_header(2**31 - 1, 1),
    "jpeg": jpeg_header(65500, 65500),
    "jpeg with a tail": jpeg_header(20000, 20000) + b"x",
    "ppm": b"P6 50000 50000 255\n",
    "bmp": struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54, 0, 54, 40, 20000, 20000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("name", HUGE)
def test_too_many_pixels_are_told_from_the_header(name):
    """Nothing behind these headers could be decoded: a decoder that was asked would give another reason."""
    with pytest.raises(Unreadable, match=f"pixels.*{VARIABLE}"):
        decode(HUGE[name])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"])
def test_the_limit_can_be_set(kind, monkeypatch):
    data = encoded(np.zeros((20, 30, 3), np.uint8), kind)
    monkeypatch.setenv(VARIABLE, "600")
    assert decode(data).shape == (20, 30, 3)
    monkeypatch.setenv(VARIABLE, "599")
    with pytest.raises(Unreadable, match=r"30x20 pixels \(WxH\) are more than 599"):
        decode(data)


def test_a_higher_limit_is_above_that_of_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setenv(VARIABLE, "600")
    assert decode(encoded(np.zeros((20, 30, 3), np.uint8), "PNG")).shape == (20, 30, 3)


@pytest.mark.parametrize("text", ["-1", "0", "many", "1e8", "²"])
def test_a_limit_that_is_no_number(text, monkeypatch):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UserError, match=VARIABLE):
        decode(HUGE["png"])


# ------------------------------------------------------------------------------------------- files that are no pictures
def odd_files(folder):
    """One of each below a folder, which waits, never ends, is not there or has no bounds."""
    os.mkfifo(folder / "fifo.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "folder.jpg").mkdir()
    with open(folder / "sparse.jpg", "wb") as file:
        file.truncate(40 << 30)
    return sorted(folder.iterdir())


def test_files_that_are_no_pictures(tmp_path):
    for path in odd_files(tmp_path):
        with pytest.raises(OSError, match=r"regular|directory|[Nn]o such|links|more than"):
            read_picture(path)
    names = "\n".join(path.name for path in tmp_path.iterdir())
    (tmp_path / "list.txt").write_text(names)
    source = open_source(tmp_path / "list.txt")
    assert len(source) == 6
    for i in range(6):
        with pytest.raises(Unreadable):
            source.read(i)
