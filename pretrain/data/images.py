"""Where training images come from: folders, a list file or tar shards, all behind numbers 0 .. len - 1."""

import codecs
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ..common.errors import UserError
from .decode import Unreadable, decode, read_picture
from .listing import EXTENSIONS, is_image, scan
from .shards import index


class Names:
    """Many strings in two tensors: handed to worker processes as shared memory instead of a copy for each."""

    def __init__(self, names: list[str]):
        encoded = [os.fsencode(name) for name in names]
        self.text = torch.frombuffer(bytearray(b"".join(encoded) or b" "), dtype=torch.uint8)
        self.ends = torch.tensor(np.cumsum([0, *map(len, encoded)]))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.text[self.ends[i] : self.ends[i + 1]].numpy().tobytes())

    def __iter__(self) -> Iterator[str]:
        """All of them, much faster than one by one."""
        text, ends = self.text.numpy().tobytes(), self.ends.tolist()
        return (os.fsdecode(text[start:end]) for start, end in pairwise(ends))


class ImageSource:
    """Images by number. Subclasses say where the bytes of image i are."""

    def __init__(self, where: str, names: list[str]):
        self.where = where  # for messages
        self.names = Names(names)
        self.notes: list[str] = []  # lines for the user

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """The image's path below the folder, the line of the list, or SHARD/MEMBER."""
        return self.names[i]

    def data(self, i: int) -> bytes:
        raise NotImplementedError

    def span(self, i: int) -> tuple[str, int, int | None]:
        """Where the bytes of image i lie: file (below `root`, or absolute), offset, and bytes; None: to its end."""
        raise NotImplementedError

    def read(self, i: int) -> np.ndarray:
        """uint8 RGB [H, W, 3]; Unreadable if the image is damaged or cannot be opened."""
        try:
            return decode(self.data(i))
        except OSError as error:
            raise Unreadable(error.strerror or error) from None


class Files(ImageSource):
    """Image files below one folder: class folders, a flat folder, any depth, or what a list names."""

    def __init__(self, where: str, root: Path, names: list[str]):
        super().__init__(where, names)
        self.root = os.fspath(root)

    def data(self, i: int) -> bytes:
        return read_picture(os.path.join(self.root, self.name(i)))

    def span(self, i: int) -> tuple[str, int, int | None]:
        return self.name(i), 0, None


class Shards(ImageSource):
    """Members of uncompressed tar files (webdataset's layout), read by their offsets in any order.

    labels: of every image what its .cls member says, '' without one.
    """

    def __init__(self, where: str, root: Path, shards: list[str]):
        self.root, self.shards = os.fspath(root), shards
        found = index(root, shards)
        super().__init__(where, found.names)
        self.place = torch.from_numpy(found.place)  # int64 [n, 3]: shard, offset, bytes
        self.labels, self.notes = Names(found.labels), found.notes

    def data(self, i: int) -> bytes:
        shard, offset, size = self.place[i].tolist()
        with open(os.path.join(self.root, self.shards[shard]), "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise Unreadable(f"{self.shards[shard]} ends within it")
        return data

    def span(self, i: int) -> tuple[str, int, int | None]:
        shard, offset, size = self.place[i].tolist()
        return self.shards[shard], offset, size


def open_source(path: str | Path, root: str | Path | None = None) -> ImageSource:
    """Training images at `path`: a folder of images at any depth (class folders or flat), a folder of .tar shards or
    one shard, or a text file with one path a line, relative to `root` or else to the file's own folder.

    UserError in one line if there is nothing to train on.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a folder of images, tar shards or a list file")
    if not path.is_dir() and not path.is_file():  # reading a pipe would wait for ever, a device may have no end
        raise UserError(f"{path}: is no regular file; give a folder of images, tar shards or a list file")
    try:
        if path.is_dir():
            source = _open_folder(path)
        elif path.suffix == ".tar":
            source = Shards(str(path), path.parent, [path.name])
        else:
            source = _open_list(path, path.parent if root is None else Path(root).expanduser())
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None
    if not len(source):
        others = f"; {', '.join(source.notes)}" if source.notes else ""
        looked = f"looked for {' '.join(EXTENSIONS)}, also inside uncompressed .tar"
        raise UserError(f"{path}: no images found ({looked}{others})")
    return source


def _open_folder(path: Path) -> ImageSource:
    found = scan(path)
    if found.images and found.shards:
        raise UserError(
            f"{path}: holds both images ({found.images[0]} ...) and tar shards ({found.shards[0]} ...): "
            "give the folder of one of them, or a list file"
        )
    shards = Shards(str(path), path, found.shards) if found.shards else None
    source = shards or Files(str(path), path, found.images)
    source.notes = found.notes() + source.notes
    return source


def _open_list(path: Path, root: Path) -> ImageSource:
    """One image a line, a label after it or not; blank lines and lines that start with # are skipped."""
    if is_image(path.name):
        raise UserError(f"{path}: is one image; give its folder")
    data = path.read_bytes()
    if b"\0" in data[:4096]:
        raise UserError(f"{path}: neither a list of images nor an uncompressed .tar")
    text = data.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")  # the mark is no part of a name
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    names = [line if is_image(line) else line.rsplit(None, 1)[0] for line in lines]
    # A wrong root is said at once; single files that are missing are skipped like damaged ones.
    if names and not any((root / name).exists() for name in names[:100]):
        raise UserError(f"{path}: names {names[0]} ..., not found below {root}; give the folder its paths start from")
    return Files(str(path), root, names)
