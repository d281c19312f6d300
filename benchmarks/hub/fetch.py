"""`selfpatch zoo fetch`: a public checkpoint from its authors' server, resumed and checked. Never used during a run.

Only a whole file that agrees with everything that is known of it gets its name.
"""

import hashlib
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ...pretrain.common.atomic import os_error
from ...pretrain.common.errors import UserError
from ...pretrain.common.locks import take
from ...pretrain.common.progress import Reporter, line_console
from .download import Progress, download, open_part
from .zoo import Public, get, remember


@dataclass(frozen=True)
class Fetched:
    """A file that is there. agreed: what it was checked by, in words, [] if nothing is known; remembered: the list
    that its facts were written to, None without a digest that agreed; new: it was fetched just now."""

    path: Path
    size: int
    sha256: str
    agreed: list[str]
    remembered: Path | None
    new: bool


class _Differs(Exception):
    """The file is not the one that is known."""


def fetch(
    entry: Public,
    folder: Path,
    report: Progress | None = None,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: float = 1.0,
) -> Fetched:
    """Get a checkpoint into `folder`, or check the one that is there under its name.

    report: (MB done, MB in all, "MB"). attempts: tries in a row that bring no further byte, `pause` seconds apart and
    doubling; timeout: seconds that the server may be silent. Raises UserError; what was fetched so far is kept, unless
    it is wrong, and no file appears under the final name.
    """
    if entry.url.startswith(("timm:", "hf:")):
        raise UserError(f"{entry.name}: give {entry.url} to `selfpatch run` in place of a file")
    if not entry.file or not entry.url:
        raise UserError(f"{entry.name}: {entry.note or 'no file is offered'} ({entry.url or 'no address'})")
    target = folder / entry.file
    if target.exists():
        try:
            return _fetched(entry, target, *_check(entry, target), new=False)
        except _Differs as error:
            raise UserError(f"{target} is there already and {error}: move it away, or give another --out") from None
        except OSError as error:
            raise UserError(f"{target} is there already and cannot be read: {error.strerror or error}") from None
    if entry.by_hand:
        raise UserError(
            f"{entry.name} is fetched by hand: open {entry.url} in a browser, save the file as {target}, and repeat "
            "this command to check it"
        )
    if not entry.url.startswith(("http://", "https://")):
        raise UserError(f"{entry.name}: {entry.url} is neither http nor https")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_part(target) as part:
            for last in (False, True):
                download(entry, part, report, attempts, timeout, pause)
                try:
                    checked = _check(entry, part.path)
                    break
                except _Differs as error:  # damaged on the way, or another file at that address: once more from 0
                    part.clear()
                    if last:
                        raise UserError(f"{entry.name}: what {entry.url} sends {error}; nothing was kept", 1) from None
            part.publish(target)
        return _fetched(entry, target, *checked, new=True)
    except OSError as error:
        raise UserError(f"{entry.name}: cannot write {target}: {error.strerror or error}", 1) from None


def _check(entry: Public, path: Path) -> tuple[str, list[str]]:
    """(sha256, what agreed). Raises _Differs."""
    size, agreed = path.stat().st_size, []
    if entry.size is not None:
        if size != entry.size:
            raise _Differs(f"has {size} bytes, not {entry.size}")
        agreed.append("size")
    found = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            for digest in found.values():
                digest.update(data)
    for name, digest in found.items():
        wanted, has = getattr(entry, name), digest.hexdigest()
        if not wanted:
            continue
        if not has.startswith(wanted):
            raise _Differs(f"has the {name} {has}, which does not begin with {wanted}")
        agreed.append(name if len(wanted) == len(has) else f"{name}'s first {len(wanted)} digits")
    return found["sha256"].hexdigest(), agreed


def _fetched(entry: Public, path: Path, sha256: str, agreed: list[str], new: bool) -> Fetched:
    """The file, once its facts are in the list beside it. A size alone proves nothing; a digest, or its first digits,
    does."""
    size, remembered = path.stat().st_size, None
    if entry.facts and any(text.startswith(("sha256", "md5")) for text in agreed):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            take(folder, math.inf)  # several fetches into one folder share the list
            remembered = remember(path.parent, entry, sha256, size)
        except (OSError, UserError) as error:
            if os_error(error) is None:
                raise  # else the folder is only read: the facts are in the built-in list
        finally:
            os.close(folder)
    return Fetched(path, size, sha256, agreed, remembered, new)


def fetch_command(names: list[str], folder: Path) -> int:
    """`selfpatch zoo fetch`: one after the other; -> exit status. Raises UserError for an unknown name before work."""
    if not names:
        raise UserError("zoo fetch: which? `selfpatch zoo` lists the names")
    entries = [get(name) for name in dict.fromkeys(names)]
    console, status = line_console(file=sys.stdout), 0
    for entry in entries:
        try:
            with Reporter(entry.name, console) as report:
                found = fetch(entry, folder, report)
        except UserError as error:
            if len(entries) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        state = "fetched" if found.new else "there already"
        checked = f"agrees: {', '.join(found.agreed)}" if found.agreed else "nothing is known to check it by"
        print(f"{entry.name}: {found.path} {state}, {found.size} bytes, sha256 {found.sha256}; {checked}")
        flags = "" if found.remembered or not entry.flags else f" {entry.flags}"
        print(f"  selfpatch run {found.path}{flags} --task ...")
    return status
