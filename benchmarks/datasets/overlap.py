"""Training pictures among the validation ones: what was trained on is no test."""

import filecmp
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...pretrain.common.errors import UserError

_BLOCK = 4096  # bytes from the middle and the end: two files of one size rarely share them


def same_pictures(train: Sequence[Path], val: Sequence[Path], seen: Mapping[Path, dict]) -> list[str]:
    """A note on validation pictures that are files of the training split too, and one on those only named alike.

    seen: `look_at_picture`'s facts of all. Only files of equal numbers of bytes and pixels are compared, by a part of
    their content first.
    """
    alike, marks = defaultdict(list), {}
    for path in train:
        alike[seen[path]["bytes"], *seen[path]["size"]].append(path)

    def mark(path: Path) -> bytes:
        if path not in marks:
            marks[path] = _mark(path, seen[path]["bytes"])
        return marks[path]

    same = []
    for path in val:
        for other in alike.get((seen[path]["bytes"], *seen[path]["size"]), ()):
            if mark(path) == mark(other) and filecmp.cmp(path, other, shallow=False):
                same.append((path, other))
                break
    notes = []
    if same:
        first = f"the first: {same[0][0].name}, {same[0][1].name} in training"
        notes.append(f"{len(same)} of {len(val)} validation pictures are training pictures, byte for byte ({first})")
    names = {path.name for path in train} & ({path.name for path in val} - {path.name for path, _ in same})
    if names:
        named = f"{min(names)}{' ...' * (len(names) > 1)}"
        notes.append(f"{len(names)} validation pictures are named like training pictures ({named})")
    return notes


def _mark(path: Path, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(max(size // 2 - _BLOCK // 2, 0))
            middle = file.read(_BLOCK)
            file.seek(max(size - _BLOCK, 0))
            return middle + file.read(_BLOCK)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
