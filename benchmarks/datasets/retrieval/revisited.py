"""Revisited Oxford and Paris (Radenovic et al., 2018): a database, queries with a box, and what is relevant to each.

Layout: ROOT/NAME/jpg/*.jpg and ROOT/NAME/gnd_NAME.pkl (filipradenovic/revisitop be39832), or ROOT = that folder.
"""

import hashlib
import numbers
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ....pretrain.common.errors import UserError, shorten
from ..base import Data, digest, find_layout, instead, listing
from ..pictures import Pictures, identified

OFFICIAL = {"roxford5k": (4993, 70), "rparis6k": (6322, 70)}  # database, queries
KINDS = ("easy", "hard", "junk")
FARTHEST = 100_000  # pixels of a corner from the picture


@dataclass(frozen=True)
class Relevant:
    """Of one query: pictures of the database that are easy, hard, or count neither way; the box of the object."""

    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Queries(Pictures):
    """Query pictures; with boxes (x1, y1, x2, y2) only what lies in them is seen."""

    boxes: list[tuple[float, float, float, float]] | None = field(default=None, kw_only=True)

    def read(self, i: int) -> np.ndarray:
        """uint8 RGB [H, W, 3], cut out as Pillow's `crop` does it: corners rounded, black beyond the picture."""
        from PIL import Image

        image = super().read(i)
        if self.boxes is None:
            return image
        return np.asarray(Image.fromarray(image).crop(self.boxes[i]))

    def cropped(self, boxes: list[tuple[float, float, float, float]]) -> "Queries":
        """The same pictures, of which only the boxes are seen: other pictures by their fingerprint, too."""
        mark = hashlib.sha256(f"{self.fingerprint} {boxes}".encode()).hexdigest()
        return replace(self, boxes=boxes, fingerprint=f"{self.fingerprint.partition(':')[0]}:{mark}")


@dataclass(frozen=True)
class RetrievalSet:
    """queries: whole pictures."""

    database: Pictures
    queries: Queries
    relevant: list[Relevant]


def open_revisited(name: str, root: Path | str, limit: int | None = None) -> Data:
    """Open roxford5k or rparis6k and read the content of its pictures. limit: the first so many queries.

    Raises UserError naming the file: no layout, a list that is none, a picture that is missing, an index beyond the
    database.
    """
    from ....pretrain.data.images import Files  # torch, which takes its time

    file = f"gnd_{name}.pkl"
    root = find_layout(root, f"{name}", ("jpg", file), f"give the folder that holds jpg/ and {file}", inside=name)
    database, queries, relevant = read_relevant(root / file)
    _check_files(root, [*database, *queries])
    folder = root / "jpg"
    all_queries = len(queries)
    queries, relevant = queries[:limit], relevant[:limit]

    def source(names: list[str]) -> tuple:
        return Files(str(folder), folder, [f"{one}.jpg" for one in names]), np.arange(len(names))

    sets = [Pictures("database", *source(database)), Queries("queries", *source(queries))]
    sets = identified(folder, sets)
    notes = [f"{folder}: {note}" for one in sets for note in one.turned()]
    differs = instead(len(database), OFFICIAL[name][0], "database pictures")
    differs += instead(all_queries, OFFICIAL[name][1], "queries")
    facts = [(kind, i, " ".join(map(str, getattr(one, kind)))) for i, one in enumerate(relevant) for kind in KINDS]
    facts += [("box", i, str(one.box)) for i, one in enumerate(relevant)]
    facts += [(one.name, len(one), one.fingerprint) for one in sets]
    mark = f"{sets[0].fingerprint.partition(':')[0]}:{digest(facts)}"
    summary = f"{len(database)} database pictures, {len(queries)} queries"
    content = RetrievalSet(*sets, relevant)
    return Data(name, root, mark, not differs, ", ".join(differs), summary, notes, content)


def read_relevant(path: Path) -> tuple[list[str], list[str], list[Relevant]]:
    """Names of the database's pictures and of the queries', and what is relevant to each query.

    The pickle is read by our own reader, which builds lists, numbers, texts and NumPy arrays and runs nothing. Byte
    strings, as Python 2 wrote them, are Latin-1. Raises UserError naming the file, and the query.
    """
    from ....pretrain.common.reading.files import read_tree

    tree = _texts(read_tree(path))
    lacking = {"imlist", "qimlist", "gnd"} - set(tree if isinstance(tree, dict) else ())
    if lacking:
        raise UserError(f"{path}: is no list of relevant pictures: it has no {', '.join(sorted(lacking))}")
    names = [_names(path, key, tree[key]) for key in ("imlist", "qimlist")]
    every = tree["gnd"]
    if not isinstance(every, list | tuple) or len(every) != len(names[1]):
        count = len(every) if isinstance(every, list | tuple) else shorten(every)
        raise UserError(f"{path}: gnd is of {count} queries, qimlist of {len(names[1])}")
    return *names, [_relevant(path, i, one, len(names[0])) for i, one in enumerate(every)]


def _texts(node):
    """Byte strings as texts, at any depth of lists and dicts."""
    if isinstance(node, bytes):
        return node.decode("latin-1")
    if isinstance(node, dict):
        return {_texts(key): _texts(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_texts(value) for value in node]
    return node


def _names(path: Path, key: str, found) -> list[str]:
    names = [str(one) for one in found] if isinstance(found, np.ndarray) else found
    if not isinstance(names, list) or not names or not all(isinstance(one, str) and one for one in names):
        raise UserError(f"{path}: {key} is no list of names")
    if bad := [one for one in names if one.startswith("/") or ".." in Path(one).parts or "\0" in one]:
        raise UserError(f"{path}: {key} names {shorten(bad[0])}, which is no file below jpg/")
    return names


def _relevant(path: Path, i: int, one, count: int) -> Relevant:
    where = f"{path}: query {i}"
    if not isinstance(one, dict) or (lacking := [k for k in (*KINDS, "bbx") if k not in one]):
        lacking = lacking if isinstance(one, dict) else [*KINDS, "bbx"]
        raise UserError(f"{where}: has no {', '.join(lacking)}")
    found = {}
    for kind in KINDS:
        values = _numbers(one[kind])
        if values is None or any(int(v) != v for v in values):
            raise UserError(f"{where}: {kind} is no list of whole numbers")
        if wrong := [int(v) for v in values if not 0 <= v < count]:
            raise UserError(f"{where}: {kind} names picture {wrong[0]}, and there are 0 to {count - 1}")
        found[kind] = np.array(values, np.int64)
    box = _numbers(one["bbx"])
    if box is None or len(box) != 4 or max(map(abs, box)) > FARTHEST or not _has_pixels(box):
        raise UserError(f"{where}: bbx is no box x1, y1, x2, y2 of at least a pixel")
    return Relevant(**found, box=tuple(float(v) for v in box))


def _has_pixels(box: list) -> bool:
    """Whether something is left where the corners are rounded."""
    return round(box[0]) < round(box[2]) and round(box[1]) < round(box[3])


def _numbers(found) -> list | None:
    """Finite numbers of a list or an array of one dimension; None where it holds other things."""
    if isinstance(found, np.ndarray):
        found = found.tolist() if found.ndim == 1 else None
    if not isinstance(found, list):
        return None
    plain = all(isinstance(v, numbers.Real) and not isinstance(v, bool) and abs(v) < 2**53 for v in found)
    return found if plain else None


def _check_files(root: Path, names: list[str]) -> None:
    if absent := [f"jpg/{name}.jpg" for name in names if not (root / "jpg" / f"{name}.jpg").is_file()]:
        raise UserError(f"{root}: lacks {listing(absent)} of {len(names)} pictures that gnd_*.pkl names")
