"""Where the images of tar shards lie, and what their .cls members say of them (webdataset's layout)."""

import contextlib
import hashlib
import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..common.atomic import write_atomic
from ..common.errors import UserError
from ..common.machine import cache_folder
from .listing import is_image, said, unknown

VERSION = b"2"
_BLOCK = 2**20
_LABEL = 200  # bytes of the longest label


@dataclass
class Index:
    """names: SHARD/MEMBER of every image. place: int64 [n, 3]: shard, offset, bytes. labels: the text of the .cls
    member with the same key, '' without one. notes: lines for the user."""

    names: list[str] = field(default_factory=list)
    place: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))
    labels: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def index(root: Path, shards: list[str]) -> Index:
    """Kept in the cache folder, since reading every header of a large set takes minutes; a shard that changed makes it
    anew. Raises UserError naming a shard that is not whole, or a label that is none."""
    stamp = hashlib.sha256(VERSION)
    for shard in shards:
        about = (root / shard).stat()
        when = f"{about.st_size}\0{about.st_mtime_ns}\0{about.st_ctime_ns}\0{about.st_ino}"
        stamp.update(os.fsencode(f"{(root / shard).resolve()}\0{when}\n"))
    cached = cache_folder() / "tar" / f"{stamp.hexdigest()[:24]}.npz"
    absent = contextlib.suppress(OSError, ValueError, KeyError, EOFError)  # or damaged
    with absent, np.load(cached, allow_pickle=False) as stored:
        names, labels = ([os.fsdecode(n) for n in stored[k].tobytes().split(b"\0")] for k in ("names", "labels"))
        return Index(names, stored["place"], labels, json.loads(stored["notes"].tobytes()))
    found, left_out, shared, place = Index(), Counter(), [], []
    for number, shard in enumerate(shards):
        images, labels = _read(root / shard, left_out, shared)
        for name, (offset, size) in images.items():
            found.names.append(f"{shard}/{name}")
            found.labels.append(labels.get(key_of(name), ""))
            place.append((number, offset, size))
    found.place = np.array(place, np.int64).reshape(-1, 3)
    found.notes = [text] if (text := said(left_out)) else []
    if shared:
        example = f"{shared[0][0]}, {shared[0][1]}"
        found.notes.append(f"{len(shared)} images have the key of another ({example}): every one of them is used")
    if found.names:
        _keep(cached, found)
    return found


def _keep(file: Path, found: Index) -> None:
    """Without it the next time only takes longer."""
    texts = {k: b"\0".join(map(os.fsencode, getattr(found, k))) for k in ("names", "labels")}
    arrays = {k: np.frombuffer(v, np.uint8) for k, v in (texts | {"notes": json.dumps(found.notes).encode()}).items()}
    with contextlib.suppress(OSError, UserError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, lambda handle: np.savez(handle, place=found.place, **arrays), sync=False)


def key_of(member: str) -> str:
    """What the members of one sample share: the path up to the first dot of the file's name."""
    folder, slash, name = member.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _read(shard: Path, left_out: Counter, shared: list) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Images of one shard, {member: (offset, bytes)}, and labels by key. left_out: counts what is neither; shared:
    gets pairs of images with one key."""
    images, labels, keys = {}, {}, {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # tarfile would keep every header of the shard
                base = member.name.rpartition("/")[2]
                if member.isdir() or base.startswith("."):
                    continue
                if not member.isreg() or member.issparse():
                    left_out["links or special members"] += 1
                elif is_image(base):
                    images[member.name] = member.offset_data, member.size
                    first = keys.setdefault(key_of(member.name), member.name)
                    shared += [(first, member.name)] * (first != member.name)
                elif base.endswith(".cls"):
                    labels[key_of(member.name)] = _label(shard, member, tar)
                elif kind := unknown(base):
                    left_out[kind] += 1
            end = tar.offset
        _check_end(shard, end)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{shard}: not a whole, uncompressed tar file: {error}") from None
    return images, labels


def _label(shard: Path, member: tarfile.TarInfo, tar: tarfile.TarFile) -> str:
    """'7' of '7', '07' or '7\\n', or a name of one line."""
    data = tar.extractfile(member).read(_LABEL + 1)
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() or not text or len(data) > _LABEL:
        raise UserError(f"{shard}: {member.name}: {data[:20]!r} is no class: a number or a name of one line is")
    return str(int(text)) if text.isdecimal() else text


def _check_end(shard: Path, end: int) -> None:
    """Python's tarfile takes the end of the file, or a damaged header, for the end of the archive. Raises TarError
    unless a block of zeros is there, and nothing but zeros behind it."""
    with open(shard, "rb") as file:
        file.seek(end)
        first = file.read(tarfile.BLOCKSIZE)
        if len(first) < tarfile.BLOCKSIZE or any(first):
            raise tarfile.TarError(f"its end mark is missing at byte {end}: it was cut, or is damaged there")
        while data := file.read(_BLOCK):
            if data.count(0) < len(data):
                raise tarfile.TarError(f"there is more behind its end mark at byte {end}: were two files joined?")
