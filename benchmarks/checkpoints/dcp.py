"""Folders of torch.distributed.checkpoint: `.metadata` says where the pieces of each tensor lie in `*.distcp` files.

Source: pytorch 2.14, torch/distributed/checkpoint/{metadata,filesystem}.py. `.metadata` is a pickle of dataclasses;
every piece is a torch file of its own inside a `.distcp` file, and so is every value that is no tensor. Pieces are read
when the tensor is asked for.
"""

import mmap
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch

from ...pretrain.common.errors import UserError, shorten
from ...pretrain.common.reading.files import map_file
from ...pretrain.common.reading.flatten import flatten
from ...pretrain.common.reading.names import Inert
from ...pretrain.common.reading.tensors import DTYPES, MAX_DIM, BadFile, one_error
from ...pretrain.common.reading.torchfile import read_bytes
from ...pretrain.common.reading.unpickle import Unpickler

MAX_VALUE = 1 << 24  # bytes of a value that is no tensor
MAX_PIECES = 100_000


@dataclass(eq=False)
class Piece:
    """`nbytes` of a `.distcp` file from `start`: a torch file that holds the part of a tensor at `offsets`."""

    file: Path
    start: int
    nbytes: int
    offsets: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()


@dataclass(eq=False)
class PiecedTensor:
    """A tensor in pieces, not read yet; like `TensorRef`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: list[Piece]
    files: dict[Path, mmap.mmap] = field(repr=False)

    def load(self) -> torch.Tensor:
        """The tensor, on the CPU. Raises UserError where a piece is not what the metadata say."""
        parts = [self._part(piece) for piece in self.pieces]
        if len(parts) == 1 and parts[0].shape == self.shape:
            return parts[0]
        whole = torch.empty(self.shape, dtype=self.dtype)  # no larger than its pieces, which are there
        for piece, part in zip(self.pieces, parts, strict=True):
            window = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.shape, strict=True))
            whole[window] = part
        return whole

    def _part(self, piece: Piece) -> torch.Tensor:
        with one_error(f"{piece.file}: {shorten(self.name)}"):
            tree = _value(piece, self.files)
        tensors, _ = flatten(tree, str(piece.file))
        if len(tensors) != 1:
            raise UserError(f"{piece.file}: the piece of {shorten(self.name)} holds {len(tensors)} tensors")
        part = next(iter(tensors.values()))
        if (part.dtype, tuple(part.shape)) != (self.dtype, piece.shape):
            found = f"{part.dtype} {list(part.shape)} instead of {self.dtype} {list(piece.shape)}"
            raise UserError(f"{piece.file}: the piece of {shorten(self.name)} is {found}")
        return part.load()


def _value(piece: Piece, files: dict[Path, mmap.mmap]):
    """What a torch file inside a `.distcp` file holds. Raises UserError."""
    data = files[piece.file][piece.start : piece.start + piece.nbytes]
    return read_bytes(data, str(piece.file))


def read_dcp(folder: Path) -> tuple[dict[str, PiecedTensor], dict]:
    """Tensors by name, and the values that are no tensors. Raises UserError for a folder that is damaged."""
    where = folder / ".metadata"
    with one_error(str(where)):
        mapped = map_file(str(where))
        tree = Unpickler(mapped, len(mapped), str(where)).load()
        return _read(folder, _fields(tree, "Metadata"))


def _fields(node, cls: str) -> dict:
    """The fields of a placeholder of the class `cls`."""
    if not isinstance(node, Inert) or not node.name.endswith(f".{cls}") or not isinstance(node.state, dict):
        raise BadFile(f"no {cls} of torch.distributed.checkpoint: {shorten(node)}")
    return node.state


def _numbers(value) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > 64 or not all(type(i) is int and 0 <= i < MAX_DIM for i in value):
        raise BadFile(f"{shorten(value)} is no shape")
    return value


def _read(folder: Path, metadata: dict) -> tuple[dict[str, PiecedTensor], dict]:
    files: dict[Path, mmap.mmap] = {}
    stored: dict[tuple, Piece] = {}
    if len(metadata["storage_data"]) > MAX_PIECES:
        raise BadFile(f"more than {MAX_PIECES} pieces")
    for index, info in metadata["storage_data"].items():
        index, info = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
        name, start, size = info["relative_path"], info["offset"], info["length"]
        if type(name) is not str or not name.endswith(".distcp") or Path(name).name != name:
            raise BadFile(f"names the file {shorten(name)}, which is not one beside it")
        if info.get("transform_descriptors"):
            raise BadFile("its pieces are compressed or encrypted, which is not supported")
        path = folder / name
        if path not in files:
            files[path] = map_file(str(path))
        if type(start) is not int or type(size) is not int or not 0 <= start <= start + size <= len(files[path]):
            raise BadFile(f"a piece leaves {name}: truncated, copy it again")
        offset = index.get("offset")
        stored[index["fqn"], None if offset is None else _numbers(offset)] = Piece(path, start, size)
    tensors, values = {}, {}
    for name, about in metadata["state_dict_metadata"].items():
        if type(name) is not str or not name.isprintable():
            raise BadFile("a name that cannot be printed")
        if isinstance(about, Inert) and about.name.endswith(".BytesStorageMetadata"):
            piece = stored.get((name, None))
            if piece and piece.nbytes <= MAX_VALUE:
                values[name] = flatten(_value(piece, files), str(piece.file))[1]
        else:
            tensors[name] = _tensor(name, _fields(about, "TensorStorageMetadata"), stored, files)
    return tensors, _nested(values)


def _tensor(name: str, about: dict, stored: dict, files: dict) -> PiecedTensor:
    """The pieces of one tensor, which must fill it: their sizes add up, and each lies inside it."""
    properties = about["properties"]
    dtype = properties.state[0] if isinstance(properties, Inert) and type(properties.state) is tuple else None
    shape, pieces = _numbers(about["size"]), []
    if dtype not in DTYPES.values() or type(about["chunks"]) is not list:
        raise BadFile(f"{shorten(name)}: its dtype or pieces")
    seen = set()
    for chunk in about["chunks"]:
        part = _fields(chunk, "ChunkStorageMetadata")
        offsets, sizes = _numbers(part["offsets"]), _numbers(part["sizes"])
        piece = stored.get((name, offsets)) or (stored.get((name, None)) if len(about["chunks"]) == 1 else None)
        if piece is None:
            raise BadFile(f"{shorten(name)}: no file has its piece at {list(offsets)}")
        inside = len(offsets) == len(sizes) == len(shape) and all(
            o + n <= s for o, n, s in zip(offsets, sizes, shape, strict=True)
        )
        if not inside or offsets in seen or prod(sizes) * dtype.itemsize > piece.nbytes:
            raise BadFile(f"{shorten(name)}: its piece of {list(sizes)} at {list(offsets)}")
        seen.add(offsets)
        pieces.append(Piece(piece.file, piece.start, piece.nbytes, offsets, sizes))
    if sum(prod(p.shape) for p in pieces) != prod(shape) or _overlap(pieces):
        raise BadFile(f"{shorten(name)}: its pieces do not make up {list(shape)}")
    return PiecedTensor(name, dtype, shape, pieces, files)


def _overlap(pieces: list[Piece]) -> bool:
    """Do any two pieces share an element? Pieces along one axis, as all sharding makes them, are compared in order."""
    ordered = sorted((p for p in pieces if prod(p.shape)), key=lambda p: p.offsets)
    for i, a in enumerate(ordered):
        for b in ordered[i + 1 :]:
            if a.offsets and b.offsets[0] >= a.offsets[0] + a.shape[0]:
                break
            apart = any(
                p >= o + n or o >= p + m for o, n, p, m in zip(a.offsets, a.shape, b.offsets, b.shape, strict=True)
            )
            if not apart:
                return True
    return False


def _nested(values: dict) -> dict:
    """`args.arch: x` as {"args": {"arch": x}}, where the names allow it."""
    out: dict = {}
    for name, value in values.items():
        *path, last = name.split(".")
        place = out
        for part in path:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.setdefault(last, value)
    return out
