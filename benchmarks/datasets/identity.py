"""Which data these are: a hash of the names, sizes and content of all files of a set, and the memory that makes the
second look fast.

A set of at most 2 GB is read whole. Of a larger one 4 KiB from the middle and 4 KiB from the end of every file are
read: the 1.28 million files of ImageNet then cost 10 GB of reads, not 140.

The times of a file never enter the fingerprint. They only tell whether a hash in the memory still holds: it does for
a file of the same path, inode, size, modification time (mtime) and change time (ctime). ctime is among them because
mtime can be set back (`touch -r`, rsync, tar) and ctime cannot. Where a file system has neither inodes nor ctime, a
file that changed with its size and mtime kept is not noticed.
"""

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.errors import UserError
from ...pretrain.common.machine import cache_folder
from ...pretrain.common.progress import patient_reporter
from ...pretrain.data.content import hash_content
from .base import digest

LIMIT = 2 * 10**9  # bytes of a set that is read whole
WHOLE, PARTS = "whole-sha256", "parts-sha256"  # how a fingerprint begins: which of the two it is
OLDER = "sha256"  # of records of older versions: pictures by name and size alone
THREADS = 16  # reads that wait at the same time: a network's file system answers one in milliseconds
_CHUNK = 512  # files between two looks at the progress
_PAUSE = 20.0  # seconds of work that an interruption costs at most
_KEY, _HASH = 16, 32


class Item(NamedTuple):
    """What is hashed: the file `file` below a root, or the `size` bytes at `offset` in it; `name` says what it is."""

    name: str
    file: str
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True)
class Contents:
    """sizes int64 [n] and hashes uint8 [n, 32] of n items; whole: whether every byte of them was read."""

    sizes: np.ndarray
    hashes: np.ndarray
    whole: bool

    def hex(self) -> list[str]:
        return [row.tobytes().hex() for row in self.hashes]


def stamp(about: os.stat_result) -> tuple[int, int, int, int]:
    """Size, mtime, ctime (in ns) and inode: a file with the same ones is as it was."""
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino & (2**63 - 1)


def fresh(stamp: Sequence[int], now: int) -> bool:
    """Whether a file changed so lately (now: ns) that it could change again within the clock's tick, with the same
    stamp."""
    return max(stamp[1:3]) >= now - 2_000_000_000


def read_contents(root: Path, items: Sequence[Item], others: int = 0) -> Contents:
    """Sizes and hashes of items below a root, from the memory where the files are as they were.

    others: bytes of the set that are hashed elsewhere. Shows its progress where it takes longer than a moment;
    interrupted, it goes on where it was. Raises UserError naming a file that cannot be read.
    """
    memory = _Memory(root)
    with ThreadPoolExecutor(THREADS) as pool, patient_reporter(f"reading {root}") as report:
        try:
            stamps = np.concatenate([np.empty((0, 4), np.int64), *_each(pool, _stamps, root, items, report, "sizes")])
            sizes = np.array([i.size for i in items], object) if any(i.size is not None for i in items) else None
            sizes = stamps[:, 0].copy() if sizes is None else sizes.astype(np.int64)
            whole = int(sizes.sum()) + others <= LIMIT
            keys = [_key(item, stamp, whole) for item, stamp in zip(items, stamps.tolist(), strict=True)]
            hashes = np.zeros((len(items), _HASH), np.uint8)
            absent = memory.find(keys, hashes)
            _read_absent(pool, root, items, absent, (stamps, keys, hashes), whole, memory, report)
        finally:
            pool.shutdown(cancel_futures=True)
            memory.store()
    return Contents(sizes, hashes, whole)


def _read_absent(pool, root: Path, items, absent: list[int], tables, whole: bool, memory, report) -> None:
    """Hash what the memory does not have, and put it there."""
    stamps, keys, hashes = tables
    at, stored, now = 0, time.monotonic(), time.time_ns()

    def hash_some(root: Path, some: Sequence[Item]) -> list[bytes]:
        return [_hash(root, item, whole) for item in some]

    for found in _each(pool, hash_some, root, [items[i] for i in absent], report, "contents"):
        for value in found:
            i = absent[at]
            hashes[i] = np.frombuffer(value, np.uint8)
            if not fresh(stamps[i].tolist(), now):
                memory.new[keys[i]] = value
            at += 1
        if time.monotonic() - stored > _PAUSE:
            memory.store()
            stored = time.monotonic()


def _each(pool: ThreadPoolExecutor, work, root: Path, items: Sequence[Item], report, what: str) -> Iterable:
    """work(root, items) of chunks of the items, in order, while the progress is shown."""
    chunks = [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]
    done = 0
    for chunk, found in zip(chunks, pool.map(lambda chunk: work(root, chunk), chunks), strict=True):
        yield found
        done += len(chunk)
        report(done, len(items), f"{what} {done}/{len(items)}")


def _stamps(root: Path, items: Sequence[Item]) -> np.ndarray:
    """size, mtime, ctime and inode, int64 [n, 4]; items of one file that follow each other cost one look."""
    found, base, last, row = [], os.fspath(root), None, None
    for item in items:
        if item.file != last:
            path = os.path.join(base, item.file)
            try:
                about = os.stat(path)
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
            if not stat.S_ISREG(about.st_mode):
                raise UserError(f"{path}: is no regular file")
            last, row = item.file, stamp(about)
        found.append(row)
    return np.array(found, np.int64).reshape(-1, 4)


def fingerprint(whole: bool, files: Iterable[tuple[str, int, str]]) -> str:
    """Of (name, bytes, sha256 of the content) of all files of a set."""
    return f"{WHOLE if whole else PARTS}:{digest(files)}"


def older(fingerprint: str) -> bool:
    """Whether a fingerprint is of an older version: of most files it took the names and sizes alone."""
    return fingerprint.startswith(f"{OLDER}:")


def _hash(root: Path, item: Item, whole: bool) -> bytes:
    path = os.path.join(root, item.file)
    try:
        return hash_content(path, None if whole else 0, item.offset, item.size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _key(item: Item, stamp: Sequence[int], whole: bool) -> bytes:
    """All that a hash in the memory depends on, so that an entry is right or never found."""
    text = f"{item.file}\0{item.offset}\0{item.size}\0{stamp}\0{whole}"
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=_KEY).digest()


class _Memory:
    """Hashes of the files below a root, kept in the cache folder: CACHE/contents/ROOT/NAME.hashes, keys and hashes
    in turn. A file's name is the hash of its content: one that is damaged is left out. Processes only ever add
    files, and join what they read into one; an entry that is lost only costs time."""

    def __init__(self, root: Path):
        place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
        self.folder = cache_folder() / "contents" / place
        self.known: dict[bytes, bytes] = {}
        self.new: dict[bytes, bytes] = {}
        self.files: list[Path] = []
        with contextlib.suppress(OSError):
            self.files = sorted(self.folder.glob("*.hashes"))
        for file in self.files:
            with contextlib.suppress(OSError, ValueError):
                data = file.read_bytes()
                if _name(data) == file.name:
                    self.known |= _entries(data)

    def find(self, keys: list[bytes], hashes: np.ndarray) -> list[int]:
        """Fill in the hashes that are known; -> the numbers of the others."""
        absent = []
        for i, key in enumerate(keys):
            if (value := self.known.get(key)) is None:
                absent.append(i)
            else:
                hashes[i] = np.frombuffer(value, np.uint8)
        return absent

    def store(self) -> None:
        """Keep what is new. A folder that cannot be written only costs time."""
        if not self.new:
            return
        self.known |= self.new
        joined = self.known if len(self.files) >= 8 else self.new
        data = b"".join(key + value for key, value in joined.items())
        with contextlib.suppress(OSError, UserError):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / _name(data)
            write_atomic(file, data, sync=False)
            if joined is self.known:
                for old in self.files:
                    if old != file:
                        old.unlink(missing_ok=True)
                self.files = []
            self.files.append(file)
        self.new = {}


def _name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:24]}.hashes"


def _entries(data: bytes) -> dict[bytes, bytes]:
    step = _KEY + _HASH
    return {data[i : i + _KEY]: data[i + _KEY : i + step] for i in range(0, len(data), step)}
