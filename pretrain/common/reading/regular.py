"""Reading a file that a user named, or that lies where a data set is: never what is no file."""

import os
import stat
from typing import BinaryIO


def open_regular(path: str | os.PathLike, most: int | None = None, buffering: int = -1) -> BinaryIO:
    """The file, opened to read bytes. OSError, also for what is no regular file (reading a FIFO would wait for ever, a
    device could have no end) and for more than `most` bytes."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise OSError("it is a directory" if stat.S_ISDIR(info.st_mode) else "it is not a regular file")
    if most is not None and info.st_size > most:
        raise OSError(f"{info.st_size:,} bytes are more than the {most:,} that such a file may have")
    return open(path, "rb", buffering)


def read_regular(path: str | os.PathLike, most: int | None = None) -> bytes:
    """The whole file; as `open_regular`."""
    with open_regular(path, most, buffering=0) as file:
        return file.read()
