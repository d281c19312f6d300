"""A file appears whole or not at all: written under a name of its own, which it then loses to the final one."""

import contextlib
import os
import platform
import re
import secrets
import stat
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

TEMPORARY = ".tmp"  # what is being written: `.NAME.HOST.PROCESS.RANDOM.tmp`


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no process of any machine writes to."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:20]
    return path.with_name(f".{path.name[:40]}.{host}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")


@contextlib.contextmanager
def replacing(path: Path, sync: bool = False, publish: Callable[[Path, Path], None] | None = None) -> Iterator[Path]:
    """An empty temporary file beside `path` to write to; if the block succeeds, it takes the place of `path`.

    A killed process leaves the old file or the whole new one. The file gets the mode that the umask gives to any new
    one, whoever writes it. sync: wait until content and name are on disk, so that a power cut does so too. publish:
    gives the file its name, publish(temporary, path), in place of os.replace. Raises UserError, one line that names
    `path`, for what the file system refuses; the old file is then untouched.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield temporary
        with temporary.open("rb") as file:  # another one, if a library put its own in the place
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                os.fchmod(file.fileno(), mode)
            if sync:
                os.fsync(file.fileno())
        (publish or os.replace)(temporary, path)
        if sync:
            _sync_folder(path.parent)
    except UserError:
        raise
    except Exception as error:
        if (cause := os_error(error)) is None:
            raise
        raise UserError(f"{path} cannot be written: {cause.strerror or cause}", status=1) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes | Callable[[BinaryIO], object], sync: bool = True) -> None:
    """A text (UTF-8), bytes, or what `content(file)` writes become the content of `path`; see `replacing`."""
    with replacing(path, sync) as temporary, temporary.open("wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)


def os_error(error: BaseException | None, numbers: Container[int] | None = None) -> OSError | None:
    """The file system's own words among an exception and its causes, which torch.save wraps; None where there are none.
    numbers: only errors of these numbers count."""
    while error is not None:
        if isinstance(error, OSError) and (numbers is None or error.errno in numbers):
            return error
        error = error.__cause__ or error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Wait until new names are on disk, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
