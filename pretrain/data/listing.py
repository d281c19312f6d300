"""What lies below a folder: images, tar shards, and what is neither, counted so that nothing is left out in silence."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..common.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
# What lies beside pictures and is none: no word is lost about it.
_BESIDE = {
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".rst", ".html", ".log", ".ini"),
    *(".py", ".sh", ".m", ".mat", ".pdf", ".md5", ".sha1", ".sha256", ".url", ".db", ".cls", ".index", ".idx", ".id"),
}
HELD_OUT = {"val", "valid", "validation", "test", "testing"}  # folders of pictures that are not for training
_KINDS = 8  # that are named; of more the rest is counted together
_ENTERED = 100  # times that one folder may be reached through links


@dataclass
class Listing:
    """images, shards: paths below the folder, sorted. folders: directly in it. left_out: how many of which kind; links:
    folders that are also reached by another path, and that path."""

    images: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)
    links: list[tuple[str, str]] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Lines for the user."""
        lines = [left_out] if (left_out := said(self.left_out)) else []
        full = {name.partition("/")[0] for name in self.images + self.shards}
        if empty := sorted(set(self.folders) - full):
            named = ", ".join(empty[:3]) + " ..." * (len(empty) > 3)
            lines.append(f"no images in {len(empty)} of {len(self.folders)} folders: {named}")
        if self.links:
            again, first = self.links[0]
            more = f" ({len(self.links) - 1} more such folders)" if len(self.links) > 1 else ""
            lines.append(f"{again} is a link to the same folder as {first}: its images are used twice{more}")
        held = Counter(part for name in self.images for part in set(name.split("/")[:-1]) if part.lower() in HELD_OUT)
        lines += [f"{n} of {len(self.images)} images lie in folders called {k}/" for k, n in sorted(held.items())]
        return lines


def scan(folder: Path) -> Listing:
    """All that lies below a folder. Links are followed, so that a linked class folder counts like any other; a link
    back to a folder that holds it is left out. Raises OSError, and UserError for a maze of links."""
    found, paths, todo = Listing(), {}, [("", ())]
    while todo:
        inside, above = todo.pop()
        about = os.stat(folder / inside)
        here = about.st_dev, about.st_ino
        if here in above:
            found.left_out["links to a folder around them"] += 1
            continue
        paths.setdefault(here, []).append(inside)
        if len(paths[here]) > _ENTERED:
            raise UserError(f"{folder / inside}: is reached through more than {_ENTERED} links; give a folder without")
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = f"{inside}/{entry.name}" if inside else entry.name
                if not entry.name.startswith("."):
                    _sort_in(entry, name, found, todo, (*above, here))
    found.images.sort()
    found.shards.sort()
    twice = {name: min(same) for same in paths.values() for name in same if name != min(same)}
    # Of a linked tree only its top is named.
    found.links = sorted((name, first) for name, first in twice.items() if os.path.dirname(name) not in twice)
    return found


def _sort_in(entry: os.DirEntry, name: str, found: Listing, todo: list, above: tuple) -> None:
    try:
        folder, file = entry.is_dir(), entry.is_file()
    except OSError:  # links in a circle
        folder = file = False
    if folder:
        found.folders += [name] * ("/" not in name)
        todo.append((name, above))
    elif not file:
        found.left_out["broken links" if entry.is_symlink() else "pipes, sockets or devices"] += 1
    elif is_image(name):
        found.images.append(name)
    elif name.endswith(".tar"):
        found.shards.append(name)
    elif kind := unknown(name):
        found.left_out[kind] += 1


def is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.rpartition("/")[2].startswith(".")


def unknown(name: str) -> str:
    """The kind of a file that is neither image nor shard, by its ending; '' for what usually lies beside images."""
    stem, ending = os.path.splitext(name.rpartition("/")[2])
    if ending.lower() in _BESIDE:
        return ""
    return (".tar" if stem.lower().endswith(".tar") else "") + ending if ending else "without an ending"


def said(left_out: Mapping[str, int]) -> str:
    """'left out: 12 .gif, 3 .TAR'; '' where there is nothing."""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    texts = [f"{n} {kind}" for kind, n in kinds[:_KINDS]]
    if rest := sum(n for _, n in kinds[_KINDS:]):
        texts.append(f"{rest} of other kinds")
    return f"left out: {', '.join(texts)}" if texts else ""
