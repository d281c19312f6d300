"""The lists in a large json file, read a piece at a time: all of COCO at once would take 4 GB of memory."""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ....pretrain.common.errors import UserError
from ....pretrain.common.reading.regular import open_regular

MOST = 1 << 24  # characters of one entry: what it becomes in memory is bounded by that
_SPACE = re.compile(r"[ \t\n\r]*")
_LONGEST = 10  # characters of json's longest word, -Infinity, and one more
_STARTS = (  # what is no json by its first bytes
    (codecs.BOM_UTF8, "starts with a byte order mark, at which mm's readers stop: save it as UTF-8 without one"),
    (codecs.BOM_UTF16_LE, "is UTF-16, which mm's readers do not take: save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "is UTF-16, which mm's readers do not take: save it as UTF-8"),
    (b"\x1f\x8b", "is compressed (gzip): unpack it"),
    (b"PK\x03\x04", "is compressed (zip): unpack it"),
    (b"\0", "broken json, copy it again: it begins with zeros"),
)


class JsonLists:
    """Iterating gives (name, some of its entries, in order) for the lists `names` in the object that a file holds.

    Memory is bounded by `MOST`, whatever the file holds. report(bytes read, bytes of the file) is called after every
    piece. After the last entry: `sha256` and `bytes` of the file. UserError naming the file: it cannot be read, is
    no json, lacks one of the lists or has it twice, or an entry is longer than `MOST`.
    """

    PIECE = 1 << 22  # bytes that are read at once

    def __init__(self, path: Path, names: Sequence[str], report: Callable[[int, int], None] = lambda *_: None):
        self.path, self.names, self.report = path, names, report
        self.text, self.at, self.before = "", 0, 0  # a part of the file, where to read on, and characters before it
        self.bytes, self.ended, self._hash = 0, False, hashlib.sha256()
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._scan = json.JSONDecoder().raw_decode

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[tuple[str, list]]:
        try:
            with open_regular(self.path) as self._file:
                self._size = os.fstat(self._file.fileno()).st_size
                yield from self._object()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def _object(self) -> Iterator[tuple[str, list]]:
        found = set()
        if self._sign() != "{":
            self._value()
            raise self._lacks(self.names[0])
        if end := self._next() == "}":
            self._sign()
        while not end:
            name = self._value()
            if type(name) is not str or self._sign() != ":":
                raise self._broken("a name and a colon are expected")
            if name in self.names and name in found:
                raise UserError(f"{self.path}: '{name}' occurs twice")
            found.add(name)
            if self._next() == "[":
                for entries in self._entries():
                    if name in self.names:
                        yield name, entries
            else:
                self._value()
                if name in self.names:
                    raise self._lacks(name)
            end = self._end("}")
        if self._next():
            raise self._broken("something behind its end")
        for name in self.names:
            if name not in found:
                raise self._lacks(name)

    def _entries(self) -> Iterator[list]:
        """The entries of a list, as many at a time as one piece of the file holds."""
        self._sign()
        if self._next() == "]":
            self._sign()
            return
        entries, end, before = [], False, self.before
        while not end:
            entries.append(self._value())
            end = self._end("]")
            if end or self.before != before:
                yield entries
                entries, before = [], self.before

    def _more(self) -> None:
        data = self._file.read(self.PIECE)
        if not self.bytes:
            for start, what in _STARTS:
                if data.startswith(start):
                    raise UserError(f"{self.path}: {what}")
        self.bytes += len(data)
        self._hash.update(data)
        self.ended = not data
        try:
            text = self._decode(data, self.ended)
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: broken json, copy it again: it is not UTF-8") from None
        self.before += self.at
        self.text, self.at = self.text[self.at :] + text, 0
        if data:
            self.report(self.bytes, self._size)

    def _next(self) -> str:
        """The next character that is no space; it stays the next. '' at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more()

    def _sign(self) -> str:
        sign = self._next()
        self.at += len(sign)
        return sign

    def _end(self, end: str) -> bool:
        """Whether a list or an object ends here, else goes on."""
        if (sign := self._sign()) not in (end, ","):
            raise self._broken(f"a comma or {end} is expected")
        return sign == end

    def _value(self):
        """The value that begins here, whole."""
        self._next()
        while True:
            try:
                value, end = self._scan(self.text, self.at)
                if end + _LONGEST < len(self.text) or self.ended:  # else a number could go on: 1.5 of 1.5e-3
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.text) - _LONGEST or error.msg.startswith("Unterminated")
                if self.ended or not cut:
                    self.at = error.pos
                    raise self._broken(error.msg) from None
            except RecursionError:
                raise self._broken("lists within lists, without end") from None
            except ValueError:  # of Python's int()
                raise self._broken("a number of thousands of digits") from None
            if len(self.text) - self.at > MOST:
                raise self._broken(f"an entry of more than {MOST >> 20} million characters")
            self._more()

    def _broken(self, what: str) -> UserError:
        return UserError(f"{self.path}: broken json, copy it again: {what} (character {self.before + self.at})")

    def _lacks(self, name: str) -> UserError:
        return UserError(f"{self.path}: no list '{name}': not a file of COCO instances")
