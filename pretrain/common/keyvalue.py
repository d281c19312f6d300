"""`key=value`, as the command line, --slurm and --card write it."""

from .errors import UserError


def split(text: str) -> tuple[str, str] | None:
    """(key, value) of `key=value`, split at the first `=`; None for a text without `=`, or without a key."""
    key, sign, value = text.partition("=")
    return (key.strip(), value) if sign and key.strip() else None


def key_value(text: str, where: str = "", example: str = "") -> tuple[str, str]:
    """`split`, where nothing else is allowed. Raises UserError, which begins with `where`."""
    if (pair := split(text)) is None:
        raise UserError(f"{where or text}: not written as key=value{example and f', for example {example}'}")
    return pair
