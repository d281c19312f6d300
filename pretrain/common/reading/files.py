"""Stored files of every kind, read without running anything in them: `read_tree(path)`.

Zip files of torch >= 1.6, torch's older files, pickles of NumPy arrays (detectron2's .pkl) and safetensors, told apart
by content. The file is mapped privately (copy-on-write); tensors stay in it until `TensorRef.load`. Nothing is
allocated from a declared size, and every storage is checked to lie inside the file, on its own.
"""

import contextlib
import json
import mmap
import os
import pickletools
import stat
from itertools import islice

from safetensors import safe_open

from ..errors import shorten
from .tensors import DTYPES, BadFile, Source, Storage, TensorRef, dense_ref, one_error
from .torchfile import MAGIC, read_legacy, read_zip
from .unpickle import MAX_OPS, Unpickler

MAX_HEADER = 1 << 24  # bytes of safetensors' JSON
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
    (b"GGUF", "a GGUF file (llama.cpp), of quantised weights: give the file that it was converted from"),
]
_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


def read_tree(path):
    """What a file holds: dicts, lists, tuples, sets and values; tensors (and NumPy arrays) are `TensorRef`s, Namespaces
    and config classes `Inert`, names of the allow-list `Global`. Of safetensors: tensors by name, and `__metadata__` if
    present.

    Raises UserError with one line that names the file for everything that is wrong.
    """
    path = os.fspath(path)
    with one_error(path):
        return _read(Source(path, map_file(path)))


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


def _read(source: Source):
    mapped = source.buffer
    head = mapped[:512]
    if (head[8:9] == b"{" and head[4:8] == b"\0\0\0\0") or head[8:10] in (b'{"', b"{}"):
        return _read_safetensors(source)
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise BadFile(what)
    if head.startswith(b"PK\x03\x04"):
        return read_zip(source, mapped)
    if head[257:262] == b"ustar":
        raise BadFile("a tar archive: unpack it first (if torch 0.1 wrote it: load and save it with an old torch)")
    if head[:1] == b"\x80" or head.startswith(b"L%d" % MAGIC) or _decodes_as_pickle(mapped):
        return _read_pickle(source)
    if _is_onnx(head):
        raise BadFile(
            "an ONNX graph, whose weights have lost their names: give the checkpoint that it was exported from"
        )
    text = head.decode("utf-8-sig", "replace").rstrip("\ufffd").strip()
    if text.lower().startswith(("<!doctype html", "<html", "<head", "<?xml")):
        raise BadFile(
            "an HTML page, not a checkpoint: the download gave a web page (an error or a login); get it again"
        )
    if all(c.isprintable() or c.isspace() for c in text):
        raise BadFile(f"a text file; {WANTED}")
    raise BadFile(f"not a checkpoint file (its content is of no known kind); {WANTED}")


def _is_onnx(head: bytes) -> bool:
    """An ONNX file is a protobuf without magic: its version (field 1), then who made it (field 2) or the graph (7)."""
    return head[:1] == b"\x08" and 0 < head[1] < 32 and head[2:3] in (b"\x12", b"\x1a", b"\x3a")


def _decodes_as_pickle(mapped: mmap.mmap) -> bool:
    """Protocols 0 and 1 have no magic: a pickle is what decodes as one up to a STOP that is the last byte."""
    mapped.seek(0)
    with contextlib.suppress(Exception):
        for _ in islice(pickletools.genops(mapped), MAX_OPS):
            pass
        return mapped.tell() == len(mapped)
    return False


def _read_pickle(source: Source):
    """A torch file older than 1.6, or a pickle of NumPy arrays."""
    mapped = source.buffer
    mapped.seek(0)
    tree = Unpickler(mapped, len(mapped), source.path).load()
    if type(tree) is int and tree == MAGIC:
        return read_legacy(source)
    if mapped.tell() != len(mapped):
        raise BadFile(f"{len(mapped) - mapped.tell()} bytes after the end of the pickle")
    return tree


def _read_safetensors(source: Source) -> dict:
    """8 bytes length of the header, the header in JSON, the data. `safe_open` checks that every name has its own bytes
    and that they fill the file."""
    mapped = source.buffer
    length = int.from_bytes(mapped[:8], "little")
    if length > MAX_HEADER:
        raise BadFile(f"a safetensors header of {length} bytes, which is absurd")
    try:
        with safe_open(source.path, "pt"):
            header = json.loads(mapped[8 : 8 + length])
    except Exception as error:  # safetensors has one kind of error for all, and others for what is no tensor file
        raise BadFile(f"truncated or damaged safetensors file ({shorten(error)})") from error
    metadata = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
    return {name: _safetensor(source, name, 8 + length, **entry) for name, entry in header.items()} | metadata


def _safetensor(source: Source, name: str, base: int, *, dtype: str, shape: list, data_offsets: list) -> TensorRef:
    if _SAFETENSORS.get(dtype) not in DTYPES:
        raise BadFile(f"tensor {shorten(name)} of a safetensors file: dtype {dtype} is not supported")
    begin, end = data_offsets
    return dense_ref(Storage(source, name, end - begin, base + begin), DTYPES[_SAFETENSORS[dtype]], shape)
