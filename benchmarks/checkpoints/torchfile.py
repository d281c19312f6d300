"""Checkpoint files of every kind, read without running anything in them: `read_checkpoint(path)`.

Zip files of torch >= 1.6, torch's older files, plain pickles of NumPy arrays (detectron2's .pkl) and safetensors, told
apart by content. The file is mapped privately (copy-on-write); tensors stay in it until `TensorRef.load`. Nothing is
allocated from a declared size, and every storage is checked to lie inside the file, on its own. Pickles go through
`unpickle.Machine`. safetensors is parsed here too (its header is JSON; the format is documented in its repository's
README): one mapping, one set of bounds and one kind of message for all files.
"""

import io
import json
import mmap
import os
import pickletools
import stat
import struct
from dataclasses import dataclass
from itertools import islice
from math import prod

from ...pretrain.common.errors import UserError
from . import allowlist
from .tensorref import BadFile, Global, Source, Storage, StorageView, TensorRef, flatten, shorten, tensor_ref
from .unpickle import MAX_OPS, Machine
from .ziprecords import read_record, zip_records

MAX_PICKLE = 1 << 28  # bytes of a zip's data.pkl, which holds no tensor data
MAX_HEADER = 1 << 24  # bytes of safetensors' JSON
MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py: first pickle of a file older than 1.6, then 1001
WANTED = "a checkpoint is a .pth, .pt, .bin, .pkl or .safetensors file"

_FOREIGN = [
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`, or download the file"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"BZh", "bzip2-compressed: unpack it first"),
    (b"\xfd7zXZ\x00", "xz-compressed: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive: unpack it first"),
    (b"Rar!", "a rar archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras, TensorFlow): not a torch checkpoint"),
    (b"\x93NUMPY", "one NumPy array (.npy): not a checkpoint"),
    (b"PK\x05\x06", "an empty zip archive"),
]
_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


@dataclass(eq=False)
class Checkpoint:
    """What a file holds. kind: zip, legacy, pickle or safetensors; nbytes: the file's size.

    tree: dicts, lists, tuples, sets and values; tensors (and NumPy arrays) are `TensorRef`s, Namespaces and config
    classes `Inert`, names of the allow-list `Global`. Of safetensors: tensors by name, and `__metadata__` if present.
    """

    path: str
    kind: str
    tree: object
    nbytes: int

    def flatten(self) -> tuple[dict[str, TensorRef], object]:
        """`tensorref.flatten` of the tree."""
        return flatten(self.tree, self.path)


def read_checkpoint(path) -> Checkpoint:
    """Read any checkpoint file. Raises UserError with one line that names the file for everything that is wrong."""
    path = os.fspath(path)
    try:
        mapped = map_file(path)
        kind, tree = _read(Source(path, mapped), mapped)
        return Checkpoint(path, kind, tree, len(mapped))
    except UserError:
        raise
    except BadFile as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a crafted file makes the parsers raise is the file's fault
        reason = f"{type(error).__name__}: {shorten(error)}"
        raise UserError(f"{path}: damaged, or not a checkpoint file ({reason})") from error


def read_bytes(data: bytes, path: str):
    """The tree of a torch zip file that is part of another file, `path`. Raises BadFile, UserError as above."""
    if not data.startswith(b"PK\x03\x04"):
        raise BadFile("not a torch file")
    try:
        return _read_zip(Source(path, data), data)
    except struct.error as error:
        raise BadFile(f"damaged zip file ({shorten(error)})") from error


def map_file(path: str) -> mmap.mmap:
    """A private mapping of a regular file. Raises BadFile, OSError."""
    info = os.stat(path)
    if stat.S_ISDIR(info.st_mode):
        raise BadFile(f"a folder; {WANTED}")
    if not stat.S_ISREG(info.st_mode):
        raise BadFile(f"not a regular file; {WANTED}")
    if not info.st_size:
        raise BadFile("an empty file: the download or the saving failed")
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _read(source: Source, mapped: mmap.mmap) -> tuple[str, object]:
    head = mapped[:512]
    if (head[8:9] == b"{" and head[4:8] == b"\0\0\0\0") or head[8:10] in (b'{"', b"{}"):
        return "safetensors", _read_safetensors(source, mapped)
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise BadFile(what)
    if head.startswith(b"PK\x03\x04"):
        return "zip", _read_zip(source, mapped)
    if head[257:262] == b"ustar":
        raise BadFile("a tar archive: unpack it first (if torch 0.1 wrote it: load and save it with an old torch)")
    if head[:1] == b"\x80" or head.startswith(b"L%d" % MAGIC) or _decodes_as_pickle(mapped):
        return _read_pickle(source, mapped)
    text = head.decode("utf-8-sig", "replace").rstrip("\ufffd").strip()
    if text.lower().startswith(("<!doctype html", "<html", "<head", "<?xml")):
        raise BadFile(
            "an HTML page, not a checkpoint: the download gave a web page (an error or a login); get it again"
        )
    if all(c.isprintable() or c.isspace() for c in text):
        raise BadFile(f"a text file; {WANTED}")
    raise BadFile(f"not a checkpoint file (its content is of no known kind); {WANTED}")


# -- pickles


def _decodes_as_pickle(mapped: mmap.mmap) -> bool:
    """Protocols 0 and 1 have no magic: a pickle is what decodes as one up to a STOP that is the last byte."""
    if mapped[-1:] != b".":
        return False
    mapped.seek(0)
    try:
        for _ in islice(pickletools.genops(mapped), MAX_OPS):
            pass
    except Exception:
        return False
    return mapped.tell() == len(mapped)


def _read_pickle(source: Source, mapped: mmap.mmap) -> tuple[str, object]:
    """A torch file older than 1.6, or a plain pickle."""
    mapped.seek(0)
    tree = Machine(mapped, len(mapped), source.path, array_tensors=True).run()
    if type(tree) is int and tree == MAGIC:
        return "legacy", _read_legacy(source, mapped)
    if mapped.tell() != len(mapped):
        raise BadFile(f"{len(mapped) - mapped.tell()} bytes after the end of the pickle")
    return "pickle", tree


def _storage_id(pid, length: int) -> tuple:
    """(dtype or None, key, nbytes, the rest) of torch's persistent id ('storage', class, key, device, numel, ...)."""
    if type(pid) is tuple and pid and pid[0] == "module":
        raise BadFile("a whole pickled module: save its state_dict() instead")
    if type(pid) is not tuple or len(pid) != length or pid[0] != "storage":
        raise BadFile("damaged pickle: a storage's id")
    _, kind, key, _device, numel, *rest = pid
    if not isinstance(kind, Global) or kind.name not in allowlist.STORAGES:
        raise BadFile(f"storage type {shorten(kind)} is not supported")
    if type(key) is not str or type(numel) is not int or numel < 0:
        raise BadFile("damaged pickle: a storage's key or size")
    dtype = allowlist.STORAGES[kind.name]
    return dtype, key, numel * (dtype.itemsize if dtype else 1), rest


def _view(storage: Storage, dtype, nbytes: int) -> StorageView:
    if nbytes != storage.nbytes:
        raise BadFile(f"storage {shorten(storage.key)} is declared {nbytes} bytes long and has {storage.nbytes}")
    return StorageView(storage, dtype, 0, nbytes)


def _read_legacy(source: Source, mapped: mmap.mmap):
    """After the magic: version, system, object, storage keys (pickles), then per key int64 numel and the raw data."""
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
        return Machine(mapped, len(mapped), source.path, handler).run()

    version, system = value(), value()
    if version != 1001 or type(system) is not dict or system.get("little_endian") is not True:
        raise BadFile("a torch file of unknown version, or from a big-endian machine")
    tree, keys = value(persistent), value()
    if type(keys) is not list or any(type(k) is not str for k in keys) or sorted(keys) != sorted(storages):
        raise BadFile("the list of storages does not match the tensors")
    pos = mapped.tell()
    for key in keys:
        storage, item = storages[key]
        if len(mapped) - pos < 8 + storage.nbytes:
            raise BadFile(f"truncated: the file ends before storage {shorten(key)} does; download it again")
        (numel,) = struct.unpack("<q", mapped[pos : pos + 8])
        if numel * item != storage.nbytes:
            raise BadFile(f"storage {shorten(key)} is declared {storage.nbytes} bytes long and has {numel * item}")
        storage.offset = pos + 8
        pos += 8 + storage.nbytes
    if pos != len(mapped):
        raise BadFile(f"{len(mapped) - pos} bytes after the last storage")
    return tree


# -- zip


def _read_zip(source: Source, mapped: mmap.mmap):
    records = zip_records(mapped)
    if any("/code/" in n or n.endswith("constants.pkl") for n in records):
        raise BadFile("a TorchScript archive (torch.jit.save), which holds code: save the state_dict with torch.save")
    if any(n.endswith(".npy") for n in records):
        raise BadFile("a NumPy archive (.npz): not a checkpoint")
    pickles = [n for n in records if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(pickles) != 1:
        found = "no data.pkl" if not pickles else f"{len(pickles)} data.pkl"
        raise BadFile(f"a zip archive, but not a torch checkpoint ({found}): if the checkpoint is inside, unpack it")
    prefix = pickles[0].removesuffix("data.pkl")
    order = records.get(prefix + "byteorder")
    if order and read_record(mapped, *order, "byteorder") != b"little":
        raise BadFile("written on a big-endian machine, which is not supported")
    if records[pickles[0]][1] > MAX_PICKLE:
        raise BadFile(f"its data.pkl is absurdly large (over {MAX_PICKLE} bytes)")
    data = read_record(mapped, *records[pickles[0]], "data.pkl")
    storages: dict[str, Storage] = {}

    def persistent(pid) -> StorageView:
        dtype, key, nbytes, _ = _storage_id(pid, 5)
        if key not in storages:
            if f"{prefix}data/{key}" not in records:
                raise BadFile(f"truncated: storage {shorten(key)} is missing")
            start, size, crc = records[f"{prefix}data/{key}"]
            storages[key] = Storage(source, key, size, start, crc)
        return _view(storages[key], dtype, nbytes)

    stream = io.BytesIO(data)
    tree = Machine(stream, len(data), source.path, persistent).run()
    if stream.tell() != len(data):
        raise BadFile(f"{len(data) - stream.tell()} bytes after the end of data.pkl")
    return tree


# -- safetensors


def _read_safetensors(source: Source, mapped: mmap.mmap) -> dict:
    """8 bytes length of the header, the header in JSON, the data without gaps."""
    (length,) = struct.unpack("<Q", mapped[:8])
    if length > len(mapped) - 8:
        raise BadFile(f"truncated or damaged safetensors file: a header of {length} bytes does not fit in the file")
    if length > MAX_HEADER:
        raise BadFile(f"a safetensors header of {length} bytes, which is absurd")
    try:
        header = json.loads(mapped[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise (
            error if isinstance(error, BadFile) else BadFile("damaged safetensors file: its header is no JSON")
        ) from None
    if type(header) is not dict:
        raise BadFile("damaged safetensors file: its header")
    base, total = 8 + length, len(mapped) - 8 - length
    tree, spans = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            if type(entry) is not dict or any(type(v) is not str for v in entry.values()):
                raise BadFile("damaged safetensors file: its metadata")
            tree[name] = entry
            continue
        what = f"tensor {shorten(name)} of a safetensors file"
        if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise BadFile(f"{what}: damaged entry")
        dtype = allowlist.DTYPES.get(_SAFETENSORS.get(str(entry["dtype"]), ""))
        if dtype is None:
            raise BadFile(f"{what}: dtype {shorten(entry['dtype'])} is not supported")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if any(type(x) is not list or any(type(i) is not int or i < 0 for i in x) for x in (shape, offsets)):
            raise BadFile(f"{what}: damaged shape or offsets")
        if len(offsets) != 2 or not offsets[0] <= offsets[1] <= total:
            raise BadFile(f"{what}: offsets {shorten(offsets)} leave the file; truncated, download it again")
        begin, nbytes = offsets[0], offsets[1] - offsets[0]
        stride = [prod(shape[i + 1 :]) if 0 not in shape else 1 for i in range(len(shape[:65]))]
        storage = Storage(source, name, nbytes, base + begin)
        tree[name] = tensor_ref(StorageView(storage, None, 0, nbytes), dtype, 0, shape, stride)
        if tree[name].nbytes != nbytes:
            raise BadFile(f"{what}: shape {shorten(shape)} takes {tree[name].nbytes} bytes and has {nbytes}")
        spans.append((begin, begin + nbytes))
    spans.sort()
    if [s for s, _ in spans] != [0, *(e for _, e in spans)][: len(spans)] or (spans[-1][1] if spans else 0) != total:
        raise BadFile("damaged safetensors file: tensors overlap or leave gaps")
    return tree


def _unique(pairs: list) -> dict:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise BadFile("damaged safetensors file: one name twice")
    return out
