"""Files of data sets: where the sets lie, what is in their files, and a memory of it between runs."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.errors import UserError
from ...pretrain.common.machine import cache_folder
from .masks import decode_mask


def read_frame(path: Path) -> np.ndarray:
    """A frame, uint8 RGB [H, W, 3], decoded as cv2.imread does. UserError naming the file if it cannot be."""
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    except (OSError, cv2.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if image is None:
        raise UserError(f"{path}: cannot be decoded as a picture: the file is damaged or no picture")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def look_at_frame(path: Path) -> list:
    """[H, W] from the header. The end marker is looked for too: OpenCV decodes a truncated JPEG to half a picture."""
    try:
        with open(path, "rb") as file:
            with Image.open(file, formats=["JPEG", "PNG"]) as image:
                (width, height), kind = image.size, image.format
            file.seek(max(0, os.path.getsize(path) - 1024))
            tail = file.read()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "no JPEG or PNG" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{path}: cannot be read as a frame: {reason}") from None
    if (b"IEND" if kind == "PNG" else b"\xff\xd9") not in tail:
        raise UserError(f"{path}: truncated: the end marker of a {kind} file is missing")
    return [height, width]


def look_at_mask(path: Path) -> list:
    """[H, W, sha256 of the file, sorted labels that occur]"""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    labels = decode_mask(data, path)
    found = np.flatnonzero(cv2.calcHist([labels], [0], None, [256], [0, 256]))
    return [*labels.shape, hashlib.sha256(data).hexdigest(), found.tolist()]


class Known:
    """What was seen in the files below a folder, kept between runs; a file counts as known while its size and times
    stay what they were. A cache that is absent, damaged or cannot be written only costs time."""

    VERSION = 1

    def __init__(self, root: Path):
        self.base, self.root = root, str(root.resolve())
        self.file = cache_folder() / "files" / f"{hashlib.sha256(self.root.encode()).hexdigest()[:24]}.json"
        self.files: dict = {}
        try:
            stored = json.loads(self.file.read_text())
            if stored["version"] == self.VERSION and stored["root"] == self.root:
                self.files = {k: (list(v[0]), list(v[1])) for k, v in stored["files"].items()}
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            pass

    def look(self, paths: list[Path], at: Callable[[Path], list]) -> list[list]:
        """at(path) for every path below the root, in order; the first path that fails raises."""

        def key(path: Path) -> str:
            return f"{at.__name__} {path.relative_to(self.base).as_posix()}"

        def one(path: Path) -> tuple[list, list]:
            try:
                stat = path.stat()
            except OSError as error:
                raise UserError(f"{path}: {error.strerror or error}") from None
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            known = self.files.get(key(path))
            return known if known and known[0] == stamp else (stamp, at(path))

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            try:
                seen = list(pool.map(one, paths))
            finally:
                pool.shutdown(cancel_futures=True)
        # A file that changed a moment ago could change again within the clock's tick: it is looked at again next time.
        recent = time.time_ns() - 2_000_000_000
        new = {
            key(path): value
            for path, value in zip(paths, seen, strict=True)
            if max(value[0][1:]) < recent and self.files.get(key(path)) != value
        }
        if new:
            self.files |= new
            self._store()
        return [facts for _, facts in seen]

    def _store(self) -> None:
        with contextlib.suppress(OSError, UserError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            content = {"version": self.VERSION, "root": self.root, "files": self.files}
            write_atomic(self.file, json.dumps(content), sync=False)


def digest(files: Iterable[tuple[str, int, str]]) -> str:
    """sha256 over sorted (relative path, bytes, sha256 of the content or '')."""
    total = hashlib.sha256()
    for name, size, content in sorted(files):
        total.update(f"{name}\0{size}\0{content}\n".encode())
    return total.hexdigest()
