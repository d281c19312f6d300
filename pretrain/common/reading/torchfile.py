"""Files that torch.save writes: zip files since 1.6, a stream of pickles and raw data before. And pieces of such files.

Source: pytorch, torch/serialization.py (`_save`, `_legacy_save`, `_load`, `_legacy_load`).
"""

import io
import struct
import zipfile
import zlib

from ..errors import shorten
from .names import STORAGES, Global
from .tensors import BadFile, Source, Storage, StorageView
from .unpickle import Unpickler

MAX_PICKLE = 1 << 28  # bytes of a zip's data.pkl, which holds no tensor data
MAX_TABLE = 1 << 25  # bytes of a zip's table of contents: 200,000 records
MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file older than 1.6; the second is 1001


def _storage_id(pid, length: int) -> tuple:
    """(dtype or None, key, nbytes, the rest) of torch's persistent id ('storage', class, key, device, numel, ...)."""
    if type(pid) is tuple and pid and pid[0] == "module":
        raise BadFile("a whole pickled module: save its state_dict() instead")
    if type(pid) is not tuple or len(pid) != length or pid[0] != "storage":
        raise BadFile("damaged pickle: a storage's id")
    _, storage_class, key, _device, numel, *rest = pid
    if not isinstance(storage_class, Global) or storage_class.name not in STORAGES:
        raise BadFile(f"storage type {shorten(storage_class)} is not supported")
    if type(key) is not str or type(numel) is not int or numel < 0:
        raise BadFile("damaged pickle: a storage's key or size")
    dtype = STORAGES[storage_class.name]
    return dtype, key, numel * (dtype.itemsize if dtype else 1), rest


def _view(storage: Storage, dtype, nbytes: int) -> StorageView:
    if nbytes != storage.nbytes:
        raise BadFile(f"storage {shorten(storage.key)} is declared {nbytes} bytes long and has {storage.nbytes}")
    return StorageView(storage, dtype, 0, nbytes)


# -- before 1.6


def read_legacy(source: Source):
    """After the magic: version, system, object, storage keys (pickles), then per key int64 numel and the raw data."""
    mapped = source.buffer
    storages: dict[str, tuple[Storage, int]] = {}  # with the size of an element, in which the file counts

    def persistent(pid) -> StorageView:
        dtype, key, nbytes, (part,) = _storage_id(pid, 6)
        item = dtype.itemsize if dtype else 1
        storage, _ = storages.setdefault(key, (Storage(source, key, nbytes), item))
        view = _view(storage, dtype, nbytes)
        if part is None:
            return view
        if type(part) is not tuple or len(part) != 3 or not all(type(i) is int and i >= 0 for i in part[1:]):
            raise BadFile("damaged pickle: a view of a storage")
        start, size = part[1] * item, part[2] * item
        if start + size > nbytes:
            raise BadFile(f"a view leaves its storage {shorten(key)}")
        return StorageView(storage, dtype, start, size)

    def value(handler=None):
        return Unpickler(mapped, len(mapped), source.path, handler).load()

    version, system = value(), value()
    if version != 1001 or type(system) is not dict or system.get("little_endian") is not True:
        raise BadFile("a torch file of unknown version, or from a big-endian machine")
    tree, keys = value(persistent), value()
    if type(keys) is not list or any(type(k) is not str for k in keys) or sorted(keys) != sorted(storages):
        raise BadFile("the list of storages does not match the tensors")
    position = mapped.tell()
    for key in keys:
        storage, item = storages[key]
        if len(mapped) - position < 8 + storage.nbytes:
            raise BadFile(f"truncated: the file ends before storage {shorten(key)} does; download it again")
        numel = int.from_bytes(mapped[position : position + 8], "little", signed=True)
        if numel * item != storage.nbytes:
            raise BadFile(f"storage {shorten(key)} is declared {storage.nbytes} bytes long and has {numel * item}")
        storage.offset = position + 8
        position += 8 + storage.nbytes
    if position != len(mapped):
        raise BadFile(f"{len(mapped) - position} bytes after the last storage")
    return tree


# -- zip


def read_bytes(data: bytes, path: str):
    """The tree of a torch zip file that is part of another file, `path`. Raises BadFile, UserError."""
    if not data.startswith(b"PK\x03\x04"):
        raise BadFile("not a torch file")
    return read_zip(Source(path, data), io.BytesIO(data))


def read_zip(source: Source, stream):
    """The tree of a zip file of torch; stream: its bytes once more, as a file. Raises BadFile, UserError."""
    records = _records(source.buffer, stream)
    if any(n.endswith(".npy") for n in records):
        raise BadFile("a NumPy archive (.npz): not a checkpoint")
    pickles = [n for n in records if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(pickles) != 1:
        found = "no data.pkl" if not pickles else f"{len(pickles)} data.pkl"
        raise BadFile(f"a zip archive, but not a torch checkpoint ({found}): if the checkpoint is inside, unpack it")
    prefix = pickles[0].removesuffix("data.pkl")
    order = records.get(f"{prefix}byteorder")
    if order and _content(source.buffer, order, "byteorder") != b"little":
        raise BadFile("written on a big-endian machine, which is not supported")
    data = _content(source.buffer, records[pickles[0]], "data.pkl")
    storages: dict[str, Storage] = {}

    def persistent(pid) -> StorageView:
        dtype, key, nbytes, _ = _storage_id(pid, 5)
        if key not in storages:
            if f"{prefix}data/{key}" not in records:
                raise BadFile(f"truncated: storage {shorten(key)} is missing")
            start, size, crc = records[f"{prefix}data/{key}"]
            storages[key] = Storage(source, key, size, start, crc)
        return _view(storages[key], dtype, nbytes)

    pickled = io.BytesIO(data)
    tree = Unpickler(pickled, len(data), source.path, persistent).load()
    if pickled.tell() != len(data):
        raise BadFile(f"{len(data) - pickled.tell()} bytes after the end of data.pkl")
    return tree


def _content(buffer, record: tuple[int, int, int | None], name: str) -> bytes:
    start, size, crc = record
    if size > MAX_PICKLE:
        raise BadFile(f"its {name} is absurdly large (over {MAX_PICKLE} bytes)")
    data = buffer[start : start + size]
    if crc is not None and zlib.crc32(data) != crc:
        raise BadFile(f"record {name} is damaged (CRC-32 differs): download it again")
    return data


def _records(buffer, stream) -> dict[str, tuple[int, int, int | None]]:
    """{name: (start of the data, size, CRC-32)}. CRC 0 is None: torch writes 0 when told not to compute it.

    `zipfile` reads the table of contents; what a mapped file needs is checked here: every record lies in the file, is
    stored as it is, and has a name and bytes of its own; nothing lies behind the table.
    """
    count, start = _table_of_contents(buffer)
    try:
        entries = zipfile.ZipFile(stream).infolist()
    except Exception as error:  # BadZipFile, struct.error, UnicodeDecodeError, NotImplementedError, ...
        raise BadFile(f"damaged zip file: its table of contents ({shorten(error)})") from error
    _refuse_code([entry.orig_filename for entry in entries])
    records, before, previous = {}, 0, ""
    for entry in sorted(entries, key=lambda e: e.header_offset):
        name, begin = entry.orig_filename, entry.header_offset
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise BadFile(f"zip record {shorten(name)} is compressed or encrypted, as torch never writes it")
        if name in records:
            raise BadFile(f"damaged zip file: two records named {shorten(name)}")
        if begin < before:
            raise BadFile(f"damaged zip file: records {shorten(previous)} and {shorten(name)} overlap")
        if buffer[begin : begin + 4] != b"PK\x03\x04" or begin + 30 > start:
            raise BadFile(f"damaged zip file: record {shorten(name)} is not where its table says")
        name_length, extra_length = struct.unpack("<HH", buffer[begin + 26 : begin + 30])
        data = begin + 30 + name_length + extra_length
        records[name] = data, entry.file_size, entry.CRC or None
        before, previous = data + entry.file_size, name
    if before > start or len(records) != count:
        raise BadFile(f"damaged zip file: {len(records)} records of {count}, the last of which ends at {before}")
    return records


def _refuse_code(names: list[str]) -> None:
    """Raise BadFile for torch's archives of programs, whose records of code may be compressed."""
    if any("/code/" in n or n.endswith("constants.pkl") for n in names):
        raise BadFile(
            "a TorchScript archive (torch.jit.save), which holds code. If you trust it as you trust a program: "
            "`selfpatch convert FILE OUT.safetensors --trust-pickle` takes its tensors out"
        )
    if any(n.endswith("/archive_format") or n.endswith("models/model.json") for n in names):
        raise BadFile("a torch.export program (.pt2): save the state_dict of its network with torch.save")


def _table_of_contents(buffer) -> tuple[int, int]:
    """(number of records, where their table begins), by the last bytes of a zip file, which the table lies before."""
    tail = buffer[-98:]
    if tail[-22:-18] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        if buffer.rfind(b"PK\x05\x06", max(0, len(buffer) - (1 << 16))) < 0:
            raise BadFile("truncated: a zip file without its table of contents; download it again")
        raise BadFile("damaged zip file: bytes after its end")
    count, size, start = struct.unpack("<10xHII2x", tail[-22:])
    end = len(buffer) - 22
    if tail[-42:-38] == b"PK\x06\x07":  # zip64: the sizes stand in the 56 bytes before this locator
        count, size, start, place = struct.unpack("<32xQQQ8xQ4x", tail[:76])
        end = len(buffer) - 98
        if tail[:4] != b"PK\x06\x06" or place != end:
            raise BadFile("damaged zip file: its zip64 record")
    if start + size != end or size > MAX_TABLE:
        raise BadFile(f"damaged zip file: a table of {size} bytes at {start}")
    return count, start
