"""Known checkpoints: where their authors offer them, and by name or sha256 what the files themselves do not say.

Lists are `zoo.yaml` beside this file (its head explains an entry), a `zoo.yaml` in each plug-in folder, and
`selfpatch-zoo.yaml` beside a checkpoint, which `selfpatch zoo fetch` writes. A fact is `format`, `row` (the published
row 'METHOD|BACKBONE' that the file made) or a field of the card. Nothing here touches the network; hub/fetch.py does.
"""

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import yaml

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.card import FIELDS, parse_field
from ...pretrain.common.errors import UserError, naming
from ...pretrain.common.plugins import plugin_folders

HERE = Path(__file__).resolve().parent
LOCAL = "selfpatch-zoo.yaml"
FACTS = ("format", "row", *FIELDS)


def _is_line(value) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\n" not in value


TEXTS = ("method", "what", "url", "file", "source", "poster", "note", "name", "format", "row")
VALID = {  # field that is no fact of the card -> is this a value for it?
    **dict.fromkeys(TEXTS, _is_line),
    "size": lambda v: type(v) is int and v > 0,
    **dict.fromkeys(("sha256", "md5"), lambda v: re.fullmatch(r"[0-9a-f]{6,64}", str(v).lower())),
    **dict.fromkeys(("others", "by_hand"), lambda v: isinstance(v, bool)),
}
HUB_NAME = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8,64})\.")  # torch.hub's: the first digits of the sha256; no date


@dataclass(frozen=True)
class Public:
    """One checkpoint that its authors offer; the fields are those of the entry in the list. size in bytes, None: not
    stated; sha256, md5: the stated digits, '' for none."""

    name: str
    method: str = ""
    what: str = ""
    url: str = ""
    file: str = ""
    source: str = ""
    poster: str = ""
    note: str = ""
    size: int | None = None
    sha256: str = ""
    md5: str = ""
    others: bool = False
    by_hand: bool = False
    facts: dict = field(default_factory=dict)

    @property
    def flags(self) -> str:
        """The facts as options of `selfpatch run`."""
        named = {k: v for k, v in self.facts.items() if k in ("format", "heads", "row")}
        more = {k: v for k, v in self.facts.items() if k not in named}
        words = [f"--{k} {_quoted(v)}" for k, v in named.items()]
        return " ".join(words + [f"--card {k}={_quoted(v)}" for k, v in more.items()])


def _quoted(value) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if re.fullmatch(r"[\w.,/+-]+", text) else f"'{text}'"


def _lists() -> list[Path]:
    folders = dict.fromkeys([HERE, *plugin_folders()])  # a folder may be named twice
    return [p for f in folders if (p := f / "zoo.yaml").exists()]


def _read(path: Path) -> dict[str, Public]:
    """A list, checked: name or sha256 (in lower case) -> its entry. Raises UserError that names the entry."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return _parse(path, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=32)
def _parse(path: Path, _stamp: tuple) -> dict[str, Public]:
    """Kept, since every checkpoint that is opened is looked up."""
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
        raise UserError(f"{path} must map a sha256, or the name of a checkpoint, to a table of facts")
    found = {}
    for key, entry in table.items():
        name = str(key).lower() if _is_digest(key) else str(key)
        with naming(f"{path}: {name}"):
            found[name] = _public(name, entry)
    return found


def _public(name: str, entry: Mapping) -> Public:
    """An entry of a list. Raises UserError for a field that does not exist, or a value that it cannot have."""
    for key, value in entry.items():
        if key in FIELDS:
            parse_field(key, value)
        elif key not in VALID:
            raise UserError(f"no field {key}; there are: {', '.join((*VALID, *FIELDS))}")
        elif not VALID[key](value):
            raise UserError(f"{key}: {value!r} is not what it should be (the head of zoo.yaml explains the fields)")
    file = entry.get("file") or ""
    if not file and not entry.get("by_hand"):
        file = PurePosixPath(urlsplit(entry.get("url", "")).path).name
    if file != Path(file).name or file.startswith("."):
        raise UserError(f"file {file} must be a bare name")
    sha256 = name if _is_digest(name) else str(entry.get("sha256", "")).lower()
    if not sha256 and (digits := HUB_NAME.search(file)):
        sha256 = digits[1]
    stated = {k: v for k, v in entry.items() if k not in (*FACTS, "name")}
    stated |= {"file": file, "sha256": sha256, "md5": str(entry.get("md5", "")).lower()}
    return Public(name, facts={k: v for k, v in entry.items() if k in FACTS}, **stated)


def _is_digest(key) -> bool:
    return bool(re.fullmatch(r"[0-9a-fA-F]{64}", str(key)))


def public() -> dict[str, Public]:
    """name -> checkpoint, of all lists, in their order. Raises UserError for a bad list or a name given twice."""
    found: dict[str, Public] = {}
    for path in _lists():
        named = {name: entry for name, entry in _read(path).items() if not _is_digest(name)}
        if twice := sorted(found.keys() & named.keys()):
            raise UserError(f"{path}: a list before it has an entry {twice[0]} already")
        found |= named
    return found


def get(name: str) -> Public:
    """The checkpoint of that name. Raises UserError that names similar ones."""
    known = public()
    if name not in known:
        near = difflib.get_close_matches(name, known, 4, 0.4)
        like = f"; like it: {', '.join(near)}" if near else ""
        raise UserError(f"the zoo has no {name}{like}; `selfpatch zoo` lists all")
    return known[name]


def look_up(path: Path, content=None) -> dict:
    """The facts known of this very file, else {}. Reads the file only if an entry of its size, or of none, exists.

    content: its bytes, where it is open already.
    """
    if not path.is_file():
        return {}
    lists = [*_lists(), *(p for p in [path.parent / LOCAL] if p.is_file())]
    known = {e.sha256: e for source in lists for e in _read(source).values() if _is_digest(e.sha256)}
    size = path.stat().st_size
    if not any(entry.size in (None, size) for entry in known.values()):
        return {}
    if content is not None:
        digest = hashlib.sha256(content)
    else:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    entry = known.get(digest.hexdigest())
    return dict(entry.facts) if entry else {}


def remember(folder: Path, entry: Public, sha256: str, size: int) -> Path:
    """Write the facts of a file that was checked to the list beside it; -> the list. Raises UserError, OSError."""
    path = folder / LOCAL
    table = {}
    if path.exists():
        _read(path)  # a list that is none is not added to
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    table[sha256] = {"name": entry.name, "size": size, **entry.facts}
    write_atomic(path, yaml.safe_dump(table, sort_keys=False, allow_unicode=True))
    return path


def listing(names: list[str]) -> str:
    """What `selfpatch zoo` prints: all checkpoints by method, or those named. Raises UserError for an unknown name."""
    chosen = [get(n) for n in dict.fromkeys(names)] if names else list(public().values())
    lines, method = [], None
    for entry in chosen:
        if entry.method != method:
            lines += ([""] if lines else []) + [entry.method or "(no method named)"]
            method = entry.method
        remarks = (("poster", entry.poster), ("run", entry.flags), ("note", entry.note))
        more = [entry.url, _how(entry), *(f"{what}: {text}" for what, text in remarks if text)]
        lines += [f"  {entry.name}: {entry.what}", *(f"      {line}" for line in more)]
    if not names:
        lines += ["", "`selfpatch zoo fetch NAME... --out DIR` fetches; nothing is ever fetched during a run."]
        lines += ["Addresses as their authors' documents have them (source); what no document states is said to be so."]
    return "\n".join(lines)


def _how(entry: Public) -> str:
    """Size and digest in words, and who stated them."""
    if entry.url.startswith(("timm:", "hf:")):
        return f"give {entry.url} to `run` in place of a file; source: {entry.source}"
    who = " (recorded by users, not stated by the authors)" if entry.others else ""
    sizes = f"{entry.size} bytes{who}" if entry.size else "size not stated"
    md5, sha256 = _digest("md5", entry.md5, 32), _digest("sha256", entry.sha256, 64)
    checks = ", ".join(d for d in (md5, sha256 and sha256 + who) if d) or "no checksum stated"
    hand = "; by hand, in a browser" + (f", as {entry.file}" if entry.file else "") if entry.by_hand else ""
    return f"{sizes}, {checks}{hand}; source: {entry.source or 'not named'}"


def _digest(name: str, digits: str, full: int) -> str:
    begins = "" if len(digits) == full else "begins with "
    return f"{name} {begins}{digits}" if digits else ""
