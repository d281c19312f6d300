"""What is in the pictures and masks of a data set, and a memory of it between runs."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.errors import UserError
from ...pretrain.common.machine import cache_folder
from ...pretrain.common.progress import patient_reporter
from ...pretrain.data.decode import Unreadable, decode, open_file, open_picture, orientation, read_picture
from .base import digest, more
from .identity import Item, fingerprint, fresh, read_contents, stamp
from .masks import decode_labels, edge_labels, read_bytes

_DAMAGED = (Unreadable, OSError, SyntaxError, ValueError, EOFError)  # what Pillow and ours raise


def read_frame(path: Path) -> np.ndarray:
    """A frame, uint8 RGB [H, W, 3], as `decode` reads every picture. UserError naming the file if it cannot be."""
    try:
        return decode(read_picture(path))
    except (Unreadable, OSError) as error:
        raise UserError(f"{path}: cannot be decoded as a picture: {error}") from None


def look_at_picture(path: Path) -> dict:
    """Facts from the header: `size` [H, W] of the stored pixels; `turn`, the EXIF orientation where it is one of 2 to
    8, which nothing here follows; `bytes`; `whole`: false where the end is missing."""
    try:
        with open_file(path) as file, open_picture(file, ["JPEG", "PNG"]) as image:
            (width, height), turn = image.size, orientation(image)
            end = b"IEND" if image.format == "PNG" else b"\xff\xd9"
            at, size = file.tell(), os.fstat(file.fileno()).st_size
            file.seek(max(0, size - 1024))
            ends = end in file.read()
            file.seek(at)
            # Behind the end there may be much of other data; Pillow refuses a file that was cut.
            whole = ends or _decodes(image)
    except _DAMAGED as error:
        reason = "no JPEG or PNG" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{path}: cannot be read as a picture: {reason}") from None
    return {"size": [height, width], "bytes": size, "whole": whole} | ({"turn": turn} if turn > 1 else {})


def _decodes(image: Image.Image) -> bool:
    try:
        image.load()
    except _DAMAGED:
        return False
    return True


def note_turns(paths: Collection[Path], seen: dict[Path, dict], notes: list[str]) -> None:
    """A note where EXIF orientations ask for other pictures than the stored pixels."""
    if turned := [path for path in paths if "turn" in seen[path]]:
        notes.append(
            f"{turned[0]}: its orientation tag is ignored, the stored pixels count; so it is with "
            f"{len(turned)} of {len(paths)} pictures"
        )


def look_at_mask(path: Path) -> dict:
    """`size` [H, W], `bytes` and `sha256` of the file, Pillow's `mode`, the sorted `labels` that occur; `edges`: those
    of masks.edge_labels, where there are any."""
    data = read_bytes(path)
    labels, mode = decode_labels(data, path)
    found = np.flatnonzero(cv2.calcHist([labels], [0], None, [256], [0, 256])).tolist()
    sha = hashlib.sha256(data).hexdigest()
    edges = edge_labels(labels) if len(found) > 2 else []
    facts = {"size": [*labels.shape], "bytes": len(data), "sha256": sha, "mode": mode, "labels": found}
    return facts | ({"edges": edges} if edges else {})


def check_whole(paths: Iterable[Path], seen: dict[Path, dict], notes: list[str] | None = None) -> None:
    """UserError for pictures without their end. With `notes` only a note: one damaged file of many thousands does not
    matter where a network is trained, as it does where numbers are computed."""
    if cut := [path for path in paths if not seen[path]["whole"]]:
        text = f"{cut[0]}: truncated: its end is missing{more(cut)}"
        if notes is None:
            raise UserError(f"{text}; copy it again")
        notes.append(text)


class Known:
    """What was seen in the files below a folder, kept between runs; a file counts as known while its size, times and
    inode stay what they were. A cache that is absent, damaged or cannot be written only costs time."""

    VERSION = 4

    def __init__(self, root: Path):
        self.base, self.root = root, str(root.resolve())
        self.file = cache_folder() / "files" / f"{hashlib.sha256(self.root.encode()).hexdigest()[:24]}.json"
        self.files: dict = {}  # key -> [stamp, facts]
        self.seen: dict[Path, dict] = {}  # the facts of all files looked at so far
        try:
            stored = json.loads(self.file.read_text())
            if stored["version"] == self.VERSION and stored["root"] == self.root:
                self.files = {k: [list(stamp), dict(facts)] for k, (stamp, facts) in stored["files"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass

    def look(self, paths: Iterable[Path], look_at: Callable[[Path], dict]) -> dict[Path, dict]:
        """Path -> look_at(path), its facts, for every path below the root; the first path that fails raises."""
        keys = {path: f"{look_at.__name__} {path.relative_to(self.base).as_posix()}" for path in paths}

        def one(path: Path) -> list:
            try:
                found = [*stamp(path.stat())]
            except OSError as error:
                raise UserError(f"{path}: {error.strerror or error}") from None
            known = self.files.get(keys[path])
            return known if known and known[0] == found else [found, look_at(path)]

        title = f"check {self.base.name}"
        with patient_reporter(title) as report, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            seen = {}
            try:
                for path, entry in zip(keys, pool.map(one, keys), strict=True):
                    seen[path] = entry
                    if len(keys) > 1:  # one large file reports of itself
                        report(len(seen), len(keys), "files")
            finally:
                pool.shutdown(cancel_futures=True)
        now = time.time_ns()
        new = {keys[path]: entry for path, entry in seen.items() if not fresh(entry[0], now)}
        if any(self.files.get(key) != entry for key, entry in new.items()):
            self.files |= new
            self._store()
        found = {path: facts for path, (_, facts) in seen.items()}
        self.seen |= found
        return found

    def _store(self) -> None:
        with contextlib.suppress(OSError, UserError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            content = {"version": self.VERSION, "root": self.root, "files": self.files}
            write_atomic(self.file, json.dumps(content), sync=False)

    def fingerprint(self, paths: Iterable[Path]) -> str:
        """Of files looked at: names below the root, sizes and content (identity.py). What was read whole (masks,
        annotations) counts whole in a large set too."""
        facts = {path.relative_to(self.base).as_posix(): self.seen[path] for path in paths}
        items = [Item(name, name) for name, one in facts.items() if "sha256" not in one]
        others = sum(one["bytes"] for one in facts.values() if "sha256" in one)
        read = read_contents(self.base, items, others)
        hashes = {item.name: sha for item, sha in zip(items, read.hex(), strict=True)}
        every = ((name, one["bytes"], one.get("sha256") or hashes[name]) for name, one in facts.items())
        return fingerprint(read.whole, every)

    def fingerprint_of_masks(self, paths: Iterable[Path]) -> str:
        """Of masks looked at, all of them read whole: it stands for a model, whose fingerprint has no two kinds."""
        facts = ((path.relative_to(self.base).as_posix(), self.seen[path]) for path in paths)
        return f"sha256:{digest((name, one['bytes'], one['sha256']) for name, one in facts)}"
