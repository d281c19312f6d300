"""Where the records of an uncompressed zip archive lie: torch >= 1.6 stores one per storage, and one pickle.

Own parser (PKWARE's APPNOTE, section 4.3) instead of `zipfile`, for what a mapped file needs: every record must lie in
the file, be stored as it is, and have a name and bytes of its own; nothing is decompressed or allocated.
"""

import mmap
import struct
import zlib

from .tensorref import BadFile, shorten

MAX_RECORDS = 200_000


def read_record(mapped: mmap.mmap, start: int, size: int, crc: int | None, name: str) -> bytes:
    data = mapped[start : start + size]
    if crc is not None and zlib.crc32(data) != crc:
        raise BadFile(f"record {name} is damaged (CRC-32 differs): download it again")
    return data


def zip_records(mapped: mmap.mmap) -> dict[str, tuple[int, int, int | None]]:
    """{name: (start of the data, size, CRC-32)}. CRC 0 is None: torch writes 0 when told not to compute it.

    Raises BadFile; struct.error where the file ends inside a record's header.
    """
    end = mapped.rfind(b"PK\x05\x06", max(0, len(mapped) - 65557))
    if end < 0 or len(mapped) - end < 22:
        raise BadFile("truncated: a zip file without its table of contents; download it again")
    count, size, start, comment = struct.unpack("<10xHIIH", mapped[end : end + 22])
    if end + 22 + comment != len(mapped):
        raise BadFile("damaged zip file: bytes after its end")
    if mapped[end - 20 : end - 16] == b"PK\x06\x07":  # zip64
        (end,) = struct.unpack("<8xQ4x", mapped[end - 20 : end])
        if mapped[end : end + 4] != b"PK\x06\x06" or end + 56 > len(mapped):
            raise BadFile("damaged zip file: its zip64 record")
        count, size, start = struct.unpack("<32xQQQ", mapped[end : end + 56])
    if count > MAX_RECORDS or start + size != end:
        raise BadFile(f"damaged zip file: a table of {count} records, {size} bytes at {start}")
    records, spans, pos = {}, [], start
    for _ in range(count):
        if mapped[pos : pos + 4] != b"PK\x01\x02" or pos + 46 > end:
            raise BadFile("damaged zip file: its table of contents")
        fields = struct.unpack("<8xHH4xIIIHHH8xI", mapped[pos : pos + 46])
        flags, method, crc, packed, full, n_name, n_extra, n_comment, local = fields
        raw = mapped[pos + 46 : pos + 46 + n_name]
        name, extra = raw.decode("utf-8", "surrogateescape"), mapped[pos + 46 + n_name : pos + 46 + n_name + n_extra]
        full, packed, local = _zip64(extra, full, packed, local)
        pos += 46 + n_name + n_extra + n_comment
        if method or packed != full or flags & 1:
            raise BadFile(f"zip record {shorten(name)} is compressed or encrypted, as torch never writes it")
        if name in records:
            raise BadFile(f"damaged zip file: two records named {shorten(name)}")
        if mapped[local : local + 4] != b"PK\x03\x04" or local + 30 > start:
            raise BadFile(f"damaged zip file: record {shorten(name)} is not where its table says")
        m_name, m_extra = struct.unpack("<26xHH", mapped[local : local + 30])
        begin = local + 30 + m_name + m_extra
        if mapped[local + 30 : local + 30 + m_name] != raw:
            raise BadFile(f"damaged zip file: record {shorten(name)} has another name in its own header")
        records[name] = begin, full, crc or None
        spans.append((local, begin + full, name))
    if pos != end:
        raise BadFile("damaged zip file: its table of contents")
    spans.sort()
    for (_, stop, name), (following, _, _) in zip(spans, [*spans[1:], (start, 0, "")], strict=True):
        if stop > following:
            raise BadFile(f"damaged zip file: record {shorten(name)} runs into another one")
    return records


def _zip64(extra: bytes, *values: int) -> list[int]:
    """Sizes and offset of 0xFFFFFFFF stand, in this order, as 64 bits in the extra field 1."""
    if 0xFFFFFFFF not in values:
        return list(values)
    wide, pos = b"", 0
    while pos + 4 <= len(extra):
        tag, size = struct.unpack_from("<HH", extra, pos)
        if tag == 1:
            wide = extra[pos + 4 : pos + 4 + size]
        pos += 4 + size
    numbers = iter(struct.unpack_from(f"<{len(wide) // 8}Q", wide))
    return [next(numbers, v) if v == 0xFFFFFFFF else v for v in values]
