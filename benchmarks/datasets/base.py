"""A data set that has been checked, and what every check needs: the folder's layout, words for what is wrong."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ...pretrain.common.errors import UserError, shorten
from ...pretrain.common.reading.regular import read_regular

SPLITS = {"train": "training", "val": "validation"}  # of the sets in COCO's and ADE20K's layout
NEAR = 100  # folders that are looked into for a layout that is not where it was said to be
MOST_TEXT = 1 << 26  # bytes of a list of names
ANY = "any"  # number of classes: the published benchmark's or a set's own, as many as it has


@dataclass
class Data:
    """A data set whose files have all been checked: the parts of a record that describe it, and the set itself.

    fingerprint: the hash of the names, sizes and content of the files in use, and which kind of hash it is
    (identity.py). official: exactly the published benchmark's data, by names and counts; `differs` says in words what
    is not ('6 of 30 sequences').
    """

    name: str
    root: Path
    fingerprint: str
    official: bool
    differs: str
    summary: str  # what there is, counted
    notes: list[str] = field(default_factory=list)  # lines for the user
    content: Any = field(default=None, repr=False)  # the opened set, for the task's `run`
    doubts: list[str] = field(default_factory=list)  # why its number may not be what it seems: said beside it
    scored: bool = True  # whether there are annotations to score by


def digest(files: Iterable[tuple[str, int, str]]) -> str:
    """sha256 over sorted (relative path, bytes, sha256 of the content or '')."""
    total = hashlib.sha256()
    for name, size, content in sorted(files):
        total.update(f"{name}\0{size}\0{content}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def find_layout(root: Path | str, name: str, parts: Sequence[str], advice: str, inside: str = "") -> Path:
    """The folder that holds all of `parts` (folders, or files where the name has an ending): root or root/inside.

    Raises UserError naming what is absent.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: {'is not a folder' if root.exists() else 'no such folder'}; give the {name} root")

    def lacks(folder: Path) -> list[str]:
        places = [(part, folder / part) for part in parts]
        return [part for part, place in places if not (place.is_file() if place.suffix else place.is_dir())]

    for folder in (root, root / inside):
        if not lacks(folder):
            return folder
    article = "an" if name[0] in "AEIOU" else "a"
    text = f"{root}: not {article} {name} layout: it has no {' and no '.join(lacks(root))}"
    below = (path for pattern in ("*", "*/*") for path in islice(sorted(root.glob(pattern)), NEAR))
    near = next((path for path in (*root.absolute().parents[:4], *below) if path.is_dir() and not lacks(path)), None)
    raise UserError(f"{text}; {advice}" + (f" (that is {near})" if near else ""))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without the space around them. Raises UserError naming it."""
    try:
        return [line.strip() for line in read_regular(path, MOST_TEXT).decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def check_positive(**values: int | None) -> None:
    """UserError for a value that is neither None nor a whole number of at least 1."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{name}={value}: must be a whole number of at least 1")


def check_size(path: Path, size: Sequence[int], wanted: Sequence[int], whose: str) -> None:
    """UserError unless two sizes (H, W) are equal; `whose`: who is of the wanted one, with a verb."""
    if tuple(size) != tuple(wanted):
        raise UserError(f"{path}: {size[0]}x{size[1]} pixels (HxW), but {whose} {wanted[0]}x{wanted[1]}")


def more(things: Collection) -> str:
    """' (7 more)' behind the first of 8 things."""
    return f" ({len(things) - 1} more)" if len(things) > 1 else ""


def listing(things: list[str], most: int = 3) -> str:
    """The first few of them, and how many more."""
    rest = len(things) - most
    return ", ".join(things[:most]) + (f" and {rest} more" if rest > 0 else "")


def instead(found: int, official: int, what: str) -> list[str]:
    """How a number differs from the published set's: [] where it does not."""
    return [f"{found} {what} instead of {official}"] * (found != official)


def share(found: int, official: int, what: str) -> list[str]:
    """The same where a part of the set is usual."""
    return [f"{found} of {official} {what}"] if found < official else instead(found, official, what)


def share_of_splits(counts: dict[str, int], official: dict[str, int], what: str = "images") -> list[str]:
    """`share` of the validation split, and of the training split where it is in use."""
    parts = share(counts["val"], official["val"], what)
    return parts + (share(counts["train"], official["train"], f"training {what}") if "train" in counts else [])


def summary_of_splits(counts: dict[str, int], classes: int) -> str:
    """'118287 training and 5000 validation pictures, 80 classes'"""
    return f"{' and '.join(f'{n} {SPLITS[split]}' for split, n in counts.items())} pictures, {classes} classes"


def absent_classes(names: Sequence[str], number: int, where: str, effect: str) -> list[str]:
    """A note on those of so many classes that occur nowhere: [] if each does."""
    named = ", ".join(shorten(name, 40) for name in names[:4]) + " ..." * (len(names) > 4)
    return [f"{len(names)} of {number} classes occur in no {where} ({named}): {effect}"] if names else []
