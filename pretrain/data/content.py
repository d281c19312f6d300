"""What a file holds, as a hash: of all of it, or of two small parts of it."""

import hashlib
import os

PART = 4096  # bytes of one part
_BLOCK = 2**20


def hash_content(path: str | os.PathLike, whole: bool, offset: int = 0, size: int | None = None) -> bytes:
    """sha256 [32 bytes] of a file, or of the `size` bytes at `offset` in it.

    whole: of every byte; else of 4 KiB in the middle and the last 4 KiB, with which pictures of the same size differ: a
    header is often the same, coded pixels are not. Raises OSError.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        size = os.fstat(file).st_size - offset if size is None else size
        if whole or size <= 2 * PART:
            return _hash_whole(file, offset, size)
        middle = os.pread(file, PART, offset + (size - PART) // 2)
        return hashlib.sha256(middle + os.pread(file, PART, offset + size - PART)).digest()
    finally:
        os.close(file)


def _hash_whole(file: int, offset: int, size: int) -> bytes:
    total, end = hashlib.sha256(), offset + size
    while offset < end and (data := os.pread(file, min(_BLOCK, end - offset), offset)):
        total.update(data)
        offset += len(data)
    return total.digest()
