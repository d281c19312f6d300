"""What a file holds, as a hash: of all of it, or of two small parts of it."""

import hashlib
import os

PART = 4096  # bytes of one part
_BLOCK = 2**20
# A pipe among the files is an error at once instead of a wait for who writes into it.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def hash_content(path: str | os.PathLike, most: int | None, offset: int = 0, size: int | None = None) -> bytes:
    """sha256 [32 bytes] of a file, or of the `size` bytes at `offset` in it.

    most: bytes of the largest that is read whole (None: any); of a larger one the size, 4 KiB in the middle and the
    last 4 KiB count, with which pictures differ: a header is often the same, coded pixels are not. Raises OSError.
    """
    file = os.open(path, _FLAGS)
    try:
        size = os.fstat(file).st_size - offset if size is None else size
        if most is None or size <= max(most, 2 * PART):
            return _hash_whole(file, offset, size)
        middle = os.pread(file, PART, offset + (size - PART) // 2)
        return hashlib.sha256(b"%d " % size + middle + os.pread(file, PART, offset + size - PART)).digest()
    finally:
        os.close(file)


def _hash_whole(file: int, offset: int, size: int) -> bytes:
    total, end = hashlib.sha256(), offset + size
    while offset < end and (data := os.pread(file, min(_BLOCK, end - offset), offset)):
        total.update(data)
        offset += len(data)
    return total.digest()
