"""The parts that are stored, how one is found anew and compared, and how it is renewed (make.py)."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import checkpoints, looks, runs, texts, training
from .compare import differences, same_environment, words
from .place import HERE, SHARED, STORED, Place, Session
from .processes import environment

ENVIRONMENT = STORED / "environment.json"


@dataclass(frozen=True)
class Part:
    """find(place) -> {file below stored/NAME: text}. source(place) -> files, text or bytes, that `find` itself starts
    from and that stand for older code. arithmetic: holds numbers that another processor makes a little different;
    tolerance: by how much of them."""

    find: Callable[[Place], dict] | None
    source: Callable[[Place], dict] | None = None
    arithmetic: bool = True
    shared: bool = False
    tolerance: float = 1e-3


def draw(place: Place) -> dict[str, bytes]:
    """The data sets."""
    line = [sys.executable, HERE / "inputs.py", "data", place.folder / "data"]
    subprocess.run(line, check=True, env=environment(place.folder))
    return {str(p.relative_to(place.folder / "data")): p.read_bytes() for p in files(place.folder / "data")}


SLOW = 1e-2  # of numbers that come out of a training: a view may differ by a grey level
PARTS = {
    "data": Part(None, draw),
    "help": Part(texts.help_texts, arithmetic=False),
    "lists": Part(texts.lists, arithmetic=False),
    "layouts": Part(checkpoints.layouts, arithmetic=False),
    "features": Part(checkpoints.features),
    "recipes": Part(training.recipes, tolerance=SLOW),
    "killed": Part(training.resumed, training.make_killed, tolerance=SLOW),
    "exports": Part(training.exports),
    "shared": Part(checkpoints.shared, arithmetic=False, shared=True),
    "shared_features": Part(checkpoints.shared_features, shared=True),
    "evaluation": Part(runs.evaluation),
    "finetuning": Part(runs.finetuning, tolerance=SLOW),
    "plugins": Part(runs.plugins, tolerance=SLOW),
    "official": Part(None, texts.official),
    "tables": Part(texts.tables, tolerance=SLOW),
    "comparison": Part(texts.comparison),
    "keys": Part(checkpoints.keys, checkpoints.make_keys, arithmetic=False),
    "looks": Part(looks.looks, looks.make_looks, arithmetic=False),
    "shared_keys": Part(checkpoints.shared_keys, checkpoints.make_shared_keys, arithmetic=False, shared=True),
}
# One stage after the other, since later ones start from what earlier ones have stored; a stage's lanes at once.
RUNS, LAST = ("evaluation", "finetuning", "plugins"), list(PARTS)[list(PARTS).index("official") :]
STAGES = ((("data",),), (RUNS, [name for name in PARTS if name not in ("data", *RUNS, *LAST)]), (LAST,))


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def stored(name: str) -> dict[str, bytes]:
    """The files of a part."""
    return {str(p.relative_to(STORED / name)): p.read_bytes() for p in files(STORED / name)}


def check(name: str, session: Session) -> str:
    """Find a part anew; -> what differs from what is stored, '' if nothing does."""
    return compared(name, stored(name), PARTS[name].find(session.place(name)), session.environment)


def compared(name: str, before: dict[str, bytes], found: dict[str, str], here: str) -> str:
    """-> what of the found files differs from the stored ones. here: the environment they were found in."""
    part, there = PARTS[name], ENVIRONMENT.read_text()
    exact = not part.arithmetic or same_environment(there, here)
    lines = []
    for file in sorted(found.keys() | (before.keys() if not part.source else set())):
        old, new = before.get(file, b"").decode(), found.get(file, "")
        if name == "help" and not same_environment(there, here, ("help",)):
            old, new = words(old), words(new)
        if diff := differences(f"stored/{name}/{file}", old, new, exact, part.tolerance):
            lines.append(diff)
    return "\n".join(lines)


def renew(name: str, session: Session, force: bool) -> bool:
    """Store a part, where nothing is stored yet or with `force`, and print what differs; -> whether all is stored."""
    part, folder, before = PARTS[name], STORED / name, stored(name)
    write = force or not before
    if part.source and write:
        shutil.rmtree(folder, ignore_errors=True)
        put(folder, part.source(session.place(f"{name}-source")))
    found = part.find(session.place(name)) if part.find else {}
    diff = compared(name, before, found, session.environment) if before else ""
    print(diff, end="\n" if diff else "")
    if write:
        if not part.source:
            shutil.rmtree(folder, ignore_errors=True)
        put(folder, found)
    return write or not diff


def put(folder: Path, found: dict[str, str | bytes]) -> None:
    for name, content in found.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def lane(names: list[str], force: bool) -> list[str]:
    """Renew parts one after the other; -> those that differ from what is stored."""
    differ = []
    with tempfile.TemporaryDirectory() as folder, Session(Path(folder)) as session:
        for name in names:
            began = time.monotonic()
            differ += [] if renew(name, session, force) else [name]
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return differ


def main(description: str) -> int:
    """make.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--force", action="store_true", help="overwrite what is stored")
    given = parser.parse_args()
    chosen = given.only.split(",") if given.only else [n for n in PARTS if SHARED.is_dir() or not PARTS[n].shared]
    if unknown := set(chosen) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder, Session(Path(folder)) as session:
        if not ENVIRONMENT.exists() or (given.force and not given.only):
            put(STORED, {ENVIRONMENT.name: session.environment})
        elif given.force and not same_environment(ENVIRONMENT.read_text(), session.environment):
            parser.error("what is stored was made on another machine or with other packages: renew all, without --only")
    differ = []
    for stage in STAGES:
        lanes = [names for one in stage if (names := [n for n in one if n in chosen])]
        with ThreadPoolExecutor(len(stage)) as threads:
            differ += [name for found in threads.map(lane, lanes, [given.force] * len(lanes)) for name in found]
    size = sum(p.stat().st_size for p in files(STORED))
    print(f"{size / 1e6:.2f} MB; " + (f"differs: {', '.join(differ)}; --force stores it" if differ else "all stored"))
    return bool(differ)
