"""One file over HTTP into a part beside its final name, resumed where it broke off. Used by fetch.py only.

Bytes go to `.NAME.part`; `.NAME.part.json` says of which version on the server they are.
"""

import errno
import http.client
import json
import math
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from ...pretrain.common.atomic import write_atomic
from ...pretrain.common.errors import UserError
from ...pretrain.common.locks import is_at, take
from .zoo import Public

CHUNK = 1 << 18
AGAIN = {408, 425, 429, 500, 502, 503, 504}  # answers after which another try may succeed

Progress = Callable[[float, float, str], None]  # (MB done, MB in all, "MB")


class Broken(Exception):
    """The transfer stopped; another try may get further."""


@dataclass
class Part:
    """What has arrived of a file. origin: url, validator and total length of the version that it is of."""

    path: Path
    file: BinaryIO
    origin: dict

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def begin(self, origin: dict) -> None:
        """Forget the bytes; those that follow are of `origin`."""
        self.file.truncate(0)
        self.origin = origin
        write_atomic(self.note, json.dumps(origin), sync=False)

    def clear(self) -> None:
        """Forget everything."""
        self.file.truncate(0)
        self.origin = {}
        self.note.unlink(missing_ok=True)

    def publish(self, target: Path) -> None:
        """Give the whole file its name. Raises UserError where there is a file of that name."""
        os.fsync(self.file.fileno())
        if target.exists():
            raise UserError(f"{target} has appeared meanwhile; the fetched one is {self.path}")
        os.replace(self.path, target)
        self.note.unlink(missing_ok=True)


@contextmanager
def open_part(target: Path) -> Iterator[Part]:
    """The part of `target`, locked against other processes (UserError); an empty one does not stay."""
    path = target.with_name(f".{target.name}.part")
    with path.open("ab", buffering=0) as file:
        if not (take(file.fileno()) and is_at(file.fileno(), path)):  # locked, or given its final name meanwhile
            raise UserError(f"{target}: another process is fetching it; wait for it, then repeat this command")
        part = Part(path, file, {})
        with suppress(OSError, ValueError):
            origin = json.loads(part.note.read_text(encoding="utf-8"))
            part.origin = origin if isinstance(origin, dict) else {}
        try:
            yield part
        finally:
            if part.size == 0 and is_at(file.fileno(), path):
                path.unlink()
                part.note.unlink(missing_ok=True)


def download(entry: Public, part: Part, report: Progress | None, attempts: int, timeout: float, pause: float) -> None:
    """Fill the part until it is as long as the server says. Arguments as in fetch.fetch; raises UserError."""
    furthest, idle = part.size, 0
    while True:
        try:
            return _request(entry, part, report, timeout)
        except Broken as error:
            idle = 0 if part.size > furthest else idle + 1
            furthest = max(furthest, part.size)
            if idle >= attempts:
                kept = f"; {part.size} bytes are kept: the same command goes on from there" if part.size else ""
                tries = f"gave up after {attempts} tries that brought no further byte"
                raise refusal(entry, f"{error}; {tries}{kept}") from None
            time.sleep(pause * 2**idle)


def refusal(entry: Public, why: str) -> UserError:
    """`NAME: URL answers 404 ...`"""
    return UserError(f"{entry.name}: {entry.url} {why}", 1)


def _request(entry: Public, part: Part, report: Progress | None, timeout: float) -> None:
    """Ask once for what is missing. Returns once all is there; raises Broken, or UserError if it is hopeless."""
    have = part.size if part.origin.get("url") == entry.url and part.origin.get("total") else 0
    headers = {"User-Agent": "selfpatch-bench", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator := part.origin.get("validator"):
            headers["If-Range"] = validator
    try:
        request = urllib.request.Request(entry.url, headers=headers)
        answer = urllib.request.build_opener(_Redirect).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have and have == part.origin["total"]:
            return  # nothing follows because all is there
        if error.code == 416 and have:
            part.clear()
            raise Broken("has no such part") from None
        if error.code in AGAIN:
            raise Broken(f"answers {error.code} {error.reason}") from None
        raise refusal(entry, f"answers {error.code} {error.reason}; has it moved?") from None
    except urllib.error.URLError as error:
        raise Broken(f"cannot be reached ({error.reason})") from None
    except (OSError, http.client.HTTPException) as error:
        raise Broken(f"broke off ({type(error).__name__})") from None
    except ValueError as error:
        raise UserError(f"{entry.name}: {entry.url} is no address ({error})") from None
    with answer:
        start, total = _extent(entry, answer)
        if start != (have if answer.status == 206 else 0) or (start and total != part.origin["total"]):
            part.clear()
            raise Broken("answered with another part, or with another file")
        if not start:
            part.begin({"url": entry.url, "validator": _validator(answer.headers), "total": total})
        _copy(entry, part, answer, total, report)


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, and never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise UserError(f"{req.full_url} leads to {newurl}, which is not followed", 1)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _validator(headers) -> str | None:
    """What tells versions of the file apart for If-Range: a strong ETag, else the date."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _extent(entry: Public, answer) -> tuple[int, int | None]:
    """(first byte, length of the whole file or None) of what an answer sends. Raises UserError where it is no file."""
    if answer.status not in (200, 206):
        raise refusal(entry, f"answers {answer.status}, without a file")
    if answer.headers.get_content_type() == "text/html":
        raise refusal(entry, "answers with a web page, not a file: open it in a browser")
    if (encoding := answer.headers.get("Content-Encoding", "identity")) != "identity":
        raise refusal(entry, f"sends the file packed ({encoding}), which was not asked")
    start, length = 0, answer.headers.get("Content-Length", "")
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if not found:
            raise Broken("answered with a part that it does not describe")
        start, length = int(found[1]), found[2]
    total = int(length) if length.isdigit() else None
    if total is None and entry.size is None and not (entry.sha256 or entry.md5):
        raise refusal(entry, "does not say how long the file is, and nothing is known to check it by")
    if total is not None and entry.size is not None and total != entry.size:
        raise refusal(entry, f"offers {total} bytes, the known file has {entry.size}: not fetched")
    return start, total


def _copy(entry: Public, part: Part, answer, total: int | None, report: Progress | None) -> None:
    """Append what the answer sends. Raises Broken where that is less or more than it should be."""
    folder, limit = part.path.parent, total or entry.size
    missing, free = (limit or 0) - part.size, shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(f"{entry.name}: {missing} bytes are to come, {free} are free in {folder}", 1)
    while True:
        try:
            data = answer.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"broke off ({type(error).__name__}) after {part.size} bytes") from None
        if not data:
            break
        if limit and part.size + len(data) > limit:
            part.clear()
            raise Broken(f"sent more than {limit} bytes")
        if part.file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if report and limit:
            whole = math.ceil(limit / 1e5) / 10
            report(whole if part.size == limit else math.floor(part.size / 1e5) / 10, whole, "MB")
    if total is not None and part.size < total:  # a connection that just closes looks like an end
        raise Broken(f"broke off after {part.size} of {total} bytes")
