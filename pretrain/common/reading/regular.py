"""Reading a file that a user named, or that lies where a data set is: never what is no file."""

import os
import stat


def read_regular(path: str | os.PathLike, most: int | None = None) -> bytes:
    """The whole file. OSError, also for what is no regular file (reading a FIFO would wait for ever, a device could
    have no end) and for more than `most` bytes."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise OSError("it is a directory" if stat.S_ISDIR(info.st_mode) else "it is not a regular file")
    if most is not None and info.st_size > most:
        raise OSError(f"{info.st_size:,} bytes are more than the {most:,} that such a file may have")
    with open(path, "rb", buffering=0) as file:
        return file.read()
