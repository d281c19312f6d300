"""Where a part works: a temporary folder with checkpoints of every layout and with the commands that it runs."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch

from . import inputs
from .compare import PROBE
from .processes import Commands, Done, Server

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[2]
STORED = HERE / "stored"
PLUGINS = HERE / "plugins"
DATA = STORED / "data"
SHARED = Path(os.environ.get("SELFPATCH_SHARED", REPO.parent / "shared"))
WORDS = {DATA: "DATA", PLUGINS: "PLUGINS", SHARED: "SHARED", REPO: "REPO"}
# Of data sets, for `--data`.
ROOTS = {"davis2017": "davis", "imagenet": "classes", "coco": "coco", "ade20k": "ade20k"}
CLOCK = re.compile(r"\((\d+) s\)")
PROGRESS = re.compile(r"^.*  [\d.]+/[\d.]+  .*\n", re.MULTILINE)  # now and then, by the clock


class Session(Server):
    """What all parts share: the server, checkpoints of every layout, networks to evaluate."""

    def __init__(self, root: Path):
        root.mkdir(parents=True, exist_ok=True)
        super().__init__(root.resolve())

    def place(self, name: str) -> "Place":
        return Place(self, name)

    @cached_property
    def examples(self) -> dict[str, tuple[Path, dict]]:
        folder = self.folder / "examples"
        program = f"import runpy; runpy.run_path({str(HERE / 'inputs.py')!r}, run_name='__main__')"
        done = self.place("making")("examples", folder, code=program)
        assert not done.status, done.err
        found = json.loads((folder / "examples.json").read_text())
        return {name: (Path("../examples") / file, facts) for name, (file, facts) in found.items()}

    @cached_property
    def networks(self) -> Path:
        inputs.networks(self.folder / "nets")
        return Path("../nets")

    @cached_property
    def environment(self) -> str:
        """What the numbers depend on, as JSON."""
        done = self.place("probe")(code=PROBE)
        assert not done.status, done.err
        return done.out


class Place(Commands):
    """`Commands` in a folder of its own.

    examples: format -> its example file and the facts that it does not say itself. networks: a folder of networks to
    evaluate. Both relative to the folder.
    """

    def __init__(self, session: Session, name: str):
        folder = session.folder / name
        folder.mkdir()
        super().__init__(session, folder, WORDS | {session.folder: "SESSION"})
        self.session = session

    @property
    def examples(self) -> dict[str, tuple[Path, dict]]:
        return self.session.examples

    @property
    def networks(self) -> Path:
        return self.session.networks

    def run(self, *arguments, **more) -> Done:
        """`selfpatch run` with the stored data sets."""
        roots = [word for name, folder in ROOTS.items() for word in ("--data", f"{name}={DATA / folder}")]
        return quiet(self("run", *arguments, *roots, **more), roots=len(roots))


def quiet(done: Done, roots: int = 0) -> Done:
    """Without progress and durations; roots: so many arguments at the end are always the same, and left out."""
    kept = done.arguments[: len(done.arguments) - roots]
    out, err = (CLOCK.sub("(N s)", PROGRESS.sub("", text)) for text in (done.out, done.err))
    return Done(kept, done.status, out, err)


def flags(facts: dict) -> list[str]:
    """Facts of a card as arguments."""
    words = []
    for key, value in facts.items():
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        words += ["--heads", text] if key == "heads" and "," not in text else ["--card", f"{key}={text}"]
    return words


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors(tree, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of nested dicts and lists, by dotted name."""
    if isinstance(tree, torch.Tensor):
        yield name, tree
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from tensors(value, f"{name}.{key}" if name else str(key))


def summary(tree) -> str:
    """Number, norm and hash of the tensors in a tree: `bits:` is what only the same arithmetic gives again."""
    digest, square, count = hashlib.sha256(), 0.0, 0
    for name, value in sorted(tensors(tree)):
        value = value.detach().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
        square += float(value.double().square().sum())
        count += 1
    return f"{count} tensors, norm {square**0.5:.6g}, bits:{digest.hexdigest()}"


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
