"""Files of data sets: where the sets lie, what is in their files, and a memory of it between runs."""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image

from ...pretrain.common.atomic import replacing
from ...pretrain.common.errors import UserError
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


def cache_folder() -> Path:
    """Where results of checking files are kept: `SELFPATCH_CACHE`, else ~/.cache/selfpatch-bench."""
    return Path(os.environ.get("SELFPATCH_CACHE") or "~/.cache/selfpatch-bench").expanduser()


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
            with replacing(self.file) as temporary:
                temporary.write_text(json.dumps({"version": self.VERSION, "root": self.root, "files": self.files}))


def digest(files: Iterable[tuple[str, int, str]]) -> str:
    """sha256 over sorted (relative path, bytes, sha256 of the content or '')."""
    total = hashlib.sha256()
    for name, size, content in sorted(files):
        total.update(f"{name}\0{size}\0{content}\n".encode())
    return total.hexdigest()


def environment_roots(names: Iterable[str]) -> dict[str, Path]:
    """Name -> root of what SELFPATCH_DATA holds: of a folder those of `names` that lie in it, of a yaml file all that
    it names. Raises UserError for a file that cannot be read as such."""
    value = os.environ.get("SELFPATCH_DATA")
    if not value:
        return {}
    place = Path(value).expanduser()
    if place.is_dir():
        return {name: place / name for name in names if (place / name).exists()}
    if not place.is_file():
        raise UserError(f"SELFPATCH_DATA={value}: no such file or folder")
    try:
        roots = yaml.safe_load(place.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{place} (SELFPATCH_DATA): cannot be read as yaml: {error}") from None
    if not isinstance(roots, dict) or not all(isinstance(v, str) for v in roots.values()):
        raise UserError(f"{place} (SELFPATCH_DATA): must map names to folders, one 'davis2017: /path' a line")
    return {str(name): place.parent / Path(root).expanduser() for name, root in roots.items()}


def split_roots(values: list[str]) -> tuple[str | None, dict[str, str]]:
    """The values of `--data` -> (the one plain root, else None; name -> root).

    Several are NAME=ROOT each; a value that exists as a path is a path even with '=' in it. Raises UserError.
    """
    plain, named = [], {}
    for value in values or []:
        name, equals, root = value.partition("=")
        if Path(value).expanduser().exists() or not equals or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            plain.append(value)
        elif name in named:
            raise UserError(f"--data {value}: {name} is given twice")
        elif not root:
            raise UserError(f"--data {value}: no root after '='")
        else:
            named[name] = root
    if len(plain) > 1 or (plain and named):
        raise UserError(f"--data {plain[-1]}: with several data sets each is given as NAME=ROOT")
    return plain[0] if plain else None, named


def data_roots(values: list[str], task_dataset: str) -> Path:
    """The root of one data set (davis2017, coco, ade20k, imagenet ...) from the values of `--data`.

    One plain root serves the task; several are NAME=ROOT each. Without one for this data set, SELFPATCH_DATA: a folder
    with these names, or a yaml file from names to roots.
    """
    plain, named = split_roots(values)
    given = named.get(task_dataset) if plain is None else plain
    if given is not None:
        root = Path(given).expanduser()
        source = f"--data {given}"
    else:
        root = environment_roots([task_dataset]).get(task_dataset)
        source = f"SELFPATCH_DATA={os.environ.get('SELFPATCH_DATA')}"
    if root is None:
        has = f" (--data has {', '.join(sorted(named))})" if named else ""
        other = f"add it to {source}" if os.environ.get("SELFPATCH_DATA") else "set SELFPATCH_DATA"
        raise UserError(f"no root of {task_dataset}{has}: give --data {task_dataset}=ROOT or {other}")
    if not root.exists():
        raise UserError(f"{source}: {root} does not exist")
    return root
