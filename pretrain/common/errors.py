"""The one exception for a user's mistake, and what of a file may stand in its message."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input. The message is one clear line: what is wrong, where, and what to do about it.

    The command line prints it without a traceback and exits with `status` (2 for bad input).
    """

    def __init__(self, message: str, status: int = 2):
        super().__init__(" ".join(str(message).split()))
        self.status = status


@contextmanager
def naming(where) -> Iterator[None]:
    """Errors of the block begin with what they are about; with nothing new where that is ''."""
    try:
        yield
    except UserError as error:
        raise (UserError(f"{where}: {error}", error.status) if where else error) from None


def shorten(text, limit: int = 160) -> str:
    """`text` from a file, made fit for one line on a terminal: cut, control characters and surrogates escaped."""
    text = str(text)
    text = text if len(text) <= limit else text[:limit] + "..."
    return text if text.isprintable() else text.encode("unicode_escape", "backslashreplace").decode("ascii")
