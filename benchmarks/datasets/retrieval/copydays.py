"""INRIA Copydays: original pictures, and blocks of copies of them to be recognised; and the pictures beside it.

What belongs together is told by names and order, as facebookresearch/dino 7c446df, eval_copy_detection.py, has it.
"""

from dataclasses import dataclass
from pathlib import Path

from ....pretrain.common.errors import UserError
from ..base import Data, digest, find_layout, instead, more
from ..pictures import Pictures, identified, open_pictures

STRONG = "strong"
PREFIX = 4  # first characters of a file name that a strong copy shares with its original
QUALITIES, CROPS = (3, 5, 8, 10, 15, 20, 30, 50, 75), (10, 15, 20, 30, 40, 50, 60, 70, 80)
COPIES = (*(f"jpegqual/{n}" for n in QUALITIES), *(f"crops/{n}" for n in CROPS))
ORIGINALS, STRONGS = 157, 229  # of the official set; every other block has a copy of each original
DISTRACTORS, WHITENING = 10_000, 20_000  # pictures of YFCC100M behind the published numbers, never published as lists


@dataclass(frozen=True)
class Copies:
    """A block of queries. positives: of each query the numbers of its originals."""

    name: str
    pictures: Pictures
    positives: list[list[int]]


@dataclass(frozen=True)
class CopySet:
    """originals: the database, and the first block of queries. distractors, whitening: further pictures, or None."""

    originals: Pictures
    blocks: list[Copies]
    distractors: Pictures | None
    whitening: Pictures | None


def open_copydays(
    root: Path | str, distractors: Path | None = None, whitening: Path | None = None, limit: int | None = None
) -> Data:
    """Open Copydays and the folders beside it, and read their content. limit: the first so many queries of each block.

    Of the official blocks those that are there are used; `original` and `strong` have to be. Raises UserError naming
    the folder or the file: a block of another number of copies than originals, a strong copy of no original, a folder
    without pictures.
    """
    root = find_layout(root, "Copydays", ("original", STRONG), "give the folder that holds original/ and strong/")
    originals = open_pictures("original", root / "original")
    blocks = [Copies("original", originals, _in_order(len(originals)))]
    blocks.append(_strong(open_pictures(STRONG, root / STRONG), originals))
    for name in COPIES:
        if (root / name).is_dir():
            blocks.append(_block(open_pictures(name, root / name), originals))
    sets = identified(root, [block.pictures for block in blocks])
    notes = [f"{root / one.name}: {note}" for one in sets for note in [*one.source.notes, *one.turned()]]
    beside = {"distractors": distractors, "whitening": whitening}
    opened = {what: _beside(what, folder) for what, folder in beside.items() if folder}
    blocks = [Copies(b.name, _first(p, limit), b.positives[:limit]) for b, p in zip(blocks, sets, strict=True)]
    content = CopySet(sets[0], blocks, opened.get("distractors"), opened.get("whitening"))
    parts = [(one.name, len(one), one.fingerprint) for one in (*sets, *opened.values())]
    kind = min(one.fingerprint.partition(":")[0] for one in (*sets, *opened.values()))
    differs = _differs(blocks, sets, opened)
    summary = f"{len(originals)} originals, {sum(map(len, sets[1:]))} copies in {len(sets) - 1} blocks"
    summary += "".join(f", {len(one)} {what}{' pictures' * (what == 'whitening')}" for what, one in opened.items())
    mark = f"{kind}:{digest(parts)}"
    return Data("copydays", root, mark, not differs, ", ".join(differs), summary, notes, content)


def _first(pictures: Pictures, limit: int | None) -> Pictures:
    return Pictures(pictures.name, pictures.source, pictures.picks[:limit], pictures.fingerprint)


def _in_order(count: int) -> list[list[int]]:
    return [[i] for i in range(count)]


def _strong(copies: Pictures, originals: Pictures) -> Copies:
    """Each belongs to the originals whose names begin as its own."""
    known: dict[str, list[int]] = {}
    for i in range(len(originals)):
        known.setdefault(Path(originals.file(i)).name[:PREFIX], []).append(i)
    positives = [known.get(Path(copies.file(i)).name[:PREFIX], []) for i in range(len(copies))]
    if lost := [copies.file(i) for i, found in enumerate(positives) if not found]:
        raise UserError(
            f"{copies.source.where}/{lost[0]}: is a copy of no original{more(lost)}: "
            f"no file of original/ begins with {Path(lost[0]).name[:PREFIX]}"
        )
    return Copies(STRONG, copies, positives)


def _block(copies: Pictures, originals: Pictures) -> Copies:
    """The i-th belongs to the i-th original, in the order of names."""
    if len(copies) != len(originals):
        raise UserError(
            f"{copies.source.where}: {len(copies)} pictures, but original/ has {len(originals)}: "
            "they belong together in the order of names"
        )
    return Copies(copies.name, copies, _in_order(len(originals)))


def _beside(what: str, folder: Path) -> Pictures:
    try:
        pictures = open_pictures(what, folder)
    except UserError as error:
        raise UserError(f"--{what}: {error}") from None
    [pictures] = identified(Path(pictures.source.root), [pictures])
    return pictures


def _differs(blocks: list[Copies], sets: list[Pictures], opened: dict[str, Pictures]) -> list[str]:
    counts = {block.name: len(pictures) for block, pictures in zip(blocks, sets, strict=True)}
    differs = instead(counts["original"], ORIGINALS, "originals") + instead(counts[STRONG], STRONGS, "strong copies")
    if absent := [name for name in COPIES if name not in counts]:
        differs.append(f"{len(absent)} of {len(COPIES)} other blocks are absent")
    for what, official in (("distractors", DISTRACTORS), ("whitening", WHITENING)):
        found = opened.get(what)
        if found is None:
            differs.append(f"no {what}")
        else:
            differs += instead(len(found), official, f"{what} pictures" if what == "whitening" else what)
    return differs
